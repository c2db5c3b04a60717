"""The ways in which a run ends early, each with one line and an exit status."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

__all__ = ["Interrupted", "MissingData", "RunStopped", "UserError"]

_OUTSIDE = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "give access to it, or choose another place",
    errno.EPERM: "give access to it, or choose another place",
    errno.EIO: "check the disk",
    errno.EISDIR: "a file was to be here; move it away",
    errno.ENOTDIR: "a folder was to be here; move it away",
    errno.EEXIST: "move it away",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose another place",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
    errno.ENOMEM: "close other programs, or raise the limit of memory (ulimit -v)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, which have too many files open",
    errno.ESTALE: "see whether it was removed, and start again",
}
_ENDLESS = re.compile(r"([^\s/]{40})[^\s/]{176,}([^\s/]{40})")  # longer than 255 letters, so no file's name
_NO_MEMORY = ("allocate memory", "out of memory", "calculation overflowed", "multiplication overflow")
"""What PyTorch says of a tensor for which there is no room, or of which not even the size can be told."""


class UserError(Exception):
    """A user's mistake (exit status 2). Its text says what is wrong, where, and what to do."""


class MissingData(UserError):
    """The data set's files are not there at all, so `--dry-run` goes by their declared number."""


class RunStopped(Exception):
    """A run stops itself, for example because its loss is no longer finite (exit status 1)."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP ends the run (exit status 128 + the signal's number).

    Like KeyboardInterrupt it is no `Exception`, so that a data set that catches those does not swallow it.

    Args:
        number: of the signal.
        saved: whether the run has saved its state; None: its processes have said so themselves.
        midway: it came while a step was being taken, so that there is no state that could be saved.
        results: the folder in which they are complete, where the signal came after them.
    """

    def __init__(
        self, number: int, saved: bool | None = False, midway: bool = False, results: os.PathLike[str] | None = None
    ) -> None:
        state = {
            True: "; the state is saved",
            False: "; nothing was saved beyond the last checkpoint, if any",
            None: "",
        }
        told = state[saved] if results is None else f"; the results are complete in {results}"
        super().__init__(f"stopped by {signal.Signals(number).name}{told}")
        self.number = number
        self.midway = midway
        self.status = 128 + number


class Echo(Exception):
    """A rank's failure after another's, which has spoken; this one goes silently.

    Args:
        of: what it would have said.
    """

    def __init__(self, of: BaseException) -> None:
        super().__init__(str(of))
        self.of = of


ENDS_WITH_PARENT = "ENDS_WITH_PARENT"  # an environment variable, set for processes that another one of ours starts
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded_signals() -> tuple[signal.Signals, ...]:
    """Those of `SIGNALS` that end this process; under nohup, SIGHUP stays ignored."""
    return tuple(n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)


def prepare_streams() -> None:
    """See that no text can end this program, whatever stdout and stderr are.

    A character that the console's encoding lacks becomes its number. What goes to a closed stream is dropped.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)  # else the next file that is opened would get this number
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w", encoding="utf-8"))  # noqa: SIM115 (it stays open)
        getattr(sys, name).reconfigure(errors="backslashreplace")


def check_surroundings() -> None:
    """Leave with a word where what PyTorch needs is missing, which it would say in a traceback or not at all."""
    problem = _problem_of_surroundings()
    if problem:
        sys.exit(say(f"error: {problem}", 2))


def _problem_of_surroundings() -> str:
    """What is wrong and what to do; empty where nothing is wrong."""
    try:
        os.getcwd()
    except OSError as error:
        return f"the current folder cannot be used: {error.strerror}; start in a folder that exists"
    try:
        tempfile.gettempdir()
    except OSError as error:
        return f"{error.strerror}; let TMPDIR name a folder that can be written"
    try:
        import torch  # noqa: F401
        import tqdm  # noqa: F401
    except (ImportError, OSError) as error:
        return f"PyTorch cannot be loaded: {error}; pip install -r requirements.txt, or see the limits of memory (ulimit -v)"
    except Exception as error:  # both libraries read environment variables while they are imported
        reason = str(error).strip().partition("\n")[0]
        names = sorted(name for name in os.environ if name.startswith(("TORCH", "PYTORCH", "TQDM")))
        return (
            f"PyTorch or tqdm cannot be loaded: {type(error).__name__}: {reason}; "
            f"check the environment variables {', '.join(names)}"
        )
    return ""


def leave_on_signals() -> None:
    """A word and the exit status, at once, wherever no run waits for a signal (`lib.machine.interrupts.Interrupts`).

    An exception would come out of any line, also of another library's that swallows or wraps it. Of several
    processes one speaks, and none on SIGTERM, by which their launcher ends them where another has failed and spoken.
    """
    rank = _rank()
    if has_launcher():
        end_with_parent(signal.SIGTERM)

    def leave(number: int, frame: object) -> None:
        error = Interrupted(number)
        silent = rank is not None and (rank != "0" or number == signal.SIGTERM)
        os._exit(error.status if silent else say(str(error), error.status))

    for number in heeded_signals():
        signal.signal(number, leave)


def _rank() -> str | None:
    """This process's number among several; `lib.machine.processes.started` knows more, and takes seconds to import."""
    return (os.environ.get("RANK") or None) if os.environ.get("WORLD_SIZE", "") not in ("", "1") else None


