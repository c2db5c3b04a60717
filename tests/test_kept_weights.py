"""The weights in pretrained/ give the scores that its table states."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, shared

ROWS = re.findall(
    r"^\| `(\S+\.safetensors)` \|.*\| `([0-9a-f]{64})` \| (0\.\d{3}) \| (0\.\d{3}) \| (0\.\d{3}) \|$",
    (ROOT / "pretrained/README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_every_file_has_its_row_and_all_are_small() -> None:
    files = sorted((ROOT / "pretrained").glob("*.safetensors"))
    assert files and sorted(name for name, *_ in ROWS) == [file.name for file in files]
    assert sum(file.stat().st_size for file in files) < 5 * 2**20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_they_are_scored_as_stated(
    row: tuple[str, ...], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    name, digest, *stated = row
    file = ROOT / "pretrained" / name
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    data = ("--data-root", shared("data/cifar10-12k")) if "cifar10" in name else ()
    status, _, err = cli("--evaluate", file, *data, "--test-splits", "test", "--eval-sample", 0, "--session", "a")
    assert status == 0, err
    found = json.loads((tmp_path / "sessions/a/scores.json").read_text())["test"]
    assert [f"{found[score]:.3f}" for score in ("acc", "nmi", "ari")] == stated
