"""`--copy-to`: copies of the images, or links to them, in a folder for each cluster; all of them or none."""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from lib.checkpoints.checkpoint import write_atomically
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.datasets import DataSettings, Pictures
from lib.errors import UserError, advice
from lib.machine.progress import progress
from lib.scoring.inference import Predictions
from lib.session import Session

RECORD = "copies.json"  # in a session: the copies that it has made, by their folder
LONGEST = 255  # bytes of a file's name
Entry = list[int] | str  # size and modification time, ns; or where a link leads
Entries = dict[str, Entry]  # by the place below the folder, such as `cluster-3/a.png`


def check(config: Config, session: Path | None = None) -> Path | None:
    """The folder that `--copy-to` names, if it does; what a killed run has left of its copies is put in order.

    Args:
        config: settings of the run.
        session: the folder of the session that is resumed, if one is.

    Raises:
        UserError: it cannot be made, or the next run would read its copies, or it holds anything but the copies of this run.
    """
    command = config.of(Command)
    root = Path(config.of(DataSettings).data_root).expanduser()
    if command.copy_to is None:
        return None
    title = f"--copy-to {command.copy_to}"
    path = Path(command.copy_to).expanduser().resolve()
    if not path.parent.is_dir():
        raise UserError(f"{title}: there is no folder {path.parent}; make it first")
    if path.is_relative_to(root.resolve()):
        raise UserError(f"{title} lies in --data-root {root}, to whose pictures it would add; choose another place")
    try:
        if session is not None and not os.path.lexists(path) and _own(_replaced(path), path, session, root):
            if command.dry_run:
                return path
            _replaced(path).rename(path)  # this is what a run leaves that is killed between two renames
        if os.path.lexists(path):
            if session is None or not path.is_dir():
                raise UserError(f"{title}: it exists; name a new folder")
            own = _own(path, path, session, root)
            if own is None:
                strange = next(_strange(path, _generations(path, session, root)[-1]))
                raise UserError(
                    f"{title}: it exists, and this run did not write {strange}; move it away, or name a new folder"
                )
            if str(path) not in _recorded(session) and not command.dry_run:
                _record(path, session, [own])  # now: this run replaces the predictions by which they are known
        probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(f"{title}: {error.strerror or error}; {advice(error)}") from error
    return path


def check_files(config: Config, pictures: Pictures) -> None:
    """Raises UserError where `--copy-to` is given, and the images of the data set are no files."""
    if config.of(Command).copy_to is not None and pictures.path(0) is None:
        raise UserError("--copy-to copies files, and the pictures of this data set are none; leave it out")


