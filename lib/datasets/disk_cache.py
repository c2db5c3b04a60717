"""What is kept on disk between runs: decoded pictures, so that a large one is decoded once, features, and networks.

Each folder of pictures has a folder of its own here:

    pictures-<key>/, features-<key>/
        data.bin     8-bit pictures (H, W, C), or float32 features (views, D) as bytes, one behind the other
        index.bin    a record for each, which is written after its picture
        filling      locked by the process that adds to the two
        used         locked by every process that reads them; its time is that of the last use

    networks-<key>/
        data.bin     a network, exported for another program
        index.bin    the checksum of that, which is written after it
        used         as above

A process that is killed leaves at most the picture at hand without a record, and that is cut off. A folder may be removed at
any moment, by a process on a file system without locks or by a person: readers keep their open file, or decode again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import PIL
from numpy.typing import NDArray

from lib.checkpoints.checkpoint import write_atomically
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.regular_files import check_regular
from lib.config.settings import Section, expanded, setting
from lib.errors import UserError, say, warn
from lib.machine import locks, processes
from lib.session import SessionSettings

VERSION = 1  # of what `lib.transforms.pillow_views.prepare` gives; another one decodes everything again
GIB = 2**30
ATTEMPTS = 100  # to open a folder that other processes remove
KINDS = ("pictures", "features", "networks")
REMOVED = ".removed-"  # begins the name of a folder that is being removed
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
    lifetime = "machine"
    disk_cache: float = setting(
        10.0,
        "disk space for what is kept between runs: lists of files, frozen networks and their features and, with "
        "--tfm-working-size, decoded images; 0 = nothing is kept",
        unit="GiB",
        low=0,
    )
    cache: str | None = setting(
        None,
        "folder of what is kept; none = deep-image-clustering in XDG_CACHE_HOME, or else in ~/.cache, if "
        "that can be written",
        value="FOLDER",
        convert=expanded,
    )


@dataclass(frozen=True)
class Cache:
    """What a run keeps for others: where, and how much."""

    root: Path | None
    """The folder of everything that is kept; None: nothing is."""

    bound: float | None
    """Bytes that all of it may take; None: the run may read there, and write nothing."""

    is_chosen: bool
    """The user chose the folder, so that a failure to write there is an error."""


def open_cache(config: Config) -> Cache:
    """What the settings say of it; a usual folder that cannot be had keeps nothing."""
    settings = config.of(CacheSettings)
    root = None
    if settings.disk_cache:
        with suppress(UserError):
            root = _chosen(settings)
    return Cache(root, settings.disk_cache * GIB if _writes(config) else None, settings.cache is not None)


def usable(config: Config) -> Config:
    """The same; or, where no folder was chosen and the usual one cannot be had, with nothing kept and a note of it.

    Raises:
        UserError: the folder that was chosen cannot be used.
    """
    settings = config.of(CacheSettings)
    if not settings.disk_cache or not _writes(config):
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


def _writes(config: Config) -> bool:
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
        is_chosen: the user chose the root, so that a failure to write there is an error.
    """

    def __init__(
        self,
        root: Path,
        key: Sequence[object],
        channels: int,
        names: Sequence[str],
        stamps: NDArray[np.int64],
        kind: Literal["pictures", "features"] = "pictures",
        is_chosen: bool = True,
    ) -> None:
        self._file: BinaryIO | None = None  # data.bin, of the same moment as the records
        self._use: BinaryIO | None = None
        whole = "\0".join(map(str, (*key, channels, VERSION, PIL.__version__)))
        self.folder = root / f"{kind}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]}"
        self._what = "decoded pictures" if kind == "pictures" else kind
        self._is_chosen = is_chosen
        self._channels = channels
        self._stamps = stamps
        self._names = [hashlib.blake2b(os.fsencode(name), digest_size=16).digest() for name in names]
        self.unfit = 0  # pictures that are not kept because there is no room for them
        self._look()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_use": None, "_names": [], "_last": {}}

    def __del__(self) -> None:
        self._close_data()
        self._release()

    def _close_data(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _release(self) -> None:
        """Be none of those that use the folder any more."""
        if self._use is not None:
            self._use.close()
            self._use = None

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
        content = b""
        with suppress(OSError):  # removed by another process, or a damaged disk
            if self._file is None:  # in another process than the one that looked
                self._file = _opened(self.folder / "data.bin", "rb")
            content = os.pread(self._file.fileno(), height * width * self._channels, offset)
        if len(content) != height * width * self._channels or zlib.crc32(content) != crc:
            self._rows[position] = -1
            self._forget(row)
            return None
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)

    def _forget(self, row: int) -> None:
        """Let the next run decode a damaged picture again."""
        place = row * RECORD.itemsize
        known = self._records[row].tobytes()
        if self._use is not None:
            with suppress(OSError), _opened(self.folder / "index.bin", "r+b") as index:
                if os.pread(index.fileno(), RECORD.itemsize, place) == known:  # no other process has begun afresh
                    os.pwrite(index.fileno(), bytes(RECORD["name"].itemsize), place)

    def fill(self, decode: Decode, bound: float) -> None:
        """Keep the pictures that are not kept yet, as far as they fit; one process at a time.

        Args:
            decode: gives pictures.
            bound: bytes that all that is kept may take. What was used longest ago is removed for it.

        Raises:
            UserError: a chosen folder cannot be written, or the disk is full; or from `decode`.
        """
        if not len(self.missing) and self._size() <= bound:
            with suppress(OSError):  # reading is enough
                self._hold()
            return
        try:
            for _ in range(ATTEMPTS):
                with _while_removed():
                    self._fill(decode, bound)
                    return
                self._release()
        except OSError as error:
            problem = (
                f"cannot keep {self._what} in {self.folder}: {error.strerror or error}; choose another folder by "
                "--cache, or keep none: --disk-cache 0"
            )
            if self._is_chosen:
                raise UserError(problem) from error
            if processes.leads():
                warn(problem)
            self._look()  # what was written before stays
        self.unfit = len(self.missing)

    def _fill(self, decode: Decode, bound: float) -> None:
        self._hold()
        with _waited_for(self.folder / "filling"):
            self._look()  # another process may have been faster
            self._append(decode, bound)

    def _append(self, decode: Decode, bound: float) -> None:
        allowed = _allowance(self.folder, self._size(), bound)
        counted = self._size()
        full = False
        if self._is_waste(allowed):
            for name in ("index.bin", "data.bin"):  # in this order: data without an index is nothing
                (self.folder / name).unlink(missing_ok=True)
            self._look()
        self._close_data()
        self._file = data = _opened(self.folder / "data.bin", "a+b")
        with _opened(self.folder / "index.bin", "a+b") as index:
            end = int(self._ends.max(initial=0))
            begun = len(self._records) * RECORD.itemsize
            data.truncate(end)
            index.truncate(begun)
            wanted = self.missing.tolist()
            for position, picture in zip(wanted, decode(wanted), strict=False):
                if picture is None:
                    continue
                content = picture.tobytes()
                taken = end + len(content) + begun + RECORD.itemsize
                if taken > allowed or taken > counted + RECOUNT:
                    allowed = _allowance(self.folder, taken, bound)
                    counted = taken
                full = taken > allowed
                if full:
                    break
                _write(data, content)
                place = (end, picture.shape[0], picture.shape[1], zlib.crc32(content))
                record = np.array((self._names[position], *self._stamps[position].tolist(), *place), dtype=RECORD)
                _write(index, record.tobytes())
                end = end + len(content)
                begun = begun + RECORD.itemsize
            self._note(os.pread(index.fileno(), begun, 0), end)
        self.unfit = len(self.missing) if full else 0

    def _look(self) -> None:
        """Find out what is kept of the pictures."""
        index = b""
        size = 0
        self._close_data()
        with suppress(OSError):
            with _opened(self.folder / "index.bin", "rb") as file:
                index = file.read()
            self._file = _opened(self.folder / "data.bin", "rb")
            size = os.fstat(self._file.fileno()).st_size
        self._note(index, size)

    def _note(self, index: bytes, size: int) -> None:
        """Take the records of a data.bin of `size` bytes."""
        records = np.frombuffer(index[: len(index) // RECORD.itemsize * RECORD.itemsize], dtype=RECORD)
        # As floats: a damaged record must not overflow.
        lengths = records["height"].astype(np.float64) * records["width"] * self._channels
        whole = (records["height"] > 0) & (records["width"] > 0) & (records["offset"] >= 0)
        whole &= records["offset"] + lengths <= size
        count = int(np.flatnonzero(whole)[-1]) + 1 if whole.any() else 0
        self._records = records[:count]
        whole = whole[:count]
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
        size = int(self._ends.max(initial=0))
        own = int(self._lengths[ours].sum())
        wanted = own / max(1, len(ours)) * len(self.missing)
        return size > 2 * live or (size > own and self._size() + wanted > allowed) or self._size() > allowed

    def _size(self) -> int:
        return _size(self.folder)

    def _hold(self) -> None:
        """Be one of those that use the folder; made, if need be."""
        for _ in range(ATTEMPTS):
            if self._use is not None:
                break
            with _while_removed():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._use = locks.hold(self.folder / "used", shared=True, wait=True)
        if self._use is not None:
            os.utime(self._use.fileno())


def _allowance(folder: Path, wanted: int, bound: float) -> float:
    """Bytes that a folder may take; where it wants more, others are removed that nobody uses."""
    root = folder.parent
    for half in _entries(root, REMOVED):  # by a process that was killed
        shutil.rmtree(half, ignore_errors=True)
    found = sorted((path for kind in KINDS for path in _entries(root, f"{kind}-")), key=_used)
    others = {path: _size(path) for path in found if path != folder}
    rest = sum(others.values()) + sum(map(_length, _entries(root, "files-")))
    for path, size in others.items():
        if rest + wanted <= bound:
            break
        if _remove(path):
            rest -= size
    return bound - rest


class KeptNetwork:
    """An exported network that is kept on disk.

    Args:
        cache: where.
        key: everything that its bytes depend on.
    """

    def __init__(self, cache: Cache, key: Sequence[object]) -> None:
        name = hashlib.sha256("\0".join(map(str, key)).encode()).hexdigest()[:16]
        self._folder = None if cache.root is None else cache.root / f"networks-{name}"
        self._bound = cache.bound
        self._is_chosen = cache.is_chosen

    def read(self) -> bytes | None:
        """Its bytes; None where it is not kept, or no longer what was written."""
        if self._folder is None:
            return None
        try:
            with _opened(self._folder / "data.bin", "rb") as data, _opened(self._folder / "index.bin", "rb") as index:
                content = data.read()
                checksum = index.read()
            if self._bound is not None:
                os.utime(self._folder / "used")
        except OSError:
            return None
        return content if hashlib.sha256(content).digest() == checksum else None

    def keep(self, content: bytes) -> None:
        """Keep it, where there is room.

        Raises:
            UserError: a chosen folder cannot be written, or the disk is full.
        """
        if self._folder is None or self._bound is None:
            return
        try:
            self._write(self._folder, content, self._bound)
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or error
            problem = (
                f"cannot keep a network in {self._folder}: {reason}; choose another folder by --cache, or keep none: "
                "--disk-cache 0"
            )
            if self._is_chosen:
                raise UserError(problem) from error
            warn(problem)

    def _write(self, place: Path, content: bytes, bound: float) -> None:
        if len(content) > _allowance(place, len(content), bound):
            return
        for _ in range(ATTEMPTS):
            with _while_removed():
                place.mkdir(parents=True, exist_ok=True)
                use = locks.hold(place / "used", shared=True, wait=True)
                if use is not None:
                    with use:
                        for name, part in (("data.bin", content), ("index.bin", hashlib.sha256(content).digest())):
                            write_atomically(place / name, part)
                    return


@contextmanager
def _while_removed() -> Iterator[None]:
    """Pass over what a folder gives rise to that another process removes at this moment."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE, errno.EEXIST):
            raise


def _opened(path: Path, mode: str) -> BinaryIO:
    check_regular(path)
    return cast(BinaryIO, open(path, mode, buffering=0))


def _entries(root: Path, beginning: str) -> list[Path]:
    with suppress(OSError):
        return [root / name for name in os.listdir(root) if name.startswith(beginning)]
    return []


def _length(file: Path) -> int:
    """Bytes; 0 for a file that is gone."""
    with suppress(OSError):
        return file.stat().st_size
    return 0


def _size(folder: Path) -> int:
    return _length(folder / "data.bin") + _length(folder / "index.bin")


def _used(folder: Path) -> float:
    with suppress(OSError):
        return (folder / "used").stat().st_mtime
    return 0.0


def _remove(folder: Path) -> bool:
    """Remove a folder that no process uses; False where it stays."""
    removed = folder.with_name(f"{REMOVED}{secrets.token_hex(8)}")
    try:
        use = locks.hold(folder / "used")
        if use is None:
            return False
        with use:
            folder.rename(removed)  # in one piece, so that nobody finds half of it
    except FileNotFoundError:
        return True
    except OSError:  # of another user
        return False
    shutil.rmtree(removed, ignore_errors=True)
    return True


def _waited_for(path: Path) -> BinaryIO:
    file = locks.hold(path)
    if file is None:
        if processes.leads():  # of several ranks one works, and one may speak
            say("waiting for another process, which is at work on the same pictures", 0)
        file = locks.hold(path, wait=True)
    assert file is not None
    return file


def _write(file: BinaryIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # the disk may take a part, before it refuses
        rest = rest[file.write(rest) :]
