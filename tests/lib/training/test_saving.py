"""What a run has on the disk when it says so, goes on or ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK
from runs import assert_same_run

from lib.checkpoints import checkpoint
from lib.checkpoints.background_writer import BackgroundWriter
from lib.errors import UserError
from lib.training.trainer import Trainer

Cli = Callable[..., tuple[int, str, str]]


def full(path: Path, *content: bytes) -> None:
    raise UserError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")


def signal_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes while that step is taken."""
    take = Trainer._train_step

    def taken(trainer: Trainer, batch: Any) -> None:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        take(trainer, batch)

    monkeypatch.setattr(Trainer, "_train_step", taken)


def refused(result: tuple[int, str, str]) -> None:
    status, _, err = result
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: cannot write "), err


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_step(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    save = BackgroundWriter.save
    take = Trainer._train_step
    taken = []

    def saved(writer: BackgroundWriter, *arguments: Any, **more: Any) -> None:
        save(writer, *arguments, **more)
        futures.wait(writer._pending)

    def counted(trainer: Trainer, batch: Any) -> None:
        taken.append(trainer.step)
        take(trainer, batch)

    monkeypatch.setattr(BackgroundWriter, "save", saved)
    monkeypatch.setattr(Trainer, "_train_step", counted)
    refused(cli(*QUICK, "--max-epochs", 9))
    assert len(taken) == 8 + 1


def test_the_state_is_said_to_be_saved_once_it_is(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_at(3, monkeypatch)
    status, _, err = cli(*QUICK, "--session", "a")
    assert status == 143 and err.endswith("stopped by SIGTERM; the state is saved\n")
    assert checkpoint.load(tmp_path / "sessions/a/checkpoint/latest.ckpt")["step"] == 4
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    refused(cli(*QUICK, "--session", "b"))


def test_the_state_of_a_fault_is_on_the_disk_when_it_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    refused(cli(*QUICK, "--base-lr", 1e38, "--lr-policy", "fixed"))


def test_a_signal_while_the_last_checkpoint_is_written_comes_too_late(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write_atomically

    def interrupted(path: Path, *content: bytes) -> None:
        time.sleep(0.3)  # until nothing else is left to do
        os.kill(os.getpid(), signal.SIGINT)
        write(path, *content)

    monkeypatch.setattr(checkpoint, "write_atomically", interrupted)
    assert cli(*QUICK, "--max-epochs", 0, "--session", "a")[0] == 0
    assert (tmp_path / "sessions/a/scores.json").exists()


def test_lines_are_taken_back_once_the_checkpoint_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli(*QUICK, "--max-epochs", 2, "--keep", 2, "--session", "a")
    session = tmp_path / "sessions" / "a"
    before = (session / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    refused(cli("--resume", session / "checkpoint" / "epoch-00001.ckpt"))
    assert (session / "metrics.jsonl").read_bytes() == before


def test_best_is_written_before_the_state_that_counts_on_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = checkpoint.write_atomically

    def noted(path: Path, *content: bytes) -> None:
        written.append(path.stem)
        write(path, *content)

    monkeypatch.setattr(checkpoint, "write_atomically", noted)
    assert cli(*QUICK)[0] == 0
    assert written == ["best", "latest", "latest"]


def test_every_second_epoch_is_saved_and_the_last(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*QUICK, "--max-epochs", 5, "--save-every-epochs", 2, "--keep", 9, "--resume", "auto")
    cli(*words, "--session", "straight")
    straight = tmp_path / "sessions" / "straight"
    folder = straight / "checkpoint"
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-00002.ckpt", "epoch-00004.ckpt"]
    assert checkpoint.load(folder / "latest.ckpt")["epoch"] == 5
    lines = [json.loads(line) for line in (straight / "training.jsonl").read_text().splitlines()]
    best = min((lines[epoch - 1] for epoch in (2, 4, 5)), key=lambda line: line["head1-10/loss"])
    assert checkpoint.load(folder / "best.ckpt")["epoch"] == best["epoch"] == 5, "the end is the best of the three"
    with monkeypatch.context() as patch:
        signal_at(25, patch)
        assert cli(*words, "--session", "parts")[0] == 143
    assert cli(*words, "--session", "parts")[0] == 0
    assert_same_run(straight, tmp_path / "sessions" / "parts")


def test_an_end_within_an_epoch_is_the_best_where_none_was_saved(cli: Cli, tmp_path: Path) -> None:
    assert cli(*QUICK, "--max-epochs", 2, "--max-steps", 11, "--save-every-epochs", 2, "--session", "a")[0] == 0
    assert checkpoint.load(tmp_path / "sessions/a/checkpoint/best.ckpt")["step"] == 11
