"""The ways in which a run ends early, each with one line and an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class UserError(Exception):
    """The user's mistake: what is wrong, where, and what to do (exit status 2)."""


class MissingData(UserError):
    """The data set is not there at all."""


class RunStopped(Exception):
    """A run that stops itself, such as one whose loss is no longer finite (exit status 1)."""


class Interrupted(Exception):
    """SIGINT or SIGTERM came, and the run has saved its state (exit status 128 + its number)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def exit_status(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], int]:
    """Wrap a program: it returns an exit status, and what a user can mend is one line on stderr."""

    def wrapped(argv: Sequence[str]) -> int:
        try:
            main(argv)
            return 0
        except UserError as error:
            return _say(f"error: {error}", 2)
        except RunStopped as error:
            return _say(f"error: the run stopped itself: {error}", 1)
        except Interrupted as error:
            return _say(f"stopped by {error}; the state is saved", error.status)
        except KeyboardInterrupt:
            return _say("stopped before there was a state to save", 128 + signal.SIGINT)
        except RuntimeError as error:
            # torch.OutOfMemoryError on a GPU, and a plain RuntimeError on the CPU.
            if "allocate memory" not in str(error) and "out of memory" not in str(error):
                raise
            return _say("error: not enough memory; take a smaller --batch-size or network (--dry-run estimates)", 2)
        except BrokenPipeError:  # `main.py --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if error.errno not in _OUTSIDE:
                raise
            return _say(
                f"error: {error.strerror}: {error.filename or 'while writing'}; free or choose another place", 2
            )

    return wrapped


def _say(text: str, status: int) -> int:
    print(" ".join(text.splitlines()), file=sys.stderr)
    return status
