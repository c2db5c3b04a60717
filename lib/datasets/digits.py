"""scikit-learn's 1,797 handwritten digits of 8×8 pixels, 16 shades of grey; nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib.datasets import Splits, register
from lib.errors import UserError


@register("digits")
class Digits:
    """1,797 handwritten digits of 8×8 pixels in 10 classes, which come with scikit-learn.

    Split `train` has the even positions, `test` the odd ones. `root` is not used.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).
    """

    classes = tuple("0123456789")
    comes_with = "scikit-learn"

    @staticmethod
    def splits(root: str) -> Splits:
        return Splits({"train": 899, "test": 898}, train=("train+test",), test=("test", "train+test"))

    def __init__(
        self, root: str, split: str, transform: Callable[[Any], Any] | None = None, download: bool = False
    ) -> None:
        if split not in ("train", "test"):
            raise UserError(f"the data set digits has no split {split!r}: it has train, test")
        array, targets = _read()
        start = 0 if split == "train" else 1
        self.array = array[start::2, ..., None]
        self.targets = targets[start::2]
        self._transform = transform

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = Image.fromarray(self.array[i, ..., 0])
        return (self._transform(image) if self._transform else image), int(self.targets[i])


@lru_cache(maxsize=1)
def _read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    shades = np.rint(found.images * (255 / 16)).astype(np.uint8)  # 0 … 16 → 0 … 255
    return shades, found.target.astype(np.int64)
