"""A folder of pictures in any format that Pillow reads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lib.config.settings import Section, expanded, setting
from lib.datasets import Splits, image_decoder, register
from lib.datasets.folder_tree import WITHOUT_IMAGES, counted, listed, printable, walk
from lib.datasets.image_files import ADVICE, PictureFiles
from lib.datasets.label_files import read_labels
from lib.errors import UserError

LAYOUTS = (
    "looked for folders train/ and test/ of class folders, for class folders (one folder of pictures per class), "
    "or for pictures directly inside"
)
SPLIT_NAMES = {
    "train": "train|training|trn",
    "unlabeled": "unlabell?ed",
    "val": "val|valid|validation|dev|development|eval|evaluation",
    "test": "test|testing|tst",
}
"""Split → how its folder may be called, in any case, also as in `training_set` or `val2017`."""
_ADDED = r"([-_ .]?(set|split|data|images?|imgs?|\d{4}))?"


@register("image_folder")
class ImageFolder(PictureFiles):
    """Your own images in a folder: with a folder for each class, with `train/` and `test/`, or without labels.

    Three layouts: `train/` and `test/` (either may be missing), class folders, or flat.

    Folders are taken for splits where every folder that holds images has the name of a split
    (`SPLIT_NAMES`), no two mean the same one, one of them is `train` or `test`, and no image is
    beside them. Each split is again class folders or flat. Otherwise there is one split, `all`.
    `val` is scored where there is no `test`; beside a `test` it is used only if the settings name it. Class
    folders are searched to any depth; their names, sorted, are the classes. Where images are
    directly in the folder, none has a label. `describe` says what was made of the folder and what
    is left out.

    Args:
        root: the folder.
        split: one of `splits(root)`.
        transform: of each image.
        download: not offered.
        settings: of the class.
        index: what `splits(root)` found; none: the folder is walked.

    Raises:
        UserError: no such folder, no image in it, `labels` of other images, or `download`.
    """

    @dataclass(frozen=True)
    class Settings(Section):
        title = "data set image_folder"
        labels: str | None = setting(
            None,
            "CSV file with lines of file,class for the images of a folder; classes only score the result",
            value="FILE",
            lifetime="images",
            convert=expanded,
        )

    @staticmethod
    def splits(root: str) -> Splits:
        index = FolderIndex(Path(os.path.expanduser(root)))
        sizes = {name: len(part.files) for name, part in index.parts.items()}
        trained = [name for name in sizes if name != "val" or "test" not in sizes]
        judged = [name for name in trained if name != "unlabeled"]
        scored = next((name for name in ("test", "val") if name in sizes), judged[0])
        test = tuple(dict.fromkeys([scored, "+".join(judged)]))
        return Splits(sizes, train=("+".join(trained),), test=test, index=index)

    def __init__(
        self,
        root: str,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        settings: Settings = Settings(),
        *,
        index: FolderIndex | None = None,
    ) -> None:
        if download:
            raise UserError(
                "--download: image_folder reads your own pictures, of which none can be fetched; leave it out"
            )
        index = index or FolderIndex(Path(os.path.expanduser(root)))
        labelling = index.labelling(settings.labels)
        if split not in index.parts:
            raise UserError(f"{root} has no split {split!r}: it has {', '.join(index.parts)}")
        self.classes = labelling.classes
        self._lines = [index.summary(len(self.classes)), *labelling.notes]
        numbers = {name: i for i, name in enumerate(self.classes)}
        names = labelling.labels[split]
        files = [index.tree.path(file) for file in index.parts[split].files]
        super().__init__(files, [-1 if name is None else numbers[name] for name in names], transform)

    def describe(self) -> Sequence[str]:
        """What was made of the whole folder, a line each."""
        return self._lines

    def check(self, numbers: Sequence[int]) -> None:
        """Open the headers of these: better a word now than in the middle of the first epoch."""
        files = [self.files[i] for i in numbers]
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(self._check_header, files):
                pass

    def _check_header(self, file: str) -> None:
        with image_decoder.unreadable(f"the picture {file}", ADVICE):
            image_decoder.check_header(file, self.max_megapixels)


class Part(NamedTuple):
    """One split: a folder of class folders, or a flat one."""

    folder: str  # from the root on
    files: list[str]  # from the root on
    classes: list[str | None]  # of each file


class Labelling(NamedTuple):
    """The labels of all splits, by their folders or by a table."""

    labels: Mapping[str, list[str | None]]  # split → class of each file
    notes: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted. One numbering for all splits: a class may be missing from one of them."""
        return tuple(sorted({name for names in self.labels.values() for name in names if name is not None}))


