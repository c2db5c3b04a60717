"""What makes views of whole batches at once: crops as products of matrices, then colours.

A crop and the antialiased resize that follows it are one linear map along each axis, so each image's view is two small
matrix products with weights of its own (Pillow's bilinear filter).

A `Plan` holds the draws on the device, in one of two forms. `plan` computes least, which is fastest on a CPU.
`static_plan` launches few operations, and the same in each step, which a GPU and a compiler want.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Recipe
from lib.machine import devices, precision
from lib.transforms import colour
from lib.transforms.random_draws import Draws, Integers, resized

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
    numbers = devices.send(torch.from_numpy(np.concatenate([crop, _jitter(draws)])), device)
    kinds = [which for which, strength in enumerate(recipe.jitter or ()) if strength]
    steps = [(which, draws.jittered & (draws.order[:, place] == which)) for place in range(4) for which in kinds]
    steps = [(which, chosen) for which, chosen in steps if chosen.any()]
    rows = [np.flatnonzero(chosen) for chosen in (*(chosen for _, chosen in steps), draws.grayscale)]
    *parts, grey = torch.split(
        devices.send(torch.from_numpy(np.concatenate(rows)), device), [len(part) for part in rows]
    )
    named = [(which, part) for (which, _), part in zip(steps, parts, strict=True)]
    return Plan(recipe.size, 1, _axes(numbers[:10]), SubsetColours(numbers[10:], named, grey))


def static_numbers(recipes: Sequence[Recipe], draws: Sequence[Draws], sizes: Integers) -> Floats32:
    """The draws of V views of one size for N images, as `static_plan` wants them: (10 or 30, N·V)."""
    rows = [_crop(recipe, each, sizes) for recipe, each in zip(recipes, draws, strict=True)]
    if any(recipe.jitter or recipe.grayscale for recipe in recipes):
        rows = [np.concatenate([row, _static_colours(each)]) for row, each in zip(rows, draws, strict=True)]
    side_by_side = np.stack(rows, axis=2)  # (rows, N, V)
    return side_by_side.reshape(len(side_by_side), -1)


def static_plan(size: int, views: int, numbers: Tensor) -> Plan:
    """The plan of `static_numbers` on the device; `StaticColours`, so that no operation and no shape depends on the draws."""
    recolour = (
        StaticColours(torch.unflatten(numbers[10:28], 0, (6, 3)), numbers[28], numbers[29] > 0)
        if len(numbers) > 10
        else _as_it_is
    )
    return Plan(size, views, _axes(numbers[:10]), recolour)


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
    exact = precision.unrounded(images.flatten(2))
    rows = torch.bmm(y[..., :height].reshape(n, views * size, height).to(exact.dtype), exact)
    columns = x[..., :width].transpose(1, 2).to(exact.dtype)  # (m, W, size)
    return torch.bmm(rows.view(m, size * channels, width), columns).to(y.dtype).view(m, size, channels, size)
