"""STL-10 (Coates, Lee, Ng, 2011): pictures of 96×96 in 10 classes, most of them without a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets as torchvision_datasets

from lib.datasets import Splits, register
from lib.datasets.official_files import Archive, fetch, find, verify
from lib.errors import UserError


@register("stl10")
class STL10:
    """STL-10: 113,000 images of 96×96 pixels, of which 13,000 have a label of 10 classes.

    Split `train` has 5,000 pictures, `test` 8,000, and `unlabeled` 100,000 with the label −1.

    Raises:
        UserError: the files are missing, damaged or elsewhere.
    """

    @staticmethod
    def splits(root: str) -> Splits:
        # The over-clustering head learns from everything (Huang et al., 2020, section 4).
        sizes = {"train": 5_000, "unlabeled": 100_000, "test": 8_000}
        return Splits(sizes, train=("train+unlabeled+test", "train+test"), test=("train+test",))

    def __init__(
        self, root: str, split: str, transform: Callable[[Any], Any] | None = None, download: bool = False
    ) -> None:
        if split not in ("train", "unlabeled", "test"):
            raise UserError(f"STL-10 has no split {split!r}: it has train, unlabeled, test")
        source = torchvision_datasets.STL10
        parent = Path(root).expanduser()
        if download:
            fetch(lambda: source(parent, split="test", download=True), source.url)
        folder = find(root, Archive(source.filename, source.tgz_md5, source.base_folder))
        try:
            pictures = source(parent, split=split, transform=transform)
        except (RuntimeError, OSError):  # torchvision verifies too, and does not say which file
            verify(folder, [*source.train_list, *source.test_list])
            raise
        self._pictures = pictures
        self.array = pictures.data.transpose(0, 2, 3, 1)
        self.classes = tuple(getattr(pictures, "classes", ()))
        self.targets = np.asarray(pictures.labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self._pictures[i][0], int(self.targets[i])
