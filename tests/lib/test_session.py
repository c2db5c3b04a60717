"""A session's folder: claimed before any work, locked while it is written, and kept as soon as it holds a result."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, ROOT, picture
from PIL import Image
from runs import beside_collapse, launch
from torch.utils.tensorboard import SummaryWriter

from lib.datasets import image_files
from lib.errors import exit_status
from lib.machine import locks
from lib.session import LOCK, STARTED, has_results

Cli = Callable[..., tuple[int, str, str]]
FOLDER = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--network", "convnet", "--net-width", 4,
          "--tfm-size", 8, "--tfm-resize", 10, "--max-epochs", 1, "--num-clusters", 3, "--seed", 3, "--num-workers", 0)  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(20):
        picture(tmp_path / "images" / f"{i:02}.png", size=(60 + i, 50), seed=i)
    return tmp_path / "images"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were opened, also for their headers."""
    found: list[str] = []
    open_image = Image.open

    def counted(file: Any, **how: Any) -> Any:
        found.append(str(file))
        return open_image(file, **how)

    monkeypatch.setattr(Image, "open", counted)
    return found


def test_what_cannot_be_written_is_met_before_any_image_is_opened(
    cli: Cli, images: Path, tmp_path: Path, opened: list[str]
) -> None:
    (tmp_path / "sessions" / "taken").mkdir(parents=True)
    (tmp_path / "sessions" / "taken" / "scores.json").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    checkpoint = tmp_path / "sessions" / "trained" / "checkpoint" / "latest.ckpt"
    assert cli(*FOLDER, "--data-root", images, "--session", "trained")[0] == 0
    opened.clear()
    for words, part in (
        (("--session", "taken"), "taken exists"),
        (("--session", "taken", "--num-clusters", 3, 4), "taken exists"),
        (("--session-root", tmp_path / "file" / "under"), "cannot make a session"),
        (("--copy-to", "/proc/sorted"), "--copy-to /proc/sorted"),
        (("--copy-to", tmp_path / ("long" * 62)), "File name too long"),
        (("--evaluate", checkpoint, "--export", tmp_path / "folder.onnx"), "it is a folder"),
        (("--evaluate", checkpoint, "--export", "/proc/model.onnx"), "cannot write /proc/model.onnx"),
        (("--evaluate", checkpoint, "--export", tmp_path / f"{'long' * 60}.onnx"), "File name too long"),
    ):
        status, _, err = cli(*FOLDER, "--data-root", images, *words)
        assert status == 2 and part in err and err.count("\n") == 1, err
        assert not opened
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == ["taken", "trained"]


