"""Cluster images: python main.py --cfgs configs/base.yaml configs/digits.yaml (--help for more)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pica  # noqa: F401  (registers itself)
from lib import checkpoint, config, datasets, evaluation, method, networks, optimizers, report, runtime, schedules

from lib import trainer, transforms  # isort: skip
from lib.config import Command, Config
from lib.errors import UserError, exit_status
from lib.forecast import forecast
from lib.session import Session, SessionSettings

SECTIONS = (
    Command, method.MethodSettings, datasets.DataSettings, transforms.TransformSettings, networks.NetworkSettings,
    optimizers.OptimizerSettings, schedules.ScheduleSettings, trainer.TrainerSettings, evaluation.EvaluationSettings,
    SessionSettings, runtime.RuntimeSettings, transforms.LoaderSettings,
)  # fmt: skip


@exit_status
def main(argv: Sequence[str]) -> None:
    """Run one command line."""
    raw = config.collect(argv, SECTIONS)
    path = raw["evaluate"].value if "evaluate" in raw else None
    stored = None if path is None else checkpoint.load(str(path))
    settings = config.resolve(raw, SECTIONS, stored and stored["config"])
    settings = settings.replace(seed=runtime.seed_of(settings.of(runtime.RuntimeSettings)))
    command, seeds = settings.of(Command), settings.of(runtime.RuntimeSettings).seeds
    if command.help or not argv:
        print(config.help_text(settings))
    elif command.list:
        print(config.component_list(SECTIONS))
    elif command.dry_run:
        print(forecast(build(settings), settings))
    elif seeds is None:
        run(settings, Session(settings), stored)
    elif stored is None:
        run_seeds(settings, seeds)
    else:
        raise UserError("--seeds trains anew, and --evaluate does not; leave one out")


def build(settings: Config) -> method.Task:
    """The task that the settings describe, its weights drawn from the seed."""
    runtime.seed_everything(runtime.seed_of(settings.of(runtime.RuntimeSettings)))
    task: method.Task = method.get(settings.of(method.MethodSettings).method).build(settings)
    return task


def run(settings: Config, session: Session, stored: Mapping[str, Any] | None = None) -> evaluation.Scores:
    """Train, or score the checkpoint in `stored`; returns the scores of each split."""
    task = build(settings)
    training = trainer.Trainer(task, settings)
    if stored is not None:
        checkpoint.load_weights(task.method, stored["method"], "the checkpoint")
    with session:
        predictions, scores = training.run(session) if stored is None else evaluation.evaluate(task, settings)
        report.finish(session, task, settings, predictions, scores)
    task.views.close()
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
