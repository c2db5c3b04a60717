"""What the console shows of a training: a bar on a terminal, a line now and then elsewhere, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from lib.contracts import Task
from lib.machine import devices
from lib.machine.devices import DeviceSettings
from lib.session import Session
from lib.training import time_estimate
from lib.training.run_length import RunLength
from lib.training.running_means import Means
from lib.training.time_estimate import TimeEstimate, duration

SILENCE = 300.0  # s without a line, after which a console without a bar gets one
REFRESH = 0.5  # s between two readings of the loss for the bar
BAR = "{desc} {percentage:3.0f}% |{bar}| {unit}"  # tqdm puts a comma before its own field for a text


class RunProgress:
    """How far a training is; nothing is shown before `shown`.

    Args:
        task: what is trained.
        length: the steps and evaluations of the run.
    """

    _session: Session

    def __init__(self, task: Task, length: RunLength) -> None:
        self._task = task
        self._length = length
        self._step = 0
        self._epoch = 0
        self._estimate = TimeEstimate(length, time_estimate.batches_of_an_evaluation(task))
        self._is_told = False
        self._waits = devices.defers(devices.device(task.config.of(DeviceSettings)))
        self._read = 0.0  # when the loss was last read
        self._began = 0.0
        self._bar: Any = tqdm(disable=True)

    @contextmanager
    def shown(self, session: Session, step: int) -> Iterator[None]:
        """While entered, a bar or lines.

        Args:
            session: of the run.
            step: finished steps, of a run that is resumed.
        """
        self._session = session
        self._step = step
        self._began = time.perf_counter()
        self._bar = tqdm(
            total=self._length.steps, initial=step, disable=not session.bar, leave=False, bar_format=BAR,
            dynamic_ncols=True, desc=self._title(), unit="",
        )  # fmt: skip
        with self._bar:
            yield

    def steps(self, batches: Iterable[Any], epoch: int, means: Callable[[], Means]) -> Iterator[Any]:
        """The batches of an epoch; what happens until the next one is asked for is a step.

        Args:
            batches: of the epoch.
            epoch: its number, the first being 0.
            means: of the epoch so far.
        """
        self._epoch = epoch
        self._bar.set_description_str(self._title(), refresh=False)
        began = time.perf_counter()
        for batch in batches:
            yield batch
            now = time.perf_counter()
            self._note_step(now - began, means())
            began = now

    def _note_step(self, seconds: float, means: Means) -> None:
        self._step += 1
        self._estimate.add_step(seconds)
        if not self._is_told and self._estimate.is_known:
            self._tell_time()
        if self._bar.disable:
            if not self._session.is_silent and self._session.silence() > SILENCE:
                self._session.progress(f"{self._title()}: {self._state(means)}")
            return
        if not self._waits and time.perf_counter() - self._read > REFRESH:
            self.show(means)
        self._bar.update()

    def show(self, means: Means) -> None:
        """Read the loss, which waits for the device, and show it on the bar."""
        if not self._bar.disable:
            self._read = time.perf_counter()
            self._bar.unit = self._state(means)

    def _state(self, means: Means) -> str:
        values = means.values()
        loss = f"loss {values['loss']:.2f}, " if "loss" in values else ""
        left = f", {self.time_left()}" if self._estimate.is_known else ""
        return f"{loss}{means.rate():,.0f} images/s{left}"

    def time_left(self) -> str:
        """`4 min left`; nothing while it is not known, and at the end."""
        seconds = self._estimate.remaining(self._step)
        return f"{duration(seconds)} left" if self._estimate.is_known and seconds else ""

    def _tell_time(self) -> None:
        self._is_told = True
        seconds = time.perf_counter() - self._began + self._estimate.remaining(self._step)
        self._session.info(f"time     about {duration(seconds)} (measured on the first steps)", indent=9)
        if time_estimate.is_long(seconds, self._task.config.of(DeviceSettings)) and not self._session.is_silent:
            ways = time_estimate.faster_ways(self._task, self._estimate)
            self._session.warn(f"on this CPU, the run takes about {duration(seconds)}. Faster:", *ways)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation."""
        self._bar.set_description_str(f"{self._title()}, scores")
        began = time.perf_counter()
        yield
        self._estimate.add_evaluation(time.perf_counter() - began)
        self._bar.set_description_str(self._title(), refresh=False)

    def _title(self) -> str:
        return f"epoch {min(self._epoch + 1, self._length.epochs)} of {self._length.epochs}"
