"""A folder of pictures in any format that Pillow reads."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lib.datasets import Splits, register
from lib.datasets.files import ADVICE, READ_ERRORS, PictureFiles, below, is_picture
from lib.errors import UserError
from lib.settings import Section, expanded, setting

LAYOUTS = (
    "looked for folders train/ and test/ of class folders, for class folders (one folder of pictures per class), "
    "or for pictures directly inside"
)


@register("image_folder")
class ImageFolder(PictureFiles):
    """Three layouts: `train/` and `test/` (either may be missing), class folders, or flat.

    `train/` and `test/` are splits of their own, and each is again class folders or flat. Otherwise
    there is one split, `all`. Class folders are searched to any depth; their names, sorted, are the
    classes. Where pictures lie directly in the folder, none has a label, however deep it lies. Hidden
    files and folders are left out, and so are files whose ending no image format of Pillow's has.

    Raises:
        UserError: no such folder, no picture in it, a file that is no picture, `labels` of other pictures, or `download`.
    """

    @dataclass(frozen=True)
    class Settings(Section):
        title = "data set image_folder"
        labels: str | None = setting(
            None,
            "CSV file of `file,class`, files named from data_root on; labels only score the result",
            about_data=True,
            convert=expanded,
        )

    @staticmethod
    def splits(root: str) -> Splits:
        found = _index(Path(root).expanduser())
        sizes = {name: len(files) for name, (files, _) in found.items()}
        whole = "+".join(sizes)
        return Splits(sizes, train=(whole,), test=tuple(dict.fromkeys(["test" if "test" in sizes else whole, whole])))

    def __init__(
        self,
        root: str,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        settings: Settings = Settings(),
    ) -> None:
        if download:
            raise UserError(
                "--download: image_folder reads your own pictures, of which none can be fetched; leave it out"
            )
        found = _index(Path(root).expanduser())
        if settings.labels is not None:
            found = _relabelled(found, Path(root).expanduser(), Path(settings.labels).expanduser())
        if split not in found:
            raise UserError(f"{root} has no split {split!r}: it has {', '.join(found)}")
        files, names = found[split]
        # One numbering for all splits: a class may be missing from one of them.
        self.classes = tuple(sorted({name for _, given in found.values() for name in given if name is not None}))
        numbers = {name: i for i, name in enumerate(self.classes)}
        super().__init__(files, [-1 if name is None else numbers[name] for name in names], transform)

    def check(self, numbers: Sequence[int]) -> None:
        """Open the headers of these: better a word now than in the middle of the first epoch."""
        files = [self.files[i] for i in numbers]
        with ThreadPoolExecutor(8) as pool:
            for file, problem in zip(files, pool.map(_problem, files), strict=True):
                if problem:
                    raise UserError(f"cannot read the picture {file}: {problem}{ADVICE}")


Found = tuple[tuple[str, ...], tuple[str | None, ...]]  # files, and the class of each


def _index(root: Path) -> dict[str, Found]:
    """Split → its pictures, in the order of their paths."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"the folder {root} {what}; --data-root is the folder of the pictures")
    if (root / "train").is_dir() or (root / "test").is_dir():
        return {name: _labelled(root / name) for name in ("train", "test") if (root / name).is_dir()}
    return {"all": _labelled(root)}


def _labelled(folder: Path) -> Found:
    _see(folder)
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    folders = [entry for entry in entries if entry.is_dir()]
    for entry in folders:
        _see(entry)
    flat = tuple(str(folder / entry.name) for entry in entries if is_picture(entry.name) and entry.is_file())
    inside = {
        entry.name: tuple(sorted(below(folder / entry.name), key=_parts))
        for entry in folders
        if not entry.name.startswith(".")
    }
    filled = {name: files for name, files in inside.items() if files}
    if flat and filled:
        flat = tuple(sorted([*flat, *(file for files in filled.values() for file in files)], key=_parts))
    if not flat and not filled:
        raise UserError(f"{folder} holds no picture: {LAYOUTS}")
    if len(filled) < len(inside) and not flat:
        empty = next(name for name in inside if name not in filled)
        raise UserError(f"the class folder {folder / empty} holds no picture; fill or remove it")
    if flat:
        return flat, (None,) * len(flat)
    return tuple(f for files in filled.values() for f in files), tuple(n for n in filled for _ in filled[n])


def _see(folder: str | os.PathLike[str]) -> None:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"cannot read the folder {os.fspath(folder)}: permission denied; give access to it")


def _parts(file: str) -> list[str]:
    return file.split(os.sep)


def _relabelled(found: Mapping[str, Found], root: Path, table: Path) -> dict[str, Found]:
    """The same pictures with the classes of a table; those that it does not name have none."""
    classes: dict[str, str] = {}
    files = {file for pictures, _ in found.values() for file in pictures}
    try:
        with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            for number, row in enumerate(csv.reader(lines), 1):
                if len(row) != 2:
                    raise UserError(
                        f"{table}, line {number}: a file and its class are wanted, in UTF-8, with a comma between"
                    )
                file = str(root / row[0])
                if classes.get(file, row[1]) != row[1]:
                    raise UserError(f"{table}, line {number}: {row[0]!r} had another class before; give it one")
                if file in files:
                    classes[file] = row[1]
                elif number > 1:  # the first line may be a heading
                    where = f"{table}, line {number} names {row[0]!r}"
                    raise UserError(f"{where}, and there is no such picture in {root}; mend or remove the line")
    except (OSError, csv.Error) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot read the --labels {table}: {problem}; a UTF-8 file of `file,class` lines is wanted"
        ) from error
    if not classes:
        raise UserError(f"the --labels {table} name none of the pictures in {root}; files are named from there on")
    return {name: (held, tuple(map(classes.get, held))) for name, (held, _) in found.items()}


def _problem(file: str) -> str | None:
    try:
        with Image.open(file):
            return None
    except UnidentifiedImageError:
        return "its content is no image"
    except READ_ERRORS as error:
        return str(error)
