"""Operations that one training step dispatches, by part: on a GPU each of them is a kernel to launch.

Counted on the CPU, at the settings of the CIFAR-10 rows, from the bytes of 256 images to the updated weights. What
only looks at a tensor in another shape is left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import ROWS, arguments, endless, publish, row_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from lib.errors import exit_status
from lib.transforms.batched_views import DrawnViews

PARTS = ("views", "network", "heads and losses", "backward", "optimiser and checks")
IMAGES = 256


class Launches(TorchDispatchMode):
    """Counts the operations of the part that is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.part = PARTS[0]
        self.counts: Counter[str] = Counter()
        self.operations: list[tuple[str, list[tuple[int, ...]]]] = []  # each with the shapes that it gets

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not only_looks(func):
            self.counts[self.part] += 1
            shapes = [tuple(value.shape) for value in args if isinstance(value, torch.Tensor)]
            self.operations.append((str(func), shapes))
        return func(*args, **(kwargs or {}))

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose operations count for that part."""

        def attributed(*args: Any, **kwargs: Any) -> Any:
            before = self.part
            self.part = part
            try:
                return function(*args, **kwargs)
            finally:
                self.part = before

        return attributed


def only_looks(func: Any) -> bool:
    """Whether what it gives is its input in another shape."""
    returns = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returns)


def count(method: str, images: int = IMAGES, steps: int = 1) -> list[Launches]:
    """The operations of each of some steps after the fifth, when every head of PICA has its optimiser state."""
    with tempfile.TemporaryDirectory() as made:
        trainer = row_trainer(method, Path(made), 2 * images, "--batch-size", images)
        trainer.task.views.static = trainer.method.shares_passes = True  # as on a GPU
        batches = endless(trainer)
        for _ in range(5):
            trainer._train_step(next(batches))
        return [counted(trainer, batches) for _ in range(steps)]


def counted(trainer: Any, batches: Iterator[Any]) -> Launches:
    """One step, the views of its batch included."""
    launches = Launches()
    method = trainer.method
    whole = {"network": method.network, "heads and losses": method}
    with ExitStack() as stack:
        for part, module in whole.items():
            stack.enter_context(mock.patch.object(module, "forward", launches.within(part, module.forward)))
        stack.enter_context(mock.patch.object(DrawnViews, "make", launches.within("views", DrawnViews.make)))
        backward = launches.within("backward", torch.Tensor.backward)
        stack.enter_context(mock.patch.object(torch.Tensor, "backward", backward))
        stack.enter_context(launches)
        batch = next(batches)
        launches.part = "optimiser and checks"
        trainer._train_step(batch)
    return launches


def main() -> None:
    arguments(__doc__).parse_args()
    rows = []
    data = {}
    for method in ROWS:
        (launches,) = count(method)
        counts = launches.counts
        rows.append([method, *(f"{counts[part]:,}" for part in PARTS), f"{counts.total():,}"])
        print(*rows[-1], sep=", ", flush=True)
        data[method] = dict(counts)
    about = f"Operations that one training step of {IMAGES} images dispatches."
    publish("launches", about, ("method", *PARTS, "in all"), rows, data)


if __name__ == "__main__":
    sys.exit(exit_status(lambda _: main())([]))
