"""A session folder: everything that a run leaves behind.

    sessions/<timestamp>/
        config.yaml         runs it again
        provenance.jsonl    command, versions, revision, machine: a line for the start and for each time it went on
        log.txt             what the console showed, and the parts of every loss and score, with times
        metrics.jsonl       a line per evaluation and split
        tfboard/            TensorBoard's curves
        checkpoint/         latest.ckpt and best.ckpt
        neighbours.npy      the nearest neighbours of every image, where a step shows them
        scores.json         the final scores and the matching of clusters to classes
        predictions.csv     every scored picture's cluster; predictions.npz: and all probabilities
        copies.json         with --copy-to: the copies that it has made, by which it knows them again

With `--debug` there is no folder, and nothing is written.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from lib.checkpoints.checkpoint import write_atomically
from lib.config.config import Config
from lib.config.settings import Section, expanded, setting
from lib.errors import Interrupted, UserError, advice, heeded_signals, printable, surviving
from lib.machine import devices, locks

METRICS = "metrics.jsonl"
TRAINING = "training.jsonl"
NEIGHBOURS = "neighbours.npy"
LOCK = ".lock"  # held by the process that writes the session, and removed at its end
MEMBER = "MEMBER_OF_FAMILY"  # an environment variable, set for the runs of one command that asks for several
LOG = "log"
DETAIL = "detail"
INFO = "info"
PROGRESS = "progress"
EVALUATION = "evaluation"
STARTED = (
    LOCK,
    "config.yaml",
    "provenance.jsonl",
    "log.txt",
    NEIGHBOURS,
)  # what there is before there is any result


@dataclass(frozen=True)
class SessionSettings(Section):
    title = "session"
    lifetime = "machine"
    session: str | None = setting(
        None, "name of the session's folder; none = the time in UTC", value="NAME", lifetime="call"
    )
    session_root: str = setting("./sessions", "folder of all sessions", value="FOLDER", convert=expanded)
    debug: bool = setting(False, "write no file", lifetime="call")
    open: bool = setting(False, "show the report in the browser when the run has ended", lifetime="call")
    brief: bool = setting(False, "show only evaluations, warnings and the progress of long preparations on the console")
    verbose: bool = setting(False, "show a line for each epoch and every score on the console")
    log_file: bool = setting(True, "write log.txt")
    log_tfb: bool = setting(True, "write curves for TensorBoard")

    def __post_init__(self) -> None:
        if self.open and self.debug:
            raise UserError("--open shows the report, and --debug writes none; leave one out")
        if self.brief and self.verbose:
            raise UserError("--brief shows less on the console, and --verbose more; leave one out")


class Session:
    """One run's folder, log and curves.

    Entering makes and locks the folder, before any image is read. `begin` writes the settings, once all are known.
    A run that fails before it has any result leaves no folder.

    Args:
        config: all settings of the run.
        goes_on: the folder of the session that goes on, if one does.
        silent: neither folder nor console; for all processes of a run but the first.

    Raises:
        UserError: on entering, if the folder exists or cannot be made, or is in use.
    """

    def __init__(self, config: Config, goes_on: Path | None = None, silent: bool = False) -> None:
        self.path: Path | None = None
        self._settings = config.of(SessionSettings)
        self._earlier = goes_on
        self._writes = not (silent or self._settings.debug)
        self._lock: BinaryIO | None = None
        self._made: list[Path] = []  # the session's folder and those around it, if they were made now
        self.provenance: dict[str, Any] = {}
        self._board: Any = None
        self._excepthook = threading.excepthook  # as it was before there was a board
        self._handlers: dict[int, Any] = {}  # of signals, as they were before the session was opened
        self._log = logging.Logger("run")  # not one of logging's named ones, which are global
        self.is_member = MEMBER in os.environ
        self.is_silent = silent
        self.bar = _takes_bars() and not self._settings.brief and not silent
        self._console = _Console(self._shown())
        if not silent:
            self._log.addHandler(self._console)

    def __enter__(self) -> Session:
        try:
            if self._writes:
                self._open()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def _open(self) -> None:
        self._heed_signals(self._abandon)
        folder = self._earlier
        if self._settings.log_tfb:
            _check_for_board(folder or Path(self._settings.session_root))
        if folder is None:
            root = Path(self._settings.session_root)
            outside = [place for place in (root, *root.parents) if not place.exists()]
            folder = _new_folder(root, self._settings.session)
            self._made = [folder, *outside]
        else:
            _check_files(folder)
        self._lock = _lock(folder)
        self.path = folder
        if self._settings.log_file:
            file = _LogFile(self.path / "log.txt", encoding="utf-8", errors="backslashreplace")
            file.addFilter(_is_logged)
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            self._log.addHandler(file)

    def _heed_signals(self, handler: Callable[[int, object], None]) -> None:
        for number in heeded_signals():
            if callable(signal.getsignal(number)):
                self._handlers[number] = signal.signal(number, handler)

    def _abandon(self, number: int, frame: object) -> None:
        """A signal before `begin`, such as while images are decoded: nothing is left of a new session."""
        handler = self._handlers[number]
        self._leave(Interrupted(number))
        handler(number, frame)

    def begin(self, config: Config) -> None:
        """Write config.yaml and a line of provenance.jsonl.

        Args:
            config: all settings, with those that were left to the images.
        """
        self._restore_handlers()
        if self._writes and self.path is not None:
            self.write("config.yaml", config.dump())
            self.provenance = provenance()
            lines = self.path / "provenance.jsonl"
            earlier = lines.read_bytes() if lines.exists() else b""
            whole = earlier[: earlier.rfind(b"\n") + 1]  # a full disk may have cut the last line
            self.write_bytes(lines.name, whole + json.dumps(self.provenance).encode() + b"\n")
        for note in config.notes:
            self.warn(note)

    def complete(self) -> None:
        """The results are written; a signal that ends what follows them, such as the report, says so from now on."""
        if self.path is not None:
            self._heed_signals(self._end_after_results)

    def _end_after_results(self, number: int, frame: object) -> None:
        raise Interrupted(number, results=self.path)

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Close everything; what fails in it is worth a word only where nothing else has failed."""
        if error is not None:
            text = f"{type(error).__name__}: {error}"
            for handler in self._log.handlers:
                with suppress(UserError):
                    handler.handle(self._log.makeRecord("run", logging.ERROR, "", 0, text, (), None, extra=_to(LOG)))
        try:
            if self._board is not None and self.path is not None:
                with _writing(self.path / "tfboard"):
                    self._board.close()
            for handler in self._log.handlers:
                handler.close()
        except UserError:
            if error is None:
                raise
        finally:
            threading.excepthook = self._excepthook
            self._restore_handlers()
            if error is not None:
                self._discard()
            if self._lock is not None:
                with suppress(OSError):
                    Path(self._lock.name).unlink()
                self._lock.close()
                self._lock = None

    def _discard(self) -> None:
        """Remove the folder of a run that failed before it had anything to keep."""
        if self.path is not None and not (self.goes_on or has_results(self.path)):
            shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made:
            with suppress(OSError):  # it holds something
                folder.rmdir()

    @property
    def goes_on(self) -> bool:
        """Whether it was begun by an earlier process."""
        return self._earlier is not None

    def record(self, text: str) -> None:
        """A line for log.txt only."""
        self._log.info(text, extra=_to(LOG))

    def detail(self, text: str) -> None:
        """A line for the console only, with `--verbose`."""
        self._log.info(text, extra=_to(DETAIL))

    def info(self, text: str, indent: int = 0) -> None:
        """A line that `--brief` leaves out on the console, and so do the runs of a family, which have one console.

        Args:
            text: the line.
            indent: of what does not fit into the first line of a terminal.
        """
        self._log.info(text, extra=_to(INFO, indent))

    def progress(self, text: str) -> None:
        """How far a run is; `--brief` leaves it out on the console."""
        self._log.info(text, extra=_to(PROGRESS, 2))

    def evaluation(self, text: str) -> None:
        """Scores, which `--brief` shows too."""
        self._log.info(text, extra=_to(EVALUATION))

    def warn(self, text: str, *more: str) -> None:
        """A warning.

        Args:
            text: what is wrong, and what to do.
            more: lines that belong to it, such as commands.
        """
        self._log.warning("warning: %s", "\n".join([text, *(f"  {line}" for line in more)]), extra=_to(EVALUATION, 2))

    def silence(self) -> float:
        """Seconds since the console showed something."""
        return time.monotonic() - self._console.last

    def _shown(self) -> frozenset[str]:
        """What the console shows."""
        if self._settings.brief:
            return frozenset({EVALUATION})
        own = {EVALUATION, PROGRESS} if self.is_member else {EVALUATION, PROGRESS, INFO}
        return frozenset(own | {DETAIL}) if self._settings.verbose else frozenset(own)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of TensorBoard's curves."""
        board = self.board()
        if board is not None and self.path is not None:
            with _writing(self.path / "tfboard"):
                for name, value in values.items():
                    board.add_scalar(name, value, step)

    def board(self) -> Any:
        """TensorBoard's SummaryWriter; None where it is not wanted."""
        if self._board is None and self.path is not None and self._settings.log_tfb:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = self._pass_over_boards
            with _writing(self.path / "tfboard"):
                self._board = SummaryWriter(str(self.path / "tfboard"))
        return self._board

    def _pass_over_boards(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in threads of its own. What fails there it raises again at the next flush."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._excepthook(failure)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Add a line to `METRICS` (a split's scores) or to `TRAINING` (an epoch's losses)."""
        if self.path is not None:
            with _writing(self.path / name), open(self.path / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line)) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def mark(self) -> dict[str, int]:
        """The present length of every file that grows, by its name; a checkpoint keeps it."""
        if self.path is None:
            return {}
        if self._board is not None:
            with _writing(self.path / "tfboard"):
                self._board.flush()
        return {str(file.relative_to(self.path)): file.stat().st_size for file in self._growing()}

    def reached(self, mark: Mapping[str, int]) -> dict[str, int]:
        """`mark` as far as the files still reach, whole lines of them; what is lost is warned of."""
        if self.path is None:
            return dict(mark)
        reached = {}
        for name, length in mark.items():
            file = self.path / name
            size = file.stat().st_size if file.is_file() else 0
            if size < length:
                self.warn(f"{file} has lost its end since the checkpoint was saved; the run continues without it")
                if name in (METRICS, TRAINING) and size:
                    size = file.read_bytes().rfind(b"\n") + 1
            reached[name] = min(length, size)
        return reached

    def rewind(self, mark: Mapping[str, int]) -> None:
        """Take back what was written after `mark`, where all files reach, so that the run can write it again."""
        for file in self._growing():
            length = mark.get(str(file.relative_to(self.path or file)), 0)
            if length:
                os.truncate(file, length)
            else:
                file.unlink()

    def keep(self, epoch: int, count: int) -> None:
        """Keep latest.ckpt as that of a finished epoch, and drop all but the newest `count` of these."""
        latest = self.checkpoint("latest")
        if latest is None or not count:
            return
        kept = latest.with_name(f"epoch-{epoch:05d}.ckpt")
        kept.unlink(missing_ok=True)
        try:
            os.link(latest, kept)
        except OSError:  # a file system without links
            write_atomically(kept, latest.read_bytes())
        held = sorted(latest.parent.glob("epoch-*.ckpt"))
        for other in [path for path in held if path > kept] + held[: held.index(kept) + 1][:-count]:
            other.unlink()  # those of later epochs are of a branch that was left

    def _growing(self) -> list[Path]:
        if self.path is None:
            return []
        return [
            file for file in (self.path / METRICS, self.path / TRAINING, *self.path.glob("tfboard/*")) if file.is_file()
        ]

    def write(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode("utf-8", errors="backslashreplace"))

    def write_bytes(self, name: str, content: bytes) -> None:
        if self.path is not None:
            write_atomically(self.path / name, content)

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """An .npz file."""
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        self.write_bytes(name, content.getvalue())

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, json.dumps(finite(content), indent=1) + "\n")

    def checkpoint(self, name: str) -> Path | None:
        """Where a checkpoint of that name goes; the first one makes the folder."""
        if self.path is None:
            return None
        (self.path / "checkpoint").mkdir(exist_ok=True)
        return self.path / "checkpoint" / f"{name}.ckpt"


