"""A family of runs: each in a process of its own, side by side where there is room; then their summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import report
from lib.config import pasted_commands
from lib.config.config import Config
from lib.config.yaml_files import load_yaml
from lib.datasets import disk_cache, open_pictures
from lib.errors import ENDS_WITH_PARENT, Echo, Interrupted, RunStopped, UserError, say, surviving
from lib.machine import devices, processes, random_seeds
from lib.machine.devices import DeviceSettings
from lib.machine.interrupts import Interrupts
from lib.machine.random_seeds import SeedSettings
from lib.methods import building
from lib.report import closing_block
from lib.runs import header, run_list, settings_from_images
from lib.scoring import summary_over_seeds
from lib.scoring.summary_over_seeds import Member
from lib.session import MEMBER, Session, SessionSettings

POLL = 0.1  # s, between two looks at the runs
STOPPING = "\nCtrl-C: each run stops and saves its state. Press Ctrl-C again only to end the wait for them.\n"


@dataclass(frozen=True)
class Room:
    """What one run gets of the machine."""

    at_once: int
    threads: int | None
    gpus: tuple[int, ...]


def room(settings: DeviceSettings) -> Room:
    """How many runs go side by side: one for each GPU, or on a CPU as many as `threads` fits into the cores.

    With `--processes` each run has that many of its own, on all GPUs.
    """
    gpus = devices.gpu_numbers(settings.gpus)
    asked = settings.jobs
    each = settings.processes or 1
    if gpus:
        alone = settings.processes is not None
        return Room(asked or (1 if alone else len(gpus)), settings.threads, () if alone else gpus)
    threads = devices.threads(settings)
    if asked is None:
        return Room(max(1, devices.cores() // (threads * each)) if threads else 1, settings.threads, ())
    return Room(asked, threads or max(1, devices.cores() // (asked * each)), ())


def run(settings: Config, goes_on: Path | None, program: str) -> None:
    """Train every member that is not done, and leave summary.json over all that are.

    Args:
        settings: of every run, with the seeds and the numbers of clusters.
        goes_on: the folder of the session that goes on, if one does.
        program: the file that runs a command line.

    Raises:
        RunStopped: some runs stopped themselves; the others are done.
        Echo: a run met the user's mistake, and has told it.
        UserError: these settings cannot have several runs.
        Interrupted: a signal came; the runs have saved their states.
    """
    flag = run_list.asked(settings)
    members = run_list.members(settings)
    if processes.started():
        raise UserError(f"{flag} starts processes by itself; give --processes or --gpus instead of a launcher")
    if settings.of(SessionSettings).debug:
        raise UserError(f"{flag} collects what its runs leave in their folders, and --debug writes none; leave it out")
    settings = disk_cache.usable(settings)
    with Session(settings, goes_on) as session:
        assert session.path is not None
        pictures = open_pictures(settings)
        for one in run_list.numbered(settings):  # contradicting settings are met here, once
            built, _ = building.assemble(settings_from_images.settled(one, pictures), pictures)
        settings = settings.replace(seed=_common_seed(settings, goes_on))
        header.show_family(session, settings, built, pictures, list(map(str, members)))
        session.begin(settings)
        failed = _train(session, session.path, members, room(settings.of(DeviceSettings)), program)
        done = [member for member in members if _is_done(session.path, member)]
        if done:
            folders = {member: _folder(session.path, member) for member in done}
            summary_over_seeds.summarise(session, settings, folders)
            report.open_report(session, settings, report.make(session.path, again=False))
            closing_block.show_next_of_family(session, settings, list(folders.values()), _chosen(folders))
        if failed:
            names = "; ".join(str(member) for member in members if member in failed)
            raise RunStopped(f"of the runs, {names} ended early; with --resume auto the same command tries them again")


def _chosen(folders: Mapping[Member, Path]) -> Path | None:
    """The run with the lowest training loss, which no labels chose; none among several numbers of clusters."""
    if len({member.clusters for member in folders}) > 1:
        return None
    losses = {folder: summary_over_seeds.last_loss(folder) for folder in folders.values()}
    known = {folder: loss for folder, loss in losses.items() if loss is not None}
    return min(known, key=known.__getitem__) if known else None


def _common_seed(settings: Config, goes_on: Path | None) -> int | None:
    """Of runs that differ by their number of clusters alone; drawn where none is set."""
    if settings.of(SeedSettings).seeds is not None:
        return None
    if goes_on is not None and settings.of(SeedSettings).seed is None:
        held: int | None = load_yaml(goes_on / "config.yaml", "give --seed").get("seed")
        if held is not None:
            return held
    return random_seeds.seed_of(settings.of(SeedSettings))


def _folder(session: Path, member: Member) -> Path:
    return session / "runs" / member.name


def _is_done(session: Path, member: Member) -> bool:
    return (_folder(session, member) / "scores.json").is_file()  # written when all else is


def _train(session: Session, path: Path, members: Sequence[Member], room: Room, program: str) -> list[Member]:
    """Returns those whose runs stopped themselves."""
    waiting = [member for member in members if not _is_done(path, member)]
    if len(waiting) < len(members):
        session.info(f"{len(members) - len(waiting)} of {len(members)} runs are done")
    slots = list(range(min(room.at_once, len(waiting))))
    running = dict[Member, _Run]()
    failed = list[Member]()
    told: set[str] = set()
    interrupts = Interrupts(agree=lambda number: number)
    interrupts.notice = STOPPING
    with interrupts:
        try:
            while waiting or running:
                while waiting and slots:
                    member = waiting.pop(0)
                    session.info(f"{member}: run {len(members) - len(waiting)} of {len(members)}")
                    running[member] = _Run([program], path, member, slots.pop(0), room, told)
                interrupts.check()
                time.sleep(POLL)
                for member, one in list(running.items()):
                    status = one.status()
                    if status is None:
                        continue
                    slots.append(running.pop(member).slot)
                    if status == 2 and not one.goes_on:  # a mistake, which the run has told, and the others would meet
                        raise Echo(UserError(f"{member} ended so"))
                    if status:
                        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
                        session.warn(f"the run of {member} ended {how}")
                        failed.append(member)
        except Interrupted as error:
            for one in running.values():
                one.stop(error.number)
            for one in running.values():
                one.wait()
            session.evaluation(f"To resume these runs:\n  {pasted_commands.resume_family(path)}")
            raise Interrupted(error.number, saved=None, midway=error.midway) from None
        finally:
            for one in running.values():
                one.stop(signal.SIGTERM)
                one.wait()
    return failed


class _Run:
    """The process of one member.

    Args:
        command: the program, to which the words are added.
        session: the folder of the family's.
        member: which run.
        slot: its number among the runs side by side.
        room: what it gets of the machine.
        told: mistakes that one of the runs has told.
    """

    def __init__(
        self, command: list[str], session: Path, member: Member, slot: int, room: Room, told: set[str]
    ) -> None:
        self.slot = slot
        self._told = told
        self._stopped = False
        folder = _folder(session, member)
        self.goes_on = (folder / "checkpoint" / "latest.ckpt").exists()
        words = ["--cfgs", session / "config.yaml", *member.words, "--session-root", folder.parent,
                 "--session", folder.name, "--resume", "auto"]  # fmt: skip
        if room.gpus:
            words += ["--gpus", room.gpus[slot % len(room.gpus)]]
        if room.threads is not None:
            words += ["--threads", room.threads]
        piped = room.at_once > 1
        environment = {**os.environ, ENDS_WITH_PARENT: "1", MEMBER: "1"}
        if piped:
            environment["PYTHONIOENCODING"] = "utf-8"  # which is read here, whatever the console takes
        # Out of the terminal's group: Ctrl-C comes by way of this process, once.
        self._process = subprocess.Popen(
            [sys.executable, "-u", *command, *map(str, words)], env=environment, start_new_session=True,
            stdout=subprocess.PIPE if piped else None, stderr=subprocess.STDOUT if piped else None,
            encoding="utf-8", errors="backslashreplace",
        )  # fmt: skip
        self._teller = threading.Thread(target=self._tell, args=(str(member),), daemon=True)
        self._teller.start()

    def _tell(self, title: str) -> None:
        is_warned = False  # the last line was a warning, or belonged to one
        for line in self._process.stdout or ():
            if is_warned and line.startswith("  "):
                say(line.rstrip(), 0)
                continue
            is_warned = False
            if not line.startswith(("error:", "warning:")):
                with surviving(sys.stdout):
                    print(f"{title} | {line.rstrip()}", flush=True)
            elif line not in self._told:
                self._told.add(line)
                is_warned = True
                say(line.rstrip().replace("warning: ", f"warning: {title}: ", 1), 0)

    def status(self) -> int | None:
        """None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._teller.join()
        return status

    def stop(self, number: int) -> None:
        """Let it save its state, once."""
        if self._process.poll() is None and not self._stopped:
            self._stopped = True
            self._process.send_signal(number)

    def wait(self) -> None:
        self._process.wait()
        self._teller.join()
