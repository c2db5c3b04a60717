"""What a `Source` yields: batches of which each process prepares the views of its share; and the shuffled source."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Recipe, Request, Views
from lib.machine import interrupts, processes
from lib.transforms.batched_views import DrawnViews


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What every batch knows, beside its `index`: (N,) positions of the images of all processes, on the CPU."""

    counts: tuple[int, ...] = ()  # of these, how many each process has the views of, in this order
    left_out: int = 0  # images that could not be read


@dataclass(frozen=True)
class ViewBatch(Shares):
    """N images; the views are of this process's n of them."""

    index: Tensor  # (N,) positions among the run's images
    views: Sequence[Tensor]  # for each recipe (n, C, H, W), or (n, D) features of a frozen backbone


def made(batch: Any) -> Any:
    """The batch with its views as tensors, where they were only drawn so far."""
    views = getattr(batch, "views", None)
    return replace(batch, views=views.make()) if isinstance(views, DrawnViews) else batch


def stream(views: Views, requests: Iterable[Request]) -> Iterator[ViewBatch]:
    """What becomes of each request, of which every process prepares the views of its share and of no other.

    Raises:
        UserError: as `Views.stream`.
    """
    sizes: deque[int] = deque()  # of the batches on their way; views may take requests in a thread of their own

    def local() -> Iterator[Request]:
        for request in requests:
            sizes.append(len(request.index))
            yield request.rows(processes.share(np.arange(len(request.index))))

    for prepared in views.stream(local()):
        size = sizes.popleft()
        index, counts = interrupts.exchange(prepared.index, size)
        yield ViewBatch(index, prepared.views, counts=counts, left_out=size - len(index))


class ShuffledSource:
    """One epoch: the training images once, in a fresh random order; an incomplete last batch is dropped.

    Args:
        views: of the images.
        index: positions of the training images.
        recipes: of the views.
        batch_size: images per step.
        seed: of the order.
    """

    def __init__(
        self, views: Views, index: NDArray[np.int64], recipes: tuple[Recipe, ...], *, batch_size: int, seed: int
    ) -> None:
        self._views = views
        self._index = index
        self._recipes = recipes
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        return len(self._index) // self._batch_size

    def epoch(self, index: int, start: int = 0) -> Iterator[ViewBatch]:
        order = np.random.default_rng((self._seed, index)).permutation(self._index)
        parts = (order[step * self._batch_size :][: self._batch_size] for step in range(start, len(self)))
        return stream(self._views, (Request(torch.from_numpy(part), self._recipes, index) for part in parts))

    def blank(self, empty: Callable[[Recipe, int], Tensor]) -> ViewBatch:
        return ViewBatch(torch.arange(self._batch_size), [empty(recipe, self._batch_size) for recipe in self._recipes])

    def describe(self) -> list[str]:
        sizes = "+".join(f"{recipe.size}" for recipe in self._recipes)
        return [
            f"{len(self._index):,} images, {len(self)} steps of {self._batch_size} in {len(self._recipes)} views "
            f"({sizes} px)"
        ]
