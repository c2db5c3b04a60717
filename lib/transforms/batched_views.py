"""The `batched` back end: all pictures as bytes on the training device, whole batches transformed at once.

A crop and the antialiased resize that follows it are one linear map along each axis, so each picture's
view is two small matrix products with weights of its own (Pillow's bilinear filter). Pictures of several
sizes are multiplied in groups, padded; the padding has no weight. Nothing is copied to the device but the draws.

A `Plan` holds the draws on the device, in one of two forms. `plan` computes least, which is fastest on a CPU.
`static_plan` launches few operations, and the same in each step, which a GPU and a compiler want.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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

WORK = 2**28  # bytes, which may be at work at a time,
STATIC_WORK = 2**30  # and in the static form, where fewer images at a time are more operations
Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Axes:
    """The part of an image that a view shows, along y and x; each (2, M), px."""

    start: Tensor  # where the view begins
    scale: Tensor  # px of the image per px of the view
    low: Tensor  # the pixels that may be looked at:
    high: Tensor  # low ≤ pixel < high
    mirrored: Tensor  # bool

    def of(self, rows: slice) -> Axes:
        return Axes(*(values[:, rows] for values in vars(self).values()))


@dataclass(frozen=True)
class Plan:
    """The draws of V views of one size for N images, on the device; the views of an image are neighbours: M = N·V."""

    size: int
    views: int
    axes: Axes
    recolour: Callable[[Tensor], Tensor]  # planes (C, M, size, size) → planes, which may be the same


@dataclass(frozen=True)
class SubsetColours:
    """Colours: each operation for the images that drew it."""

    jitter: Tensor  # (4, M)
    # In the order of time: which of colour.JITTER, and to which of the images.
    steps: list[tuple[int, Tensor]]
    grayscale: Tensor  # positions among the M

    def __call__(self, planes: Tensor) -> Tensor:
        for which, chosen in self.steps:
            part = planes.index_select(1, chosen)
            colour.JITTER[which](part, self.jitter[which].index_select(0, chosen))
            planes.index_copy_(1, chosen, part)
        if len(self.grayscale):
            part = planes.index_select(1, self.grayscale)
            colour.grayscale(part)
            planes.index_copy_(1, self.grayscale, part)
        return planes


@dataclass(frozen=True)
class StaticColours:
    """Colours: each operation for all images, with neutral numbers for those that did not draw it.

    The hue is turned once, with places for three other operations before it and for three after it.
    """

    blends: Tensor  # (6, 3, M) the weights of `colour.blend`, in the order of time
    turns: Tensor  # (M,) of the hue
    grayscale: Tensor  # (M,) bool

    def __call__(self, planes: Tensor) -> Tensor:
        before, after = torch.split(self.blends, 3)
        for weights in before:
            colour.blend(planes, *weights)
        planes = colour.turned(planes, self.turns)
        for weights in after:
            colour.blend(planes, *weights)
        return colour.where_grey(planes, self.grayscale)


def plan(recipe: Recipe, draws: Draws, sizes: Integers, device: torch.device) -> Plan:
    """Bring draws for N images, (N, 2) their heights and widths, to the device; one view, `SubsetColours`."""
    crop = _crop(recipe, draws, sizes)
    numbers = _send(np.concatenate([crop, _jitter(draws)]), device)
    kinds = [which for which, strength in enumerate(recipe.jitter or ()) if strength]
    steps = [(which, draws.jittered & (draws.order[:, place] == which)) for place in range(4) for which in kinds]
    steps = [(which, chosen) for which, chosen in steps if chosen.any()]
    rows = [np.flatnonzero(chosen) for chosen in (*(chosen for _, chosen in steps), draws.grayscale)]
    *parts, grey = torch.split(_send(np.concatenate(rows), device), [len(part) for part in rows])
    named = [(which, part) for (which, _), part in zip(steps, parts, strict=True)]
    return Plan(recipe.size, 1, _axes(numbers[:10]), SubsetColours(numbers[10:], named, grey))


def static_plan(recipes: Sequence[Recipe], draws: Sequence[Draws], sizes: Integers, device: torch.device) -> Plan:
    """The same for V views of one size; `StaticColours`, so that no operation and no shape depends on the draws."""
    has_colours = any(recipe.jitter or recipe.grayscale for recipe in recipes)
    rows = [_crop(recipe, each, sizes) for recipe, each in zip(recipes, draws, strict=True)]
    if has_colours:
        rows = [np.concatenate([row, _static_colours(each)]) for row, each in zip(rows, draws, strict=True)]
    side_by_side = np.stack(rows, axis=2)  # (rows, N, V)
    numbers = _send(side_by_side.reshape(len(side_by_side), -1), device)
    recolour = (
        StaticColours(torch.unflatten(numbers[10:28], 0, (6, 3)), numbers[28], numbers[29] > 0)
        if has_colours
        else _as_it_is
    )
    return Plan(recipes[0].size, len(recipes), _axes(numbers[:10]), recolour)


def _as_it_is(planes: Tensor) -> Tensor:
    return planes


def _crop(recipe: Recipe, draws: Draws, sizes: Integers) -> Floats32:
    """(10, N): start, scale, low, high and whether it is mirrored, each along y and x."""
    corner, extent = np.split(draws.box.T.astype(np.float64), 2)  # (2, N) each
    mirrored = np.stack([np.zeros_like(draws.flip), draws.flip])
    if recipe.crop == "resized":
        numbers = (corner, extent / recipe.size, corner, corner + extent, mirrored)
    else:
        scale = (sizes / resized(sizes, recipe.resize)).T
        numbers = (corner * scale, scale, np.zeros_like(corner), sizes.T.astype(np.float64), mirrored)
    return np.concatenate(numbers).astype(np.float32)


def _axes(numbers: Tensor) -> Axes:
    start, scale, low, high, mirrored = torch.unflatten(numbers, 0, (5, 2))
    return Axes(start, scale, low, high, mirrored > 0)


def _jitter(draws: Draws) -> Floats32:
    """(4, N): factors, and turns of the hue."""
    jitter = draws.jitter.T.copy()
    jitter[3] = np.trunc(jitter[3] * 255) / 255  # torchvision turns Pillow images by whole steps
    return jitter.astype(np.float32)


def _static_colours(draws: Draws) -> Floats32:
    """(20, N): the numbers of `StaticColours`."""
    n = len(draws.flip)
    *factors, turns = np.where(draws.jittered, _jitter(draws), np.array([[1], [1], [1], [0]], dtype=np.float32))
    time = np.argsort(draws.order, axis=1).T  # (4, N) when each of the operations is due
    slots = time[:3] + 2 * (time[:3] > time[3])  # of 6
    blends = np.zeros((6, 3, n), dtype=np.float32)
    blends[:, 0] = 1
    every = np.arange(n)
    for slot, factor in zip(slots, factors, strict=True):
        blends[slot, 0, every] = factor
    blends[slots[1], 2, every] = 1 - factors[1]
    blends[slots[2], 1, every] = 1 - factors[2]
    return np.concatenate([blends.reshape(18, n), [turns, draws.grayscale]])


def _send(array: NDArray[Any], device: torch.device) -> Tensor:
    return devices.send(torch.from_numpy(array), device)


def weights(axes: Axes, size: int, length: int) -> Tensor:
    """(2, M, size, length): the share of each of `length` pixels in each of `size` pixels of the view, along y and x.

    Pillow's bilinear filter: a triangle around the view's pixel, as wide as a pixel of the larger of the
    two grids on either side, cut at the crop's edge, and normalised.
    """
    places = torch.arange(0.5, size, device=axes.start.device)
    places = torch.where(axes.mirrored[..., None], size - places, places)
    centres = axes.start[..., None] + places * axes.scale[..., None]  # (2, M, size)
    pixels = torch.arange(0.5, length, device=centres.device)
    reach = axes.scale.clamp_min(1)[..., None, None]
    shares = (pixels - centres[..., None]).abs_().div_(reach).neg_().add_(1).clamp_min_(0)
    shares.mul_(((pixels > axes.low[..., None]) & (pixels < axes.high[..., None]))[..., None, :])
    return shares.div_(shares.sum(dim=-1, keepdim=True))


def view(groups: Sequence[Tensor], plan: Plan) -> Tensor:
    """The views of N images before they are normalised.

    Args:
        groups: (n, H, C, W), floats in [0, 1]; one after the other the N images, each in the upper left corner.
        plan: for these images.

    Returns:
        (C, N·V, size, size) in [0, 1].
    """
    size = plan.size
    channels = groups[0].shape[2]
    if len(groups) == 1:
        planes = _cropped(groups[0], plan.axes, size, plan.views).permute(2, 0, 1, 3).contiguous()
    else:
        planes = groups[0].new_empty(channels, plan.axes.start.shape[1], size, size)
        end = 0
        for images in groups:
            rows = slice(end, end := end + len(images) * plan.views)
            planes[:, rows] = _cropped(images, plan.axes.of(rows), size, plan.views).permute(2, 0, 1, 3)
    return plan.recolour(planes)


def _cropped(images: Tensor, axes: Axes, size: int, views: int) -> Tensor:
    """(n·V, size, C, size) of (n, H, C, W)."""
    n, height, channels, width = images.shape
    m = n * views
    y, x = weights(axes, size, max(height, width))
    # All views of an image in one product: (n, V·size, H) · (n, H, C·W).
    rows = torch.bmm(y[..., :height].reshape(n, views * size, height), images.flatten(2))
    columns = x[..., :width].transpose(1, 2)  # (m, W, size)
    return torch.bmm(rows.view(m, size * channels, width), columns).view(m, size, channels, size)


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

    static: bool
    """Whether every batch of images of one size goes through the same operations on the same shapes, whatever was
    drawn: on a GPU, where each operation is launched. A CPU computes fewer numbers without."""

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
        self.static = device.type != "cpu"
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
        return f"batched, {len(sizes):,} images of {which} in memory"

    def close(self) -> None:
        pass

    def _views(self, index: NDArray[np.int64], request: Request) -> list[Tensor]:
        shapes = self._shape[self._part[index]]
        back = None
        if len(np.unique(shapes)) > 1:
            order = np.argsort(shapes, kind="stable")
            index = index[order]
            back = _send(np.argsort(order), self._device)
        stacks = self._stacks(request.recipes)
        runs = [list(self._some_views(run, request, stacks)) for run in self._runs(index, max(map(len, stacks)))]
        made = runs[0] if len(runs) == 1 else [torch.cat(parts, dim=1) for parts in zip(*runs, strict=True)]
        if back is not None:
            made = [views.index_select(1, back) for views in made]
        by_copy = {
            copy: view
            for stack, views in zip(stacks, made, strict=True)
            for copy, view in zip(stack, views.unbind(), strict=True)
        }
        return [by_copy[copy] for copy in range(len(request.recipes))]

    def _stacks(self, recipes: Sequence[Recipe]) -> list[list[int]]:
        """Which of the recipes are computed at once: those of one size, or on a CPU, whose caches are small, each alone."""
        if not self.static:
            return [[copy] for copy in range(len(recipes))]
        sizes = [recipe.size for recipe in recipes]
        return [[copy for copy, size in enumerate(sizes) if size == each] for each in dict.fromkeys(sizes)]

    def _runs(self, index: NDArray[np.int64], views: int) -> Iterator[NDArray[np.int64]]:
        """As many at a time as `WORK` allows; about 8 float copies of a picture are alive for each of `views` at once."""
        ends = np.cumsum(self._numbers[self._part[index]])
        work = STATIC_WORK if self.static else WORK
        start = 0
        while start == 0 or start < len(index):
            limit = work // (32 * views) + (ends[start - 1] if start else 0)
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            yield index[start:stop]
            start = stop

    def _some_views(
        self, index: NDArray[np.int64], request: Request, stacks: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """For each stack (V, N, C, size, size) of images that are in the order of their shapes."""
        sizes = self._sizes[index]
        shapes = self._shape[self._part[index]]
        numbers = request.numbers(index)
        groups = [self._gather(group) for group in np.split(index, np.flatnonzero(np.diff(shapes)) + 1)]
        for stack in stacks:
            recipes = [request.recipes[copy] for copy in stack]
            draws = [
                draw(recipe, sizes, self._seed, request.epoch, numbers, copy)
                for copy, recipe in zip(stack, recipes, strict=True)
            ]
            if self.static:
                drawn = static_plan(recipes, draws, sizes, self._device)
            else:
                drawn = plan(recipes[0], draws[0], sizes, self._device)
            planes = view(groups, drawn).sub_(self._means).div_(self._stds)
            yield torch.unflatten(planes, 1, (len(index), len(stack))).permute(2, 1, 0, 3, 4).contiguous()

    def _gather(self, index: NDArray[np.int64]) -> Tensor:
        """(N, H, C, W) floats in [0, 1] of pictures of one shape."""
        holder = self._part[index]
        row = self._row[index]
        first = holder[0] if len(index) else 0
        pictures = torch.empty(len(index), *self._parts[first].shape[1:], device=self._device)
        if self.static:
            pictures.copy_(self._gather_bytes(holder, row, np.flatnonzero(self._shape == self._shape[first])))
            return pictures.div_(255)
        for number in np.unique(holder):
            own = np.flatnonzero(holder == number)
            chosen = self._parts[number].index_select(0, _send(row[own], self._device))
            if len(own) == len(index):
                pictures.copy_(chosen)
            else:
                pictures[_send(own, self._device)] = chosen.float()
        return pictures.div_(255)

    def _gather_bytes(self, holder: NDArray[np.int64], row: NDArray[np.int64], numbers: NDArray[np.int64]) -> Tensor:
        """Bytes from parts of one shape, with the same operations whichever of the parts hold the images.

        Args:
            holder, row: (N,) the part of each image, and its row there.
            numbers: all parts of the shape.
        """
        first, *others = numbers
        images: Tensor = self._parts[first].index_select(0, _send(np.where(holder == first, row, 0), self._device))
        for number in others:
            is_there = holder == number
            chosen = self._parts[number].index_select(0, _send(np.where(is_there, row, 0), self._device))
            images = torch.where(_send(is_there, self._device)[:, None, None, None], chosen, images)
        return images


def _tensor(array: NDArray[np.uint8]) -> Tensor:
    """The array itself, unless PyTorch cannot hold its order."""
    if min(array.strides) < 0:
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read-only memory: nothing here writes to it
        return torch.from_numpy(array)
