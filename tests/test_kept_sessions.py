"""What an earlier arrangement of the code wrote still works: sessions, checkpoints, and the features of a frozen network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import PIL
import pytest
from conftest import ROOT, picture

from lib.methods import method

KEPT = ROOT / "tests/kept_sessions"
SESSIONS = ("pica", "imc_swav", "frozen")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a kept session, which may be changed."""
    folder = tmp_path / "sessions" / request.param
    shutil.copytree(KEPT / request.param, folder)
    return folder


@pytest.mark.parametrize("session", SESSIONS, indirect=True)
def test_a_kept_session_resumes_and_reports(session: Path, cli: Cli) -> None:
    status, _, err = cli("--resume", session / "checkpoint/latest.ckpt")
    assert status == 0, err
    epochs = [json.loads(line)["epoch"] for line in (session / "training.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]
    assert json.loads((session / "scores.json").read_text())["test"]["acc"] > 0.1
    (session / "report.html").unlink()
    subprocess.run([sys.executable, "-m", "lib.report", str(session)], cwd=ROOT, check=True, capture_output=True)
    assert "</html>" in (session / "report.html").read_text()


@pytest.mark.parametrize("name", SESSIONS)
def test_a_kept_checkpoint_has_its_scores(name: str, cli: Cli, tmp_path: Path) -> None:
    checkpoint = KEPT / name / "checkpoint/latest.ckpt"
    status, _, err = cli("--evaluate", checkpoint, "--test-splits", "test", "--session", "scored")
    assert status == 0, err
    scores = json.loads((tmp_path / "sessions/scored/scores.json").read_text())["test"]
    expected = json.loads((KEPT / "scores.json").read_text())[name]
    assert {key: scores[key] for key in expected} == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("name", SESSIONS)
def test_a_kept_checkpoint_predicts(name: str, cli: Cli, tmp_path: Path) -> None:
    for seed in range(5):
        picture(tmp_path / f"images/{seed}.png", seed=seed)
    checkpoint = KEPT / name / "checkpoint/latest.ckpt"
    status, _, err = cli("--predict", checkpoint, "--data-root", tmp_path / "images", "--session", "predicted")
    assert status == 0, err
    lines = (tmp_path / "sessions/predicted/predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + 5


@pytest.mark.parametrize("session", ["frozen"], indirect=True)
def test_kept_features_are_used(session: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL, "__version__", "13.0.0")  # a part of their key
    shutil.copytree(KEPT / "cache", tmp_path / "kept")
    status, out, err = cli("--resume", session / "checkpoint/latest.ckpt", "--cache", tmp_path / "kept")
    assert status == 0, err
    assert "none to compute" in out


@pytest.mark.parametrize("flags", [(), ("--net-freeze", ".*")], ids=["trained", "frozen"])
def test_a_users_method_that_builds_its_task_itself_trains(
    flags: tuple[str, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(KEPT)
    monkeypatch.setattr(method._registry, "_components", dict(method._registry._components))
    sys.modules.pop("kept_method", None)
    status, _, err = cli(
        "--imports", "kept_method", "--method", "iic", "--num-clusters", 10, "--network", "convnet", "--net-width", 4,
        "--net-cin", 1, "--tfm-size", 8, "--tfm-resize", 10, "--batch-size", 64, "--max-steps", 2, "--eval-every", 0,
        "--baseline", "none", "--eval-sample", 20, "--session", "a", *flags,
    )  # fmt: skip
    assert status == 0, err
    status, _, err = cli("--imports", "kept_method", "--evaluate", tmp_path / "sessions/a/checkpoint/latest.ckpt")
    assert status == 0, err
