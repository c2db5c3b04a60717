"""A run that was killed ends with the same bits as one that was not."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from conftest import QUICK
from runs import METHODS, RUN, assert_same_run, finished, launch, loaders, only

from lib.checkpoints import checkpoint


def kill_and_resume(
    words: tuple[object, ...], root: Path, kills: int, chance: random.Random, threads: int = 1, longest: float = 1.5
) -> int:
    """Kill at random moments after the run has begun, and resume; returns how often it really was."""

    def logged() -> int:
        return sum(log.stat().st_size for log in root.glob("*/log.txt"))

    done = 0
    while done < kills:
        before = logged()
        process = launch((*words, "--resume", "auto"), root, threads)
        while process.poll() is None and logged() == before:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            return done
        assert process.returncode == -signal.SIGKILL
        done += 1
    process = launch((*words, "--resume", "auto"), root, threads)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return done


@pytest.mark.parametrize(
    ("method", "workers", "kills", "epochs"),
    [("imc_swav", 0, 1, 12), ("pica", 1, 2, 20)],
)
@pytest.mark.slow
def test_killed_and_resumed(method: str, workers: int, kills: int, epochs: int, tmp_path: Path) -> None:
    words = (*METHODS[method], *RUN, *loaders(workers), "--max-epochs", epochs)
    straight = launch(words, tmp_path / "straight")
    _, err = straight.communicate()  # reads what the run prints, which would otherwise fill its pipe
    assert straight.returncode == 0, err
    assert kill_and_resume(words, tmp_path / "killed", kills, random.Random(0), longest=2.5) == kills
    assert_same_run(only(tmp_path / "straight"), finished(tmp_path / "killed"))
    assert "resumed after step" in (finished(tmp_path / "killed") / "log.txt").read_text()


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_killed_fifty_times_and_resumed(method: str, threads: int, workers: int, tmp_path: Path) -> None:
    words = (*METHODS[method], *RUN, *loaders(workers), "--max-epochs", 150, "--save-every-steps", 2)
    straight = launch(words, tmp_path / "straight", threads)
    _, err = straight.communicate()
    assert straight.returncode == 0, err
    chance = random.Random(threads + 10 * workers)
    kills = 0
    kills = kill_and_resume(words, tmp_path / "killed", 50, chance, threads)
    assert kills == 50, f"the run was over after {kills} kills"
    assert_same_run(only(tmp_path / "straight"), finished(tmp_path / "killed"))


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_random_moments(number: signal.Signals, tmp_path: Path) -> None:
    chance = random.Random(int(number))
    for attempt in range(12):
        root = tmp_path / str(attempt)
        process = launch((*QUICK, *RUN, *loaders(2), "--max-epochs", 1000), root)
        time.sleep(chance.uniform(0, 12))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert err.splitlines()[-1].startswith(f"stopped by {number.name}; ") and "Traceback" not in err
        if "the state is saved" in err:
            state = checkpoint.load(only(root) / "checkpoint" / "latest.ckpt")
            assert state["step"] == state["epoch"] * 8 + state["position"]
        assert not [path for path in root.rglob(".latest*")], "nothing half-written"
