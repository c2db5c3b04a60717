"""Random draws for a batch of views: pure functions of (seed, epoch, picture, copy).

No generator is kept, so workers, ranks and resumed runs see the same draws, and all of a batch's are
made at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.contracts import Recipe

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ATTEMPTS = 10  # of a rectangle that fits, before the whole picture is taken (torchvision's number)
_NUMBERS = 2 * ATTEMPTS + 2 + 1 + 1 + 4 + 4 + 1


@dataclass(frozen=True)
class Draws:
    """One entry per picture."""

    box: Integers  # (N, 4) top, left, height, width: px of the raw picture, or of the resized one
    flip: NDArray[np.bool_]  # (N,)
    jitter: Floats  # (N, 4) factors for brightness, contrast, saturation; shift of the hue (turns)
    order: Integers  # (N, 4) the order in which the four are applied
    jittered: NDArray[np.bool_]  # (N,)
    grayscale: NDArray[np.bool_]  # (N,)


def uniforms(seed: int, epoch: int, picture: Integers, copy: int, count: int) -> Floats:
    """(N, count) numbers in [0, 1), independent for every (seed, epoch, picture, copy, column)."""
    state = _mix(np.full(len(picture), seed, dtype=np.uint64))
    for key in (np.full_like(state, epoch), picture.astype(np.uint64), np.full_like(state, copy)):
        state = _mix(state ^ _mix(key + _STEP))
    bits = _mix(state[:, None] + _STEP * np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser (Steele et al., 2014): 64 bits to 64 bits, one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(recipe: Recipe, sizes: Integers, seed: int, epoch: int, picture: Integers, copy: int) -> Draws:
    """Draw one view of each picture.

    Args:
        recipe: what is random, and how.
        sizes: (N, 2) height and width of the raw pictures, px.
        seed, epoch, picture, copy: what the draws depend on; `picture` is (N,).
    """
    u = uniforms(seed, epoch, picture, copy, _NUMBERS)
    crop = u[:, : 2 * ATTEMPTS + 2]
    (flip, jittered, factors, order, gray) = np.split(u[:, 2 * ATTEMPTS + 2 :], [1, 2, 6, 10], axis=1)
    strength = np.array(recipe.jitter or (0.0, 0.0, 0.0, 0.0))
    low = np.maximum(1 - strength, 0)
    high = 1 + strength
    low[3] = -strength[3]
    high[3] = strength[3]
    box = _resized_box(recipe, sizes, crop) if recipe.crop == "resized" else _square(recipe, sizes, crop)
    return Draws(
        box=box,
        flip=flip[:, 0] < recipe.flip,
        jitter=low + (high - low) * factors,
        order=np.argsort(order, axis=1),
        jittered=jittered[:, 0] < (recipe.jitter_probability if recipe.jitter else 0.0),
        grayscale=gray[:, 0] < recipe.grayscale,
    )


def resized(sizes: Integers, side: int) -> Integers:
    """(N, 2) heights and widths once the shorter side has length `side`."""
    lengths: Integers = np.maximum(side * sizes // sizes.min(axis=1, keepdims=True), 1)
    return lengths


def _square(recipe: Recipe, sizes: Integers, u: Floats) -> Integers:
    room = resized(sizes, recipe.resize) - recipe.size
    corner = np.floor(u[:, :2] * (room + 1)).astype(np.int64) if recipe.crop == "random" else np.rint(room / 2)
    return np.concatenate([corner.astype(np.int64), np.full_like(sizes, recipe.size)], axis=1)


def _resized_box(recipe: Recipe, sizes: Integers, u: Floats) -> Integers:
    """The first of ten random rectangles that fits, else the middle at the nearest shape."""
    height = sizes[:, :1]
    width = sizes[:, 1:]
    area = (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * u[:, :ATTEMPTS]) * height * width
    low, high = np.log(recipe.ratio)
    ratio = np.exp(low + (high - low) * u[:, ATTEMPTS : 2 * ATTEMPTS])
    w = np.rint(np.sqrt(area * ratio))
    h = np.rint(np.sqrt(area / ratio))  # (N, attempts)
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.argmax(axis=1)[:, None]
    w = np.take_along_axis(w, first, axis=1)
    h = np.take_along_axis(h, first, axis=1)
    shape = np.clip(width / height, *recipe.ratio)
    whole_w = np.minimum(width, np.rint(height * shape))
    whole_h = np.minimum(height, np.rint(width / shape))
    found = fits.any(axis=1)[:, None]
    w = np.where(found, w, np.maximum(whole_w, 1))
    h = np.where(found, h, np.maximum(whole_h, 1))
    room = np.concatenate([height - h, width - w], axis=1)
    corner = np.where(found, np.floor(u[:, 2 * ATTEMPTS :] * (room + 1)), room // 2)
    return np.concatenate([corner, h, w], axis=1).astype(np.int64)
