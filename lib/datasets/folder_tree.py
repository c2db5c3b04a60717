"""A folder, walked once: the images in it, and everything that is left out."""

from __future__ import annotations

import errno
import heapq
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lib.datasets.image_files import is_file, is_picture
from lib.datasets.image_formats import PACKAGES
from lib.errors import UserError

# Thumbnails, waste and metadata of network storage, desktops and archives; lower case.
SYSTEM_FOLDERS = {
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
    "__pycache__",
}
KINDS = 20  # of what is left out that a line lists
NAMES = 5  # that a line lists
LENGTH = 100  # letters of a name that a line shows


class Kind(NamedTuple):
    """Why something is left out, as one says it of one and of several."""

    one: str
    several: str
    is_located: bool = False  # the line says where they are


HIDDEN = Kind("hidden file", "hidden files")
WITHOUT_ENDING = Kind("file without an ending", "files without an ending")
BROKEN_LINK = Kind("broken link", "broken links", True)
SPECIAL = Kind("FIFO, socket or device", "FIFOs, sockets or devices", True)
LINKED_FOLDER = Kind("link to a folder", "links to folders", True)
REPEATED = Kind("link to a folder that is read already", "links to folders that are read already", True)
UPWARD = Kind("link to a folder above", "links to folders above", True)
WITHOUT_IMAGES = Kind("folder without images", "folders without images", True)
UNREADABLE = Kind("folder that cannot be read", "folders that cannot be read", True)


@dataclass
class Tree:
    """What is in a folder. Names are paths from `root` on.

    Args:
        root: the folder.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    """The images, in the order of their paths."""
    folders: list[str] = field(default_factory=list)
    """The folders that were read, without the root."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Folder → why it cannot be read."""
    left_out: dict[Kind, list[str]] = field(default_factory=dict)

    def leave_out(self, kind: Kind, name: str) -> None:
        self.left_out.setdefault(kind, []).append(name)

    def path(self, name: str) -> str:
        """A name as a path that can be opened."""
        return name if self.root == Path() else os.path.join(self.root, name)

    def is_for_images(self, folder: str) -> bool:
        """Whether a folder without images is empty, or holds some without a decoder; others hold something else."""
        inside = os.path.join(folder, "")
        kinds = [kind for kind, names in self.left_out.items() if any(name.startswith(inside) for name in names)]
        return not kinds or any(kind.one in PACKAGES for kind in kinds)

    def describe_left_out(self, folder: str = "") -> str:
        """What is left out in a folder and below it, such as `left out: 3 .txt, 2 hidden files`; or nothing."""
        inside = os.path.join(folder, "")
        found = {
            kind: [name for name in names if name.startswith(inside)] if folder else names
            for kind, names in self.left_out.items()
        }
        kinds = [kind for kind in found if found[kind]]
        kinds.sort(key=lambda kind: (kind.one not in PACKAGES, -len(found[kind]), kind))
        texts = [_describe(kind, found[kind]) for kind in kinds[:KINDS]]
        if rest := kinds[KINDS:]:
            texts.append(f"{sum(len(found[kind]) for kind in rest):,} of {len(rest):,} other kinds")
        return f"left out: {', '.join(texts)}" if texts else ""


def _describe(kind: Kind, names: list[str]) -> str:
    text = f"{len(names):,} {kind.one if len(names) == 1 else kind.several}"
    if kind.one in PACKAGES:
        text += f" (no decoder; pip install {PACKAGES[kind.one]})"
    if kind.is_located:
        text += f" ({listed(sorted(names))})"
    return text


def printable(name: str) -> str:
    """A name in one line, also where it has line breaks or is no UTF-8."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def listed(names: Iterable[str]) -> str:
    """The first few of some names, each of bounded length."""
    shown = [
        name if len(name) <= LENGTH else f"{name[: LENGTH // 2]}…{name[-LENGTH // 2 :]}"
        for name in map(printable, names)
    ]
    return ", ".join([*shown[:NAMES], *(["…"] if len(shown) > NAMES else [])])


def counted(count: int, one: str, several: str) -> str:
    """A number with its noun."""
    return f"{count:,} {one if count == 1 else several}"


def walk(root: Path, follows: Callable[[str], bool]) -> Tree:
    """The images in a folder and in the folders below it.

    Each real folder is read once, however many links lead to it. Folders that are no links come first.

    Args:
        root: the folder.
        follows: whether a link of that name, if it leads to a folder, is followed.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist, or access to it is denied"
        raise UserError(f"the folder {root} {what}; --data-root is the folder of the pictures")
    tree = Tree(root)
    real_root = os.path.realpath(root)
    above = {os.fspath(parent) for parent in Path(real_root).parents}
    seen: set[str] = set()
    waiting = [("", real_root)]
    links: list[str] = []
    while waiting or links:
        if waiting:
            name, real = waiting.pop()
        else:
            name = heapq.heappop(links)
            real = os.path.realpath(root / name)
        if real in above or real in seen:
            tree.leave_out(UPWARD if real in above else REPEATED, name)
            continue
        seen.add(real)
        if name:
            tree.folders.append(name)
        for entry in _entries(tree, name):
            inside = os.path.join(name, entry.name)
            if not _is_folder(entry):
                _sort_file(tree, entry, inside)
            elif entry.name.startswith(".") or entry.name.casefold() in SYSTEM_FOLDERS:
                shown = printable(entry.name)
                tree.leave_out(Kind(f"folder {shown}", f"folders {shown}"), inside)
            elif not entry.is_symlink():
                waiting.append((inside, os.path.join(real, entry.name)))
            elif follows(inside):
                heapq.heappush(links, inside)
            else:
                tree.leave_out(LINKED_FOLDER, inside)
    tree.files.sort(key=_parts)
    tree.folders.sort(key=_parts)
    return tree


def _entries(tree: Tree, folder: str) -> list[os.DirEntry[str]]:
    path = tree.root / folder
    try:
        if not os.access(path, os.R_OK | os.X_OK):
            os.stat(path)  # which may know better why
            raise PermissionError(errno.EACCES, "permission denied")
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:  # without access, gone meanwhile, or too deep for a path
        problem = str(error.strerror or error).lower()
        if not folder:
            raise UserError(f"cannot read the folder {path}: {problem}; give access to it") from error
        tree.unreadable[folder] = problem
        tree.leave_out(UNREADABLE, folder)
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _sort_file(tree: Tree, entry: os.DirEntry[str], name: str) -> None:
    """Take what is no folder for an image, or leave it out; nothing is opened, since a FIFO would block."""
    if entry.name.startswith("."):
        tree.leave_out(HIDDEN, name)
    elif not is_file(entry):
        tree.leave_out(SPECIAL if os.path.exists(tree.root / name) else BROKEN_LINK, name)
    elif is_picture(entry.name):
        tree.files.append(name)
    else:
        ending = os.path.splitext(entry.name)[1].lower()
        tree.leave_out(Kind(ending, ending) if re.fullmatch(r"\.\w{1,10}", ending) else WITHOUT_ENDING, name)


def _parts(name: str) -> list[str]:
    return name.split(os.sep)
