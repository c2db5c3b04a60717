"""How long a run will take, by its own first steps; and what would be faster."""

from __future__ import annotations

from collections import deque

from lib.config import pasted_commands
from lib.contracts import Task
from lib.datasets import DataSettings
from lib.machine import devices
from lib.machine.devices import DeviceSettings
from lib.networks.backbone import Backbone
from lib.scoring import inference
from lib.scoring.evaluation import EvaluationSettings
from lib.training.run_length import RunLength

RECENT = 200  # steps that the estimate goes by
FEWEST = 3  # steps behind the first one, which also sets up what all use,
ENOUGH = 0.5  # s, which they take at least
SLOW = 5.0  # s; the set-up is a small part of such a step
LONG = 3600.0  # s; who waits longer on a CPU is told of faster ways
WORTHWHILE = 0.8  # of the epochs; a run that is hardly shorter is no advice
FEWEST_EPOCHS = 5  # with which a run may be worth its time
FORWARD = 1 / 3  # of a step's time: an evaluation's batch has one view, and no backward pass


class TimeEstimate:
    """Time of a run, from the times of its steps and evaluations so far.

    Args:
        length: the steps and evaluations that are left.
        batches: of an evaluation, each of the size of a step's.
    """

    def __init__(self, length: RunLength, batches: float) -> None:
        self._length = length
        self._batches = batches
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._first: float | None = None
        self._evaluation: float | None = None

    def add_step(self, seconds: float) -> None:
        if self._first is None:
            self._first = seconds
        else:
            self._steps.append(seconds)

    def add_evaluation(self, seconds: float) -> None:
        self._evaluation = seconds

    @property
    def is_known(self) -> bool:
        """Whether enough was measured."""
        is_slow = self._first is not None and self._first >= SLOW
        return is_slow or (len(self._steps) >= FEWEST and sum(self._steps) >= ENOUGH)

    def step(self) -> float:
        """Seconds of a step."""
        if self._steps:
            return sum(self._steps) / len(self._steps)
        return self._first or 0.0

    def evaluation(self) -> float:
        """Seconds of an evaluation; before the first one, what its share of a step's work would take."""
        return self.step() * FORWARD * self._batches if self._evaluation is None else self._evaluation

    def epoch(self) -> float:
        """Seconds of an epoch, with its share of the evaluations."""
        return self._length.steps_per_epoch * self.step() + self._length.evaluations_per_epoch * self.evaluation()

    def remaining(self, step: int) -> float:
        """Seconds from the state after so many steps in all."""
        return self._length.steps_after(step) * self.step() + self._length.evaluations_after(step) * self.evaluation()


def batches_of_an_evaluation(task: Task) -> float:
    """The work of an evaluation, in batches of a step's size."""
    images = len(inference.scored(task)) * len(task.method.treatments)
    sampled = 2 * task.config.of(EvaluationSettings).eval_sample
    return (images + min(sampled, 2 * len(task.pictures))) / task.config.of(DataSettings).batch


def is_long(seconds: float, settings: DeviceSettings) -> bool:
    """Whether a person should know before the run has learnt for long."""
    return seconds > LONG and not devices.gpu_numbers(settings.gpus)


def faster_ways(task: Task, estimate: TimeEstimate) -> list[str]:
    """What would take less time, a line each; commands have lines to themselves."""
    lines: list[str] = []
    config = task.config
    data = config.of(DataSettings)
    if data.dataset == "image_folder" and not isinstance(task.encode, Backbone):
        table = config.as_dict()["labels"]
        words = ["--data-root", data.data_root, "--num-clusters", str(task.method.num_clusters)]
        words += ["--labels", table] if table else []
        for files, what in (
            (
                task.method.pretrained_configs,
                "a pretrained network that stays as it is (its weights are downloaded once)",
            ),
            (task.method.light_configs, "a light network, for small images"),
        ):
            if files:
                lines += [f"- {what}:", f"    {pasted_commands.command('--cfgs', *files, *words)}"]
    where = "" if devices.gpu_names() else ", on a machine that has one"
    lines.append(f"- the first GPU: add --gpus 0 to the command{where}")
    epochs = shorter_run(estimate.epoch(), config.as_dict()["max_epochs"])
    if epochs is not None:
        lines.append(f"- fewer epochs: --max-epochs {epochs} takes about an hour, and usually scores lower")
    lines.append("Ctrl-C stops this run and saves its state.")
    return lines


def shorter_run(epoch: float, epochs: int) -> int | None:
    """The epochs that fit into an hour, if these are enough to learn from and the run becomes clearly shorter.

    Args:
        epoch: seconds of an epoch.
        epochs: of the run.
    """
    fitting = int(LONG / epoch)
    return fitting if FEWEST_EPOCHS <= fitting <= WORTHWHILE * epochs else None


def duration(seconds: float) -> str:
    """`40 s`, `4 min`, `1 h 20 min`, `17 h`, `3 days`: as exact as an estimate is."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 600:
        hours, rest = divmod(round(minutes / 10) * 10, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 48 else f"{round(hours / 24)} days"
