"""Locks between processes: files that one of them holds, or several share. A process that is killed lets go of them."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

from lib.errors import warn
from lib.machine import processes

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def hold(path: Path, *, shared: bool = False, wait: bool = False) -> BinaryIO | None:
    """Open and lock a file, until it is closed; made if need be.

    A file system without locks gives none; a warning says so, and the caller continues as if it had the lock.

    Args:
        path: of the file, which whoever holds it alone may remove.
        shared: with all who ask for a shared lock.
        wait: until no other process holds it.

    Returns:
        None if another process holds it.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        # NFS wants it readable for a shared lock, and writable for an exclusive one.
        file = cast(BinaryIO, open(path, "a+b", buffering=0))  # noqa: SIM115 (it stays open)
        if not _take(file, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait):
            file.close()
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # it was removed before this process had the lock


def _take(file: BinaryIO, path: Path, kind: int, wait: bool) -> bool:
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD and not wait:
            return False
        _warn(path.parent.parent, str(error.strerror))
    return True


@cache
def _warn(folder: Path, problem: str) -> None:
    """Once for each folder."""
    if processes.leads():
        warn(f"files in {folder} cannot be locked ({problem}); let only one process at a time use a session there")