def copy(pictures: Pictures, predictions: Predictions, config: Config, session: Session) -> str:
    """Sort copies of the files, or links to them, into a folder for each cluster; all of them or none.

    Copies that an earlier start of the session has made are replaced as a whole.

    Returns:
        a line that says where they are

    Raises:
        UserError: a file is gone, the disk is full, or the folder holds anything but the copies of this run.
    """
    target = check(config, session.path if session.goes_on else None)
    assert target is not None
    root = Path(config.of(DataSettings).data_root).expanduser()
    link = config.of(Command).link
    earlier = None if session.path is None else _own(target, target, session.path, root)
    names = [str(pictures.path(int(position))) for position in predictions.index]
    sources = _layout(names, predictions.cluster.tolist(), predictions.probability.shape[1])
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        wanted = {place: _entry_of(source, link) for place, source in sources.items()}
        if earlier == wanted and all(os.path.lexists(target / place) for place in wanted):
            return f"the pictures by cluster are there from before: {target}"
        shutil.rmtree(unfinished, ignore_errors=True)
        made: Entries = {}
        for place, source in progress(sources.items(), "copying pictures", len(sources)):
            (unfinished / place).parent.mkdir(parents=True, exist_ok=True)
            if link:
                (unfinished / place).symlink_to(os.path.realpath(source))
            else:
                shutil.copy2(source, unfinished / place)
            made[place] = _entry(unfinished / place)
        if session.path is not None:
            _record(target, session.path, [made] if earlier is None else [earlier, made])
        if earlier is not None:
            shutil.rmtree(_replaced(target), ignore_errors=True)
            target.rename(_replaced(target))
        try:
            unfinished.rename(target)
        except OSError:
            if earlier is not None:
                _replaced(target).rename(target)
            raise
    except OSError as error:
        state = "no copy is left" if earlier is None else "the earlier copies are intact"
        place = f": {error.filename}" if isinstance(error.filename, str) else ""
        raise UserError(f"--copy-to {target}: {error.strerror or error}{place}; {advice(error)}; {state}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if earlier is not None and target.is_dir():
            shutil.rmtree(_replaced(target), ignore_errors=True)
    return f"the pictures by cluster: {target}"


def _replaced(target: Path) -> Path:
    """Where earlier copies are while new ones take their place."""
    return target.with_name(f".{target.name}.replaced")


def _layout(files: Sequence[str], clusters: Sequence[int], count: int) -> dict[str, str]:
    """Place of each copy below the target → its file, of `count` clusters."""
    found: dict[str, str] = {}
    for file, cluster in zip(files, clusters, strict=True):
        folder = f"cluster-{cluster:0{len(str(count - 1))}}"
        found[next(place for place in _places(folder, os.path.basename(file)) if place not in found)] = file
    return found


def _entry(path: Path) -> Entry:
    """What tells whether a copy or a link is still the one that was made."""
    found = path.lstat()
    return os.readlink(path) if path.is_symlink() else [found.st_size, found.st_mtime_ns]


def _entry_of(file: str, link: bool) -> Entry:
    """What a copy of a file, or a link to it, will be."""
    found = os.stat(file)
    return os.path.realpath(file) if link else [found.st_size, found.st_mtime_ns]


def _own(folder: Path, target: Path, session: Path, root: Path) -> Entries | None:
    """The copies of which a folder holds nothing but some or all; None where it is not there, or holds anything else."""
    if not folder.is_dir():
        return None
    known = _generations(target, session, root)
    return next((copies for copies in reversed(known) if next(_strange(folder, copies), None) is None), None)


def _strange(folder: Path, copies: Entries) -> Iterator[Path]:
    """What a folder holds beside these copies."""
    clusters = {place.partition("/")[0] for place in copies}
    for entry in sorted(folder.iterdir()):
        if entry.name not in clusters or entry.is_symlink() or not entry.is_dir():
            yield entry
        else:
            files = sorted(entry.iterdir())
            yield from (file for file in files if copies.get(f"{entry.name}/{file.name}") != _entry(file))


def _generations(target: Path, session: Path, root: Path) -> list[Entries]:
    """The copies that a session has made in a folder, the last ones last."""
    recorded = _recorded(session).get(str(target))
    if recorded is not None:
        return recorded
    try:  # a session of an earlier version has its predictions alone
        with open(session / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="") as lines:
            rows = list(csv.reader(lines))[1:]
        with np.load(session / "predictions.npz") as archive:
            count = archive["probability"].shape[1]
        sources = _layout([str(root / row[0]) for row in rows], [int(row[1]) for row in rows], count)
        return [{place: _entry_of(file, link) for place, file in sources.items()} for link in (True, False)]
    except (OSError, ValueError, IndexError, KeyError, BadZipFile):
        return [{}]


def _recorded(session: Path) -> dict[str, list[Entries]]:
    try:
        found: dict[str, list[Entries]] = json.loads((session / RECORD).read_bytes())
    except (OSError, ValueError):  # none, or no longer what was written
        return {}
    return found


def _record(target: Path, session: Path, generations: list[Entries]) -> None:
    known = _recorded(session) | {str(target): generations}
    write_atomically(session / RECORD, json.dumps(known).encode())


def _places(folder: str, name: str) -> Iterator[str]:
    """`a.png`, then `a-1.png`, … for files of one name from several folders."""
    yield f"{folder}/{name}"
    stem, ending = os.path.splitext(name)
    for i in range(1, 2**31):
        tail = f"-{i}{ending}"
        room = LONGEST - len(os.fsencode(tail))
        yield f"{folder}/{os.fsdecode(os.fsencode(stem)[:room])}{tail}"
