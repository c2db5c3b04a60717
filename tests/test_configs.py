"""Every shipped configuration resolves, and its dry run goes through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_dry_run(path: Path, cli: Callable[..., tuple[int, str, str]], class_folders: Path) -> None:
    data = ("--data-root", class_folders) if "image_folder" in path.read_text() else ()
    status, out, err = cli("--cfgs", path.parent / "base.yaml", path, *data, "--dry-run")
    assert status == 0, err
    assert "pictures" in out and "per epoch" in out and "GFLOP" in out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_it_opens_with_its_command(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"python main.py --cfgs configs/base.yaml configs/{path.name}" in comment
