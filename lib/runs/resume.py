"""Which checkpoint a command line starts from, and whether its session goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.checkpoints import checkpoint
from lib.config import config
from lib.config.command_flags import Command
from lib.config.config import Config, Raw
from lib.config.settings import OPEN, Section
from lib.config.written_values import shown
from lib.config.yaml_files import load_yaml
from lib.errors import UserError, warn
from lib.machine import devices, precision
from lib.machine.devices import DeviceSettings
from lib.machine.random_seeds import SeedSettings
from lib.methods.method import MethodSettings
from lib.networks import engines
from lib.runs import run_list
from lib.serving import export
from lib.session import SessionSettings, has_results


@dataclass(frozen=True)
class Start:
    """Where a run starts: afresh; with the weights of `stored`; or as `stored` in the session `folder`.

    A folder without `stored` is of a run that ended before its first checkpoint, or of several runs.
    """

    stored: Mapping[str, Any] | None = None
    folder: Path | None = None


AFRESH = Start()
LATEST = "checkpoint/latest.ckpt"
RESULT = "predictions.csv"  # in a session
MOST_DIFFERENCES = 4  # in a message
ANOTHER_NAME = "choose another name for --session"
FOLDER = "image_folder"  # what --predict reads, unless --dataset says otherwise


def start_of(raw: Mapping[str, Raw], sections: Sequence[type[Section]]) -> Start:
    """Find and read what `--evaluate` or `--resume` names.

    Raises:
        UserError: no such checkpoint, a damaged one, one that holds weights alone and is to go on, or
            options that exclude each other.
    """
    early = config.resolve_only(raw, [Command, SeedSettings, DeviceSettings, MethodSettings])
    command = early.of(Command)
    several = run_list.asked(early)
    path: str | Path | None = command.resume
    _check_combination(command, several)
    if early.of(SeedSettings).seeds and "seed" in raw and raw["seed"].flag:
        raise UserError("--seed and --seeds exclude each other; leave one out")
    if command.predict:
        if "data_root" not in raw:
            raise UserError("--predict needs --data-root, the folder of the pictures")
        stored = checkpoint.load(command.predict)
        known = {**config.for_other_images(stored["config"], sections), "dataset": FOLDER}
        return _scored({**stored, "config": known}, raw, early.of(DeviceSettings))
    if command.evaluate:
        return _scored(checkpoint.load(command.evaluate), raw, early.of(DeviceSettings))
    if path and command.restart:
        return Start(checkpoint.load(path))
    if not path:
        return AFRESH
    if path == "auto":
        newest = _newest(raw, sections, bool(several))
        if newest is None:
            _check_named_session(raw, sections)
        if newest is None or several:
            return Start(folder=newest)
        path = newest / LATEST
        if not path.exists():
            return Start(folder=newest)
    try:
        stored = checkpoint.load(path)
    except UserError as error:
        others = "the other checkpoints beside it may be whole, and without its folder a run starts afresh"
        raise UserError(f"{error}; {others}") from error
    if "optimizer" not in stored:
        raise UserError(f"{path} holds weights alone, so no run can go on from it; --restart takes them into a new one")
    folder = Path(path).resolve().parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{path} lies in no session that could go on; --restart takes its weights into a new one")
    written = load_yaml(folder / "config.yaml", "--restart takes the checkpoint's weights into a new session")
    if any(name in written and written[name] != stored["config"].get(name) for name in ("method", "seed")):
        raise UserError(
            f"{path} is of another run than the session {folder}; --restart takes its weights into a new one"
        )
    root = raw.get("session_root")
    if root is not None and root.flag and Path(str(root.value)).resolve() != folder.parent:
        raise UserError(f"--session-root {root.value} is not where the session lies that goes on: {folder.parent}")
    if command.resume != "auto" and "session" in raw and raw["session"].value != folder.name:
        raise UserError(f"--session names a new session, and --resume goes on in {folder}; leave one out")
    return Start(stored, folder)


def _scored(stored: Mapping[str, Any], raw: Mapping[str, Raw], settings: DeviceSettings) -> Start:
    """What is scored on this device; a precision or an engine that the command line asks for is left as it is."""
    known = dict(stored["config"])
    device = devices.device(settings)
    for name, adapt in (("precision", precision.for_scoring), ("feature_engine", engines.for_scoring)):
        if name not in raw or raw[name].value in OPEN:
            known, remark = adapt(known, device)
            if remark:
                warn(remark)
    return Start({**stored, "config": known})


def _check_combination(command: Command, several: str) -> None:
    """`several`: the flag that asks for several runs, or nothing."""
    given = [f"--{name}" for name in ("evaluate", "predict", "resume") if getattr(command, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other; leave one out")
    if not command.trains and several:
        raise UserError(f"{several} trains anew, and {given[0]} does not; leave one out")
    if command.copy_to and several:
        raise UserError(
            f"--copy-to sorts by one run, and {several} trains several; --predict with the checkpoint of one"
        )
    if command.link and not command.copy_to:
        raise UserError("--link needs --copy-to DIR, where the links go")
    if command.resume not in (None, "auto") and several:
        raise UserError(f"--resume CKPT goes on with one run, and {several} with those of a session by --resume auto")
    if command.restart and command.resume in (None, "auto"):
        raise UserError("--restart needs --resume CKPT, whose weights it takes")
    if command.export:
        export.check(command.export)
        if not command.evaluate:
            raise UserError("--export writes the weights of a checkpoint; name it with --evaluate")


def _newest(raw: Mapping[str, Raw], sections: Sequence[type[Section]], several: bool) -> Path | None:
    """The newest session of the same settings that has a checkpoint, or a family's runs.

    The one that `--session` names may have none, as long as it has no results either. An unset seed is any, and so is
    what is left to the pictures.
    """
    wanted = config.resolve(raw, sections)
    root = Path(wanted.of(SessionSettings).session_root)
    name = wanted.of(SessionSettings).session
    held = "runs/*" if several else LATEST
    folders = {
        folder.parent for folder in root.glob("*/config.yaml")
        if any(folder.parent.glob(held)) or (folder.parent.name == name and not (folder.parent / RESULT).exists())
    }  # fmt: skip
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True):
        try:
            written = load_yaml(folder / "config.yaml", "--resume auto passes over its session")
        except UserError as error:
            warn(str(error))
            continue
        try:
            found = _identity(written, sections)
        except UserError:  # of another version, or of components that are not imported here
            continue
        if _adapted(wanted, found) == found and name in (None, folder.name):
            return folder
    return None


def _identity(written: Mapping[str, Any], sections: Sequence[type[Section]]) -> dict[str, Any]:
    """The settings of a session's config.yaml that make its run what it is."""
    return config.resolve({name: Raw(value, "its config.yaml") for name, value in written.items()}, sections).identity()


