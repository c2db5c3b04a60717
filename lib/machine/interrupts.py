"""Signals that end a run between two steps, so that nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor

from lib.errors import Interrupted, has_launcher, heeded_signals
from lib.machine import processes

T = TypeVar("T")

PATIENCE = 15.0  # s, of several ranks with a batch after a signal; launchers kill after 30


def exchange(index: Tensor, size: int) -> tuple[Tensor, tuple[int, ...]]:
    """What the ranks have of a batch; within `Interrupts.watch` they agree by the way whether a signal came.

    Args:
        index: (n,) this rank's positions, on the CPU.
        size: of the batch as it was asked for.

    Returns:
        (N,) all ranks' positions, in rank order, and the n of each rank.
    """
    watching = _watching.get()
    number = 0 if watching is None else watching.received
    whole, counts, agreed = processes.exchange(index, processes.largest_share(size), number)
    if watching is not None:
        watching.agreed = agreed
    return whole, counts


class Interrupts:
    """While entered, signals that end the run wait for the next `check()`; a second one does not wait.

    A second SIGHUP changes nothing: a closed terminal and its shell send one each. Nor does a second SIGTERM in a
    process that has a launcher: each thread of a launcher that is killed sends one.

    Args:
        agree: on the largest of the ranks' numbers, so that all stop at the same step.
        alone: this process is the only rank.
    """

    notice: str = ""
    """What a first Ctrl-C says at once on a terminal."""

    def __init__(self, agree: Callable[[int], int], alone: bool = True) -> None:
        self._agree = agree
        self._alone = alone
        self._received: int | None = None
        self.agreed: int | None = None  # a signal, or 0; None: the batch that was fetched last came without agreement
        self._fetching = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in heeded_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: object) -> None:
        if self._received is not None:
            if number == signal.SIGHUP or (number == signal.SIGTERM and has_launcher()):
                return
            raise Interrupted(number, midway=True)
        self._received = number
        if number == signal.SIGINT and self.notice and sys.stderr.isatty():
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), self.notice.encode())  # a stream's own write may be under way
        self._leave_fetch()
        if not self._alone:
            signal.signal(signal.SIGALRM, self._give_up_fetch)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)

    def _leave_fetch(self) -> None:
        if self._fetching and self._alone and self._received is not None:
            raise Interrupted(self._received)

    def _give_up_fetch(self, number: int, frame: object) -> None:
        # One of several ranks cannot save the state, which the others may have left behind.
        if self._fetching and self._received is not None:
            raise Interrupted(self._received, midway=True)

    @property
    def received(self) -> int:
        """The signal that came to this rank, or 0."""
        return self._received or 0

    def check(self) -> None:
        """Go on, unless a signal came.

        Raises:
            Interrupted: one did.
        """
        self._leave(self._agree(self.received))

    def _leave(self, number: int) -> None:
        if number:
            raise Interrupted(number)

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with a `check()` after each; where the ranks `exchange` them, it comes with the next one.

        A batch may never come, as from a file system that hangs. No step is half done while one is fetched, so a
        signal ends the wait at once. With several ranks it does so after `PATIENCE`, as all have to stop at one step.

        Raises:
            Interrupted: a signal came.
        """
        iterator = iter(batches)
        while True:
            self.agreed = None
            token = _watching.set(self)
            try:
                self._fetching = True
                self._leave_fetch()
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._fetching = False
                _watching.reset(token)
            self._leave(self.agreed or 0)
            yield batch
            if self.agreed is None:
                self.check()


_watching: ContextVar[Interrupts | None] = ContextVar("watching", default=None)
