"""PICA's order of batches: the heads in turn, each over its own set, originals beside perturbed copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Recipe, Request, Views
from lib.methods.batches import ViewBatch, stream
from lib.transforms import TransformSettings, original, perturbed


@dataclass(frozen=True)
class Batch(ViewBatch):
    """N pictures for one head, in their original view and in perturbed copies."""

    head: int


def recipes(s: TransformSettings) -> tuple[Recipe, Recipe]:
    """The original and the perturbed view (Huang et al., 2020, section 4)."""
    return original(s), perturbed(s)


class PICASource:
    """One epoch: for each head in turn, its set once, in a fresh random order.

    Args:
        views: of the pictures.
        sets: for each head, the positions of its pictures.
        recipes: of the original, and of each perturbed copy.
        batch_size: originals per step; the last batch of a head may be smaller.
        seed: of the order.
    """

    def __init__(
        self,
        views: Views,
        sets: Sequence[NDArray[np.int64]],
        recipes: tuple[Recipe, ...],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._views = views
        self._sets = sets
        self._seed = seed
        self._recipes = recipes
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(self._steps(head) for head in range(len(self._sets)))

    def _steps(self, head: int) -> int:
        return -(-len(self._sets[head]) // self._batch_size)

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        plan = [(head, step) for head in range(len(self._sets)) for step in range(self._steps(head))][start:]
        for (head, _), batch in zip(plan, stream(self._views, self._requests(index, plan)), strict=True):
            yield Batch(**vars(batch), head=head)

    def _requests(self, epoch: int, plan: Sequence[tuple[int, int]]) -> Iterator[Request]:
        orders: dict[int, NDArray[np.int64]] = {}
        for head, step in plan:
            if head not in orders:
                orders = {head: np.random.default_rng((self._seed, epoch, head)).permutation(self._sets[head])}
            chosen = orders[head][step * self._batch_size : (step + 1) * self._batch_size]
            # Each head visits the pictures anew, so each has draws of its own.
            yield Request(torch.from_numpy(chosen), self._recipes, epoch * len(self._sets) + head)

    def blank(self, empty: Callable[[Recipe, int], Tensor]) -> Batch:
        n = min(self._batch_size, len(self._sets[-1]))
        return Batch(torch.arange(n), [empty(recipe, n) for recipe in self._recipes], head=len(self._sets) - 1)

    def describe(self) -> list[str]:
        repeat = len(self._recipes) - 1
        return [
            f"head {head}: {len(chosen):,} images, {self._steps(head):,} steps of {self._batch_size} originals "
            f"and {self._batch_size * repeat} perturbed copies"
            for head, chosen in enumerate(self._sets)
        ]
