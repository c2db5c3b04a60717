"""The block at the start of a run: what is computed, on what, by which device, and where the output goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib import networks
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.contracts import Method, Task
from lib.datasets import DataSettings, Pictures
from lib.datasets.folder_tree import counted
from lib.machine import devices, processes
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.machine.random_seeds import SeedSettings
from lib.methods.method import MethodSettings
from lib.networks import NetworkSettings
from lib.networks.backbone import Backbone
from lib.networks.freezing import TuningSettings
from lib.scoring import evaluation
from lib.session import Session
from lib.training.run_length import RunLength

INDENT = 9  # columns of the names
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


def show(session: Session, task: Task) -> None:
    """Say what is run, as far as it is known before images are prepared."""
    config = task.config
    command = config.of(Command)
    _show(session, "method", [f"{full_name(task.method, config)}, {task.method.num_clusters} clusters"])
    _show(session, "data", data(config, task.pictures))
    if command.trains:
        _show(session, "training", [f"{task.trained_name} ({len(task.trained.index):,} images)"])
    _show(session, "scored", [_scored(task)])
    _show(session, "network", [_network(task)])
    if not command.trains:
        _show(session, "weights", [str(command.evaluate or command.predict)])
    _show(session, "device", [_device(config)])
    _show(session, "seed", [str(config.of(SeedSettings).seed)])
    _show(session, "output", [f"{session.path}/" if session.path else "none, because of --debug"])


def show_views(session: Session, task: Task, length: RunLength | None) -> None:
    """Say what is known once images are prepared.

    Args:
        session: of the run.
        task: of the run.
        length: its steps; None: nothing is trained.
    """
    _show(session, "views", [task.views.describe()])
    if length is not None:
        bound = " at most" if length.max_steps is not None else ""
        epochs = counted(length.epochs, "epoch", "epochs")
        _show(session, "steps", [f"{length.steps:,} in {epochs}{bound}"])


def show_family(session: Session, config: Config, method: Method, pictures: Pictures, runs: Sequence[str]) -> None:
    """Say what the runs of a family have in common.

    Args:
        session: of the family.
        config: the settings of one of them.
        method: of one of them.
        pictures: of all.
        runs: what each is called.
    """
    _show(session, "method", [full_name(method, config)])
    _show(session, "data", data(config, pictures))
    _show(session, "device", [_device(config)])
    _show(session, "runs", [f"{len(runs)}: {'; '.join(runs)}"])
    _show(session, "output", [f"{session.path}/"])


def warn_of_few_images(session: Session, task: Task) -> None:
    """A word where clusters have so few images that they are mostly chance."""
    count = len(task.trained.index)
    clusters = task.method.num_clusters
    if count < evaluation.FEW * clusters:
        fewer = max(2, count // evaluation.FEW)
        smaller = f"take fewer clusters (--num-clusters {fewer}) or more images" if fewer < clusters else "add images"
        session.warn(
            f"{count:,} images for {clusters} clusters are {count / clusters:.1f} for each; clusters of fewer than {evaluation.FEW} "
            f"are mostly chance: {smaller}"
        )


def full_name(method: Method, config: Config) -> str:
    """A method's name for people."""
    return method.full_name or config.of(MethodSettings).method


def data(config: Config, pictures: Pictures) -> list[str]:
    """Where the images are, how many, of how many classes, and what is left out; a line each."""
    settings = config.of(DataSettings)
    described = pictures.describe()
    name = settings.dataset if pictures.files is None else f"{settings.dataset} in {settings.data_root}"
    if described:
        return [name, *described]
    labels = pictures.labels()
    classes = len(np.unique(labels[labels >= 0]))
    known = counted(classes, "class", "classes") if classes else "no labels"
    return [f"{name}: {counted(len(pictures), 'image', 'images')}, {known}"]


def _scored(task: Task) -> str:
    splits = ", ".join(f"{name} ({len(split.index):,})" for name, split in task.splits.items())
    has_labels = any((split.labels >= 0).any() for split in task.splits.values())
    if not has_labels:
        return f"{splits}, without labels"
    return splits if task.config.as_dict()["best_by"] == "acc" else f"{splits}; labels are used for this only"


def _network(task: Task) -> str:
    config = task.config
    settings = config.of(NetworkSettings)
    trained = sum(weight.numel() for weight in task.method.parameters() if weight.requires_grad)
    if isinstance(task.encode, Backbone):
        return f"{task.encode.title}, frozen; {trained:,} weights are trained on its features"
    if not config.of(Command).trains:
        return settings.network
    tuning = config.of(TuningSettings)
    starts_trained = tuning.net_weights is not None or networks.own(settings.network).trained
    start = "starts from trained weights" if starts_trained else "starts from random weights"
    frozen = ""
    if settings.net_freeze is not None:
        epochs = tuning.net_freeze_epochs
        frozen = ", partly frozen" if epochs is None else f", frozen for {counted(epochs, 'epoch', 'epochs')}"
    return f"{settings.network}, {start}{frozen}; {trained:,} weights are trained"


def _device(config: Config) -> str:
    settings = config.of(DeviceSettings)
    count = processes.world()
    several = f"{count} processes, each on " if count > 1 else ""
    precision = config.of(PrecisionSettings).precision
    return f"{several}{devices.describe(devices.device(settings))}, {PRECISIONS.get(precision, precision)}"


def _show(session: Session, name: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        session.info(f"{'' if number else name:<{INDENT}}{line}", indent=INDENT)
