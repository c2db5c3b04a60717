"""Cluster images: python main.py --cfgs configs/base.yaml configs/digits.yaml (--help for more)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pica  # noqa: F401  (registers itself)
from lib import checkpoint, config, evaluation, report, runtime
from lib.config import Command, Config
from lib.datasets import DataSettings
from lib.errors import RunStopped, UserError
from lib.evaluation import EvaluationSettings, Scores
from lib.forecast import forecast
from lib.method import MethodSettings, Task, get
from lib.networks import NetworkSettings
from lib.optimizers import OptimizerSettings
from lib.runtime import RuntimeSettings
from lib.schedules import ScheduleSettings
from lib.session import Session, SessionSettings
from lib.trainer import Trainer, TrainerSettings
from lib.transforms import LoaderSettings, TransformSettings

SECTIONS = (
    Command, MethodSettings, DataSettings, TransformSettings, NetworkSettings, OptimizerSettings, ScheduleSettings,
    TrainerSettings, EvaluationSettings, SessionSettings, RuntimeSettings, LoaderSettings,
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit status."""
    try:
        raw = config.collect(argv, SECTIONS)
        stored = checkpoint.load(str(raw["evaluate"].value)) if "evaluate" in raw else None
        settings = config.resolve(raw, SECTIONS, stored and stored["config"])
        settings = settings.replace(seed=runtime.seed_of(settings.of(RuntimeSettings)))
        command = settings.of(Command)
        if command.help or not argv:
            print(config.help_text(settings))
        elif command.list:
            print(config.component_list(SECTIONS))
        elif command.dry_run:
            print(forecast(build(settings), settings))
        elif settings.of(RuntimeSettings).seeds and stored is None:
            run_seeds(settings)
        else:
            run(settings, Session(settings), stored)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunStopped as error:
        print(f"error: the run stopped itself: {error}", file=sys.stderr)
        return 1
    except runtime.Interrupted as interrupted:
        print(f"stopped by {interrupted}; the state is saved", file=sys.stderr)
        return interrupted.status
    except KeyboardInterrupt:
        return 130


def build(settings: Config) -> Task:
    """The task that the settings describe, its weights drawn from the seed."""
    runtime.seed_everything(runtime.seed_of(settings.of(RuntimeSettings)))
    task: Task = get(settings.of(MethodSettings).method).build(settings)
    return task


def run(settings: Config, session: Session, stored: Mapping[str, Any] | None = None) -> Scores:
    """Train, or score the checkpoint in `stored`; returns the scores of each split."""
    task = build(settings)
    trainer = Trainer(task, settings)
    if stored is not None:
        checkpoint.load_weights(task.method, stored["method"], "the checkpoint")
    with session:
        predictions, scores = evaluation.evaluate(task, settings) if stored is not None else trainer.run(session)
        report.finish(session, task, settings, predictions, scores)
    return scores


def run_seeds(settings: Config) -> None:
    """One run for each seed, each in a folder of its own, and a summary over them."""
    family, found = Session(settings), {}
    for seed in settings.of(RuntimeSettings).seeds or ():
        one = settings.replace(seed=int(seed), seeds=None)
        found[seed] = run(one, family.child(f"seed-{seed}", one))
    with family:
        report.summarise(family, found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
