"""Runs in processes of their own, and what tells two of them apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import QUICK, ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.checkpoints import checkpoint

IMC = ("--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/digits.yaml", "--seed", 7,
       "--train-splits", "train+test", "--classifier-splits", "test", "--test-splits", "test", "--net-width", 4,
       "--batch-size", 256, "--prototypes", 20, "--classifier-dim", 16, "--size-crops", 12, 8, "--nmb-crops", 2, 1,
       "--baseline", "none", "--eval-sample", 50, "--warmup-steps", 5, "--frozen-prototype-steps", 5,
       "--feature-engine", "eager")  # fmt: skip
METHODS = {
    "pica": (*QUICK, "--max-epochs", 20),
    "imc_swav": (*IMC, "--max-epochs", 30),
}  # what is trained and killed; half of IMC-SwAV's pictures fill its bank
RUN = ("--save-every-steps", 3, "--eval-every", 2, "--display-freq", 1)


def scores_shown(out: str) -> str:
    """Of what a run prints, the table of its scores and what is said of it."""
    table = out.partition("\n\n")[2].partition("\nfiles in")[0].partition("\nexported")[0].strip()
    assert "ACC" in table
    return table


def beside_collapse(err: str) -> list[str]:
    """What stands on stderr, but for the word on a collapse, in which runs of a few steps often end."""
    return [line for line in err.splitlines() if not line.startswith("warning: the clusters collapse")]


def loaders(workers: int) -> tuple[object, ...]:
    """Views by loader processes; without any, by whole batches."""
    return ("--tfm-backend", "pil", "--num-workers", workers) if workers else ()


def launch(
    words: tuple[object, ...],
    root: Path,
    threads: int = 1,
    within: tuple[str, ...] = (),
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """Start a run whose sessions go to `root`, by the command `within`, after `before` in the new process."""
    command = [*within, sys.executable, "main.py", *map(str, words), "--session-root", str(root)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, preexec_fn=before,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def processes(root: Path) -> dict[int, int]:
    """The processes of the run whose sessions lie there, each with its parent."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if str(root).encode() in words:
            found[int(folder.name)] = int(parent)
    return found


def only(root: Path) -> Path:
    (found,) = [path for path in root.iterdir() if path.is_dir()]
    return found


def finished(root: Path) -> Path:
    """The session that came to its end; one that was killed before its first checkpoint had no successor."""
    (found,) = [file.parent for file in root.glob("*/scores.json")]
    return found


def same(one: Any, other: Any) -> bool:
    """Bitwise."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("latest", "best"):
        ours, theirs = (checkpoint.load(path / "checkpoint" / f"{name}.ckpt") for path in (one, other))
        for part in ("method", "optimizer", "epoch", "step", "position", "best", "scored_step", "assigned", "random"):
            assert same(ours[part], theirs[part]), f"{name}.ckpt: {part}"
    for name in ("metrics.jsonl", "scores.json"):
        assert (one / name).read_text() == (other / name).read_text()
    boards = [EventAccumulator(str(path / "tfboard")).Reload() for path in (one, other)]
    assert boards[0].Tags()["scalars"] == boards[1].Tags()["scalars"]
    for tag in boards[0].Tags()["scalars"]:
        points = [[(point.step, point.value) for point in board.Scalars(tag)] for board in boards]
        if tag == "Train/Pictures_per_second":
            points = [[(step, 0.0) for step, _ in curve] for curve in points]
        assert points[0] == points[1], f"a gap or a doubled point in {tag}"
