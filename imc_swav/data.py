"""IMC-SwAV's order of batches: one shuffled pass over the training set, V crops of each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Recipe, Views
from lib.errors import UserError
from lib.methods.batches import ShuffledSource, ViewBatch
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


class IMCSource(ShuffledSource):
    """One epoch: the set once, in a fresh random order; an incomplete last batch is dropped.

    Args:
        views: of the images.
        index: positions of the training images.
        recipes: of the V views.
        classified: (all images,) whether the classifier learns from each.
        batch_size: images per step.
        seed: of the order.
    """

    def __init__(
        self,
        views: Views,
        index: NDArray[np.int64],
        recipes: tuple[Recipe, ...],
        classified: NDArray[np.bool_],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(views, index, recipes, batch_size=batch_size, seed=seed)
        self._classified = classified

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(index, start):
            classified = self._classified[batch.index.numpy()]
            yield Batch(**vars(batch), classified=None if classified.all() else classified)

    def blank(self, empty: Callable[[Recipe, int], Tensor]) -> Batch:
        return Batch(**vars(super().blank(empty)))

    def describe(self) -> list[str]:
        sizes = "+".join(f"{recipe.size}" for recipe in self._recipes)
        learned = int(self._classified[self._index].sum())
        return [
            f"{len(self._index):,} images, {learned:,} for the classifier, "
            f"{len(self)} steps of {self._batch_size} in {len(self._recipes)} views ({sizes} px)"
        ]
