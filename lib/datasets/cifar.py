"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 60,000 pictures of 32×32, from the official Python files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from torchvision import datasets as torchvision_datasets

from lib.config.settings import Section, setting
from lib.datasets import Splits, register
from lib.datasets.official_files import Archive, fetch, find, verify
from lib.errors import UserError


class CIFAR:
    """Split `train` has 50,000 pictures, `test` 10,000.

    torchvision knows the files and their checksums, and fetches them; it does not read superclasses.

    Raises:
        UserError: the files are missing, damaged or elsewhere.
    """

    source: ClassVar[Any]
    labels: str = "labels"
    names: str = "label_names"

    @staticmethod
    def splits(root: str) -> Splits:
        return Splits({"train": 50_000, "test": 10_000}, train=("train+test",), test=("train+test",))

    def __init__(
        self, root: str, split: str, transform: Callable[[Any], Any] | None = None, download: bool = False
    ) -> None:
        if split not in ("train", "test"):
            raise UserError(f"CIFAR has no split {split!r}: it has train, test")
        source = self.source
        if download:
            fetch(lambda: source(Path(root).expanduser(), download=True), source.url)
        folder = find(root, Archive(source.filename, source.tgz_md5, source.base_folder))
        files = source.train_list if split == "train" else source.test_list
        verify(folder, [*files, (source.meta["filename"], source.meta["md5"])])
        parts = [_unpickle(folder / name) for name, _ in files]
        flat = parts[0]["data"] if len(parts) == 1 else np.concatenate([part["data"] for part in parts])
        self.array = flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.targets = np.concatenate([part[self.labels] for part in parts])
        self.filenames = [name.decode() for part in parts for name in part["filenames"]]
        self.classes = tuple(name.decode() for name in _unpickle(folder / source.meta["filename"])[self.names])
        self._transform = transform

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = Image.fromarray(self.array[i])
        return (self._transform(image) if self._transform else image), int(self.targets[i])


@register("cifar10")
class CIFAR10(CIFAR):
    """CIFAR-10: 60,000 images of 32×32 pixels in 10 classes."""

    source = torchvision_datasets.CIFAR10


@register("cifar100")
class CIFAR100(CIFAR):
    """CIFAR-100: 60,000 images of 32×32 pixels in 20 superclasses or 100 classes."""

    source = torchvision_datasets.CIFAR100

    @dataclass(frozen=True)
    class Settings(Section):
        title = "data set cifar100"
        label_level: Literal["coarse", "fine"] = setting(
            "coarse", "classes that score the result; coarse = 20 superclasses; fine = 100 classes"
        )

    def __init__(
        self,
        root: str,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        settings: CIFAR100.Settings = Settings(),
    ) -> None:
        self.labels = f"{settings.label_level}_labels"
        self.names = f"{settings.label_level}_label_names"
        super().__init__(root, split, transform, download)


class _Arrays(pickle.Unpickler):
    """Builds plain values and NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            raise UserError(f"a file of CIFAR names {module}.{name}, which it does not need; it was not read")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        # Python 2 wrote these; as bytes, an array is taken as it lies in the file.
        content = _Arrays(file, encoding="bytes").load()
    return {key.decode(): value for key, value in content.items()}
