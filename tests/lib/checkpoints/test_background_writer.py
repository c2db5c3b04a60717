from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
import torch

from lib.checkpoints import checkpoint
from lib.checkpoints.background_writer import BackgroundWriter
from lib.errors import UserError


def state(value: float) -> dict[str, Any]:
    return {"config": {"seed": 1}, "method": {"weight": torch.full((1000,), value)}}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Nothing is written before it is set."""
    made = Event()
    write = checkpoint.write_atomically

    def waiting(path: Path, *content: bytes) -> None:
        assert made.wait(60)
        write(path, *content)

    monkeypatch.setattr(checkpoint, "write_atomically", waiting)
    return made


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fails)


def test_the_bytes_are_torchs_and_their_checksum_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    torch.save({"format": 1, **state(1)}, buffer)
    sha256 = hashlib.sha256
    plain = buffer.getvalue() + b"\nsha256:" + sha256(buffer.getvalue()).digest()
    hashed = []
    monkeypatch.setattr(hashlib, "sha256", lambda content: hashed.append(len(content)) or sha256(content))
    names = [tmp_path / name for name in ("best.ckpt", "latest.ckpt")]
    with BackgroundWriter() as writer:
        writer.save(state(1), *names)
        writer.wait()
        assert [path.read_bytes() for path in names] == [plain] * 2
    assert len(hashed) == 1


def test_what_changes_after_the_save_is_not_written(tmp_path: Path, gate: Event) -> None:
    path = tmp_path / "a.ckpt"
    content = state(1)
    with BackgroundWriter() as writer:
        writer.save(content, path)
        content["method"]["weight"].fill_(2)
        content["config"]["seed"] = 2
        gate.set()
    assert checkpoint.load(path)["method"]["weight"][0] == 1 and checkpoint.load(path)["config"]["seed"] == 1


def test_states_in_quick_succession_are_all_written_in_their_order(tmp_path: Path, gate: Event) -> None:
    path = tmp_path / "a.ckpt"
    found: list[float] = []
    read: Callable[[], None] = lambda: found.append(float(checkpoint.load(path)["method"]["weight"][0]))  # noqa: E731
    with BackgroundWriter() as writer:
        writer.save(state(1), path, afterwards=read)
        writer.save(state(2), path, afterwards=read)
        gate.set()
        writer.save(state(3), path, afterwards=read)
    assert found == [1, 2, 3]


def test_at_most_one_waits(tmp_path: Path, gate: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    serialize = checkpoint.serialize

    def noted(content: dict[str, Any]) -> memoryview:
        events.append("serialized")
        return serialize(content)

    monkeypatch.setattr(checkpoint, "serialize", noted)
    with BackgroundWriter() as writer:
        for _ in range(2):
            writer.save(state(1), tmp_path / "a.ckpt", afterwards=lambda: events.append("written"))
        Timer(0.2, gate.set).start()
        writer.save(state(1), tmp_path / "a.ckpt")
    assert events[:3] == ["serialized", "serialized", "written"]


def test_a_full_disk_is_told_once_and_ends_the_writing(tmp_path: Path, full: None) -> None:
    with BackgroundWriter() as writer:
        writer.save(state(1), tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=r"a\.ckpt: No space left on device; free some space"):
            writer.wait()
        writer.check()
    assert not list(tmp_path.iterdir())


def test_after_a_failure_nothing_is_written(tmp_path: Path, gate: Event) -> None:
    with BackgroundWriter() as writer:
        writer.save(state(1), tmp_path / "absent" / "a.ckpt", afterwards=lambda: pytest.fail("it was not written"))
        writer.save(state(2), tmp_path / "a.ckpt")
        gate.set()
        with pytest.raises(UserError, match="No such file or directory"):
            writer.wait()
    assert not list(tmp_path.iterdir())


def test_leaving_tells_of_a_failure_and_hides_no_other_error(
    tmp_path: Path, full: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="No space left"), BackgroundWriter() as writer:
        writer.save(state(1), tmp_path / "a.ckpt")
    with pytest.raises(KeyError, match="other"), BackgroundWriter() as writer:
        writer.save(state(1), tmp_path / "a.ckpt")
        raise KeyError("other")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("warning: a checkpoint was not written: cannot write ")


def test_a_process_that_is_forked_meanwhile_ends(tmp_path: Path, gate: Event) -> None:
    with BackgroundWriter() as writer:
        writer.save(state(1), tmp_path / "a.ckpt")
        process = multiprocessing.get_context("fork").Process(target=hashlib.sha256, daemon=True)
        process.start()
        process.join(60)
        gate.set()
    assert process.exitcode == 0
