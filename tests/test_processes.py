"""Command lines that start several processes: they end as one, whatever happens to one of them."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import QUICK, ROOT, picture
from runs import METHODS, RUN, assert_same_run, finished, launch, only

from lib.checkpoints import checkpoint
from lib.errors import UserError
from lib.machine import processes
from lib.runs import launcher as launching

Cli = Callable[..., tuple[int, str, str]]
TWO = ("--processes", 2, "--threads", 1)


def ended(process: subprocess.Popen[str], longest: float = 240) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=longest)
    return process.returncode, out, err


def ranks_under(root: Path) -> dict[int, int]:
    """rank → process, of the run whose sessions lie there."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        rank = [entry for entry in environment if entry.startswith(b"RANK=")]
        if rank and str(root).encode() in words:
            found[int(rank[0].removeprefix(b"RANK="))] = int(folder.name)
    return found


def wait_for(root: Path, name: str, process: subprocess.Popen[str]) -> None:
    while not list(root.glob(name)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_what_one_does_and_one_goes_on(method: str, tmp_path: Path, cli: Cli) -> None:
    words = (*METHODS[method], "--max-epochs", 2, "--eval-every", 1)
    two = launch((*words, *TWO), tmp_path / "two")
    assert cli(*words)[0] == 0
    status, out, err = ended(two)
    assert status == 0, err
    assert out.count("epoch 2 of 2") == 1, "one process alone speaks"
    folders = [only(tmp_path / name) for name in ("sessions", "two")]
    ours, theirs = (checkpoint.load(path / "checkpoint" / "latest.ckpt")["method"] for path in folders)
    for name, value in ours.items():
        if torch.is_tensor(value):
            assert torch.allclose(theirs[name].double(), value.double(), rtol=1e-2, atol=2e-3), name
    ours, theirs = (np.load(path / "predictions.npz") for path in folders)
    assert (ours["index"] == theirs["index"]).all() and (ours["cluster"] == theirs["cluster"]).mean() > 0.98

    latest = folders[1] / "checkpoint" / "latest.ckpt"
    status, out, err = cli("--session-root", tmp_path / "two", "--resume", latest, "--max-epochs", 3)
    assert status == 0 and "resumed after step" in out, err
    assert only(tmp_path / "two") == folders[1] and checkpoint.load(latest)["epoch"] == 3


def damaged(root: Path) -> tuple[object, ...]:
    """A command line for twelve pictures, of which the last is cut off."""
    for i in range(12):
        whole = picture(root / "pictures" / f"{i:02}.png", seed=i)
    whole.write_bytes(whole.read_bytes()[:200])
    return (
        "--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--network", "convnet",
        "--num-clusters", 2, "--tfm-size", 8, "--tfm-resize", 10, "--batch-size", 4, "--max-epochs", 1,
        "--tfm-backend", "pil", *TWO, "--data-root", root / "pictures",
    )  # fmt: skip


@pytest.mark.slow
def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    words = damaged(tmp_path)
    status, _, err = ended(launch(words, tmp_path / "sessions"))
    lines = [line for line in err.splitlines() if not line.startswith("waiting for another process")]  # the other rank
    assert status == 2 and len(lines) == 1 and "11.png" in lines[0], err
    status, _, err = ended(launch((*words, "--data-root", tmp_path / "absent"), tmp_path / "sessions"))
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err


@pytest.mark.slow
def test_what_one_rank_meets_is_told_once(tmp_path: Path) -> None:
    words = damaged(tmp_path)
    kept = ("--disk-cache", 0, "--tfm-means", *[0.5] * 3, "--tfm-stds", *[0.2] * 3)  # nothing reads all pictures before
    status, _, err = ended(launch((*words, *kept), tmp_path / "sessions"))
    assert status == 2 and "11.png" in err and err.count("\n") == 1, err
    status, _, err = ended(launch((*words, "--on-bad-image", "skip"), tmp_path / "sessions"))
    assert status == 0 and "1 picture could not be read" in err, err


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told_once(tmp_path: Path) -> None:
    status, _, err = ended(launch((*QUICK, "--gpus", "0,1"), tmp_path))
    assert status == 2 and "--gpus 0,1: no CUDA" in err and err.count("\n") == 1, err


def test_sigterm_stops_all_at_one_step_and_saves(tmp_path: Path) -> None:
    process = launch((*QUICK, *RUN, *TWO, "--max-epochs", 1000), tmp_path)
    wait_for(tmp_path, "*/metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    status, _, err = ended(process)
    assert status == 143 and err.splitlines()[-1] == "stopped by SIGTERM; the state is saved", err
    assert all(line.startswith(("warning: ", "stopped by")) for line in err.splitlines()), err
    state = checkpoint.load(only(tmp_path) / "checkpoint" / "latest.ckpt")
    assert state["step"] == state["epoch"] * 8 + state["position"]


@pytest.mark.slow
def test_ctrl_c_at_one_rank_stops_all_and_costs_no_bit(tmp_path: Path) -> None:
    words = (*METHODS["pica"], *RUN, "--max-epochs", 8, *TWO)
    assert ended(launch(words, tmp_path / "straight"))[0] == 0
    process = launch(words, tmp_path / "stopped")
    wait_for(tmp_path / "stopped", "*/metrics.jsonl", process)
    os.kill(ranks_under(tmp_path / "stopped")[1], signal.SIGINT)
    status, _, err = ended(process)
    assert status == 130 and err.splitlines()[-1] == "stopped by SIGINT; the state is saved", err
    state = checkpoint.load(only(tmp_path / "stopped") / "checkpoint" / "latest.ckpt")
    assert state["step"] == state["epoch"] * 8 + state["position"] < 64
    status, _, err = ended(launch((*words, "--resume", "auto"), tmp_path / "stopped"))
    assert status == 0, err
    assert_same_run(only(tmp_path / "straight"), only(tmp_path / "stopped"))


@pytest.mark.slow
def test_ranks_meet_where_the_hosts_name_does_not_resolve(tmp_path: Path) -> None:
    nameless = ["unshare", "--map-root-user", "--uts", "sh", "-c", 'hostname nosuch.invalid && exec "$@"', "sh"]
    if subprocess.run([*nameless, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare is not permitted")
    words = (*QUICK, *TWO, "--max-epochs", 0, "--debug")
    command = [*nameless, sys.executable, "main.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0 and "ACC" in done.stdout, done.stderr
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ranks_train_under_detailed_debugging(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    status, out, err = ended(launch((*METHODS[method], *TWO, "--max-epochs", 1, "--debug"), tmp_path))
    assert status == 0 and "ACC" in out, err


@pytest.mark.slow
def test_sighup_stops_all_and_saves(tmp_path: Path) -> None:
    process = launch((*QUICK, *RUN, *TWO, "--max-epochs", 1000), tmp_path)
    wait_for(tmp_path, "*/metrics.jsonl", process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    status, _, err = ended(process)
    assert status == 129 and err.splitlines()[-1] == "stopped by SIGHUP; the state is saved", err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wait_for_other_ranks_can_be_ended(number: signal.Signals, tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "main.py", *map(str, QUICK), "--session-root", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **alone}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("warning: rank 0 waits up to 10 minutes")
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number


@pytest.mark.slow
def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    process = launch((*QUICK, *RUN, *TWO, "--max-epochs", 1000), tmp_path)
    wait_for(tmp_path, "*/metrics.jsonl", process)
    assert len(ranks_under(tmp_path)) == 2
    process.kill()
    began = time.monotonic()
    while ranks_under(tmp_path):
        assert time.monotonic() - began < 60, "the ranks go on alone"
        time.sleep(0.1)
    _, err = process.communicate()
    ends = [line for line in err.splitlines() if line.startswith("stopped by")]
    assert ends and set(ends) == {"stopped by SIGTERM; the state is saved"}, err
    state = checkpoint.load(only(tmp_path) / "checkpoint" / "latest.ckpt")
    assert state["step"] == state["epoch"] * 8 + state["position"]


def kill_ranks(
    command: str, words: tuple[object, ...], root: Path, kills: int, chance: random.Random, longest: float
) -> None:
    """Kill a rank at random moments after the first score; torchrun, or the same command, goes on to the end."""
    done = 0
    process = start(command, words, root)
    while done < kills:
        ranks = ranks_under(root)
        if len(ranks) < 2 or not list(root.glob("*/metrics.jsonl")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
            continue
        time.sleep(chance.uniform(0, longest))
        victim = chance.choice(sorted(ranks))
        os.kill(ranks[victim], signal.SIGKILL)
        began = time.monotonic()
        done = done + 1
        while set(ranks_under(root).values()) & set(ranks.values()):
            assert time.monotonic() - began < 60, "the other rank goes on"
            time.sleep(0.05)
        if command == "main":
            status, _, err = ended(process)
            # The launcher sees the end of one rank, or the other rank says first that it lost it.
            (line,) = [line for line in err.splitlines() if line.startswith("error")]
            told = (f"rank {victim} was ended by SIGKILL", f"rank {1 - victim} lost another rank")
            assert status == 1 and any(words in line for words in told), err
            process = start(command, words, root)
    status, _, err = ended(process, 1200)
    assert status == 0, err


def start(command: str, words: tuple[object, ...], root: Path) -> subprocess.Popen[str]:
    if command == "main":
        return launch((*words, *TWO, "--resume", "auto"), root)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "99",
    ]
    words = (*words, "--threads", 1, "--resume", "auto", "--session-root", root)
    return subprocess.Popen([*torchrun, "main.py", *map(str, words)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.parametrize(("command", "method"), [("main", "pica"), ("torchrun", "imc_swav")])
@pytest.mark.slow
def test_a_killed_rank_costs_no_bit(command: str, method: str, tmp_path: Path) -> None:
    words = (*METHODS[method], *RUN, "--max-epochs", 6)
    assert ended(launch((*words, *TWO), tmp_path / "straight"))[0] == 0
    kill_ranks(command, words, tmp_path / "killed", 1, random.Random(0), longest=0.5)
    assert_same_run(only(tmp_path / "straight"), finished(tmp_path / "killed"))


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["main", "torchrun"])
@pytest.mark.parametrize("method", METHODS)
def test_a_rank_killed_ten_times(command: str, method: str, tmp_path: Path) -> None:
    words = (*METHODS[method], *RUN, "--max-epochs", 80)
    assert ended(launch((*words, *TWO), tmp_path / "straight"), 1200)[0] == 0
    kill_ranks(command, words, tmp_path / "killed", 10, random.Random(len(command)), longest=2)
    assert_same_run(only(tmp_path / "straight"), finished(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("name", "error", "problem"),
    [
        ("torch.distributed.TCPStore", RuntimeError("no socket\nC++ trace"), "cannot meet on this machine: no socket; leave"),
        ("torch.distributed.elastic.multiprocessing.start_processes", BlockingIOError(11, "Try again"),
         r"cannot be started: Try again; raise the limit of processes \(ulimit -u\), or leave --processes out"),
        ("torch.distributed.elastic.multiprocessing.start_processes", PermissionError(13, "Permission denied", "/bin/python"),
         r"cannot be started: Permission denied \(/bin/python\); give access to it"),
    ],
)  # fmt: skip
def test_ranks_that_cannot_be_started_are_said(
    name: str, error: Exception, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*rest: object, **how: object) -> None:
        raise error

    monkeypatch.setattr(name, failing)
    try:
        with pytest.raises(UserError, match=problem):
            launching.launch(["main.py"], 2)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        ({}, 0, ""),
        ({0: 130, 1: -signal.SIGTERM}, 130, ""),
        ({0: -signal.SIGTERM, 1: -signal.SIGKILL}, 1, "rank 1 was ended by SIGKILL"),
        ({0: 143, 1: -signal.SIGKILL}, 1, "rank 1 was ended by SIGKILL"),
        ({1: -signal.SIGTERM}, 1, "rank 1 was ended by SIGTERM"),
    ],
)
def test_a_rank_that_its_launcher_ends_is_no_cause(
    ends: dict[int, int], status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in ends.items()}
    ranks = SimpleNamespace(wait=lambda period: SimpleNamespace(failures=failures))
    monkeypatch.setattr("torch.distributed.elastic.multiprocessing.start_processes", lambda *rest, **how: ranks)
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    try:
        assert launching.launch(["main.py"], 2) == status
    finally:
        logging.disable(logging.NOTSET)
    err = capsys.readouterr().err
    assert said in err and bool(err) == bool(said)


def test_a_killed_rank_is_told_once() -> None:
    """By a rank that lost it and was ended after that, or else by the launcher."""
    store = dist.HashStore()
    assert processes.none_spoke(store), "the ranks had not met"
    store.set(processes.START, "ranks")
    dist.PrefixStore("ranks", store).compare_set("failed", "", "1")
    assert not processes.none_spoke(store)
    store.set(processes.START, "others")
    assert processes.none_spoke(store)
