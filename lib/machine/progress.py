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


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a bar on a terminal and a line now and then elsewhere, on stderr."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, delay=QUIET, leave=False)
        return
    told = time.monotonic()
    for count, item in enumerate(items):
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            say(f"{what}: {count:,} of {total:,}", 0)
        yield item