class _LogFile(logging.FileHandler):
    """log.txt. Where it cannot be written, the run ends, without a traceback from `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        with _writing(Path(self.baseFilename)):
            super().emit(record)

    def close(self) -> None:
        with _writing(Path(self.baseFilename)):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        raise  # the error at hand: logging calls this where it has caught one


def _to(audience: str, indent: int = 0) -> dict[str, Any]:
    """What tells a record's handlers whom it is for."""
    return {"audience": audience, "indent": indent}


def _is_logged(record: logging.LogRecord) -> bool:
    return bool(record.__dict__["audience"] != DETAIL)


def _takes_bars() -> bool:
    """Whether a person looks at a terminal that can move its cursor: the log of a CI job keeps every state of a bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class _Console(logging.Handler):
    """Lines that leave a progress bar whole.

    Args:
        shown: the audiences of what it shows.
    """

    def __init__(self, shown: frozenset[str]) -> None:
        super().__init__()
        self._shown = shown
        self.last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        audience, indent = (record.__dict__[name] for name in ("audience", "indent"))
        if audience not in self._shown:
            return
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with surviving(stream):
            text = printable(self.format(record), stream)
            if indent and stream.isatty():
                text = wrapped(text, shutil.get_terminal_size().columns, indent)
            tqdm.write(text, file=stream)
            stream.flush()
        self.last = time.monotonic()


def wrapped(text: str, width: int, indent: int) -> str:
    """The first line broken between words, so that it fits into a terminal; further lines, such as commands, are whole."""
    first, *rest = text.split("\n")
    lines = textwrap.wrap(
        first, max(width - 1, 40), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True,
    )  # fmt: skip
    return "\n".join([*lines, *rest])


def _check_for_board(folder: Path) -> None:
    """Raises UserError where TensorBoard cannot write below a folder."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"TensorBoard cannot write to {folder}, whose name is not UTF-8; choose another --session-root, or "
            "--log-tfb false"
        ) from error


