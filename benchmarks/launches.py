"""Operations that one training step dispatches, by part: on a GPU each of them is a kernel to launch.

Counted on the CPU, at the settings of the CIFAR-10 rows, from the bytes of 256 images to the updated weights. What
only looks at a tensor in another shape is left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments, photographs, publish, settings
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from lib.errors import exit_status

CONFIGS = {"imc_swav": "configs/imc_swav", "pica": "configs"}
PARTS = ("views", "network", "heads and losses", "backward", "optimiser and checks")
BOUNDS = {"imc_swav": 1500, "pica": 800}
IMAGES = 256


class Launches(TorchDispatchMode):
    """Counts the operations of the part that is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.part = PARTS[0]
        self.counts: Counter[str] = Counter()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not only_looks(func):
            self.counts[self.part] += 1
            self.names[f"{self.part}: {func}"] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        before = self.part
        self.part = part
        try:
            yield
        finally:
            self.part = before


def only_looks(func: Any) -> bool:
    """Whether what it gives is its input in another shape."""
    returns = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returns)


def attributed(launches: Launches, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        with launches.within(part):
            return function(*args, **kwargs)

    return counted


def count(method: str, *words: object) -> Launches:
    """The operations of the fourth step, when the optimiser has its state."""
    import main
    from lib.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "train"
        folder.mkdir()
        for i, image in enumerate(photographs(2 * IMAGES, 32, 32)):
            Image.fromarray(image).save(folder / f"{i:05}.png")
        config = settings(
            "--cfgs", ROOT / CONFIGS[method] / "base.yaml", ROOT / CONFIGS[method] / "cifar10.yaml",
            "--dataset", "image_folder", "--data-root", made, "--train-splits", "train", "--test-splits", "train",
            "--num-clusters", 10,
            "--batch-size", IMAGES, "--seed", 0, "--disk-cache", 0, "--debug", *words,
        )  # fmt: skip
        task = main.build(config)
        task.views.static = True  # as on a GPU
        task.method.train()
        trainer = Trainer(task, config)
        trainer._rate = 1e-4
        launches = Launches()
        task.method.network.forward = attributed(launches, "network", task.method.network.forward)
        task.method.forward = attributed(launches, "heads and losses", task.method.forward)
        batches = (batch for epoch in range(4) for batch in task.source.epoch(epoch))
        for _ in range(3):
            trainer._train_step(next(batches))
        backward = torch.Tensor.backward
        torch.Tensor.backward = attributed(launches, "backward", backward)  # type: ignore[method-assign]
        try:
            with launches:
                batch = next(batches)
                launches.part = "optimiser and checks"
                trainer._train_step(batch)
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
    return launches


def main() -> None:
    arguments(__doc__).parse_args()
    rows = []
    data = {}
    for method in CONFIGS:
        counts = count(method).counts
        total = counts.total()
        rows.append([method, *(f"{counts[part]:,}" for part in PARTS), f"{total:,}"])
        print(*rows[-1], sep=", ", flush=True)
        data[method] = dict(counts)
    publish(
        "launches",
        "Operations that one training step of 256 images dispatches.",
        ("method", *PARTS, "in all"),
        rows,
        data,
    )


if __name__ == "__main__":
    sys.exit(exit_status(lambda _: main())([]))
