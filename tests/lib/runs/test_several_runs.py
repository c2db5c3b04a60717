"""Several numbers of clusters in one command, alone and with several seeds each."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import QUICK, ROOT, resolve
from runs import assert_same_run, launch, only
from sklearn.metrics import adjusted_rand_score

from lib.errors import UserError
from lib.methods import building
from lib.runs.run_list import members
from lib.scoring import choice_of_k, summary_over_seeds

Cli = Callable[..., tuple[int, str, str]]
UNSEEDED = tuple(word for i, word in enumerate(QUICK) if "--seed" not in QUICK[i - 1 : i + 1])
METHODS: dict[str, tuple[object, ...]] = {
    "pica": ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/digits.yaml", "--net-heads", "none"),
    "imc_swav": ("--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/digits.yaml"),
}
FREE = (*UNSEEDED, "--net-heads", "none", "--eval-sample", 100)  # heads as the numbers of clusters say


def content(session: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((session / "summary.json").read_text())
    return found


@pytest.mark.slow
def test_numbers_of_clusters_are_shown_side_by_side_and_others_join(tmp_path: Path) -> None:
    process = launch((*FREE, "--num-clusters", 4, 3, 4, "--jobs", 2), tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    path = only(tmp_path)
    assert sorted(entry.name for entry in (path / "runs").iterdir()) == ["clusters-3", "clusters-4"]
    assert "4 clusters | epoch 1 of 1" in out and "3 clusters | epoch 1 of 1" in out
    assert "take the run clusters-4; put the folder of another one in its place" in out
    assert f"--predict {path}/runs/clusters-4/checkpoint/latest.ckpt" in out
    before = (path / "runs" / "clusters-3" / "log.txt").read_text()

    process = launch((*FREE, "--num-clusters", 3, 6, "--resume", "auto"), tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert only(tmp_path) == path and "1 of 2 runs are done" in out
    assert (path / "runs" / "clusters-3" / "log.txt").read_text() == before
    held = {name: yaml.safe_load((path / "runs" / name / "config.yaml").read_text()) for name in
            ("clusters-3", "clusters-4", "clusters-6")}  # fmt: skip
    assert [one["num_clusters"] for one in held.values()] == [3, 4, 6]
    (seed,) = {one["seed"] for one in held.values()}  # drawn once, and kept
    numbers = content(path)["num_clusters"]
    assert list(numbers) == ["3", "6"]
    for number in ("3", "6"):
        scores = json.loads((path / "runs" / f"clusters-{number}" / "scores.json").read_text())
        assert numbers[number]["seeds"] == {str(seed): scores} and numbers[number]["seed_agreement"] is None
    links = re.findall(r'href="(runs/[^"]+)"', (path / "report.html").read_text(encoding="utf-8"))
    assert links == [f"runs/clusters-{number}/report.html" for number in (3, 4, 6)]
    assert all((path / link).is_file() for link in links)
    table = out[out.index("\ntest\n") :].splitlines()[1:]
    assert table[1].split() == [
        "clusters",
        "confidence",
        "PUI",
        "silhouette",
        "agreement",
        "balance",
        "ACC",
        "NMI",
        "ARI",
    ]
    found = dict(zip(table[1].split(), table[3].split(), strict=True))
    scores = numbers["6"]["mean"]["test"]
    expected = {
        "clusters": "6", "confidence": scores["confidence"], "PUI": scores["pui"], "silhouette": scores["silhouette"],
        "agreement": scores["agreement"], "balance": scores["entropy"] / math.log(6), "ACC": scores["acc"],
        "NMI": scores["nmi"], "ARI": scores["ari"],
    }  # fmt: skip
    assert found == {
        name: "–" if value is None else value if value == "6" else f"{value:.3f}" for name, value in expected.items()
    }
    assert choice_of_k.DIRECTIONS in out

    done = subprocess.run([sys.executable, "-m", "lib.report", str(path), str(path / "runs/clusters-4")], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    for name, number in ((f"{path.name}/clusters-3", "3"), (f"{path.name}/clusters-6", "6")):
        assert [name, "test", "1", f"{numbers[number]['mean']['test']['acc']:.3f}"] in [line[:4] for line in lines]
    assert ["clusters-4", "test", "1"] in [line[:3] for line in lines]


@pytest.mark.slow
def test_each_number_with_each_seed_goes_on_and_ends_alike(tmp_path: Path, cli: Cli) -> None:
    words = (*FREE, "--max-epochs", 4, "--eval-every", 0)
    root = tmp_path / "family"
    asked = (*words, "--num-clusters", 3, 5, "--seeds", "0-1")
    process = launch((*asked, "--jobs", 1), root)
    while not list(root.glob("*/runs/clusters-3-seed-0/checkpoint/latest.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the state is saved" in err, err
    path = only(root)
    assert [entry.name for entry in (path / "runs").iterdir()] == ["clusters-3-seed-0"]
    assert not (path / "runs/clusters-3-seed-0/scores.json").exists()

    process = launch((*asked, "--jobs", 2, "--resume", "auto"), root)
    out, err = process.communicate()
    assert process.returncode == 0 and "resumed after step" in out, err
    assert only(root) == path
    cli(*words, "--num-clusters", 3, "--seed", 0, "--session", "straight")
    assert_same_run(tmp_path / "sessions" / "straight", path / "runs" / "clusters-3-seed-0")

    numbers = content(path)["num_clusters"]
    assert list(numbers) == ["3", "5"]
    for number, found in numbers.items():
        folders = [path / "runs" / f"clusters-{number}-seed-{seed}" for seed in (0, 1)]
        each = [json.loads((folder / "scores.json").read_text())["test"] for folder in folders]
        assert list(found["seeds"]) == ["0", "1"] and found["mean"]["test"]["acc"] == pytest.approx(
            np.mean([one["acc"] for one in each])
        )
        clusters = [np.load(folder / "predictions.npz")["cluster"] for folder in folders]
        assert found["seed_agreement"] == pytest.approx(adjusted_rand_score(*clusters))
        assert found["chosen"] in ("0", "1") and found["best"] in ("0", "1")
        spread = f"{found['mean']['test']['acc']:.3f} ± {found['deviation']['test']['acc']:.3f}"
        (line,) = [line for line in out.splitlines() if line.startswith(f"{number}  ")]
        assert spread in line and line.endswith(f"{found['seed_agreement']:.3f}")
    assert "seeds agree" in out and "lowest loss" not in out


def test_seeds_are_compared_on_the_first_split_alone(tmp_path: Path) -> None:
    one = [0, 0, 1, 1]
    other = [1, 1, 0, 0]
    third = [0, 1, 0, 1]
    folders = {}
    for seed, clusters in enumerate((one, other, third)):
        folders[str(seed)] = tmp_path / str(seed)
        folders[str(seed)].mkdir()
        values = {"acc": None, "smallest": 0.1, "largest": 0.5, "entropy": 0.5}
        (tmp_path / f"{seed}/scores.json").write_text(json.dumps({"b+a": values, "c": values}))
        (tmp_path / f"{seed}/metrics.jsonl").write_text(json.dumps({"loss": seed}) + "\n")
        pictures = [*zip("aabbcc", (0, 2, 0, 1, 0, 1), (*clusters, seed, 9), strict=True)]
        if seed == 0:
            pictures.insert(1, ("a", 1, 7))  # which the others could not read
        split, index, cluster = map(np.array, zip(*pictures, strict=True))
        np.savez(tmp_path / f"{seed}/predictions.npz", split=split, index=index, cluster=cluster)
    expected = (1 + 2 * adjusted_rand_score(one, third)) / 3
    assert summary_over_seeds.of_seeds(folders)["seed_agreement"] == pytest.approx(expected)
    (tmp_path / "0/predictions.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="0/predictions.npz"):
        summary_over_seeds.of_seeds(folders)


def test_figures_that_are_not_there_are_dashes() -> None:
    values = {"acc": None, "entropy": math.log(4) / 2, "confidence": 0.5}
    numbers = {k: {"seeds": {"0": {"all": values}}, "mean": {"all": values, "all:plain": values},
                   "deviation": {"all": {**dict.fromkeys(values, 0.0)}}, "seed_agreement": None} for k in ("4", "16")}  # fmt: skip
    assert choice_of_k.text(numbers).endswith(choice_of_k.DIRECTIONS)
    head, *lines = [
        line for line in choice_of_k.text(numbers).removesuffix(choice_of_k.DIRECTIONS).splitlines() if line
    ]
    assert head == "all" and lines[0].split() == ["clusters", "confidence", "PUI", "silhouette", "agreement", "balance"]
    assert lines[1].split() == ["4", "0.500", "–", "–", "–", "0.500"]
    assert lines[2].split() == ["16", "0.500", "–", "–", "–", "0.250"] and len(lines) == 3

    collapsed = {**values, "pui": None}
    numbers["4"] = {**numbers["4"], "seeds": {"0": {"all": {**values, "pui": 0.3}}, "1": {"all": collapsed}}}
    numbers["4"] |= {"mean": {"all": {**values, "pui": 0.3}}, "seed_agreement": 0.25}
    numbers["4"]["deviation"] = {"all": {"confidence": 0.1, "entropy": math.log(4) / 4, "pui": 0.0}}
    shown = choice_of_k.text(numbers).removesuffix(choice_of_k.DIRECTIONS)
    _, titles, one, other = [line for line in shown.splitlines() if line]
    assert titles.split()[-2:] == ["seeds", "agree"]
    assert " ".join(one.split()) == "4 0.500 ± 0.100 0.300 (1 of 2) – – 0.500 ± 0.250 0.250"
    assert " ".join(other.split()) == "16 0.500 – – – 0.250 –"


def test_mistakes(cli: Cli, tmp_path: Path) -> None:
    for words, part in (
        (("--net-heads", 70, 10), "--num-clusters 8 contradicts net_heads, whose last is 10"),
        (("--debug",), "--num-clusters 8 10 collects"),
        (("--evaluate", tmp_path / "a.ckpt"), "--num-clusters 8 10 trains anew, and --evaluate"),
        (("--predict", tmp_path / "a.ckpt"), "--num-clusters 8 10 trains anew, and --predict"),
        (("--resume", tmp_path / "a.ckpt"), "--resume CKPT goes on with one run"),
        (("--copy-to", tmp_path / "sorted"), "--copy-to sorts by one run"),
        (("--seeds", "0-1", "--seed", 3), "--seed and --seeds"),
    ):
        status, _, err = cli(*FREE, "--num-clusters", 8, 10, *words)
        assert status == 2 and part in err and err.count("\n") == 1, err
    status, _, err = cli(*FREE, "--num-clusters", 8, 1)
    assert status == 2 and "1 is below 2" in err and err.count("\n") == 1
    assert not (tmp_path / "sessions").exists()  # before anything is made


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_a_method_is_built_with_one_number_and_a_dry_run_shows_each(words: tuple[object, ...], cli: Cli) -> None:
    config = resolve(*words, "--num-clusters", 8, 12)
    with pytest.raises(UserError, match="num_clusters 8 12"):
        building.assemble(config)
    status, out, err = cli(*words, "--num-clusters", 8, 12, "--dry-run")
    assert status == 0 and ", 8 clusters" in out and ", 12 clusters" in out, err


def test_names_of_runs() -> None:
    words = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/digits.yaml", "--num-clusters")
    for extra, names in (
        ((8, 10, 8), ["clusters-8", "clusters-10"]),
        (
            ("[8, 10]", "--seeds", 2, 3),
            ["clusters-8-seed-2", "clusters-8-seed-3", "clusters-10-seed-2", "clusters-10-seed-3"],
        ),
        ((8, 8, "--seeds", 2), ["seed-2"]),
    ):
        assert [member.name for member in members(resolve(*words, *extra))] == names