def _new_folder(root: Path, name: str | None) -> Path:
    if name is not None and (name in ("", ".", "..") or Path(name).name != name or not name.isprintable()):
        raise UserError(f"--session {name!r} is no name of a folder; --session-root says where it goes")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    # A second run of the same second gets a number.
    candidates = [name] if name is not None else [stamp, *(f"{stamp}-{i}" for i in range(1, 1000))]
    try:
        root.mkdir(parents=True, exist_ok=True)
        for candidate in candidates:
            try:
                (root / candidate).mkdir()
                return root / candidate
            except FileExistsError:
                if name is not None and _is_hardly_begun(root / name):
                    return root / name
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        if isinstance(error, FileExistsError):
            problem = "it is a link to nothing" if root.is_symlink() else "it is no folder"
        is_long = getattr(error, "errno", None) == errno.ENAMETOOLONG and name is not None
        remedy = "choose a shorter --session" if is_long else "choose another --session-root"
        raise UserError(f"cannot make a session in {root}: {problem}; {remedy}") from error
    raise UserError(f"the session {root / candidates[0]} exists; choose another name for --session, or --resume auto")


def _is_hardly_begun(folder: Path) -> bool:
    """Whether it is of a run that was killed as it began, perhaps before it had made its first file, the lock."""
    is_empty = folder.is_dir() and not any(folder.iterdir())
    return is_empty or ((folder / LOCK).exists() and not has_results(folder))


