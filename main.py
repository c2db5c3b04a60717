"""Cluster images: python main.py --cfgs configs/base.yaml configs/digits.yaml (--help for more)."""
# ruff: noqa: I001

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pica  # noqa: F401  (registers itself)
from lib import checkpoint, config, datasets, evaluation, forecast, method, networks, optimizers
from lib import report, runtime, schedules, session, trainer, transforms
from lib.config import Command, Config
from lib.errors import UserError, exit_status
from lib.session import Session

SECTIONS = (
    Command, method.MethodSettings, datasets.DataSettings, transforms.TransformSettings, networks.NetworkSettings,
    optimizers.OptimizerSettings, schedules.ScheduleSettings, trainer.TrainerSettings, evaluation.EvaluationSettings,
    runtime.SeedSettings, session.SessionSettings, runtime.DeviceSettings, transforms.LoaderSettings,
)  # fmt: skip

# The PICA authors' files name no method.
DEFAULTS = {"method": config.Raw("pica", "main.py")}


@exit_status
def main(argv: Sequence[str]) -> None:
    """Run one command line."""
    raw = DEFAULTS | config.collect(argv, SECTIONS)
    asked = raw.get("evaluate")
    stored = checkpoint.load(str(asked.value)) if asked and asked.value else None
    settings = config.resolve(raw, SECTIONS, stored and stored["config"])
    settings = settings.replace(seed=runtime.seed_of(settings.of(runtime.SeedSettings)))
    command, seeds = settings.of(Command), settings.of(runtime.SeedSettings).seeds
    if command.help or command.list or not argv:
        print(config.component_list(SECTIONS) if command.list else config.help_text(settings))
    elif command.dry_run:
        print(forecast.forecast(build(settings), settings))
    elif seeds is None:
        run(settings, Session(settings), stored)
    elif stored is None:
        run_seeds(settings, seeds)
    else:
        raise UserError("--seeds trains anew, and --evaluate does not; leave one out")


def build(settings: Config) -> method.Task:
    """The task that the settings describe, its weights drawn from the seed."""
    runtime.seed_everything(runtime.seed_of(settings.of(runtime.SeedSettings)))
    return method.get(settings.of(method.MethodSettings).method).build(settings)  # type: ignore[no-any-return]


def run(settings: Config, log: Session, stored: Mapping[str, Any] | None = None) -> evaluation.Scores:
    """Train, or score the checkpoint in `stored`; returns the scores of each split."""
    task = build(settings)
    if stored is not None:
        checkpoint.load_weights(task.method, stored["method"], "the checkpoint")
    training = trainer.Trainer(task, settings) if stored is None else None
    with log:
        predictions, scores = training.run(log) if training else evaluation.evaluate(task, settings)
        report.finish(log, task, settings, predictions, scores)
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
