"""Several seeds in one command, and sessions beside each other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import QUICK, ROOT, picture
from runs import assert_same_run, launch, only
from sklearn.metrics import adjusted_rand_score

from lib.machine import devices
from lib.machine.devices import DeviceSettings
from lib.report import __main__ as report_of
from lib.runs import several_runs
from lib.scoring import summary_over_seeds

Cli = Callable[..., tuple[int, str, str]]
UNSEEDED = tuple(word for i, word in enumerate(QUICK) if "--seed" not in QUICK[i - 1 : i + 1])
SHORT = (*UNSEEDED, "--max-epochs", 2)


def scores(path: Path, seed: int) -> dict[str, float]:
    found: dict[str, float] = json.loads((path / "runs" / f"seed-{seed}" / "scores.json").read_text())["test"]
    return found


@pytest.mark.slow
def test_several_seeds_get_a_summary_and_more_can_join(tmp_path: Path) -> None:
    rows = "published: [[mean, .5, .4, .3], [best, .6, .5, .4]]"
    (tmp_path / "row.yaml").write_text(f"{rows}\npublished_split: test\npublished_nmi: nmi_geometric\n")
    words = (*SHORT, "--jobs", 2, "--cfgs", tmp_path / "row.yaml")
    root = tmp_path / "sessions"
    process = launch((*words, "--seeds", "3-4"), root)
    out, err = process.communicate()
    assert process.returncode == 0, err
    path = only(root)
    assert sorted(entry.name for entry in (path / "runs").iterdir()) == ["seed-3", "seed-4"]
    assert "seed 3 | epoch 2 of 2" in out and "seed 4 | epoch 2 of 2" in out

    before = (path / "runs" / "seed-3" / "log.txt").read_text()
    process = launch((*words, "--seeds", 3, 4, 9, "--resume", "auto", "--net-cout", 10), root)
    out, err = process.communicate()
    assert process.returncode == 0 and err.count("net_cout: accepted, and without effect") == 1, err
    assert only(root) == path and "2 of 3 runs are done" in out
    assert (path / "runs" / "seed-3" / "log.txt").read_text() == before
    content = json.loads((path / "summary.json").read_text())
    each = [scores(path, seed)["acc"] for seed in (3, 4, 9)]
    assert [content["seeds"][seed]["test"]["acc"] for seed in ("3", "4", "9")] == each and len(set(each)) > 1
    for how, value in (("median", np.median(each)), ("mean", np.mean(each)), ("deviation", np.std(each, ddof=1))):
        assert content[how]["test"]["acc"] == pytest.approx(value)
    assert content["best"] == str((3, 4, 9)[int(np.argmax(each))])
    losses = [
        json.loads((path / f"runs/seed-{seed}/metrics.jsonl").read_text().splitlines()[-1])["loss"]
        for seed in (3, 4, 9)
    ]
    assert content["chosen"] == str((3, 4, 9)[int(np.argmin(losses))]) and len(set(losses)) == 3
    clusters = [np.load(path / f"runs/seed-{seed}/predictions.npz")["cluster"] for seed in (3, 4, 9)]
    pairs = [adjusted_rand_score(one, other) for one, other in combinations(clusters, 2)]
    assert (
        content["seed_agreement"] == pytest.approx(np.mean(pairs)) and f"agree by {np.mean(pairs):.3f} on test" in out
    )
    assert content["published"]["rows"]["best"] == {"acc": 0.6, "nmi": 0.5, "ari": 0.4}
    for shown in ("median", "deviation", "best by labels", "lowest loss", "published, mean   ", "geometric"):
        assert shown in out
    assert yaml.safe_load((path / "runs" / "seed-4" / "config.yaml").read_text())["seed"] == 4


@pytest.mark.slow
def test_a_stopped_command_goes_on_and_ends_alike(tmp_path: Path, cli: Cli) -> None:
    words = (*UNSEEDED, "--max-epochs", 6, "--eval-every", 0)
    root = tmp_path / "several"
    process = launch((*words, "--seeds", "0-1", "--jobs", 1), root)
    while not list(root.glob("*/runs/seed-0/checkpoint/latest.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the state is saved" in err, err
    each = only(root) / "runs"
    assert not (each / "seed-0" / "scores.json").exists() and not (each / "seed-1").exists()
    process = launch((*words, "--seeds", "0-1", "--jobs", 1, "--resume", "auto"), root)
    out, err = process.communicate()
    assert process.returncode == 0 and "resumed after step" in out, err
    cli(*words, "--seed", 0, "--session", "straight")
    assert_same_run(tmp_path / "sessions" / "straight", each / "seed-0")
    assert list(json.loads((only(root) / "summary.json").read_text())["seeds"]) == ["0", "1"]


@pytest.mark.slow
def test_a_run_that_stops_itself_leaves_the_others(tmp_path: Path) -> None:
    process = launch((*SHORT, "--base-lr", 1e30, "--seeds", "0-1", "--jobs", 2), tmp_path)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "of the runs, seed 0; seed 1 ended early" in err.splitlines()[-1] and "not finite" in err


def test_mistakes(cli: Cli, tmp_path: Path) -> None:
    for words, part in (
        (("--debug",), "--debug"),
        (("--seed", 3), "--seed and --seeds"),
        (("--jobs", 0), "below 1"),
        (("--copy-to", tmp_path / "sorted"), "--copy-to sorts by one run"),
        (("--evaluate", tmp_path), "--evaluate"),
    ):
        status, _, err = cli(*UNSEEDED, "--seeds", "0-1", *words)
        assert status == 2 and part in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("settings", "cores", "at_once", "threads"),
    [
        (DeviceSettings(), 8, 1, None),
        (DeviceSettings(threads=2), 8, 4, 2),
        (DeviceSettings(threads=2, processes=2), 8, 2, 2),
        (DeviceSettings(threads=16), 8, 1, 16),
        (DeviceSettings(jobs=4), 8, 4, 2),
        (DeviceSettings(gpus="0,2"), 8, 2, None),
        (DeviceSettings(gpus="0,2", jobs=4), 8, 4, None),
        (DeviceSettings(gpus="0,2", processes=2), 8, 1, None),
    ],
)
def test_room(
    settings: DeviceSettings, cores: int, at_once: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = several_runs.room(settings)
    assert (found.at_once, found.threads) == (at_once, threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert several_runs.room(DeviceSettings()).at_once == cores // 4


def test_sessions_are_compared(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--session", "a")
    cli(*QUICK, "--session", "b", "--batch-size", 128)
    folders = [str(tmp_path / "sessions" / name) for name in "ab"]
    done = subprocess.run([sys.executable, "-m", "lib.report", *folders], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("report: ")]
    assert lines[0].split() == ["session", "split", "seeds", "ACC", "NMI", "ARI"]
    acc = json.loads((tmp_path / "sessions" / "b" / "scores.json").read_text())["test"]["acc"]
    assert lines[2].split()[:4] == ["b", "test", "1", f"{acc:.3f}"]
    assert lines[-1].strip() == "batch_size: 256 | 128"


@pytest.mark.parametrize("words", [[], ["."], ["--help"]])
def test_what_is_no_session_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert report_of.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_what_is_left_to_the_pictures_is_known_before_the_runs_start(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        picture(tmp_path / "pictures" / f"{number}.png", seed=number)
    files = (ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/image_folder.yaml")
    monkeypatch.setattr(several_runs, "_train", lambda session, path, members, *rest: list(members))
    words = ("--cfgs", *files, "--data-root", tmp_path / "pictures", "--network", "convnet", "--seeds", "0-1")
    _, _, err = cli(*words, "--num-clusters", 2)
    assert "of the runs, seed 0; seed 1 ended early" in err
    status, _, err = cli(*words, "--num-clusters", 30)
    assert status == 2 and "20 pictures do not make 30 clusters" in err


def test_a_single_run_has_no_deviation() -> None:
    over = summary_over_seeds.over([{"test": {"acc": 0.5, "nmi": None, "batchnorm": "plain"}}])
    assert over["deviation"] == {"test": {"acc": 0.0, "nmi": None}} and over["mean"]["test"]["acc"] == 0.5