def _adapted(wanted: Config, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of the wanted run, with `theirs` where it leaves a value open."""
    ours = wanted.identity()
    for many in ("seeds", "num_clusters"):  # of a family, which others may join
        if isinstance(ours[many], list) and isinstance(theirs[many], list):
            ours[many] = theirs[many]
    if ours["seed"] is None or ours["seeds"] is not None:
        ours["seed"] = theirs["seed"]
    return ours | {left: theirs[left] for left in wanted.undecided() if left in theirs}


def _check_named_session(raw: Mapping[str, Raw], sections: Sequence[type[Section]]) -> None:
    """See that `--session` names no session that has results and cannot be resumed.

    Raises:
        UserError: it does; the message says which settings differ, or what is missing.
    """
    wanted = config.resolve(raw, sections)
    settings = wanted.of(SessionSettings)
    if settings.session is None:
        return
    folder = Path(settings.session_root) / settings.session
    if not (folder / "config.yaml").is_file() or not has_results(folder):
        return
    try:
        theirs = _identity(load_yaml(folder / "config.yaml"), sections)
    except UserError as error:
        raise UserError(f"--resume auto cannot resume the session {folder}: {error}; {ANOTHER_NAME}") from error
    ours = _adapted(wanted, theirs)
    different = [
        f"{name} {shown(theirs[name])} there, {shown(ours[name])} here"
        for name in ours if name in theirs and ours[name] != theirs[name]
    ]  # fmt: skip
    if not different:
        raise UserError(f"--resume auto cannot resume the session {folder}: it has no {LATEST}; {ANOTHER_NAME}")
    more = len(different) - MOST_DIFFERENCES
    listed = "; ".join(different[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
    remedy = f"resume it by --resume {folder / LATEST}, or " if (folder / LATEST).exists() else ""
    raise UserError(f"the session {folder} has other settings: {listed}; give the same, {remedy}{ANOTHER_NAME}")
