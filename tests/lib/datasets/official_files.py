"""Small files in exactly the layouts of the official ones, for tests."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets as torchvision_datasets

COARSE = [f"super{i}" for i in range(20)]
FINE = [f"class{i}" for i in range(100)]


class _Python2(pickle._Pickler):  # the C pickler has no dispatch table
    """Writes as Python 2 did: every string is a byte string."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes | str) -> None:
        raw = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[bytes] = dispatch[str] = save_string  # type: ignore[assignment]


def python2_pickle(content: Any) -> bytes:
    buffer = io.BytesIO()
    _Python2(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"numpy._core.", b"numpy.core.")  # its name then


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch, per_file: int = 6) -> Path:
    """Files of `cifar10` or `cifar100`; their sums take the place of the official ones."""
    source = {"cifar10": torchvision_datasets.CIFAR10, "cifar100": torchvision_datasets.CIFAR100}[name]
    folder = root / source.base_folder
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names: dict[str, list[str]] = {"fine_label_names": FINE, "coarse_label_names": COARSE}
    (folder / source.meta["filename"]).write_bytes(
        python2_pickle(names if name == "cifar100" else {"label_names": FINE[:10]})
    )
    for file, _ in (*source.train_list, *source.test_list):
        content: dict[str, Any] = {
            "data": random.integers(0, 256, (per_file, 3072), dtype=np.uint8),
            "filenames": [f"{file}_s_{i:06}.png" for i in range(per_file)],
        }
        if name == "cifar10":
            content["labels"] = random.integers(0, 10, per_file).tolist()
        else:
            content["fine_labels"] = random.integers(0, 100, per_file).tolist()
            content["coarse_labels"] = [label // 5 for label in content["fine_labels"]]
        (folder / file).write_bytes(python2_pickle(content))
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(folder / source.meta["filename"])})
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(source, part, [[file, md5(folder / file)] for file, _ in getattr(source, part)])
    return folder


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Binary files of 5 training, 4 test and 7 unlabelled pictures, stored column by column."""
    source = torchvision_datasets.STL10
    random = np.random.default_rng(0)
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    for name, size in (("train", 5), ("test", 4), ("unlabeled", 7)):
        random.integers(0, 256, (size, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            random.integers(1, 11, size, dtype=np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(FINE[:10]))
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(source, part, [[file, md5(folder / file)] for file, _ in getattr(source, part)])
    return folder


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
