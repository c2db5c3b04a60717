"""Locks between processes. A process that is killed lets go of them."""

from __future__ import annotations

import errno
import fcntl
import sys
from functools import cache
from pathlib import Path
from typing import IO, Any

from lib import distributed

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def take(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed.

    A file system without locks gives none; a warning says so, and the caller continues as if it had the lock.

    Args:
        file: open for reading and writing: NFS wants the one for a shared lock and the other for an exclusive one.
        shared: with all who ask for a shared lock.
        wait: until no other process holds it.

    Returns:
        False if another process holds it.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        _warn(Path(file.name).parent.parent, str(error.strerror))
    return True


@cache
def _warn(folder: Path, problem: str) -> None:
    """Once for each folder."""
    if distributed.leads():
        print(
            f"warning: files in {folder} cannot be locked ({problem}); let only one process at a time use a session there",
            file=sys.stderr,
        )
