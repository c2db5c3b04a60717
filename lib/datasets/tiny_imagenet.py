"""Tiny-ImageNet-200 in its official layout: pictures of 64×64, some of them grey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision.datasets.utils import download_and_extract_archive

from lib.datasets import Splits, register
from lib.datasets.image_files import PictureFiles, is_picture
from lib.datasets.official_files import Archive, fetch, find
from lib.errors import UserError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = Archive("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200")


@register("tiny_imagenet")
class TinyImageNet(PictureFiles):
    """Tiny-ImageNet: 110,000 images of 64×64 pixels in 200 classes.

    Splits `train` (100,000) and `val` (10,000); the labels of the official test split were never published. The
    classes are in the order of wnids.txt. `root` is the unpacked folder, or the one that holds it. Source: CS231n,
    Stanford (2015).

    Raises:
        UserError: files are missing, or elsewhere.
    """

    @staticmethod
    def splits(root: str) -> Splits:
        return Splits({"train": 100_000, "val": 10_000}, train=("train",), test=("train",))

    def __init__(
        self, root: str, split: str, transform: Callable[[Any], Any] | None = None, download: bool = False
    ) -> None:
        if split not in ("train", "val"):
            raise UserError(f"Tiny-ImageNet has no split {split!r}: it has train, val")
        parent = Path(root).expanduser()
        if download and not (parent / ARCHIVE.folder / "wnids.txt").is_file():
            fetch(lambda: download_and_extract_archive(URL, str(parent), md5=ARCHIVE.md5), URL)
        folder = find(root, ARCHIVE, "wnids.txt")
        wnids = [line.strip() for line in _lines(folder / "wnids.txt") if line.strip()]
        if not wnids or len(set(wnids)) < len(wnids):
            raise UserError(f"{folder / 'wnids.txt'} names no classes, or one twice; unpack {ARCHIVE.name} again")
        words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
        self.classes = tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids)
        numbers = {wnid: i for i, wnid in enumerate(wnids)}
        found = (_train if split == "train" else _val)(folder, numbers)
        super().__init__([file for file, _ in found], [label for _, label in found], transform)


def _train(folder: Path, numbers: dict[str, int]) -> list[tuple[Path, int]]:
    found = []
    for wnid, number in numbers.items():
        inside = folder / "train" / wnid / "images"
        files = sorted(path for path in inside.iterdir() if is_picture(path.name)) if inside.is_dir() else []
        if not files:
            raise UserError(f"{inside} is missing or empty; unpack {ARCHIVE.name} again")
        found += [(file, number) for file in files]
    return found


def _val(folder: Path, numbers: dict[str, int]) -> list[tuple[Path, int]]:
    notes = folder / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in _lines(notes) if line.strip()]
    for row in rows:
        if len(row) < 2 or row[1] not in numbers:
            raise UserError(f"{notes} has a line without a known class: {row[0][:40]!r}; unpack {ARCHIVE.name} again")
    found = [(folder / "val" / "images" / row[0], numbers[row[1]]) for row in rows]
    missing = next((file for file, _ in found if not file.is_file()), None)
    if missing is not None or not found:
        raise UserError(f"{missing or notes} is missing or empty; unpack {ARCHIVE.name} again")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; unpack {ARCHIVE.name} again") from error
