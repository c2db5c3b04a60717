"""A run that stops goes on where it was, and says what it will not do."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUICK, ROOT, picture, resolve
from runs import RUN, assert_same_run, launch, loaders, only, same

import main
from lib.checkpoints import checkpoint
from lib.training.trainer import Trainer

Cli = Callable[..., tuple[int, str, str]]


def steps(path: Path) -> list[tuple[int, int]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [(json.loads(line)["epoch"], json.loads(line)["step"]) for line in lines]


def test_resuming_goes_on_in_the_same_session(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 3, "--session", "straight")
    cli(*QUICK, "--max-epochs", 1, "--session", "parts")
    parts = tmp_path / "sessions" / "parts"
    status, out, err = cli("--resume", parts / "checkpoint" / "latest.ckpt", "--max-epochs", 3)
    assert status == 0 and "resumed after step 8" in out
    assert "max_epochs: 1 before, 3 now" in err
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == ["parts", "straight"]
    assert_same_run(tmp_path / "sessions" / "straight", parts)
    assert steps(parts) == [(1, 8), (2, 16), (3, 24)]
    assert len((parts / "provenance.jsonl").read_text().splitlines()) == 2
    # Once more, on a run that is over: nothing is added.
    status, _, _ = cli("--resume", parts / "checkpoint" / "latest.ckpt")
    assert status == 0
    assert_same_run(tmp_path / "sessions" / "straight", parts)


def test_a_checkpoint_of_another_run_leaves_the_session_alone(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 1, "--session", "one")
    cli(*QUICK, "--seed", 8, "--max-epochs", 1, "--session", "other")
    latest = tmp_path / "sessions" / "one" / "checkpoint" / "latest.ckpt"
    shutil.copy(tmp_path / "sessions" / "other" / "checkpoint" / "latest.ckpt", latest)
    before = (tmp_path / "sessions" / "one" / "metrics.jsonl").read_bytes()
    status, _, err = cli("--resume", latest, "--max-epochs", 2)
    assert status == 2 and "is of another run than the session" in err
    assert (tmp_path / "sessions" / "one" / "metrics.jsonl").read_bytes() == before


def test_auto_finds_the_newest_session_of_the_same_settings(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "sessions"
    auto = (*QUICK, "--resume", "auto")
    cli(*auto, "--max-steps", 3, "--session", "a")
    assert (root / "a").is_dir(), "a fresh start where there is nothing to go on with"
    status, _, _ = cli(*auto, "--max-steps", 3, "--num-workers", 1, "--brief")  # where and how it runs is left aside
    log = (root / "a" / "log.txt").read_text()
    assert status == 0 and "resumed after step 3" in log and len(list(root.iterdir())) == 1
    cli(*auto, "--max-steps", 3, "--batch-size", 128, "--session", "b")
    assert sorted(path.name for path in root.iterdir()) == ["a", "b"], "other settings are another run"
    unset = (*auto, "--max-steps", 3, "--seed", "none")
    cli(*unset)
    assert len(list(root.iterdir())) == 2, "an unset seed is any"
    shutil.rmtree(root / "a" / "checkpoint")
    cli(*auto, "--max-steps", 3, "--session", "c")
    assert (root / "c").is_dir(), "without a checkpoint there is nothing to go on with"


def test_restart_takes_the_weights_into_a_new_session(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--session", "first")
    first = tmp_path / "sessions" / "first" / "checkpoint" / "latest.ckpt"
    status, _, err = cli(
        *QUICK, "--resume", first, "--restart", "--max-epochs", 0, "--session", "second", "--batch-size", 128
    )
    assert status == 0, err
    second = checkpoint.load(tmp_path / "sessions" / "second" / "checkpoint" / "latest.ckpt")
    assert same(checkpoint.weights_of(second), checkpoint.weights_of(checkpoint.load(first))) and second["step"] == 0
    assert second["method"]["_extra_state"] == {"trained_heads": [False, False]}, (
        "what belongs to the old run stays there"
    )


def refused(result: tuple[int, str, str], *parts: str) -> None:
    status, _, err = result
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_what_makes_a_checkpoint_meaningless_is_refused(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-steps", 3, "--session", "a")
    path = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    before = path.read_bytes()
    refused(cli("--resume", path, "--batch-size", 128), "--batch-size 128 contradicts the checkpoint")
    refused(cli("--resume", path, "--seed", 8), "--seed 8 contradicts")
    refused(cli("--resume", path, "--optimizer", "sgd"), "--optimizer sgd contradicts")
    refused(cli("--resume", path, "--train-splits", "test"), "the training images are not those", "--restart")
    refused(cli("--resume", path, "--net-width", 5), "--net-width 5 contradicts")
    refused(cli("--resume", path, "--seeds", "0-1"), "--resume auto")
    refused(cli("--resume", path, "--evaluate", path), "leave one out")
    refused(cli(*QUICK, "--restart"), "--restart needs --resume")
    refused(cli(*QUICK, "--export", "x.safetensors"), "--evaluate")
    assert path.read_bytes() == before
    # A file yields, and is told so.
    (tmp_path / "other.yaml").write_text("batch_size: 128\n")
    status, _, err = cli("--cfgs", tmp_path / "other.yaml", "--resume", path)
    assert status == 0 and "batch_size 128 in" in err and "yields to the checkpoint's 256" in err
    shutil.copy(path, tmp_path / "moved.ckpt")
    refused(cli("--resume", tmp_path / "moved.ckpt"), "lies in no session", "--restart")


def test_training_images_under_other_names_are_the_same(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-steps", 1, "--session", "a")
    path = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    (tmp_path / "other.yaml").write_text("train_splits: test\n")
    status, _, err = cli("--cfgs", tmp_path / "other.yaml", "--resume", path, "--max-steps", 2)
    assert status == 0 and f"train_splits test in {tmp_path / 'other.yaml'} yields to the checkpoint's train" in err
    refused(cli("--resume", path, "--train-splits", "train+test"), "the training images are not those")
    twice = ("--resume", path, "--train-splits", "train", "train")
    status, _, err = cli(*twice, "--max-steps", 3)
    assert status == 0 and "train_splits: train before, train train now" in err, err


def test_an_older_checkpoint_tells_the_training_images_by_their_names(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-steps", 1, "--session", "a")
    path = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    state = checkpoint.load(path)
    del state["trained"]
    checkpoint.save(state, path)
    refused(cli("--resume", path, "--train-splits", "train", "train"), "the training images are not those")
    status, _, err = cli("--resume", path, "--max-steps", 2)
    assert status == 0, err
    assert "trained" in checkpoint.load(path)


def test_a_session_in_use_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    process = launch((*QUICK, *RUN, "--max-epochs", 1000), tmp_path / "sessions")
    while not list((tmp_path / "sessions").glob("*/checkpoint/latest.ckpt")):
        assert process.poll() is None
        time.sleep(0.1)
    refused(cli("--resume", only(tmp_path / "sessions") / "checkpoint" / "latest.ckpt"), "in use by another process")
    process.terminate()
    assert process.wait() == 143


def test_keep_and_save_every_steps(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 4, "--keep", 2, "--eval-every", 0, "--session", "a")
    folder = tmp_path / "sessions" / "a" / "checkpoint"
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-00003.ckpt", "epoch-00004.ckpt"]
    assert checkpoint.load(folder / "epoch-00003.ckpt")["step"] == 24


def folder_run(tmp_path: Path) -> tuple[object, ...]:
    return ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--data-root", tmp_path / "pictures",
            "--network", "convnet", "--net-width", 4, "--num-clusters", 3, "--batch-size", 8, "--num-workers", 0,
            "--tfm-size", 8, "--tfm-resize", 9, "--seed", 1, "--session", "a")  # fmt: skip


def test_pictures_that_changed_are_noticed(cli: Cli, tmp_path: Path, class_folders: Path) -> None:
    cli(*folder_run(tmp_path), "--max-epochs", 1)
    resume = ("--resume", tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt", "--max-epochs", 2)
    picture(class_folders / "bee" / "3.png", seed=99)
    status, _, err = cli(*resume)
    assert status == 0 and "1 picture was written since the run began, such as" in err and "bee/3.png" in err
    shutil.move(class_folders, tmp_path / "moved")
    status, _, err = cli(*resume, "--data-root", tmp_path / "moved", "--max-epochs", 3)
    assert status == 0, err
    (tmp_path / "moved" / "bee" / "3.png").unlink()
    refused(
        cli(*resume, "--data-root", tmp_path / "moved", "--max-epochs", 4), "the pictures are not those", "--restart"
    )


def test_unreadable_pictures_are_left_out_on_request(cli: Cli, tmp_path: Path, class_folders: Path) -> None:
    (class_folders / "bee" / "3.png").write_text("text")
    whole = (class_folders / "cat" / "1.png").read_bytes()
    (class_folders / "cat" / "1.png").write_bytes(whole[:90])
    refused(cli(*folder_run(tmp_path), "--max-epochs", 1), "bee/3.png", "--on-bad-image skip")
    status, _, err = cli(*folder_run(tmp_path), "--max-epochs", 1, "--on-bad-image", "skip")
    assert status == 0 and "2 pictures could not be read and were left out" in err and "cat/1.png" in err
    session = tmp_path / "sessions" / "a"
    assert len((session / "skipped.txt").read_text().splitlines()) == 2
    import numpy as np

    assert len(np.load(session / "predictions.npz")["cluster"]) == 22


def test_a_full_disk_leaves_the_earlier_checkpoint(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        assert cli(*QUICK, "--max-epochs", 1, "--session", "a", "--session-root", root)[0] == 0
        path = root / "a" / "checkpoint" / "latest.ckpt"
        before = path.read_bytes()
        used = sum(file.stat().st_blocks * 512 for file in root.rglob("*"))
        (root / "filler").write_bytes(b"x" * max(0, 2 * 2**20 - used - len(before) // 2))
        done = launch(("--resume", path, "--max-epochs", 3), root)
        _, err = done.communicate()
        assert done.returncode == 2 and err.splitlines()[-1].startswith("error: ") and "No space left" in err, err
        assert "Traceback" not in err and path.read_bytes() == before
        assert checkpoint.load(path)["epoch"] == 1
        (root / "filler").unlink()
        assert cli("--resume", path, "--max-epochs", 2, "--session-root", root)[0] == 0
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_resuming_builds_the_same_task(tmp_path: Path) -> None:
    config = resolve(*QUICK)
    assert same(main.build(config).method.state_dict(), main.build(config).method.state_dict())


def test_changed_settings_of_the_optimizer_take_effect(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-steps", 2, "--session", "a")
    path = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    status, _, err = cli("--resume", path, "--optim-weight-decay", 0.1, "--optim-beta", 0.5, 0.9, "--max-steps", 3)
    assert status == 0 and "optim_weight_decay: 0.0 before, 0.1 now" in err
    state = checkpoint.load(path)["optimizer"]
    assert state["param_groups"][0]["weight_decay"] == 0.1 and state["param_groups"][0]["betas"] == (0.5, 0.9)
    assert int(state["state"][0]["step"]) == 3, "its memory stays"


def test_a_new_criterion_begins_afresh(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--best-by", "acc", "--session", "a")
    folder = tmp_path / "sessions" / "a" / "checkpoint"
    assert checkpoint.load(folder / "best.ckpt")["best"] < 0
    cli("--resume", folder / "latest.ckpt", "--best-by", "loss", "--max-epochs", 2)
    best = checkpoint.load(folder / "best.ckpt")
    assert best["best"] > 0 and best["epoch"] == 2


def test_going_back_to_an_earlier_epoch_leaves_the_later_ones(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 4, "--keep", 4, "--session", "a")
    folder = tmp_path / "sessions" / "a" / "checkpoint"
    status, _, err = cli("--resume", folder / "epoch-00002.ckpt", "--max-epochs", 3, "--keep", 2)
    assert status == 0, err
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-00002.ckpt", "epoch-00003.ckpt"]
    assert steps(tmp_path / "sessions" / "a") == [(1, 8), (2, 16), (3, 24)]


def test_resume_says_what_it_will_not_do(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-steps", 1, "--session", "a")
    path = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    for name in ("--resume", "--evaluate"):
        refused(cli(*QUICK, name, ""), f"{name}: an empty value")
    refused(cli("--resume", path, "--session", "b"), "leave one out")
    refused(cli("--resume", path, "--session-root", tmp_path / "elsewhere"), "is not where the session lies")
    whole = path.read_bytes()
    state = checkpoint.load(path)
    for spoil in (
        {"random": None},
        {"means": {}},
        {"optimizer": {}},
        {"epoch": "x"},
        {"position": 99},
        {"stamps": 3},
        {"assigned": 5},
        {"best": {}},
        {"epoch": math.inf},
        {"loss": "x"},
        {"statistics": 5},
        {"mark": 5},
        {"mark": {"metrics.jsonl": "x"}},
        {"means": {"sums": {"loss": [{}, 1]}, "pictures": 1, "seconds": 1}},
    ):
        checkpoint.save({**state, **spoil}, path)
        refused(cli("--resume", path), "--restart")
    path.write_bytes(whole[:100])
    refused(cli(*QUICK, "--max-steps", 1, "--resume", "auto"), "latest.ckpt", "other checkpoints beside it")


@pytest.mark.parametrize("name", ["training.jsonl", "metrics.jsonl"])
def test_lost_lines_are_warned_of_and_no_line_is_glued(name: str, cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 3, "--session", "a")
    path = tmp_path / "sessions" / "a"
    lines = (path / name).read_bytes()
    (path / name).write_bytes(lines[: len(lines) // 2])
    status, _, err = cli("--resume", path / "checkpoint" / "latest.ckpt", "--max-epochs", 4)
    assert status == 0 and f"{name} has lost its end" in err, err
    assert [json.loads(line)["epoch"] for line in (path / name).read_text().splitlines()] == [1, 4]


def test_auto_names_a_session_that_it_passes_over(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-steps", 1, "--session", "a")
    (tmp_path / "sessions" / "a" / "config.yaml").write_text("a: [1")
    status, _, err = cli(*QUICK, "--max-steps", 1, "--session", "b", "--resume", "auto")
    assert status == 0 and "warning: " in err and str(tmp_path / "sessions" / "a" / "config.yaml") in err
    assert "--resume auto passes over its session" in err and "--cfgs" not in err


def test_auto_says_why_it_cannot_resume_the_session_of_that_name(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "sessions" / "a"
    assert cli(*QUICK, "--max-steps", 1, "--session", "a")[0] == 0
    before = (path / "metrics.jsonl").read_bytes()
    again = (*QUICK, "--session", "a", "--resume", "auto", "--max-steps")
    status, _, err = cli(*again, 1)
    assert status == 0, err  # the same settings
    refused(
        cli(*again, 2, "--net-width", 5),
        f"error: the session {path} has other settings: net_width 4 there, 5 here; max_steps 1 there, 2 here; "
        f"give the same, resume it by --resume {path}/checkpoint/latest.ckpt, or choose another name for --session\n",
    )
    other = ("--net-width", 5, "--base-lr", 0.5, "--batch-size", 128, "--seed", 8, "--pica-lamda", 3, "--tfm-size", 9)
    refused(cli(*again, 1, *other), "there, 5 here", "; and 2 more; give the same")
    shutil.rmtree(path / "checkpoint")
    refused(cli(*again, 1), f"cannot resume the session {path}: it has no checkpoint/latest.ckpt; choose another name")
    (path / "config.yaml").write_text("a: [1")
    refused(cli(*again, 1), f"cannot resume the session {path}: ", "not valid YAML", "choose another name")
    assert (path / "metrics.jsonl").read_bytes() == before


def test_a_fifo_in_a_session_is_named(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-steps", 1, "--session", "a")
    path = tmp_path / "sessions" / "a"
    (path / "log.txt").unlink()
    os.mkfifo(path / "log.txt")
    refused(cli("--resume", path / "checkpoint" / "latest.ckpt"), "log.txt is no regular file")
    (path / "config.yaml").unlink()
    os.mkfifo(path / "config.yaml")
    status, _, err = cli(*QUICK, "--max-steps", 1, "--session", "b", "--resume", "auto")
    assert status == 0 and "config.yaml: it is no regular file" in err


def test_a_batch_of_unreadable_pictures_is_passed_over(cli: Cli, tmp_path: Path) -> None:
    for i in range(17):
        picture(tmp_path / "pictures" / f"{i:02}.png", seed=i)
    (tmp_path / "pictures" / "05.png").write_text("text")
    status, _, err = cli(*folder_run(tmp_path), "--on-bad-image", "skip", "--max-epochs", 8)
    assert status == 0 and "1 picture could not be read" in err and err.count("--on-bad-image") == 0, err
    for file in (tmp_path / "pictures").iterdir():
        file.write_text("text")
    refused(
        cli(*folder_run(tmp_path), "--on-bad-image", "skip", "--session", "b"),
        "none of 17 training pictures can be read",
    )


def test_a_name_that_is_no_unicode(cli: Cli, tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "pictures" / f"{i}.png", seed=i)
    os.rename(tmp_path / "pictures" / "0.png", os.fsencode(tmp_path / "pictures") + b"/caf\xe9.png")
    status, _, err = cli(*folder_run(tmp_path), "--max-epochs", 1)
    assert status == 0, err


@pytest.mark.parametrize("wait", [0.3, 3.0, pytest.param(None, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_process_group(wait: float | None, tmp_path: Path) -> None:
    command = [sys.executable, "main.py", *map(str, QUICK), "--max-epochs", "1000", *map(str, loaders(2)),
               "--session-root", str(tmp_path / "sessions")]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    if wait is not None:
        time.sleep(wait)  # in the imports, or thereabouts
    else:
        while not list((tmp_path / "sessions").glob("*/checkpoint/latest.ckpt")):
            assert process.poll() is None
            time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 143 and err.splitlines()[-1].startswith("stopped by SIGTERM") and "Traceback" not in err
    )
    assert ("the state is saved" in err) == (wait is None)


def test_the_statistics_of_the_scores_outlive_a_resumption(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--session", "a")
    path = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    state = checkpoint.load(path)
    assert state["statistics"]
    made = resolve(*QUICK, "--debug")
    trainer = Trainer(main.build(made))
    trainer.load_state_dict(state)
    assert same(trainer.state_dict()["statistics"], state["statistics"])
    cli("--resume", path, "--max-epochs", 2, "--max-steps", 11, "--eval-every", 0)
    assert checkpoint.load(path)["statistics"] and not same(checkpoint.load(path)["statistics"], state["statistics"])
