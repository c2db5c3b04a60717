"""Cluster images: `python main.py --cfgs configs/base.yaml configs/digits.yaml` (`--help` for more)."""
# ruff: noqa: I001

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

if str(Path(__file__).resolve().parent) not in sys.path:  # under `python -I` or PYTHONSAFEPATH
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from lib.errors import check_surroundings, exit_status, leave_on_signals, prepare_streams, show, warn

if __name__ == "__main__":
    prepare_streams()
    leave_on_signals()  # the imports below take seconds
    check_surroundings()

import imc_swav, pica  # noqa: E401, F401  (they register themselves)
from lib import datasets, report, session
from lib.config import command_line, config, help_text
from lib.config.command_flags import Command
from lib.machine import devices, processes, random_seeds
from lib.machine.devices import DeviceSettings
from lib.machine.random_seeds import SeedSettings
from lib.contracts import Task
from lib.methods import building, method, weights
from lib.report import sorted_copies
from lib.runs import forecast, header, launcher, resume, run_list, settings_from_images, several_runs
from lib.runs.all_settings import EVERYDAY, EXAMPLES, SECTIONS
from lib.scoring import evaluation
from lib.serving import model
from lib.training import trainer

__all__ = ["load", "main"]

DEFAULTS = {"method": config.Raw("pica", config.DEFAULT)}  # the PICA authors' files name none


@exit_status
def main(argv: Sequence[str]) -> int | None:
    """Run one command line: train, evaluate, predict, or list the components and settings.

    It prints to stdout and stderr, seeds the generators of Python, NumPy and PyTorch, sets the number of threads, and
    handles signals during a run. So call it from the main thread.

    Args:
        argv: the words behind `main.py`, such as `["--cfgs", "configs/base.yaml", "configs/digits.yaml"]`.

    Returns:
        The exit status. 0: complete; 1: the run stopped itself; 2: a user's mistake, with one line on stderr;
        128 + n: signal n ended the run.
    """
    raw = DEFAULTS | command_line.collect(argv, SECTIONS)
    early = config.resolve_only(raw, (Command, SeedSettings, DeviceSettings, method.MethodSettings))
    command = early.of(Command)
    device = early.of(DeviceSettings)
    shows = command.help or command.list or command.dry_run or not argv
    if not shows and not run_list.asked(early) and (count := launcher.number_of_processes(device)) > 1:
        return launcher.launch([__file__, *argv], count)
    with processes.joined(device):
        start = processes.from_first(lambda: resume.start_of(raw, SECTIONS))
        settings = config.resolve(raw, SECTIONS, start.stored and start.stored["config"], start.folder is not None)
        if shows and processes.leads():
            for note in settings.notes:
                warn(note)
        if command.list:
            show(help_text.component_list(SECTIONS))
        elif command.help == "all":
            show(help_text.complete(settings, SECTIONS))
        elif command.help or not argv:
            show(help_text.short(settings, SECTIONS, EVERYDAY, EXAMPLES))
        elif run_list.asked(settings) and not command.dry_run:
            several_runs.run(settings.replace(resume=None), start.folder, __file__)
        else:
            seed = processes.from_first(lambda: random_seeds.seed_of(settings.of(SeedSettings)))
            settings = settings.replace(seed=seed, resume=command.resume if command.restart else None)
            if command.dry_run:
                forecasts = [forecast.forecast(build(one, start.folder)) for one in run_list.numbered(settings)]
                show("\n\n".join([*forecasts, forecast.starting_command(argv)]))
            else:
                run(settings, start)


def build(settings: config.Config, folder: Path | None = None) -> Task:  # its weights are drawn from the seed
    devices.configure(*(settings.of(section) for section in devices.SECTIONS))
    settings = datasets.disk_cache.usable(settings)
    processes.from_first(partial(sorted_copies.check, settings, folder))
    pictures = datasets.open_pictures(settings)
    sorted_copies.check_files(settings, pictures)
    settings = settings_from_images.settled(settings, pictures)
    return building.build(settings, pictures)


def load(path: str) -> model.Model:
    """Load a trained model for predictions, on the CPU.

    Neither the random generators nor the number of threads change.

    Args:
        path: of a run's checkpoint, a `.safetensors` file of `--export`, or a checkpoint of PICA's authors.

    Raises:
        UserError: there is no such file, it cannot be read, or its weights do not fit its settings.
    """
    return model.load(path, DEFAULTS, SECTIONS)


def run(settings: config.Config, start: resume.Start) -> None:
    """Train, score a checkpoint, or predict by it."""
    with session.Session(settings, start.folder, silent=not processes.leads()) as log:
        task = build(settings, start.folder)
        training = trainer.Trainer(task) if settings.of(Command).trains else None
        if training and start.stored and start.folder:
            training.load_state_dict(start.stored)
        elif start.stored:
            weights.load(task.method, task.encode, start.stored)
        header.show(log, task)
        with closing(task.views):
            task.views.prepare(log.path)
            log.begin(task.config)
            header.show_views(log, task, training.length if training else None)
            if training:
                header.warn_of_few_images(log, task)
            if start.folder and not start.stored:
                log.rewind({})  # of a run that ended before its first checkpoint
            if settings.of(Command).predict and (remark := evaluation.adopt(task.method, start.stored or {})):
                log.warn(remark)
            outcome = training.run(log) if training else evaluation.evaluate(task)
            report.finish(log, task, outcome)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