class FolderIndex:
    """A folder of images, walked once: its splits, the class of each image, and what to say of it.

    Args:
        root: the folder.

    Raises:
        UserError: it cannot be read, or a split or a class folder in it holds no image.
    """

    def __init__(self, root: Path) -> None:
        self.tree = walk(root, _is_followed)
        self._notes: list[str] = []
        self._label_notes: list[str] = []  # of the labels by folders
        self.parts = {split: self._part(split, folder) for split, folder in self._split_folders().items()}
        self._labellings: dict[str | None, Labelling] = {}

    def labelling(self, table: str | None) -> Labelling:
        """The labels by a CSV file; without one, by the folders.

        Raises:
            UserError: the file cannot be read, or is about other images.
        """
        if table not in self._labellings:
            self._labellings[table] = (
                self._by_folders() if table is None else self._by_table(Path(os.path.expanduser(table)))
            )
        return self._labellings[table]

    def summary(self, classes: int) -> str:
        """How many images and classes there are, and what is left out."""
        count = counted(sum(len(part.files) for part in self.parts.values()), "image", "images")
        text = f"{count}, {counted(classes, 'class', 'classes') if classes else 'no labels'}"
        if "all" not in self.parts:
            text += f" ({', '.join(f'{len(part.files):,} in {_shown(part.folder)}' for part in self.parts.values())})"
        return text + self._left_out("")

    def _left_out(self, folder: str) -> str:
        text = self.tree.describe_left_out(folder)
        return text and f"; {text}"

    def _split_folders(self) -> dict[str, str]:
        """Split → its folder; `all` → the root, where the layout as a whole is not one of splits."""
        loose, holders = _divide(self.tree.files)
        splits, others = _by_split(holders)
        if not loose and not others:
            named, _ = _by_split(self.tree.folders)
            # A folder for training or for tests that holds no image is a mistake, which `_part` meets.
            splits = {split: folder for split, folder in named.items() if split in ("train", "test")} | splits
        if "train" not in splits and "test" not in splits:
            return {"all": ""}
        if loose:
            verb = "is not taken for a split" if len(splits) == 1 else "are not taken for splits"
            self._notes.append(f"{listed(splits.values())} {verb}, since {_images(loose)} beside: {listed(loose)}")
            return {"all": ""}
        if others:
            verb = "is taken for a class" if len(splits) == 1 else "are taken for classes"
            unknown = [folder for folder in others if split_of(folder) is None]
            reason = "would be the same split"
            if unknown:
                reason = "is no split" if len(unknown) == 1 else "are no splits"
            self._notes.append(f"{listed(splits.values())} {verb}, since {listed(unknown or others)} {reason}")
            return {"all": ""}
        if "val" in splits and "test" not in splits:
            self._notes.append(f"{_shown(splits['val'])} is scored, since there is no folder for tests")
        return {split: splits[split] for split in SPLIT_NAMES if split in splits}

    def _part(self, split: str, folder: str) -> Part:
        tree = self.tree
        for name, problem in tree.unreadable.items():
            if name == folder or os.path.dirname(name) == folder:
                raise UserError(f"cannot read the folder {tree.root / name}: {problem}; give access to it")
        start = os.path.join(folder, "")
        files = [file for file in tree.files if file.startswith(start)]
        if not files:
            raise UserError(f"{tree.root / folder} holds no picture: {LAYOUTS}{self._left_out(folder)}")
        loose, holders = _divide(file.removeprefix(start) for file in files)
        if loose or split == "unlabeled":
            if holders and split != "unlabeled":
                where = _shown(folder) if folder else "the folder"
                self._label_notes.append(
                    f"class folders are not used as labels, because {_images(loose)} directly in {where}: {listed(loose)}"
                )
            return Part(folder, files, [None] * len(files))
        for name in tree.folders:
            if os.path.dirname(name) == folder and os.path.basename(name) not in holders:
                if tree.is_for_images(name):
                    problem = f"the class folder {tree.root / name} holds no picture; fill or remove it"
                    raise UserError(problem + self._left_out(name))
                tree.leave_out(WITHOUT_IMAGES, name)
        return Part(folder, files, [name for name, count in holders.items() for _ in range(count)])

    def _by_folders(self) -> Labelling:
        notes = [*self._notes, *self._label_notes]
        classes = {split: set(part.classes) - {None} for split, part in self.parts.items()}
        if len(classes.get("all", ())) == 1 and any(file.count(os.sep) > 1 for file in self.tree.files):
            folder = self.tree.root / self.tree.files[0].split(os.sep)[0]
            notes.append(f"all images are in one class; for the folders in it, --data-root {printable(str(folder))}")
        for split in ("val", "test"):
            if classes.get("train") and classes.get(split) and classes["train"].isdisjoint(classes[split]):
                folders = [_shown(self.parts[name].folder) for name in ("train", split)]
                notes.append(f"{' and '.join(folders)} share no class")
        return Labelling({split: part.classes for split, part in self.parts.items()}, notes)

    def _by_table(self, table: Path) -> Labelling:
        files = self.tree.files
        classes, remarks = read_labels(table, self.tree.root, files)
        number = counted(len(set(classes.values())), "class", "classes")
        text = f"labels: {len(classes):,} of {len(files):,} images have one, {number}"
        note = "; ".join([text, ", ".join(remarks)]) if remarks else text
        labels = {split: [classes.get(file) for file in part.files] for split, part in self.parts.items()}
        return Labelling(labels, [*self._notes, note])


def split_of(folder: str) -> str | None:
    """The split that a folder's name means; None: it is no such name."""
    for split, names in SPLIT_NAMES.items():
        if re.fullmatch(f"({names}){_ADDED}", folder.casefold()):
            return split
    return None


def _by_split(folders: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(split → the first folder of its name, the other folders)."""
    splits: dict[str, str] = {}
    others: list[str] = []
    for folder in folders:
        split = split_of(folder)
        if split is None or split in splits:
            others.append(folder)
        else:
            splits[split] = folder
    return splits, others


def _is_followed(link: str) -> bool:
    """Whether a link is where class folders are."""
    above = os.path.dirname(link)
    return not above or split_of(above) is not None


def _divide(files: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """(files in no folder, number of files in each topmost folder)."""
    loose: list[str] = []
    holders: dict[str, int] = {}
    for file in files:
        folder, separator, _ = file.partition(os.sep)
        if separator:
            holders[folder] = holders.get(folder, 0) + 1
        else:
            loose.append(file)
    return loose, holders


def _images(files: Sequence[str]) -> str:
    return "1 image is" if len(files) == 1 else f"{len(files):,} images are"


def _shown(folder: str) -> str:
    return printable(folder) + os.sep
