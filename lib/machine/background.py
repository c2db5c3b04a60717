"""Work that a thread does beside the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(values: Iterable[T]) -> Iterator[T]:
    """The same values, each of them computed in a thread while the caller works with the one before it.

    What goes wrong in the thread is raised where the value is asked for.
    """
    iterator = iter(values)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, end)
        while (value := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield value  # type: ignore[misc]
