"""The official files of a data set: found and verified before anything reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets.utils import check_integrity

from lib.errors import MissingData, UserError


@dataclass(frozen=True)
class Archive:
    """A download, and the folder that it unpacks to."""

    name: str
    md5: str
    folder: str


def find(root: str, archive: Archive, marker: str = "") -> Path:
    """The data set's folder inside of `root`.

    Args:
        root: what the user calls the folder of the data set.
        archive: what was to be unpacked there.
        marker: a file of the data set; `root` may then be its folder itself.

    Raises:
        MissingData: nothing of the data set is there.
        UserError: it is one level higher or lower, or was not unpacked to the end.
    """
    base = Path(root).expanduser()
    if marker and (base / marker).is_file():
        return base
    if (base / archive.folder / marker).exists():
        return base / archive.folder
    if marker and (base / archive.folder).is_dir():
        raise UserError(f"{base / archive.folder} lacks {marker}; remove the folder, and unpack {archive.name} again")
    wanted = f"no folder {archive.folder} in {root}"
    if base.resolve().name == archive.folder or (marker and (base.resolve().parent / marker).is_file()):
        raise UserError(f"{wanted}: --data-root is one level too low; give {base.resolve().parent}")
    above = next((path.parent for path in sorted(base.glob(f"*/{archive.folder}")) if path.is_dir()), None)
    if above is not None:
        raise UserError(f"{wanted}: --data-root is one level too high; give {above}")
    file = base / archive.name
    if file.is_file():
        state = "was not unpacked" if check_integrity(str(file), archive.md5) else "is incomplete or damaged"
        raise UserError(f"{wanted}, and {file} {state}; --download mends it")
    raise MissingData(f"{wanted}; give the folder that holds it as --data-root, or fetch it with --download")


def verify(folder: Path, files: Sequence[Sequence[str]]) -> None:
    """Check that the files are what was published.

    Args:
        folder: of the files.
        files: (name, MD5) of each.

    Raises:
        UserError: one is missing, or different.
    """
    for name, md5 in files:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; --download fetches the data set again")
        if not check_integrity(str(path), md5):
            raise UserError(f"{path} is damaged: its checksum is not the published one; --download fetches it again")


def fetch(download: Callable[[], object], what: str) -> None:
    """Run a download of torchvision's, which verifies what comes.

    Raises:
        UserError: the network or the disk failed, or the checksum is not the published one.
    """
    try:
        download()
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot download {what}: {reason}; try again, or fetch it by hand into --data-root") from error