def has_launcher() -> bool:
    """Whether another process started this one, and ends it by SIGTERM."""
    return _rank() is not None or ENDS_WITH_PARENT in os.environ


def end_with_parent(number: signal.Signals) -> None:
    """This signal when the process that started this one is gone, on Linux; elsewhere it goes on alone.

    Linux sends it once for each thread of that process.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG


def advice(error: OSError) -> str:
    """What to do about a failure of the file system."""
    return _OUTSIDE.get(error.errno or 0, "choose another place")


def outside(error: OSError) -> str:
    """A failure of the file system in a line: what, where, and what to do."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "while reading or writing"
    return f"{error.strerror or error}: {place}; {advice(error)}"


def exit_status(main: Callable[[Sequence[str]], int | None]) -> Callable[[Sequence[str]], int]:
    """Wrap a program: it returns an exit status, and what a user can mend is one line on stderr."""

    def wrapped(argv: Sequence[str]) -> int:
        try:
            return main(argv) or 0
        except Echo as echo:
            told = _told(echo.of)
            return 1 if told is None else told[1]
        except BrokenPipeError:  # `main.py --help | head`
            drop(sys.stdout)
            return 0
        except (Exception, Interrupted) as error:
            told = _told(error)
            if told is None:
                raise
            return say(*told)

    wrapped.__doc__ = main.__doc__
    return wrapped


def _told(error: BaseException) -> tuple[str, int] | None:
    """What to say, and the exit status; None: the program's mistake, which wants a traceback."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, RunStopped):
        return f"error: the run stopped itself: {error}", 1
    if isinstance(error, Interrupted):
        return str(error), error.status
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "error: no thread can be started; raise the limit of processes (ulimit -u)", 2
    # torch.OutOfMemoryError on a GPU; on the CPU a plain RuntimeError, of which it has several.
    lacks_memory = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    if lacks_memory or isinstance(error, MemoryError):
        return "error: not enough memory; take a smaller --batch-size or network (--dry-run estimates)", 2
    if isinstance(error, OSError) and error.errno is not None:
        return f"error: {outside(error)}", 2
    return None


def show(text: str) -> None:
    """Print on stdout what the command line asked for.

    Raises:
        UserError: stdout cannot be written.
        BrokenPipeError: its reader is gone.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(sys.stdout)  # else the interpreter tries once more at its end
        raise UserError(f"cannot write to stdout: {error.strerror}; {advice(error)}") from error


def say(text: str, status: int) -> int:
    """A line on stderr, in which a value without end is shortened; returns the status."""
    with surviving(sys.stderr):
        line = _ENDLESS.sub(r"\1…\2", " ".join(text.splitlines()))
        print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece: ranks share the stream
    return status


def warn(text: str) -> None:
    """A warning on stderr, where there is no session yet that could show it."""
    say(f"warning: {text}", 0)


@contextlib.contextmanager
def surviving(stream: TextIO) -> Iterator[None]:
    """Let no failure of a console's stream end the program; what is printed to it from then on is dropped."""
    try:
        yield
    except OSError as error:
        drop(stream)
        is_gone = error.errno in (errno.EPIPE, errno.EIO)  # such as `| head`, or a closed terminal
        if stream is sys.stdout and not is_gone:
            warn(f"stdout cannot be written: {error.strerror}; the program continues without it")


_ASCII = str.maketrans({"–": "-", "×": "x", "±": "+/-", "…": "...", "−": "-", "’": "'"})


def printable(text: str, stream: TextIO) -> str:
    """The text with plain signs where the stream's encoding lacks those of typography."""
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return text.translate(_ASCII)
    return text


def drop(stream: TextIO) -> None:
    """Let what is printed from now on go nowhere, as the reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
