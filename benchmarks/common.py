"""What the benchmarks share: interleaved timing, real pictures, and the table that they leave.

Each script measures one claim as a ratio within one run: what is compared is timed in turn, so that a
slow moment of the machine meets all of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ROWS = {"imc_swav": "configs/imc_swav", "pica": "configs"}  # where the files of a paper's row are
RESULTS = ROOT / "benchmarks/results"
sys.path.insert(0, str(ROOT))

from lib.machine import devices  # noqa: E402  (from the folder above)


def arguments(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds on less, as `make bench` runs it")
    return parser


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, in each of so many rounds after a first one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def fastest(function: Callable[[], object], rounds: int) -> float:
    """Seconds of the best of so many calls, after a first one that does not count."""
    return min(interleaved({"": function}, rounds)[""])


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median over the rounds of the quotient within a round."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def photographs(n: int, height: int, width: int) -> NDArray[np.uint8]:
    """(n, height, width, 3) pieces of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    wholes = load_sample_images().images
    random = np.random.default_rng(0)
    found = np.empty((n, height, width, 3), dtype=np.uint8)
    for i in range(n):
        whole = wholes[i % 2]
        size = random.integers(2 * max(height, width), min(whole.shape[:2]) + 1)
        top = random.integers(0, whole.shape[0] - size + 1)
        left = random.integers(0, whole.shape[1] - size + 1)
        part = Image.fromarray(whole[top : top + size, left : left + size])
        found[i] = np.asarray(part.resize((width, height), Image.Resampling.BOX))
    return found


def settings(*words: object) -> Any:
    """The configuration of a command line."""
    import main
    from lib.config import command_line, config

    raw = main.DEFAULTS | command_line.collect([str(word) for word in words], main.SECTIONS)
    return config.resolve(raw, main.SECTIONS)


def row_settings(method: str, *words: object) -> Any:
    """The settings of a method's CIFAR-10 row, and further flags."""
    files = (ROOT / ROWS[method] / name for name in ("base.yaml", "cifar10.yaml"))
    return settings("--cfgs", *files, "--seed", 0, "--debug", *words)


def row_without_data(method: str) -> Any:
    """The task of the row, on images whose published number is expected and that are not there."""
    import main

    return main.build(row_settings(method, "--data-root", ROOT / "nowhere", "--dry-run"))


def row_trainer(method: str, folder: Path, images: int, *words: object) -> Any:
    """The trainer of a method's CIFAR-10 row, on photographs that are left in the folder.

    Args:
        method: one of `ROWS`.
        folder: where the images are, or will be.
        images: how many there are.
        words: further flags.
    """
    import main
    from lib.training.trainer import Trainer

    split = folder / "train"
    if not split.exists():
        split.mkdir()
        for i, image in enumerate(photographs(images, 32, 32)):
            Image.fromarray(image).save(split / f"{i:05}.png")
    config = row_settings(
        method, "--dataset", "image_folder", "--data-root", folder, "--train-splits", "train", "--test-splits", "train",
        "--num-clusters", 10, "--disk-cache", 0, "--display-freq", 100_000, *words,
    )  # fmt: skip
    task = main.build(config)
    task.method.train()
    trainer = Trainer(task)
    trainer._rate = 1e-4
    return trainer


def endless(trainer: Any) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        yield from trainer.task.source.epoch(epoch)


def publish(
    theme: str, about: str, columns: Sequence[str], rows: Sequence[Sequence[str]], data: Mapping[str, Any]
) -> None:
    """Print a table, and leave it as benchmarks/results/<theme>.md, with all numbers in <theme>.json."""
    machine = f"{devices.processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    command = f"python benchmarks/{theme}.py {' '.join(sys.argv[1:])}".strip()
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    text = "\n".join([f"# {theme}", "", about, "", *lines, "", f"`{command}`, {when}, {machine}.", ""])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{theme}.md").write_text(text, encoding="utf-8")
    content = {"command": command, "date": when, "machine": machine, **data}
    (RESULTS / f"{theme}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(text)
