"""Mistakes: exit status 2, one line, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, picture

import main
from lib import checkpoint

Cli = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], *parts: str) -> None:
    status, _, err = result
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    for part in parts:
        assert part in err


def folder(*words: object) -> tuple[object, ...]:
    return ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--network", "convnet", *words)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> object:
    yield
    assert not list((tmp_path / "sessions").glob("*"))


def test_mistakes_in_settings(cli: Cli, tmp_path: Path) -> None:
    refused(cli("--cfgs", tmp_path / "absent.yaml"), "absent.yaml", "No such file")
    for content, part in (("- a", "not a mapping"), ("batch: 3", "unknown setting"), ("batch_size: x", "not a number")):
        (tmp_path / "bad.yaml").write_text(content)
        refused(cli("--cfgs", tmp_path / "bad.yaml"), "bad.yaml", part)
    refused(cli(*QUICK, "--dataset", "didgits"), "unknown data set 'didgits'", "did you mean 'digits'")
    refused(cli(*QUICK, "--max-epoch", "1"), "did you mean '--max-epochs'")
    refused(cli(*QUICK, "--num-clusters", "9"), "contradicts net_heads")
    refused(cli(*QUICK, "--tfm-means", "0.1", "0.2"), "tfm_means has 2 values", "1 channels")
    refused(cli(*QUICK, "--lr-policy", "multistep"), "--lr-schedule")
    refused(cli(*QUICK, "--optimizer", "sgd", "--optim-nesterov", "--optim-momentum", "0"), "sgd refuses", "momentum")
    refused(cli(*QUICK, "--train-splits", "train", "test", "train+test"), "train_splits names 3 sets", "2 heads")


def test_mistakes_in_data(cli: Cli, tmp_path: Path) -> None:
    refused(cli(*folder("--data-root", tmp_path / "absent")), "absent", "--data-root")
    (tmp_path / "empty").mkdir()
    refused(cli(*folder("--data-root", tmp_path / "empty")), "empty", "looked for")
    picture(tmp_path / "text" / "a.png").write_text("not a picture")
    refused(cli(*folder("--data-root", tmp_path / "text")), "a.png", "no image")
    for i in range(9):
        whole = picture(tmp_path / "nine" / f"{i}.png", seed=i)
    nine = folder("--data-root", tmp_path / "nine", "--num-clusters", "3", "--num-workers", "0")
    refused(cli(*nine, "--download"), "--download", "leave it out")
    refused(cli(*nine, "--num-clusters", "10"), "9 pictures do not make 10 clusters")
    refused(cli(*nine, "--batch-size", "8", "--tfm-size", "4"), "a single picture of 4 px", "batch_size")
    whole.write_bytes(whole.read_bytes()[:200])  # its header is right
    for seeds in ((), ("--seeds", "0-1")):
        refused(cli(*nine, *seeds), "8.png", "mend or remove it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_gpu_that_is_not_there(cli: Cli) -> None:
    refused(cli(*QUICK, "--gpus", "0"), "--gpus 0", "leave --gpus empty")
    refused(cli(*QUICK, "--gpus", "first"), "--gpus first")


def test_mistakes_in_sessions(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(cli(*QUICK, "--session-root", tmp_path / "file" / "under"), "cannot make a session")
    refused(cli(*QUICK, "--session", "../outside"), "no name of a folder")
    refused(cli(*QUICK, "--session", "a\nb"), "no name of a folder")
    refused(cli(*QUICK, "--session-root", "a\0b"), "cannot make a session")


def test_too_large_a_network(cli: Cli) -> None:
    refused(cli(*QUICK, "--net-width", "1000000", "--dry-run"), "not enough memory", "--dry-run")


def test_an_unwritable_session_root(tmp_path: Path) -> None:
    command = [sys.executable, "main.py", *map(str, QUICK), "--session-root", "/proc/sessions"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "cannot make a session in /proc/sessions" in done.stderr
    )


def earlier(cli: Cli, tmp_path: Path) -> Path:
    """A checkpoint in a session outside of the watched root."""
    words = [*map(str, QUICK), "--max-epochs", "0", "--session-root", str(tmp_path / "earlier"), "--session", "a"]
    assert main.main(words) == 0
    return tmp_path / "earlier" / "a" / "checkpoint" / "latest.ckpt"


def test_mistakes_in_checkpoints(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = earlier(cli, tmp_path)
    capsys.readouterr()
    refused(cli("--evaluate", tmp_path / "absent.ckpt"), "absent.ckpt", "check the path")
    whole = path.read_bytes()
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(whole[:-100])
    refused(cli("--evaluate", bad), "bad.ckpt", "cut short")
    bad.write_bytes(whole[:2000] + bytes([whole[2000] ^ 4]) + whole[2001:])
    refused(cli("--evaluate", bad), "bad.ckpt", "damaged")
    refused(cli("--evaluate", path, "--net-width", "5"), "--net-width 5 contradicts the checkpoint", "net_width 4")
    refused(cli("--evaluate", path, "--network", "resnet18"), "contradicts the checkpoint")
    refused(cli("--evaluate", path, "--seeds", "0-1"), "--seeds")
    state = checkpoint.load(path)
    state["method"]["network.layers.0.weight"] = torch.zeros(5, 1, 3, 3)
    checkpoint.save({name: value for name, value in state.items() if name != "format"}, bad)
    refused(cli("--evaluate", bad), "does not fit this network", "network.layers.0.weight is (5, 1, 3, 3)")
    state = checkpoint.load(path)
    state["method"]["heads.0.bias"][0] = float("nan")
    checkpoint.save(state, bad)
    refused(cli("--evaluate", bad), "not finite", "heads.0.bias")
    checkpoint.save({"weights": 1}, bad)
    refused(cli("--evaluate", bad), "bad.ckpt")


def test_an_existing_session_is_not_overwritten(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier(cli, tmp_path)
    capsys.readouterr()
    before = sorted((tmp_path / "earlier").rglob("*"))
    refused(cli(*QUICK, "--session", "a", "--session-root", tmp_path / "earlier"), "earlier/a exists", "--session")
    assert sorted((tmp_path / "earlier").rglob("*")) == before


def test_help_and_list(cli: Cli) -> None:
    assert main.main([]) == 0
    for words in (("--help",), ("-h",)):
        status, out, err = cli(*words)
        assert status == 0 and not err and "--cfgs" in out
    status, out, _ = cli("--list")
    assert status == 0 and "image_folder" in out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_its_state(number: signal.Signals, status: int, tmp_path: Path) -> None:
    words = [*map(str, QUICK), "--max-epochs", "1000", "--tfm-backend", "pil", "--num-workers", "1", "--display-freq", "1",
             "--session-root", str(tmp_path / "kept"), "--session", "a"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "main.py", *words], cwd=ROOT, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    log = tmp_path / "kept" / "a" / "log.txt"
    deadline = time.monotonic() + 120
    while not (log.exists() and "step 3/8" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert err.splitlines()[-1] == f"stopped by {number.name}; the state is saved" and "Traceback" not in err
    state = checkpoint.load(log.parent / "checkpoint" / "latest.ckpt")
    assert state["step"] == state["epoch"] * 8 + state["position"] >= 3
