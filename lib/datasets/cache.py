"""What is kept on disk between runs: decoded pictures, so that a large one is decoded once, and features.

Each folder of pictures has a folder of its own here:

    pictures-<key>/, features-<key>/
        data.bin     8-bit pictures (H, W, C), or float32 features (views, D) as bytes, one behind the other
        index.bin    a record for each, which is written after its picture
        filling      locked by the process that adds to the two
        used         locked by every process that reads them; its time is that of the last use

A process that is killed leaves at most the picture at hand without a record, and that is cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import PIL
from numpy.typing import NDArray

from lib import distributed
from lib.command import Command
from lib.config import Config
from lib.errors import UserError
from lib.session import SessionSettings
from lib.settings import Section, expanded, setting

VERSION = 1  # of what `lib.transforms.pil.prepare` gives; another one decodes everything again
GIB = 2**30
RECOUNT = 2**24  # bytes, after which it is seen what other processes have kept meanwhile
RECORD = np.dtype(
    [("name", "V16"), ("size", "<i8"), ("mtime", "<i8"), ("offset", "<i8"), ("height", "<i4"), ("width", "<i4"),
     ("crc", "<u4")]
)  # fmt: skip

Decode = Callable[[list[int]], Iterator[NDArray[np.uint8] | None]]
"""Positions → (H, W, C) of each picture; None for one that cannot be read."""


@dataclass(frozen=True)
class CacheSettings(Section):
    title = "kept between runs"
    local = True
    disk_cache: float = setting(
        10.0,
        "disk that may be taken by what is kept: lists of files, features of a frozen backbone and, with "
        "tfm_working_size, decoded pictures; 0: nothing is kept",
        unit="GiB",
        low=0,
    )
    cache: str | None = setting(
        None,
        "its folder; none: deep-image-clustering in XDG_CACHE_HOME, or else in ~/.cache, where that can be written",
        convert=expanded,
    )


def folder(config: Config) -> Path | None:
    """Where things are kept; None: nowhere."""
    settings = config.of(CacheSettings)
    if not settings.disk_cache:
        return None
    try:
        return _chosen(settings)
    except UserError:
        return None


def usable(config: Config) -> Config:
    """The same; or, where no folder was chosen and the usual one cannot be had, with nothing kept and a note of it.

    Raises:
        UserError: the folder that was chosen cannot be used.
    """
    settings = config.of(CacheSettings)
    if not settings.disk_cache or not writes(config):
        return config
    try:
        _check(_chosen(settings))
    except UserError as error:
        if settings.cache is not None:
            raise UserError(f"--cache {settings.cache}: {error}; choose another folder, or --disk-cache 0") from None
        return config.replace(disk_cache=0.0).noted(f"nothing is kept between runs: {error}; --cache names a folder")
    return config


def _chosen(settings: CacheSettings) -> Path:
    if settings.cache is not None:
        return Path(settings.cache)
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = Path(root).expanduser()
    except RuntimeError as error:
        raise UserError("there is no home directory") from error
    if not path.is_absolute():
        raise UserError(f"XDG_CACHE_HOME {root} is no whole path")
    return path / "deep-image-clustering"


def _check(path: Path) -> None:
    """Raises UserError where the folder cannot be written, or not be made."""
    try:
        there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    except OSError as error:  # such as a parent that may not be entered
        raise UserError(f"{path} cannot be used: {error.strerror}") from error
    if not there.is_dir():
        raise UserError(f"{path} cannot be made, as {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} cannot be written")


def writes(config: Config) -> bool:
    """Whether this run may keep anything: `--debug` and `--dry-run` write no file at all."""
    return not (config.of(SessionSettings).debug or config.of(Command).dry_run)


class Store:
    """The decoded pictures of one folder, or their features. It can be handed to other processes, which read alone.

    Args:
        root: the folder of all that is kept.
        key: everything that the bytes of a picture depend on, beside its file.
        channels: of the pictures.
        names: (N) of the files.
        stamps: (N, 2) their sizes and modification times, ns; what was kept of another file does not count.
        kind: what is kept of the pictures.
    """

    def __init__(
        self,
        root: Path,
        key: Sequence[object],
        channels: int,
        names: Sequence[str],
        stamps: NDArray[np.int64],
        kind: Literal["pictures", "features"] = "pictures",
    ) -> None:
        whole = "\0".join(map(str, (*key, channels, VERSION, PIL.__version__)))
        self.folder = root / f"{kind}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]}"
        self._what = "decoded pictures" if kind == "pictures" else kind
        self._channels, self._stamps = channels, stamps
        self._names = [hashlib.blake2b(os.fsencode(name), digest_size=16).digest() for name in names]
        self._file: BinaryIO | None = None
        self._use: BinaryIO | None = None
        self.unfit = 0  # pictures that are not kept because there is no room for them
        self._look()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_use": None, "_names": [], "_last": {}}

    @property
    def missing(self) -> NDArray[np.int64]:
        """(n,) positions of the pictures that are not kept."""
        return np.flatnonzero(self._rows < 0).astype(np.int64)

    def holds(self, positions: list[int]) -> bool:
        """Whether all of these are kept."""
        return bool((self._rows[positions] >= 0).all())

    def read(self, position: int) -> NDArray[np.uint8] | None:
        """(H, W, C), or None where it is not kept or no longer what was written."""
        row = int(self._rows[position])
        if row < 0:
            return None
        _, _, _, offset, height, width, crc = self._records[row].item()
        shape = height, width, self._channels
        try:
            if self._file is None:
                self._file = open(self.folder / "data.bin", "rb", buffering=0)  # noqa: SIM115 (it stays open)
            content = os.pread(self._file.fileno(), height * width * self._channels, offset)
        except OSError:  # removed by another process, or a damaged disk
            return None
        if len(content) != height * width * self._channels or zlib.crc32(content) != crc:
            self._forget(row)
            return None
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)

    def _forget(self, row: int) -> None:
        """Let the next run decode a damaged picture again."""
        place, known = row * RECORD.itemsize, self._records[row].tobytes()
        if self._use is not None:
            with suppress(OSError), open(self.folder / "index.bin", "r+b", buffering=0) as index:
                if os.pread(index.fileno(), RECORD.itemsize, place) == known:  # no other process has begun afresh
                    os.pwrite(index.fileno(), bytes(RECORD["name"].itemsize), place)

    def fill(self, decode: Decode, bound: float) -> None:
        """Keep the pictures that are not kept yet, as far as they fit; one process at a time.

        Args:
            decode: gives pictures.
            bound: bytes that all that is kept may take. What was used longest ago is removed for it.

        Raises:
            UserError: the folder cannot be written, or the disk is full; or from `decode`.
        """
        if not len(self.missing) and self._size() <= bound:
            with suppress(OSError):  # reading is enough
                self._hold()
            return
        try:
            self._hold()
            with open(self.folder / "filling", "wb") as lock:
                _wait(lock)
                self._file = None
                self._look()  # another process may have been faster
                self._append(decode, bound)
        except OSError as error:
            raise UserError(
                f"cannot keep {self._what} in {self.folder}: {error.strerror or error}; choose another folder by "
                "--cache, or keep none: --disk-cache 0"
            ) from error

    def _append(self, decode: Decode, bound: float) -> None:
        allowed, counted = self._allowance(self._size(), bound), self._size()
        full = False
        if self._is_waste(allowed):
            for name in ("index.bin", "data.bin"):  # in this order: data without an index is nothing
                (self.folder / name).unlink(missing_ok=True)
            self._look()
        with (
            open(self.folder / "data.bin", "ab", buffering=0) as data,
            open(self.folder / "index.bin", "ab", buffering=0) as index,
        ):
            end, begun = int(self._ends.max(initial=0)), len(self._records) * RECORD.itemsize
            data.truncate(end)
            index.truncate(begun)
            wanted = self.missing.tolist()
            for position, picture in zip(wanted, decode(wanted), strict=False):
                if picture is None:
                    continue
                content = picture.tobytes()
                taken = end + len(content) + begun + RECORD.itemsize
                if taken > allowed or taken > counted + RECOUNT:
                    allowed, counted = self._allowance(taken, bound), taken
                full = taken > allowed
                if full:
                    break
                _write(data, content)
                place = (end, picture.shape[0], picture.shape[1], zlib.crc32(content))
                record = np.array((self._names[position], *self._stamps[position].tolist(), *place), dtype=RECORD)
                _write(index, record.tobytes())
                end, begun = end + len(content), begun + RECORD.itemsize
        self._look()
        self.unfit = len(self.missing) if full else 0

    def _look(self) -> None:
        """Find out what is kept of the pictures."""
        index, size = b"", 0
        with suppress(OSError):
            index, size = (self.folder / "index.bin").read_bytes(), (self.folder / "data.bin").stat().st_size
        records = np.frombuffer(index[: len(index) // RECORD.itemsize * RECORD.itemsize], dtype=RECORD)
        # As floats: a damaged record must not overflow.
        lengths = records["height"].astype(np.float64) * records["width"] * self._channels
        whole = (records["height"] > 0) & (records["width"] > 0) & (records["offset"] >= 0)
        whole &= records["offset"] + lengths <= size
        count = int(np.flatnonzero(whole)[-1]) + 1 if whole.any() else 0
        self._records, whole = records[:count], whole[:count]
        self._lengths = np.where(whole, lengths[:count], 0).astype(np.int64)
        self._ends = np.where(whole, self._records["offset"] + self._lengths, 0)
        self._last = {name: row for row, name in enumerate(self._records["name"].tolist()) if whole[row]}
        rows = np.array([self._last.get(name, -1) for name in self._names], dtype=np.int64)
        held = np.flatnonzero(rows >= 0)
        for column, name in enumerate(("size", "mtime")):
            held = held[self._records[name][rows[held]] == self._stamps[held, column]]
        self._rows = np.full(len(self._names), -1, dtype=np.int64)
        self._rows[held] = rows[held]

    def _is_waste(self, allowed: float) -> bool:
        """Whether most of the data is of earlier versions of files, or of other files in the place of these."""
        ours = self._rows[self._rows >= 0]
        stale = [self._last[self._names[i]] for i in self.missing.tolist() if self._names[i] in self._last]
        live = int(self._lengths[list(self._last.values())].sum() - self._lengths[stale].sum())
        size, own = int(self._ends.max(initial=0)), int(self._lengths[ours].sum())
        wanted = own / max(1, len(ours)) * len(self.missing)
        return size > 2 * live or (size > own and self._size() + wanted > allowed) or self._size() > allowed

    def _size(self) -> int:
        return _size(self.folder)

    def _allowance(self, wanted: int, bound: float) -> float:
        """Bytes that this folder may take; where it wants more, others are removed that nobody uses."""
        root = self.folder.parent
        found = sorted([*root.glob("pictures-*"), *root.glob("features-*")], key=_used)
        others = {path: _size(path) for path in found if path != self.folder}
        rest = sum(others.values()) + sum(path.stat().st_size for path in root.glob("files-*"))
        for path, size in others.items():
            if rest + wanted <= bound:
                break
            if _remove(path):
                rest -= size
        return bound - rest

    def _hold(self) -> None:
        """Be one of those that use the folder; made, if need be."""
        path = self.folder / "used"
        while self._use is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")  # noqa: SIM115 (it stays open)
            fcntl.flock(file, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):  # removed between the two
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    self._use = file
        os.utime(path)


def _size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in ("data.bin", "index.bin") if (folder / name).exists())


def _used(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.glob("used")), default=0.0)


def _remove(folder: Path) -> bool:
    with open(folder / "used", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
        return True


def _wait(file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if distributed.leads():  # of several ranks one works, and one may speak
            print("waiting for another process, which is at work on the same pictures", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


def _write(file: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # the disk may take a part, before it refuses
        rest = rest[file.write(rest) :]
