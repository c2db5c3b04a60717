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
