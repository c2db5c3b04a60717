"""The `batched` back end: all pictures as bytes on the training device, whole batches transformed at once.

A crop and the antialiased resize that follows it are one linear map along each axis, so each picture's
view is two small matrix products with weights of its own (Pillow's bilinear filter). Nothing is copied to
the device but the draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib import runtime
from lib.method import Prepared, Request
from lib.transforms import colour
from lib.transforms.draws import Draws, draw, resized
from lib.transforms.recipe import Recipe

WORK = 2**28  # bytes, which may be at work at a time


@dataclass(frozen=True)
class Axis:
    """The part of a picture that a view shows, along one axis; each (N,), px."""

    start: Tensor  # where the view begins
    scale: Tensor  # px of the picture per px of the view
    low: Tensor  # the pixels that may be looked at:
    high: Tensor  # low ≤ pixel < high


@dataclass(frozen=True)
class Plan:
    """One recipe's draws for N pictures, on the device."""

    recipe: Recipe
    y: Axis
    x: Axis
    flip: Tensor  # (N,) bool
    jitter: Tensor  # (4, N)
    # In the order of time: which of colour.JITTER, and to which of the pictures.
    steps: list[tuple[int, Tensor]]
    grayscale: Tensor  # positions among the N


def plan(recipe: Recipe, draws: Draws, height: int, width: int, device: torch.device) -> Plan:
    """Bring draws for pictures of one size to the device."""
    top, left, h, w = draws.box.T.astype(np.float64)
    if recipe.crop == "resized":
        axes = [(start, length / recipe.size, start, start + length) for start, length in ((top, h), (left, w))]
    else:
        shape = np.array([[height, width]])
        scales = (shape / resized(shape, recipe.resize))[0]
        axes = [
            (start * scale, np.full_like(start, scale), np.zeros_like(start), np.full_like(start, length))
            for start, scale, length in zip((top, left), scales, (height, width), strict=True)
        ]
    jitter = draws.jitter.T.copy()
    jitter[3] = np.trunc(jitter[3] * 255) / 255  # torchvision turns Pillow pictures by whole steps
    numbers = _send(np.concatenate([*axes, [draws.flip], jitter]).astype(np.float32), device)  # (13, N)
    kinds = [which for which, strength in enumerate(recipe.jitter or ()) if strength]
    steps = [(which, draws.jittered & (draws.order[:, place] == which)) for place in range(4) for which in kinds]
    steps = [(which, chosen) for which, chosen in steps if chosen.any()]
    rows = [np.flatnonzero(chosen) for chosen in (*(chosen for _, chosen in steps), draws.grayscale)]
    *parts, grey = torch.split(_send(np.concatenate(rows), device), [len(part) for part in rows])
    named = [(which, part) for (which, _), part in zip(steps, parts, strict=True)]
    return Plan(recipe, Axis(*numbers[:4]), Axis(*numbers[4:8]), numbers[8] > 0, numbers[9:], named, grey)


def _send(array: NDArray[Any], device: torch.device) -> Tensor:
    return runtime.send(torch.from_numpy(array), device)


def weights(axis: Axis, size: int, length: int, flip: Tensor | None = None) -> Tensor:
    """(N, size, length): the share of each of `length` pixels in each of `size` pixels of the view.

    Pillow's bilinear filter: a triangle around the view's pixel, as wide as a pixel of the larger of the
    two grids on either side, cut at the crop's edge, and normalised.

    Args:
        flip: (N,) whether the view is mirrored.
    """
    places = torch.arange(size, device=axis.start.device) + 0.5
    if flip is not None:
        places = torch.where(flip[:, None], size - places, places)
    centres = axis.start[:, None] + places * axis.scale[:, None]  # (N, size)
    pixels = torch.arange(length, device=centres.device) + 0.5
    reach = axis.scale.clamp_min(1)[:, None, None]
    shares = (pixels - centres[..., None]).abs_().div_(reach).neg_().add_(1).clamp_min_(0)
    shares.mul_(((pixels > axis.low[:, None]) & (pixels < axis.high[:, None]))[:, None])
    return shares.div_(shares.sum(dim=2, keepdim=True))


