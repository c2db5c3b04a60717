"""Cluster images: python main.py --cfgs configs/base.yaml configs/digits.yaml (--help for more)."""
# ruff: noqa: I001

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

from lib.errors import exit_status, leave_on_signals

if __name__ == "__main__":
    leave_on_signals()  # the imports below take seconds

import imc_swav, pica  # noqa: E401, F401  (they register themselves)
from lib import checkpoint, config, datasets, evaluation, forecast, method, networks, optimizers
from lib import report, resume, runtime, schedules, session, trainer, transforms
from lib.config import Command, Config
from lib.session import Session

SECTIONS = (
    Command, method.MethodSettings, datasets.DataSettings, transforms.TransformSettings, networks.NetworkSettings,
    optimizers.OptimizerSettings, schedules.ScheduleSettings, trainer.TrainerSettings, evaluation.EvaluationSettings,
    transforms.ViewSettings, session.SessionSettings, *runtime.SECTIONS, transforms.LoaderSettings,
)  # fmt: skip

# The PICA authors' files name no method.
DEFAULTS = {"method": config.Raw("pica", config.DEFAULT)}


@exit_status
def main(argv: Sequence[str]) -> None:
    """Run one command line."""
    raw = DEFAULTS | config.collect(argv, SECTIONS)
    start = resume.start_of(raw, SECTIONS)
    settings = config.resolve(raw, SECTIONS, start.stored and start.stored["config"], start.folder is not None)
    kept = settings.of(Command).resume if settings.of(Command).restart else None
    settings = settings.replace(seed=runtime.seed_of(settings.of(runtime.SeedSettings)), resume=kept)
    command, seeds = settings.of(Command), settings.of(runtime.SeedSettings).seeds
    if command.help or command.list or not argv:
        print(config.component_list(SECTIONS) if command.list else config.help_text(settings))
    elif command.dry_run:
        print(forecast.forecast(build(settings), settings))
    elif seeds is None:
        run(settings, Session(settings, goes_on=start.folder), start)
    else:
        run_seeds(settings, seeds)


def build(settings: Config) -> method.Task:  # its weights are drawn from the seed
    runtime.configure(*(settings.of(section) for section in runtime.SECTIONS))
    return method.get(settings.of(method.MethodSettings).method).build(settings)  # type: ignore[no-any-return]


def run(settings: Config, log: Session, start: resume.Start = resume.AFRESH) -> evaluation.Scores:
    """Train, or score a checkpoint; returns the scores of each split."""
    task = build(settings)
    training = None if settings.of(Command).evaluate else trainer.Trainer(task, settings)
    if training and start.stored and start.folder:
        training.load_state_dict(start.stored)
    elif start.stored:
        checkpoint.load_weights(task.method, checkpoint.weights_of(start.stored), "the checkpoint")
    with log, closing(task.views):
        predictions, scores = training.run(log) if training else evaluation.evaluate(task, settings)
        report.finish(log, task, settings, predictions, scores)
    return scores


def run_seeds(settings: Config, seeds: Sequence[str]) -> None:
    """One run for each seed, each in a folder of its own, and a summary over them."""
    family, found = Session(settings), {}
    for seed in seeds:
        one = settings.replace(seed=int(seed), seeds=None)
        found[seed] = run(one, family.child(f"seed-{seed}", one))
    with family:
        report.summarise(family, found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
