"""Nearest neighbours in the space of the features (as in SCAN, Van Gansbeke et al., 2020)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lib.features.feature_store import Shelf
from lib.machine.progress import progress

Integers = NDArray[np.int64]

BLOCK = 2048  # pictures of either side that are compared at a time


def nearest(shelf: Shelf, queries: Integers, among: Integers, count: int) -> Integers:
    """(n, count) positions of the nearest of `among` by the cosine of the plain features, the nearest first.

    Exact, in blocks; a picture is not its own neighbour. Features on disk are read once as queries, and once for each
    group of queries that fits into memory.

    Args:
        shelf: of the features.
        queries: (n,) positions of pictures.
        among: (m,) positions of those that may be neighbours, each once; m > count.
        count: neighbours of each.
    """
    beside = 12 * count  # bytes: the cosines and positions of a query's neighbours
    groups = _blocks(queries, max(1, shelf.room(beside) // BLOCK) * BLOCK)
    blocks = _blocks(among, BLOCK)
    steps = progress(range(len(groups) * len(blocks)), "looking for neighbours", len(groups) * len(blocks))
    found = []
    for group in groups:
        searches = [_Search(shelf, own, count) for own in _blocks(group, BLOCK)]
        for block, _ in zip(blocks, steps, strict=False):
            units = _units(shelf, block)
            for search in searches:
                search.add(units, block)
        found += [search.place.cpu().numpy() for search in searches]
    return np.concatenate(found)


class _Search:
    """The nearest so far of a block of queries.

    Args:
        shelf: of the features.
        queries: (n,) positions of pictures.
        count: neighbours of each.
    """

    def __init__(self, shelf: Shelf, queries: Integers, count: int) -> None:
        self._own = _units(shelf, queries)
        self._count = count
        self._asked = torch.from_numpy(queries).to(self._own.device)
        self._best = self._own.new_empty(len(queries), 0)
        self.place = torch.empty(len(queries), 0, dtype=torch.int64, device=self._own.device)

    def add(self, units: Tensor, index: Integers) -> None:
        """Look among some more: (m, D) of length 1, at (m,) positions."""
        positions = torch.from_numpy(index).to(self._own.device)
        cosine = self._own @ units.T
        cosine.masked_fill_(positions == self._asked[:, None], -torch.inf)
        best = torch.cat([self._best, cosine], dim=1)
        place = torch.cat([self.place, positions.expand(len(self._own), -1)], dim=1)
        self._best, kept = best.topk(min(self._count, best.shape[1]), dim=1)
        self.place = place.gather(1, kept)


def _blocks(index: Integers, size: int) -> list[Integers]:
    return [index[start : start + size] for start in range(0, len(index), size)]


def _units(shelf: Shelf, index: Integers) -> Tensor:
    (features,) = shelf.take(index[:, None], np.zeros_like(index)[:, None])
    return F.normalize(features, dim=1)
