"""Nearest neighbours in the space of the features (as in SCAN, Van Gansbeke et al., 2020)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lib.features.shelf import Shelf
from lib.progress import progress

Integers = NDArray[np.int64]

BLOCK = 2048  # pictures of either side that are compared at a time


def nearest(shelf: Shelf, queries: Integers, among: Integers, count: int) -> Integers:
    """(n, count) positions of the nearest of `among` by the cosine of the plain features, the nearest first.

    Exact, in blocks; a picture is not its own neighbour.

    Args:
        shelf: of the features.
        queries: (n,) positions of pictures.
        among: (m,) positions of those that may be neighbours, each once; m > count.
        count: neighbours of each.
    """
    blocks = [queries[start : start + BLOCK] for start in range(0, len(queries), BLOCK)]
    found = [_nearest(shelf, own, among, count) for own in progress(blocks, "looking for neighbours", len(blocks))]
    return np.concatenate(found)


def _nearest(shelf: Shelf, queries: Integers, among: Integers, count: int) -> Integers:
    own = _units(shelf, queries)
    best, place = own.new_empty(len(own), 0), torch.empty(len(own), 0, dtype=torch.int64, device=own.device)
    asked = torch.from_numpy(queries).to(own.device)
    for start in range(0, len(among), BLOCK):
        held = among[start : start + BLOCK]
        positions = torch.from_numpy(held).to(own.device)
        cosine = own @ _units(shelf, held).T
        cosine.masked_fill_(positions == asked[:, None], -torch.inf)
        best = torch.cat([best, cosine], dim=1)
        place = torch.cat([place, positions.expand(len(own), -1)], dim=1)
        best, kept = best.topk(min(count, best.shape[1]), dim=1)
        place = place.gather(1, kept)
    neighbours: Integers = place.cpu().numpy()
    return neighbours


def _units(shelf: Shelf, index: Integers) -> Tensor:
    (features,) = shelf.take(index[:, None], np.zeros_like(index)[:, None])
    return F.normalize(features, dim=1)
