"""Progress of what takes long before a run has a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from lib.errors import say

tqdm.monitor_interval = 0  # no thread that watches the bars: it warns where threads are scarce

T = TypeVar("T")
QUIET = 2.0  # s, before anything is shown
EVERY = 30.0  # s, between two lines where there is no terminal


def progress(items: Iterable[T], what: str, total: int, unit: str = "") -> Iterator[T]:
    """The items, with a bar on a terminal and a line now and then elsewhere, on stderr.

    Args:
        items: that are passed on.
        what: is done with them.
        total: how many they are.
        unit: what they are, in the plural; then the lines say how many there are in a second, and the time left.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, delay=QUIET, leave=False, unit=f" {unit}" if unit else "it")
        return
    began = time.monotonic()
    told = began
    for count, item in enumerate(items):
        now = time.monotonic()
        if now - told > EVERY:
            told = now
            rate = count / (now - began)
            pace = f", {_number(rate)} {unit}/s, {_left((total - count) / rate)} left" if unit and count else ""
            say(f"{what}: {count:,} of {total:,}{pace}", 0)
        yield item


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _left(seconds: float) -> str:
    return f"about {seconds:,.0f} s" if seconds < 90 else f"about {seconds / 60:,.0f} minutes"
