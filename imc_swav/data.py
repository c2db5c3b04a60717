"""IMC-SwAV's order of batches: one shuffled pass over the training set, V crops of each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Recipe, Request, Views
from lib.errors import UserError
from lib.methods.batches import ViewBatch, stream
from lib.transforms import TransformSettings


@dataclass(frozen=True)
class Batch(ViewBatch):
    """N pictures in V views, the large ones first."""

    classified: NDArray[np.bool_] | None = None  # (N,) whether the classifier learns from the picture; none: from all

    @property
    def mask(self) -> NDArray[np.bool_]:
        """`classified`, written out."""
        return np.ones(len(self.index), dtype=np.bool_) if self.classified is None else self.classified


def recipes(
    s: TransformSettings,
    numbers: Sequence[int],
    sizes: Sequence[int],
    lowest: Sequence[float],
    highest: Sequence[float],
) -> tuple[Recipe, ...]:
    """The V random crops, in the order of their groups (2021, section 4.1).

    Args:
        s: colour, mirroring and shape of the crops.
        numbers: crops in each group.
        sizes: their sides, px.
        lowest, highest: bounds of their areas, as shares of the picture's.

    Raises:
        UserError: the four do not go together, or there is a single view.
    """
    if not len(numbers) == len(sizes) == len(lowest) == len(highest):
        raise UserError("nmb_crops, size_crops, min_scale_crops and max_scale_crops need as many values as each other")
    if any(low > high for low, high in zip(lowest, highest, strict=True)):
        raise UserError("min_scale_crops is above max_scale_crops")
    if sum(numbers) < 2 or numbers[0] < 1:
        raise UserError("nmb_crops needs a large crop, and another crop to compare it with")
    return tuple(
        Recipe(
            size, "resized", scale=(low, high), ratio=s.tfm_ratio, jitter=s.tfm_colorjitter,
            jitter_probability=s.tfm_colorjitter_probability, grayscale=s.tfm_random_grayscale, flip=s.tfm_random_hflip,
        )
        for number, size, low, high in zip(numbers, sizes, lowest, highest, strict=True)
        for _ in range(number)
    )  # fmt: skip


class IMCSource:
    """One epoch: the set once, in a fresh random order; an incomplete last batch is dropped.

    Args:
        views: of the pictures.
        chosen: positions of the training pictures.
        classified: (all pictures,) whether the classifier learns from each.
        recipes: of the V views.
        batch_size: pictures per step.
        seed: of the order.
    """

    def __init__(
        self,
        views: Views,
        chosen: NDArray[np.int64],
        classified: NDArray[np.bool_],
        recipes: tuple[Recipe, ...],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._views = views
        self._chosen = chosen
        self._classified = classified
        self._recipes = recipes
        self._batch_size = batch_size
        self._seed = seed

    def check(self) -> None:
        """See that there is something to train on.

        Raises:
            UserError: there is no full batch, or none for the classifier, or a batch is a single picture.
        """
        size = self._batch_size
        learned = int(self._classified[self._chosen].sum())
        if size < 2:
            raise UserError(
                "a batch of one picture leaves BatchNorm nothing to normalise by; give a larger --batch-size"
            )
        if len(self._chosen) < size:
            raise UserError(
                f"{len(self._chosen)} training pictures do not fill a batch of {size}, and an incomplete one is dropped; "
                "give a smaller --batch-size"
            )
        if learned < size:
            raise UserError(
                f"the classifier would learn from {learned} of the training pictures, and waits for a batch of {size}; "
                "give other --classifier-splits, or a smaller --batch-size"
            )

    def __len__(self) -> int:
        return len(self._chosen) // self._batch_size

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng((self._seed, index)).permutation(self._chosen)
        parts = [order[i * self._batch_size :][: self._batch_size] for i in range(start, len(self))]
        for batch in stream(self._views, (Request(torch.from_numpy(part), self._recipes, index) for part in parts)):
            classified = self._classified[batch.index.numpy()]
            yield Batch(**vars(batch), classified=None if classified.all() else classified)

    def blank(self, empty: Callable[[Recipe, int], Tensor]) -> Batch:
        n = self._batch_size
        return Batch(torch.arange(n), [empty(recipe, n) for recipe in self._recipes])

    def describe(self) -> list[str]:
        sizes = "+".join(f"{recipe.size}" for recipe in self._recipes)
        learned = int(self._classified[self._chosen].sum())
        return [
            f"{len(self._chosen):,} images, {learned:,} for the classifier, "
            f"{len(self)} steps of {self._batch_size} in {len(self._recipes)} views ({sizes} px)"
        ]
