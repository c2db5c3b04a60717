from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lib.machine.background import ahead


def test_each_value_is_computed_in_a_thread_while_the_one_before_is_used() -> None:
    started: list[int] = []
    second = threading.Event()

    def values() -> Iterator[int]:
        for number in range(4):
            assert threading.current_thread() is not threading.main_thread()
            started.append(number)
            if number == 1:
                second.set()
            yield number

    coming = ahead(values())
    assert next(coming) == 0
    assert second.wait(10), "the second is computed before it is asked for"
    assert started == [0, 1], "and no more than one is"
    assert list(coming) == [1, 2, 3]


def test_what_goes_wrong_is_raised_where_the_value_is_asked_for() -> None:
    def values() -> Iterator[int]:
        yield 0
        raise ValueError("broken")

    coming = ahead(values())
    assert next(coming) == 0
    with pytest.raises(ValueError, match="broken"):
        next(coming)


def test_no_thread_is_left_when_the_caller_stops_early() -> None:
    before = threading.active_count()
    coming = ahead(iter(range(10)))
    assert next(coming) == 0
    coming.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
