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
    """SIGINT or SIGTERM came (exit status 128 + its number).

    Args:
        number: of the signal.
        saved: whether the run has saved its state.
        midway: it came while a step was being taken, so that there is no state that could be saved.
    """

    def __init__(self, number: int, saved: bool = False, midway: bool = False) -> None:
        state = "the state is saved" if saved else "nothing was saved beyond the last checkpoint"
        super().__init__(f"stopped by {signal.Signals(number).name}; {state}")
        self.number, self.midway, self.status = number, midway, 128 + number


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leave_on_signals() -> None:
    """Until the program itself begins: a word and the exit status, instead of a traceback of its imports."""

    def leave(number: int, frame: object) -> None:
        error = Interrupted(number)
        os._exit(_say(str(error), error.status))

    for number in SIGNALS:
        signal.signal(number, leave)


def exit_status(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], int]:
    """Wrap a program: it returns an exit status, and what a user can mend is one line on stderr."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted(number)

    def wrapped(argv: Sequence[str]) -> int:
        before = [signal.signal(number, interrupt) for number in SIGNALS]
        try:
            main(argv)
            return 0
        except UserError as error:
            return _say(f"error: {error}", 2)
        except RunStopped as error:
            return _say(f"error: the run stopped itself: {error}", 1)
        except Interrupted as error:
            return _say(str(error), error.status)
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
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    return wrapped


def _say(text: str, status: int) -> int:
    print(" ".join(text.splitlines()), file=sys.stderr)
    return status
