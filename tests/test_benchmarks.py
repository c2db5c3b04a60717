"""The scripts in benchmarks/ find what they import; running them is what `make bench` does."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(path.parent)
    assert callable(importlib.import_module(path.stem).__dict__["publish" if path.stem == "common" else "main"])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [("imc_swav", 1500), ("pica", 800)])
def test_a_step_launches_few_operations_and_the_same_whatever_was_drawn(
    method: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    steps = importlib.import_module("launches").count(method, images=8, steps=4)
    assert 500 < steps[0].counts.total() <= most
    heads = 2 if method == "pica" else 1  # in turn
    for step in steps:
        assert step.operations in [other.operations for other in steps[:heads]]
