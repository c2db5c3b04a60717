"""Damaged and hostile files: one line and exit status 2, nothing executed, nothing left behind."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from broken_images import is_readable
from conftest import QUICK, ROOT

import main
from lib.checkpoints import checkpoint
from lib.config import command_line, config
from lib.config.yaml_files import load_yaml
from lib.errors import UserError

Cli = Callable[..., tuple[int, str, str]]
ROUNDS = 1000


def mutations(content: bytes, rounds: int, seed: int) -> Iterator[bytes]:
    """Flipped bits, cuts, and pieces moved, doubled or overwritten."""
    chance = random.Random(seed)
    for _ in range(rounds):
        data = bytearray(content)
        place = chance.randrange(len(content))
        kind = chance.randrange(4)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            length = chance.randrange(1, 40)
            data[place : place + length] = chance.randbytes(length)
        else:
            piece = data[place : place + chance.randrange(1, 200)]
            other = chance.randrange(len(content))
            data[other:other] = piece
        if bytes(data) != content:
            yield bytes(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    words = [*map(str, QUICK), "--max-steps", "2", "--session-root", str(root), "--session", "a", "--net-heads", "10"]
    assert main.main(words) == 0
    assert (
        main.main(
            ["--evaluate", str(root / "a/checkpoint/latest.ckpt"), "--export", str(root / "a.safetensors"), "--debug"]
        )
        == 0
    )
    return root


def test_a_damaged_checkpoint_is_always_refused(trained: Path, cli: Cli, tmp_path: Path) -> None:
    content = (trained / "a/checkpoint/latest.ckpt").read_bytes()
    bad = tmp_path / "bad.ckpt"
    for number, data in enumerate(mutations(content, ROUNDS, 0)):
        bad.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.ckpt"):
            checkpoint.load(bad)
        if number % 50 == 0:
            status, out, err = cli("--evaluate", bad)
            assert status == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "sessions").exists()


def test_a_damaged_export_is_always_refused(trained: Path, tmp_path: Path) -> None:
    content = (trained / "a.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    whole = checkpoint.load(trained / "a.safetensors")
    for data in mutations(content, ROUNDS, 1):
        bad.write_bytes(data)
        try:
            found = checkpoint.load(bad)
        except UserError:
            continue
        # Settings have no checksum; the weights do.
        assert all(torch.equal(value, whole["method"][name]) for name, value in found["method"].items())


@pytest.mark.slow
def test_a_checkpoint_that_was_altered_and_sealed_again(trained: Path, cli: Cli, tmp_path: Path) -> None:
    content = (trained / "a/checkpoint/latest.ckpt").read_bytes()
    body = content[: -len(checkpoint.MAGIC) - 32]
    bad = tmp_path / "bad.ckpt"
    for data in mutations(body, ROUNDS // 5, 2):
        bad.write_bytes(data + checkpoint.MAGIC + hashlib.sha256(data).digest())
        for use in (("--evaluate", bad), ("--resume", bad, "--restart")):
            status, _, err = cli(*use, "--dry-run")
            assert status in (0, 2) and "Traceback" not in err and (status == 0 or err.count("\n") == 1)
    assert not (tmp_path / "sessions").exists()


def test_damaged_files_of_pytorchs_old_kind(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"net": {"w": torch.arange(50.0)}, "epoch": 1}, buffer, _use_new_zipfile_serialization=False)
    bad = tmp_path / "bad.ckpt"
    for data in mutations(buffer.getvalue(), ROUNDS, 3):
        bad.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.ckpt"):
            checkpoint.load(bad)


def test_an_edited_yaml_file(tmp_path: Path) -> None:
    content = (ROOT / "configs/digits.yaml").read_bytes()
    bad = tmp_path / "bad.yaml"
    resolved = 0
    base = main.DEFAULTS | command_line.collect(["--cfgs", str(ROOT / "configs/base.yaml")], main.SECTIONS)
    for data in mutations(content, ROUNDS, 4):
        bad.write_bytes(data)
        try:
            raw = {name: config.Raw(value, str(bad)) for name, value in load_yaml(bad).items()}
            config.resolve({**base, **raw}, main.SECTIONS)
            resolved += 1
        except UserError as error:
            assert "bad.yaml" in str(error) or "tfm_" in str(error)
    assert 0 < resolved < ROUNDS


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_hostile_file_under_every_option_that_takes_one(cli: Cli, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    bad = tmp_path / "bad.ckpt"
    files = [pickle.dumps(Payload(mark), protocol=2)]
    for modern in (False, True):
        buffer = io.BytesIO()
        torch.save({"net": {}, "epoch": Payload(mark)}, buffer, _use_new_zipfile_serialization=modern)
        files += [buffer.getvalue(), buffer.getvalue() + checkpoint.MAGIC + hashlib.sha256(buffer.getvalue()).digest()]
    yaml = f"seed: !!python/object/apply:os.mkdir ['{mark}']\n".encode()
    for content in (*files, yaml):
        bad.write_bytes(content)
        for use in (
            ("--evaluate", bad), ("--resume", bad), ("--resume", bad, "--restart"), ("--cfgs", bad),
            ("--lr-policy", "multistep", "--lr-schedule", bad),
            ("--dataset", "imagenet", "--data-root", tmp_path, "--class-list", bad),
        ):  # fmt: skip
            status, _, err = cli(*QUICK, *use)
            assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (use, err)
    assert not mark.exists() and not (tmp_path / "sessions").exists()


def test_damaged_images_are_read_or_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert 60 < sum(is_readable(number, tmp_path) for number in range(300)) < 240
    assert not capfd.readouterr().err, "libraries write there by themselves"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_20_000_damaged_images(tmp_path: Path) -> None:
    """In processes of their own, where a decoder may hang or crash, with little memory."""
    first = 300
    stop = 20_300
    failures = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    while first < stop and len(failures) < 20:
        words = [sys.executable, ROOT / "tests/broken_images.py", str(first), str(stop), tmp_path]
        ended = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environment)
        number = int((tmp_path / "number").read_text())
        if ended.returncode or ended.stderr:
            failures.append(f"image {number}: status {ended.returncode}, {ended.stderr}")
        first = number + 1
    assert not failures
    assert 4000 < int(ended.stdout) < 16_000
