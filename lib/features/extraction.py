"""Pictures through the frozen backbone, block by block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Recipe, Request, Views
from lib.errors import UserError
from lib.machine.progress import progress
from lib.networks.backbone import Backbone

Rows = NDArray[np.float32]

BLOCK = 64  # pictures at a time; where blocks begin depends on nothing, so that no bit does on what is kept already


class Extractor:
    """The features of a run's pictures, each in several views.

    Args:
        open_views: of the pictures; called when there is something to compute.
        encode: the backbone, on its device.
        recipes: of the views.
        numbers: (N,) what stands for each picture in the draws.
        broken: why a picture cannot be read and is left out; empty: it can be.
    """

    def __init__(
        self,
        open_views: Callable[[], Views],
        encode: Backbone,
        recipes: tuple[Recipe, ...],
        numbers: NDArray[np.int64],
        broken: Callable[[int], str],
    ) -> None:
        self._broken = broken
        self._open = open_views
        self._encode = encode
        self._recipes = recipes
        self._numbers = numbers
        self.skipped: dict[int, str] = {}
        self.computed = 0  # pictures
        self.seconds = 0.0  # that they took, from files to features

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pictures, views of each, and features of a view."""
        return len(self._numbers), len(self._recipes), self._encode.feature_dim

    def rows(self, wanted: list[int]) -> Iterator[Rows | None]:
        """(views, D) of each of the positions, which ascend; None for a picture that could not be read.

        Raises:
            UserError: a picture cannot be read, and none may be left out.
        """
        return progress(self._rows(wanted), "computing features", len(wanted), "images") if wanted else iter(())

    def _rows(self, wanted: list[int]) -> Iterator[Rows | None]:
        positions = np.array(wanted, dtype=np.int64)
        if len(wanted) <= BLOCK:  # perhaps what could not be read at an earlier start, for which the rest stays closed
            self.skipped |= {position: why for position in wanted if (why := self._broken(position))}
        if self.skipped.keys() >= set(wanted):
            yield from (None for _ in wanted)
            return
        parts = np.split(positions, np.flatnonzero(np.diff(positions // BLOCK)) + 1)
        self._encode.prepare({recipe.size for recipe in self._recipes})
        began = time.monotonic()
        with closing(self._open()) as views:
            for part, prepared in zip(parts, views.stream(map(self._request, parts)), strict=True):
                found = dict(zip(prepared.index.tolist(), self._features(prepared.views), strict=True))
                self.skipped.update(views.skipped)
                self.seconds += time.monotonic() - began
                began = time.monotonic()
                for position in part.tolist():
                    self.computed += position in found
                    yield found.get(position)

    def _request(self, part: NDArray[np.int64]) -> Request:
        start = int(part[0]) // BLOCK * BLOCK
        index = torch.arange(start, min(start + BLOCK, len(self._numbers)))
        return Request(index, self._recipes, drawn_as=torch.from_numpy(self._numbers[index.numpy()]))

    def _features(self, views: Sequence[Tensor]) -> Rows:
        """(n, views, D)"""
        return encoded(self._encode, views).cpu().numpy()


def encoded(encode: Backbone, views: Sequence[Tensor]) -> Tensor:
    """(n, views, D) of each of some views, (n, C, H, W) or another size.

    Raises:
        UserError: a feature is not finite.
    """
    if not len(views[0]):
        return torch.empty(0, len(views), encode.feature_dim, device=views[0].device)
    with torch.no_grad():
        found = torch.stack([encode(view) for view in views], dim=1)
    if not found.isfinite().all():
        raise UserError(
            f"the frozen network {encode.title} gives features that are not finite; take other --net-weights, or check "
            "--tfm-means and --tfm-stds"
        )
    return found