@pytest.mark.parametrize("words", [(), ("--disk-cache", 0), ("--tfm-working-size", "none")])
def test_a_run_decodes_an_image_once_and_those_that_its_report_shows_once_more(
    words: tuple[object, ...], cli: Cli, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoded: list[str] = []
    read = image_files.read
    monkeypatch.setattr(image_files, "read", lambda path, *limits: decoded.append(str(path)) or read(path, *limits))  # type: ignore[func-returns-value]
    status, _, err = cli(*FOLDER, "--data-root", images, "--cache", tmp_path / "cache", "--eval-sample", 5, *words)
    assert status == 0, err
    assert len(set(decoded)) == 20 and len(decoded) == 20 + 5


def fails(code: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return flock


def test_a_run_on_a_file_system_without_locks_continues_with_a_warning(
    cli: Cli, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    words = (*FOLDER, "--data-root", images, "--cache", tmp_path / "cache", "--resume", "auto", "--session", "a")
    for _ in range(2):
        locks._warn.cache_clear()
        status, _, err = cli(*words)
        assert status == 0 and "in use" not in err
        for place in ("sessions", "cache"):
            assert err.count(f"files in {tmp_path / place} cannot be locked (Function not implemented)") == 1, err


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_which_failures_mean_that_another_process_holds_a_lock(
    wait: bool, shared: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for code in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
        monkeypatch.setattr(fcntl, "flock", fails(code))
        assert locks.hold(tmp_path / "lock", wait=wait, shared=shared) is not None
    for code in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
        monkeypatch.setattr(fcntl, "flock", fails(code))
        assert (locks.hold(tmp_path / "lock", wait=wait, shared=shared) is None) == (not wait)


def test_a_locked_file_can_be_read_and_written_as_nfs_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: Any, kind: int) -> None:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR

    monkeypatch.setattr(fcntl, "flock", flock)
    assert locks.hold(tmp_path / "lock") is not None


def test_a_lock_is_of_the_file_that_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    flock = fcntl.flock
    removed = []

    def removing(file: Any, kind: int) -> None:
        if not removed:  # its last holder, just before this one gets it
            removed.append(path.unlink())
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", removing)
    with open(path, "wb"):
        held = locks.hold(path)
    assert held is not None and os.path.samestat(os.fstat(held.fileno()), path.stat())


def test_what_a_start_writes_is_no_result(tmp_path: Path) -> None:
    for name in (*STARTED, ".config.yaml.0123456789abcdef"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "tfboard").mkdir()
    writer = SummaryWriter(str(tmp_path / "tfboard"))
    writer.flush()
    assert list((tmp_path / "tfboard").iterdir()) and not has_results(tmp_path)
    writer.add_scalar("a", 1.0, 1)
    writer.close()
    assert has_results(tmp_path)
    shutil.rmtree(tmp_path / "tfboard")
    for name in (
        "predictions.csv",
        "scores.json",
        "metrics.jsonl",
        "fault.json",
        "checkpoint/latest.ckpt",
        "runs/a/log.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        assert has_results(tmp_path), name
        (tmp_path / name).unlink()


@pytest.mark.parametrize("part", ["export", "copies", "report", "board"])
def test_results_outlive_a_failure_of_what_follows_them(
    part: str, cli: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*FOLDER, "--data-root", images, "--session", "trained")[0] == 0
    latest = tmp_path / "sessions" / "trained" / "checkpoint" / "latest.ckpt"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    place = {"export": "lib.checkpoints.safetensors.write_atomically", "copies": "shutil.copy2", "report": "lib.report.page.page",
             "board": "lib.report.tensorboard_images.show"}[part]  # fmt: skip
    monkeypatch.setattr(place, full)
    extra = ("--evaluate", latest, "--export", tmp_path / "model.safetensors", "--data-root", images, "--copy-to",
             tmp_path / "sorted", "--session", "scored")  # fmt: skip
    status, out, err = cli(*extra)
    session = tmp_path / "sessions" / "scored"
    assert status == 2 and len(beside_collapse(err)) == 1, err
    assert "No space left on device" in err and f"the results are complete in {session}" in err
    assert json.loads((session / "scores.json").read_text()) and (session / "predictions.csv").exists()
    for other, left in (("export", tmp_path / "model.safetensors"), ("copies", tmp_path / "sorted"),
                        ("report", session / "report.html")):  # fmt: skip
        assert left.exists() == (other != part), "one failure keeps nothing else from being done"
    assert "all" in out


def test_a_signal_after_the_results_says_so(
    cli: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.report.page.page", lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, lambda *_: pytest.fail("the session does not heed it"))
    status, _, err = cli(*FOLDER, "--data-root", images, "--session", "a")
    signal.signal(signal.SIGINT, before)
    session = tmp_path / "sessions" / "a"
    assert status == 128 + signal.SIGINT
    assert err.splitlines()[-1] == f"stopped by SIGINT; the results are complete in {session}"
    assert (session / "scores.json").exists() and not (session / LOCK).exists()


def test_a_log_that_cannot_be_closed_is_named(
    cli: Cli, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: logging.FileHandler) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(logging.FileHandler, "close", fails)
    status, _, err = cli(*FOLDER, "--data-root", images, "--session", "a")
    log = tmp_path / "sessions" / "a" / "log.txt"
    assert status == 2 and err.splitlines()[-1] == f"error: cannot write {log}: Input/output error; check the disk"


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_under_its_name(
    cli: Cli, tmp_path: Path
) -> None:
    session = tmp_path / "sessions" / "a"
    words = (*QUICK, "--session", "a", "--resume", "auto")
    assert cli(*words)[0] == 0
    wanted = (session / "predictions.csv").read_bytes(), (session / "metrics.jsonl").read_bytes()
    shutil.rmtree(session / "checkpoint")
    status, _, err = cli(*words)
    assert status == 2 and "it has no checkpoint/latest.ckpt" in err, "it holds results"
    for name in ("predictions.csv", "predictions.npz", "scores.json"):
        (session / name).unlink()
    assert cli(*words)[0] == 0
    assert ((session / "predictions.csv").read_bytes(), (session / "metrics.jsonl").read_bytes()) == wanted
    shutil.rmtree(session)
    session.mkdir()
    (session / LOCK).write_text("")
    assert cli(*QUICK, "--session", "a")[0] == 0


def test_a_run_that_was_killed_before_it_had_a_file_begins_again_under_its_name(cli: Cli, tmp_path: Path) -> None:
    session = tmp_path / "sessions" / "a"
    session.mkdir(parents=True)
    (session / "notes.txt").write_text("somebody's")
    assert cli(*QUICK, "--session", "a")[0] == 2
    (session / "notes.txt").unlink()
    assert cli(*QUICK, "--session", "a")[0] == 0
    assert (session / "scores.json").exists()


@pytest.mark.parametrize("code", ["ESTALE", "EMFILE", "ENAMETOOLONG", "EROFS", "ELOOP", "EFBIG", "ENXIO", "ETXTBSY"])
def test_any_failure_of_the_file_system_is_a_line(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(errno, code)

    @exit_status
    def main(argv: object) -> int:
        raise OSError(number, os.strerror(number), "a file")

    assert main([]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {os.strerror(number)}: a file; ") and err.count("\n") == 1


def test_a_signal_while_images_are_read_leaves_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_images.py").write_text(
        "import time\n"
        "from lib import datasets\n"
        "@datasets.register('slow')\n"
        "class Slow:\n"
        "    targets = [0] * 8\n"
        "    def __init__(self, root, split, transform=None, download=False):\n"
        "        pass\n"
        "    def __len__(self):\n"
        "        return 8\n"
        "    def __getitem__(self, i):\n"
        "        time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    root = tmp_path / "sessions"
    words = ("--cfgs", ROOT / "configs/base.yaml", "--imports", "slow_images", "--dataset", "slow", "--num-clusters", 2,
             "--network", "convnet", "--tfm-size", 8, "--tfm-resize", 8, "--tfm-means", 0, 0, 0, "--tfm-stds", 1, 1, 1)  # fmt: skip
    process = launch(words, root)
    while process.poll() is None and not list(root.glob("*/log.txt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert err.startswith("stopped by SIGTERM; nothing was saved")
    assert process.returncode == 128 + signal.SIGTERM
    assert not root.exists()
