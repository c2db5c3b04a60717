"""Which files may be opened: regular ones, and for what a user names also the pipes of a shell."""

from __future__ import annotations

import errno
import os
import stat

PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # where a shell puts `<(command)`, which has a writer


def check_regular(path: str | os.PathLike[str], pipes: bool = False) -> None:
    """See that a path is of a regular file: opening a FIFO waits for its writer, and a device may have no end.

    A path of nothing passes, since opening it says so.

    Args:
        path: of a file that is to be opened.
        pipes: the pipe of a shell passes too.

    Raises:
        OSError: it is of something else.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    is_pipe = stat.S_ISFIFO(mode) and os.fspath(path).startswith(PIPES)
    if not (stat.S_ISREG(mode) or (pipes and is_pipe)):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
