"""The `batched` back end: all pictures as bytes on the training device, whole batches transformed at once.

A crop and the antialiased resize that follows it are one linear map along each axis, so each picture's
view is two small matrix products with weights of its own (Pillow's bilinear filter). Pictures of several
sizes are multiplied in groups, padded; the padding has no weight. Nothing is copied to the device but the draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Prepared, Recipe, Request
from lib.machine import devices
from lib.transforms import colour
from lib.transforms.images_in_memory import Part
from lib.transforms.random_draws import Draws, Integers, draw, resized

WORK = 2**28  # bytes, which may be at work at a time


@dataclass(frozen=True)
class Axis:
    """The part of a picture that a view shows, along one axis; each (N,), px."""

    start: Tensor  # where the view begins
    scale: Tensor  # px of the picture per px of the view
    low: Tensor  # the pixels that may be looked at:
    high: Tensor  # low ≤ pixel < high

    def of(self, rows: slice) -> Axis:
        return Axis(self.start[rows], self.scale[rows], self.low[rows], self.high[rows])


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


def plan(recipe: Recipe, draws: Draws, sizes: Integers, device: torch.device) -> Plan:
    """Bring draws for N pictures, (N, 2) their heights and widths, to the device."""
    top, left, h, w = draws.box.T.astype(np.float64)
    if recipe.crop == "resized":
        axes = [(start, length / recipe.size, start, start + length) for start, length in ((top, h), (left, w))]
    else:
        scales = sizes / resized(sizes, recipe.resize)
        axes = [
            (start * scale, scale, np.zeros_like(start), length.astype(np.float64))
            for start, scale, length in zip((top, left), scales.T, sizes.T, strict=True)
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
    return devices.send(torch.from_numpy(array), device)


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


def view(groups: Sequence[Tensor], plan: Plan) -> Tensor:
    """The views of N pictures before they are normalised.

    Args:
        groups: (n, H, C, W), floats in [0, 1]; one after the other the N pictures, each in the upper left corner.
        plan: for these pictures.

    Returns:
        (C, N, size, size) in [0, 1].
    """
    size = plan.recipe.size
    n = sum(map(len, groups))
    channels = groups[0].shape[2]
    if len(groups) == 1:
        planes = _cropped(groups[0], size, plan.y, plan.x, plan.flip).permute(2, 0, 1, 3).contiguous()
    else:
        planes = groups[0].new_empty(channels, n, size, size)
        end = 0
        for pictures in groups:
            rows = slice(end, end := end + len(pictures))
            cropped = _cropped(pictures, size, plan.y.of(rows), plan.x.of(rows), plan.flip[rows])
            planes[:, rows] = cropped.permute(2, 0, 1, 3)
    for which, chosen in plan.steps:
        part = planes.index_select(1, chosen)
        colour.JITTER[which](part, plan.jitter[which].index_select(0, chosen))
        planes.index_copy_(1, chosen, part)
    if len(plan.grayscale):
        part = planes.index_select(1, plan.grayscale)
        colour.grayscale(part)
        planes.index_copy_(1, plan.grayscale, part)
    return planes


def _cropped(pictures: Tensor, size: int, y: Axis, x: Axis, flip: Tensor) -> Tensor:
    """(n, size, C, size) of (n, H, C, W)."""
    n, height, channels, width = pictures.shape
    rows = torch.bmm(weights(y, size, height), pictures.flatten(2))  # (n, size, C·W)
    columns = weights(x, size, width, flip).transpose(1, 2)  # (n, W, size)
    return torch.bmm(rows.view(n, size * channels, width), columns).view(n, size, channels, size)


class BatchedViews:
    """`Views` of pictures that fit into the device's memory.

    Args:
        parts: the run's pictures, but for the skipped.
        skipped: positions of those that could not be read, and why.
        test: the recipe of `plain`.
        means, stds: one per channel, on the scale [0, 1].
        seed: of the draws.
        device: where the pictures lie, and the views are made.
    """

    kind = "batched"

    def __init__(
        self,
        parts: Sequence[Part],
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
        self._parts = [_tensor(part.array).permute(0, 1, 3, 2).to(device) for part in parts]
        shapes = [part.shape[1:] for part in self._parts]
        self._shape = np.array([shapes.index(shape) for shape in shapes])  # of each part
        self._numbers = np.array([shape.numel() for shape in shapes])  # of a picture in it
        # For each of the run's pictures its part, its row there, and its own height and width.
        count = 1 + max(*skipped, *(int(part.positions[-1]) for part in parts), 0)
        self._part = np.zeros(count, dtype=np.int64)
        self._row = np.zeros(count, dtype=np.int64)
        self._sizes = np.zeros((count, 2), dtype=np.int64)
        for number, part in enumerate(parts):
            self._part[part.positions] = number
            self._row[part.positions] = np.arange(len(part.positions))
            self._sizes[part.positions] = part.sizes
        self._unreadable = np.array(sorted(skipped), dtype=np.int64)
        self._test = test
        self._seed = seed
        self._device = device
        self._means, self._stds = (torch.tensor(values, device=device)[:, None, None, None] for values in (means, stds))

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        for request in plan:
            index = request.index.numpy()
            index = index[~np.isin(index, self._unreadable)]
            yield Prepared(torch.from_numpy(index), self._views(index, request))

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, (self._test,)) for index in batches)

    def prepared(self) -> Self:
        return self

    def describe(self) -> str:
        sizes = np.delete(self._sizes, self._unreadable, axis=0)
        kinds = len(np.unique(sizes[:, 0] << 32 | sizes[:, 1]))
        height, width = sizes[0]
        which = f"{width}×{height} px" if kinds == 1 else f"{kinds:,} sizes"
        return f"batched, {len(sizes):,} pictures of {which} in memory"

    def close(self) -> None:
        pass

    def _views(self, index: NDArray[np.int64], request: Request) -> list[Tensor]:
        shapes = self._shape[self._part[index]]
        back = None
        if len(np.unique(shapes)) > 1:
            order = np.argsort(shapes, kind="stable")
            index = index[order]
            back = _send(np.argsort(order), self._device)
        runs = [list(self._some_views(run, request)) for run in self._runs(index)]
        views = runs[0] if len(runs) == 1 else [torch.cat(parts) for parts in zip(*runs, strict=True)]
        return views if back is None else [view.index_select(0, back) for view in views]

    def _runs(self, index: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """As many at a time as `WORK` allows; about 8 float copies of a picture are alive."""
        ends = np.cumsum(self._numbers[self._part[index]])
        start = 0
        while start == 0 or start < len(index):
            limit = WORK // 32 + (ends[start - 1] if start else 0)
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            yield index[start:stop]
            start = stop

    def _some_views(self, index: NDArray[np.int64], request: Request) -> Iterator[Tensor]:
        """Of pictures that are in the order of their shapes."""
        sizes = self._sizes[index]
        shapes = self._shape[self._part[index]]
        numbers = request.numbers(index)
        groups = [self._gather(group) for group in np.split(index, np.flatnonzero(np.diff(shapes)) + 1)]
        for copy, recipe in enumerate(request.recipes):
            draws = draw(recipe, sizes, self._seed, request.epoch, numbers, copy)
            planes = view(groups, plan(recipe, draws, sizes, self._device))
            yield planes.sub_(self._means).div_(self._stds).transpose(0, 1).contiguous()

    def _gather(self, index: NDArray[np.int64]) -> Tensor:
        """(N, H, C, W) floats in [0, 1] of pictures of one shape."""
        holder = self._part[index]
        row = self._row[index]
        shape = self._parts[holder[0] if len(index) else 0].shape[1:]
        pictures = torch.empty(len(index), *shape, device=self._device)
        for number in np.unique(holder):
            own = np.flatnonzero(holder == number)
            chosen = self._parts[number].index_select(0, _send(row[own], self._device))
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
