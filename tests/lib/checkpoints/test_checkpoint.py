from __future__ import annotations

import errno
import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.checkpoints import checkpoint
from lib.errors import UserError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.ckpt"
    checkpoint.save({"weights": torch.arange(1000.0), "config": {"seed": 1}, "method": {}}, path)
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    state = checkpoint.load(saved)
    assert torch.equal(state["weights"], torch.arange(1000.0)) and state["config"] == {"seed": 1}
    assert [entry.name for entry in saved.parent.iterdir()] == ["a.ckpt"]
    torch.load(saved, weights_only=True)  # the checksum behind it does not disturb others


@pytest.mark.parametrize("cut", [0, 1, 10, 0.5, -1, -50])
def test_a_file_cut_short_is_refused(saved: Path, cut: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(cut * len(whole)) if 0 < cut < 1 else int(cut)])
    with pytest.raises(UserError, match="cut short"):
        checkpoint.load(saved)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, -5])
def test_a_flipped_bit_is_refused(saved: Path, place: float) -> None:
    content = bytearray(saved.read_bytes())
    content[int(place * len(content)) if place > 0 else int(place)] ^= 1
    saved.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(saved)


def test_a_disk_that_fails_is_told_from_a_wrong_path(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="No such file or directory; check the path"):
        checkpoint.load(saved.with_name("absent.ckpt"))

    def fails(self: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(UserError, match="Input/output error; check the disk"):
        checkpoint.load(saved)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_foreign_pickle_is_never_executed(tmp_path: Path) -> None:
    import hashlib

    mark = tmp_path / "executed"
    plain = tmp_path / "plain.ckpt"
    sealed = tmp_path / "sealed.ckpt"
    plain.write_bytes(pickle.dumps(Payload(mark)))
    buffer = io.BytesIO()
    torch.save({"format": 1, "config": Payload(mark)}, buffer)
    body = buffer.getvalue()
    sealed.write_bytes(body + checkpoint.MAGIC + hashlib.sha256(body).digest())  # anyone can add the checksum
    for path in (plain, sealed):
        with pytest.raises(UserError, match="no checkpoint of this program"):
            checkpoint.load(path)
    assert not mark.exists()


def test_another_format_and_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.save({}, tmp_path / "new.ckpt")
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(tmp_path / "new.ckpt")
    for path in (tmp_path / "absent.ckpt", tmp_path):
        with pytest.raises(UserError, match="cannot read the checkpoint"):
            checkpoint.load(path)


def test_weights_that_do_not_fit_are_named() -> None:
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {"weight": torch.zeros(2, 4), "other": torch.zeros(1)}
    with pytest.raises(
        UserError, match=r"1 missing \(bias.*1 unexpected \(other.*weight is \(2, 4\) there and \(2, 3\)"
    ):
        checkpoint.load_weights(module, state, "it")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_write_that_fails_leaves_the_old_content(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space.*what was there before is intact"):
        checkpoint.save({"weights": torch.zeros(3)}, saved)
    assert saved.read_bytes() == before and [entry.name for entry in saved.parent.iterdir()] == ["a.ckpt"]


def test_a_damaged_archive_of_another_program_is_none() -> None:
    buffer = io.BytesIO()
    values = torch.arange(100.0)
    torch.save({"model": values}, buffer)
    whole = bytearray(buffer.getvalue())
    assert torch.equal(checkpoint.load_archive(bytes(whole))["model"], values)
    whole[whole.find(values.numpy().tobytes()) + 20] ^= 1  # of which torch alone says nothing
    assert checkpoint.load_archive(bytes(whole)) is None


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: it is no file"):
        checkpoint.load(tmp_path / "a.ckpt")
