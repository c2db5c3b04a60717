"""Pictures that are held as bytes: many in one array, of one size or padded to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """Pictures of a run in one array, each in the upper left corner of its place; beyond it are zeros."""

    array: NDArray[np.uint8]  # (n, H, W, C)
    positions: NDArray[np.int64]  # (n,) which of the run's they are
    sizes: NDArray[np.int64]  # (n, 2) their own heights and widths, px


def whole(array: NDArray[np.uint8], start: int) -> Part:
    """Pictures of one size, from position `start` of the run on: the array itself, no copy."""
    return Part(array, np.arange(start, start + len(array)), np.tile(array.shape[1:3], (len(array), 1)))


class Pile:
    """A part that grows by one picture at a time.

    Args:
        shape: height and width of the places, and channels.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._array = np.zeros((1, *shape), dtype=np.uint8)
        self._positions: list[int] = []
        self._sizes: list[tuple[int, int]] = []

    def add(self, position: int, picture: NDArray[np.uint8]) -> None:
        """Take (height, width, channels), no larger than the places."""
        row = len(self._positions)
        height, width = picture.shape[:2]
        if row == len(self._array):
            self._resize(row + max(1, row // 8))  # more at a time would be memory beside the pictures'
        self._array[row, :height, :width] = picture
        self._positions.append(position)
        self._sizes.append((height, width))

    def part(self) -> Part:
        """What was added; nothing may be added any more."""
        self._resize(len(self._positions))
        return Part(self._array, np.array(self._positions, dtype=np.int64), np.array(self._sizes, dtype=np.int64))

    def _resize(self, length: int) -> None:
        # In place, where a concatenation would hold everything twice; what is new is zero.
        self._array.resize((length, *self._array.shape[1:]), refcheck=False)
