"""Pictures as files: which there are, and how one is read."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lib.checkpoints.checkpoint import write_atomically
from lib.config.regular_files import check_regular
from lib.datasets import image_decoder
from lib.datasets.image_formats import endings
from lib.errors import UserError

ADVICE = "; mend or remove it, or --on-bad-image skip"
_SETTLED = 2.0  # s; a folder changed later than that may change again within the same tick of its clock


def read(path: Path, max_megapixels: float = image_decoder.MEGAPIXELS, side: int | None = None) -> Image.Image:
    """The image in a file, upright; `side` as for `lib.datasets.image_decoder.reduced`.

    Raises:
        UserError: it is missing, too large, or no image.
    """
    with image_decoder.unreadable(f"the picture {path}", ADVICE):
        return image_decoder.decode(path, max_megapixels, side)


class PictureFiles:
    """The part of a data set that pictures in files have in common.

    Args:
        files: of the pictures.
        targets: their labels.
        transform: of each picture.
    """

    max_megapixels: float = image_decoder.MEGAPIXELS
    """A larger image is unreadable."""

    decode_side: int | None = None
    """px, shorter side down to which a JPEG may be decoded at a reduced scale; None: at its own size."""

    def __init__(
        self,
        files: Iterable[str | os.PathLike[str]],
        targets: Sequence[int],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.files = [os.fspath(file) for file in files]  # a Path is slow to make, and large
        self.targets = targets
        self._transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        return Path(self.files[i])

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = read(self.path(i), self.max_megapixels, self.decode_side)
        return (self._transform(image) if self._transform else image), int(self.targets[i])


def is_picture(name: str) -> bool:
    """Whether a file of that name is one that Pillow may decode; hidden files are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in endings()


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link that leads to one."""
    try:
        return entry.is_file()
    except OSError:  # a link that leads round in a circle
        return False


class Index:
    """The pictures directly inside of many folders, kept on disk.

    A folder is read again when its modification time differs from the kept one: a file was added,
    removed or renamed.

    Args:
        root: the folder of the folders.
        cache: where the list is kept, one file per root; none: nowhere.
    """

    def __init__(self, root: Path, cache: Path | None) -> None:
        self._root = root
        # With another plug-in, other files are images.
        key = hashlib.sha256(os.fsencode(root.resolve()) + repr(sorted(endings())).encode()).hexdigest()[:16]
        self._file = None if cache is None else cache / f"files-{key}.json"

    def files(self, folders: Sequence[str]) -> list[list[str]]:
        """For each folder, the names of its pictures, sorted.

        Raises:
            UserError: the list cannot be kept.
        """
        kept = self._load()
        found = {folder: _scan(self._root / folder, kept.get(folder)) for folder in folders}
        changed = {folder: entry for folder, entry in found.items() if entry != kept.get(folder)}
        if changed and self._file is not None:
            _make(self._file.parent)
            write_atomically(self._file, json.dumps({**kept, **changed}).encode())
        return [names for _, names in found.values()]

    def _load(self) -> dict[str, tuple[int, list[str]]]:
        try:
            text = "{}"
            if self._file is not None:
                check_regular(self._file)
                text = self._file.read_text(encoding="utf-8")
            found = json.loads(text)
            entries = {folder: (stamp, names) for folder, (stamp, names) in found.items()}
            whole = all(
                isinstance(stamp, int) and isinstance(names, list) and all(isinstance(name, str) for name in names)
                for stamp, names in entries.values()
            )
            return entries if whole else {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}  # absent, or no longer what was written


def _scan(folder: Path, kept: tuple[int, list[str]] | None) -> tuple[int, list[str]]:
    try:
        stamp = folder.stat().st_mtime_ns
        if kept is not None and kept[0] == stamp:
            return kept
        with os.scandir(folder) as entries:
            names = sorted(_picture_names(entries))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; give access to it") from error
    return (stamp if time.time() - stamp / 1e9 > _SETTLED else -1), names


def _picture_names(entries: Iterable[os.DirEntry[str]]) -> Iterable[str]:
    return (entry.name for entry in entries if is_picture(entry.name) and is_file(entry))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot keep the list of files in {folder}: {error.strerror}; choose another folder by --cache, or keep none: "
            "--disk-cache 0"
        ) from error