def _check_files(folder: Path) -> None:
    """Raises UserError where something in a session's folder is neither a file nor a folder."""
    for path in folder.iterdir():
        if not (path.is_dir() or path.is_file()):
            raise UserError(f"cannot continue the session: {path} is no regular file; remove it")


def _lock(path: Path) -> BinaryIO:
    """Hold the session's folder for this process."""
    file = locks.hold(path / LOCK)
    if file is None:
        raise UserError(f"the session {path} is in use by another process; wait for it, or stop it")
    return file


def has_results(folder: Path) -> bool:
    """Whether a session holds anything beyond what its start writes."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return any(not _is_of_the_start(file, str(file.relative_to(folder))) for file in files)


def _is_of_the_start(file: Path, name: str) -> bool:
    if name in STARTED or re.fullmatch(r"\..+\.[0-9a-f]{16}", file.name):  # or what `write_atomically` had begun
        return True
    if not name.startswith("tfboard/") or not file.is_file():
        return False
    with open(file, "rb") as curves:  # one record says of which kind the file is, and more of them are points
        length = int.from_bytes(curves.read(8), "little")
    return file.stat().st_size <= length + 16


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the file in a failure to write it, which an open one does not do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice(error)}") from error


def finite(value: Any) -> Any:
    """The same, with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance() -> dict[str, Any]:
    """Command, versions, revision and machine."""
    import numpy
    import torchvision

    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processor": devices.processor(),
        "gpus": devices.gpu_names(),
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The git revision of the program, with `+` where files differ from it."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return (
            subprocess.run(ask, capture_output=True, text=True, errors="replace", timeout=10, check=True).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None