def view(pictures: Tensor, plan: Plan) -> Tensor:
    """The views of N pictures before they are normalised.

    Args:
        pictures: (N, H, C, W), floats in [0, 1].
        plan: for these pictures.

    Returns:
        (C, N, size, size) in [0, 1].
    """
    (n, height, channels, width), size = pictures.shape, plan.recipe.size
    rows = torch.bmm(weights(plan.y, size, height), pictures.flatten(2))  # (N, size, C·W)
    columns = weights(plan.x, size, width, plan.flip).transpose(1, 2)  # (N, W, size)
    planes = torch.bmm(rows.view(n, size * channels, width), columns).view(n, size, channels, size)
    planes = planes.permute(2, 0, 1, 3).contiguous()
    for which, chosen in plan.steps:
        part = planes.index_select(1, chosen)
        colour.JITTER[which](part, plan.jitter[which].index_select(0, chosen))
        planes.index_copy_(1, chosen, part)
    if len(plan.grayscale):
        part = planes.index_select(1, plan.grayscale)
        colour.grayscale(part)
        planes.index_copy_(1, plan.grayscale, part)
    return planes


class BatchedViews:
    """`Views` of pictures that have one size and fit into the device's memory.

    Args:
        arrays: (n, H, W, C) 8-bit, one after the other the run's pictures.
        skipped: positions of those that could not be read, and why.
        test: the recipe of `plain`.
        means, stds: one per channel, on the scale [0, 1].
        seed: of the draws.
        device: where the pictures lie, and the views are made.
    """

    kind = "batched"

    def __init__(
        self,
        arrays: list[NDArray[np.uint8]],
        skipped: dict[int, str],
        test: Recipe,
        means: tuple[float, ...],
        stds: tuple[float, ...],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.skipped = skipped
        # (n, H, C, W), whatever the order in memory.
        self._parts = [_tensor(array).permute(0, 1, 3, 2).to(device) for array in arrays]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self._unreadable = np.array(sorted(skipped), dtype=np.int64)
        self._test, self._seed, self._device = test, seed, device
        self._means, self._stds = (torch.tensor(values, device=device)[:, None, None, None] for values in (means, stds))

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        for request in plan:
            index = request.index.numpy()
            index = index[~np.isin(index, self._unreadable)]
            yield Prepared(torch.from_numpy(index), self._views(index, request))

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, (self._test,)) for index in batches)

    def describe(self) -> str:
        count, (height, _, width) = int(self._ends[-1]), self._parts[0].shape[1:]
        return f"batched, {count - len(self.skipped):,} pictures of {width}×{height} px in memory"

    def close(self) -> None:
        pass

    def _views(self, index: NDArray[np.int64], request: Request) -> list[Tensor]:
        each = max(1, WORK // (32 * self._parts[0][0].numel()))  # pictures; about 8 float copies of one are alive
        parts = [list(self._some_views(index[i : i + each], request)) for i in range(0, max(1, len(index)), each)]
        return parts[0] if len(parts) == 1 else [torch.cat(views) for views in zip(*parts, strict=True)]

    def _some_views(self, index: NDArray[np.int64], request: Request) -> Iterator[Tensor]:
        height, _, width = self._parts[0].shape[1:]
        sizes = np.array([[height, width]]).repeat(len(index), axis=0)
        pictures = self._gather(index)
        for copy, recipe in enumerate(request.recipes):
            draws = draw(recipe, sizes, self._seed, request.epoch, index, copy)
            planes = view(pictures, plan(recipe, draws, height, width, self._device))
            yield planes.sub_(self._means).div_(self._stds).transpose(0, 1).contiguous()

    def _gather(self, index: NDArray[np.int64]) -> Tensor:
        """(N, H, C, W) floats in [0, 1]."""
        pictures = torch.empty(len(index), *self._parts[0].shape[1:], device=self._device)
        holder = np.searchsorted(self._ends, index, side="right")
        for number in np.unique(holder):
            part = self._parts[number]
            own = np.flatnonzero(holder == number)
            places = _send(index[own] - (self._ends[number] - len(part)), self._device)
            chosen = part.index_select(0, places)
            if len(own) == len(index):
                pictures.copy_(chosen)
            else:
                pictures[_send(own, self._device)] = chosen.float()
        return pictures.div_(255)


def _tensor(array: NDArray[np.uint8]) -> Tensor:
    """The array itself, unless PyTorch cannot hold its order."""
    if min(array.strides) < 0:
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read-only memory: nothing here writes to it
        return torch.from_numpy(array)
