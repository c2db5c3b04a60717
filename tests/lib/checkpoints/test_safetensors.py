from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import QUICK
from runs import scores_shown

from lib.checkpoints import checkpoint
from lib.checkpoints.safetensors import export
from lib.errors import UserError

Cli = Callable[..., tuple[int, str, str]]


def test_an_export_takes_a_checkpoints_place(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--session", "a")
    path = tmp_path / "sessions/a/checkpoint/latest.ckpt"
    exported = tmp_path / "weights.safetensors"
    status, first, err = cli("--evaluate", path, "--export", exported, "--session", "b")
    assert status == 0, err
    status, second, err = cli("--evaluate", exported, "--session", "c")
    assert status == 0 and scores_shown(first) == scores_shown(second), err
    assert (tmp_path / "sessions/b/scores.json").read_text() == (tmp_path / "sessions/c/scores.json").read_text()
    tensors = safetensors.torch.load_file(exported)  # any other program reads it
    assert torch.equal(tensors["heads.1.weight"], checkpoint.load(path)["method"]["heads.1.weight"])
    status, _, err = cli("--resume", exported, "--restart", "--max-steps", 1, "--session", "d")
    assert status == 0, err
    status, _, err = cli("--resume", exported)
    assert status == 2 and "holds weights alone" in err
    status, _, err = cli("--evaluate", path, "--export", tmp_path / "weights.pt")
    assert status == 2 and ".safetensors and .onnx are what there is" in err


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    export(path, {"seed": 1}, {"w": torch.arange(5.0), "_extra_state": {}}, {"mean": torch.ones(2)})
    assert checkpoint.load(path)["config"] == {"seed": 1}
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged: its content does not match"):
        checkpoint.load(path)
    for cut in (9, 50, len(content) - 2):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a\.safetensors"):
            checkpoint.load(path)
    for metadata in (None, {"format": "pt"}, {"program": "deep-image-clustering 1", "config": json.dumps([1])}):
        safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata)
        with pytest.raises(UserError, match="was not exported by this program"):
            checkpoint.load(path)
