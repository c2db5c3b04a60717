"""What is shown of work that takes long, where there is no terminal."""

from __future__ import annotations

import itertools

import pytest

from lib.machine import progress


def test_lines_tell_the_pace_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0, 10)  # s, 10 an item
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(progress.progress(iter(range(1000)), "computing features", 1000, "images")) == list(range(1000))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "computing features: 3 of 1,000, 0.1 images/s, about 222 minutes left"
    assert lines[-1].endswith("about 10 s left")


def test_without_a_unit_lines_tell_how_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0, 10)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(progress.progress(iter(range(10)), "looking for neighbours", 10))
    assert capsys.readouterr().err.splitlines()[0] == "looking for neighbours: 3 of 10"
