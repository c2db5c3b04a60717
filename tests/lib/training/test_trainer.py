from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import QUICK, resolve
from runs import IMC
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from lib.checkpoints import checkpoint
from lib.config.config import Config
from lib.errors import UserError
from lib.scoring import metrics
from lib.session import Session
from lib.training.running_means import Means
from lib.training.trainer import Trainer

Cli = Callable[..., tuple[int, str, str]]


def session_of(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "sessions").iterdir()
    return found


def test_a_session_holds_everything(cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli(*QUICK, "--max-epochs", 2, "--baseline", "kmeans")
    assert status == 0
    path = session_of(tmp_path)
    assert {entry.name for entry in path.iterdir()} == {
        "checkpoint", "config.yaml", "log.txt", "metrics.jsonl", "predictions.csv", "predictions.npz", "provenance.jsonl",
        "report.html", "scores.json", "shown.npz", "tfboard", "training.jsonl",
    }  # fmt: skip
    assert {entry.name for entry in (path / "checkpoint").iterdir()} == {"latest.ckpt", "best.ckpt"}

    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["epoch"], line["step"]) for line in lines] == [("test", 1, 8), ("test", 2, 16)]
    scores = json.loads((path / "scores.json").read_text())
    assert list(scores) == ["test"]
    assert {name: scores["test"][name] for name in metrics.NAMES} == {name: lines[-1][name] for name in metrics.NAMES}
    assert set(scores["test"]["baselines"]["k-means on pixels"]) == set(metrics.NAMES)

    found = np.load(path / "predictions.npz", allow_pickle=False)
    assert found["probability"].shape == (898, 10) and set(found["split"]) == {"test"}
    np.testing.assert_allclose(found["probability"].sum(1), 1, atol=1e-5)
    assert (found["cluster"] == found["probability"].argmax(1)).all() and (found["index"] == np.arange(898)).all()
    assert metrics.scores(found["label"], found["cluster"])["acc"] == scores["test"]["acc"]
    named = {int(cluster): int(label) for cluster, label in scores["test"]["matching"].items()}
    assert named == metrics.matching(found["label"], found["cluster"])
    assert f"output   {path}/" in out and "k-means on pixels" in out and f"{scores['test']['acc']:.3f}" in out

    board = EventAccumulator(str(path / "tfboard")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {"Train/Loss/loss", "Train/Loss/head1-10/uncertainty", "Train/Learning_Rate", "Train/Pictures_per_second",
            "Evaluate/test/acc", "Evaluate/test/entropy", "Evaluate/test/largest"} <= tags  # fmt: skip
    assert [point.step for point in board.Scalars("Evaluate/test/acc")] == [8, 16]


def test_the_sessions_config_runs_again_to_the_same_scores(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK)
    first = session_of(tmp_path)
    status, _, _ = cli("--cfgs", first / "config.yaml", "--session", "again")
    assert status == 0
    for name in ("scores.json", "metrics.jsonl"):
        assert (tmp_path / "sessions" / "again" / name).read_text() == (first / name).read_text()
    ours, theirs = (checkpoint.load(p / "checkpoint" / "latest.ckpt") for p in (first, tmp_path / "sessions" / "again"))
    assert all(
        torch.equal(value, theirs["method"][name]) for name, value in ours["method"].items() if torch.is_tensor(value)
    )


def test_an_unset_seed_is_drawn_and_recorded(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--seed", "none", "--max-epochs", 0)
    assert isinstance(yaml.safe_load((session_of(tmp_path) / "config.yaml").read_text())["seed"], int)


def test_evaluating_a_checkpoint_gives_the_scores_of_its_run(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--session", "trained")
    trained = tmp_path / "sessions" / "trained"
    # Neither files nor flags say what the network is: the checkpoint does.
    status, _, err = cli("--evaluate", trained / "checkpoint" / "latest.ckpt", "--session", "scored")
    assert status == 0, err
    scored = tmp_path / "sessions" / "scored"
    assert (scored / "scores.json").read_text() == (trained / "scores.json").read_text()
    assert not (scored / "checkpoint").exists()
    ours, theirs = (np.load(path / "predictions.npz") for path in (trained, scored))
    assert (ours["probability"] == theirs["probability"]).all()


def test_debug_writes_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = cli(*QUICK, "--debug")
    assert status == 0 and "ACC" in out
    assert not list(tmp_path.iterdir())


def test_brief_leaves_out_progress(cli: Cli, tmp_path: Path) -> None:
    _, out, _ = cli(*QUICK, "--display-freq", 2, "--verbose")
    assert "step 2/8" in out
    _, out, _ = cli(*QUICK, "--display-freq", 2, "--brief", "--session", "brief")
    lines = [line for line in out.splitlines() if line]
    assert [line for line in lines if "ACC" in line] and "step 2/8" not in out and "output" not in out
    assert len(lines) == 4, "a line of scores, and a table of three"
    assert "step 2/8" in (tmp_path / "sessions" / "brief" / "log.txt").read_text()


def test_max_steps_and_eval_every(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 3, "--eval-every", 0, "--max-steps", 11)
    lines = [json.loads(line) for line in (session_of(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 11)]


def test_a_schedule_can_stop_the_run(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 5, "--lr-policy", "multistep", "--lr-schedule", "((1, 1e-3), (2, '-'))")
    lines = (session_of(tmp_path) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] == 1


def test_two_sessions_of_one_second_get_two_folders(tmp_path: Path) -> None:
    made = resolve("--session-root", tmp_path)
    paths = set()
    for _ in range(3):
        with Session(made) as session:
            paths.add(session.path)
    assert len(paths) == 3


def trainer(*words: object) -> tuple[Trainer, Config]:
    made = resolve(*QUICK, *words, "--debug")
    return Trainer(main.build(made)), made


def test_stopped_and_loaded_it_ends_as_the_straight_run() -> None:
    straight, made = trainer()
    with Session(made) as session:
        straight.run(session)
    first, stopped_config = trainer("--max-steps", 5)
    with Session(stopped_config) as session:
        first.run(session)
    second, _ = trainer()
    second.load_state_dict(first.state_dict())
    with Session(made) as session:
        second.run(session)
    ends = straight.state_dict()
    again = second.state_dict()
    assert again["step"] == 8 and again["best"] == ends["best"]
    for name, value in ends["method"].items():
        assert torch.equal(value, again["method"][name]) if torch.is_tensor(value) else value == again["method"][name]
    for key, state in ends["optimizer"]["state"].items():
        assert all(torch.equal(value, again["optimizer"]["state"][key][name]) for name, value in state.items())


def test_evaluation_leaves_the_model_as_it_found_it() -> None:
    made, _ = trainer()
    made.method.train()
    made.method.network.eval()
    before = {name: value.clone() for name, value in made.method.state_dict().items() if torch.is_tensor(value)}
    with Session(made.config) as made.session:
        made._predict()
        made._record_scores(0)
    assert made.method.training and not made.method.network.training
    assert all(torch.equal(value, made.method.state_dict()[name]) for name, value in before.items())
    assert all(weight.grad is None for weight in made.method.parameters())


def test_best_by_accuracy_needs_labels(tmp_path: Path) -> None:
    from conftest import picture

    for i in range(4):
        picture(tmp_path / f"{i}.png")
    made = resolve("--dataset", "image_folder", "--data-root", tmp_path, "--num-clusters", 2, "--network", "convnet",
                   "--tfm-size", 8, "--tfm-resize", 8, "--best-by", "acc")  # fmt: skip
    with pytest.raises(UserError, match="--best-by acc needs labels"):
        Trainer(main.build(made))


def test_best_by_accuracy_needs_two_classes(cli: Cli, class_folders: Path) -> None:
    status, _, err = cli(
        "--dataset", "image_folder", "--data-root", class_folders.parent, "--num-clusters", 2, "--network", "convnet",
        "--tfm-size", 8, "--tfm-resize", 8, "--max-epochs", 1, "--best-by", "acc",
    )  # fmt: skip
    assert status == 2 and "all 24 labelled images have one class" in err


@pytest.mark.parametrize("every", [0, 3])
def test_best_by_accuracy_needs_an_evaluated_epoch(every: int, cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli(*QUICK, "--max-epochs", 2, "--best-by", "acc", "--eval-every", every)
    assert status == 2 and f"with --eval-every {every} none of 2 is one; give --eval-every 1 to 2" in err
    assert not (tmp_path / "sessions").exists()


@pytest.mark.parametrize("words", [
    ("--best-by", "loss", "--max-steps", 3),
    ("--best-by", "acc", "--max-steps", 3),
    ("--best-by", "acc", "--max-epochs", 3, "--eval-every", 2),
    ("--best-by", "loss", "--max-epochs", 2, "--eval-every", 0),
])  # fmt: skip
def test_every_run_leaves_a_best_checkpoint(words: tuple[object, ...], cli: Cli, tmp_path: Path) -> None:
    assert cli(*QUICK, *words)[0] == 0
    path = session_of(tmp_path)
    best = checkpoint.load(path / "checkpoint" / "best.ckpt")
    if "acc" in words:
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert best["step"] == max(lines, key=lambda line: (line["acc"], -line["step"]))["step"]
    else:
        assert best["step"] == 3 or best["epoch"]


def test_best_follows_the_main_heads_loss(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--max-epochs", 2, "--base-lr", 0)
    path = session_of(tmp_path) / "checkpoint"
    losses = EventAccumulator(str(session_of(tmp_path) / "tfboard")).Reload().Scalars("Train/Loss/head1-10/loss")
    chosen = checkpoint.load(path / "best.ckpt")
    assert chosen["best"] == pytest.approx(min(point.value for point in losses), rel=1e-6)
    assert chosen["step"] == min(losses, key=lambda point: point.value).step


def test_unlabelled_pictures_give_null(cli: Cli, tmp_path: Path) -> None:
    from conftest import picture

    for i in range(6):
        picture(tmp_path / "flat" / f"{i}.png", seed=i)
    status, out, err = cli(
        "--dataset", "image_folder", "--data-root", tmp_path / "flat", "--num-clusters", 2, "--network", "convnet",
        "--tfm-size", 8, "--tfm-resize", 9, "--num-workers", 0, "--max-epochs", 1, "--optimizer", "adam",
    )  # fmt: skip
    assert status == 0, err
    line = json.loads((session_of(tmp_path) / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["acc"] is None and line["largest"] >= 0.5 and "no labels" in out


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("rate", ["1e6", "1e20", "1e38"])
@pytest.mark.parametrize("words", [QUICK, (*IMC, "--max-epochs", 1)], ids=["pica", "imc_swav"])
def test_a_diverged_run_says_so_and_leaves_no_result(
    words: tuple[object, ...], rate: str, cli: Cli, tmp_path: Path
) -> None:
    status, _, err = cli(*words, "--base-lr", rate, "--lr-policy", "fixed", "--warmup-steps", 0)
    assert status == 1 and "the run diverged: " in err and "a lower --base-lr may help" in err
    assert not list((tmp_path / "sessions").glob("*/scores.json"))
    (kept,) = (tmp_path / "sessions").glob("*/checkpoint/*")
    assert kept.name == "fault.ckpt"


def spoiled(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    state = checkpoint.load(path)
    change(state["method"])
    checkpoint.save(state, path.with_name("spoiled.ckpt"))
    return path.with_name("spoiled.ckpt")


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_a_diverged_checkpoint_gives_no_result(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--session", "trained")
    latest = tmp_path / "sessions" / "trained" / "checkpoint" / "latest.ckpt"
    weight = "heads.1.weight"
    variance = next(name for name in checkpoint.load(latest)["method"] if name.endswith("running_var"))
    for name, value, message in (
        (weight, float("nan"), "not finite"),
        (variance, float("inf"), "not finite"),
        (weight, 1e38, "the run diverged: weights are as large as 1e.38"),
        (variance, -1e3, "the run diverged: .* features or probabilities that are not finite"),
    ):
        broken = spoiled(latest, lambda method, name=name, value=value: method[name].fill_(value))  # type: ignore[misc]
        status, _, err = cli("--evaluate", broken, "--session", "scored")
        assert status and re.search(message, err), (name, value, err)
        assert not (tmp_path / "sessions" / "scored").exists()


def test_a_loss_at_log_k_is_warned_of(cli: Cli) -> None:
    _, _, err = cli(*QUICK, "--base-lr", 0)
    assert "nothing is learnt" in err and "(4.245 of 4.248)" in err and "--base-lr" in err


def test_means_survive_a_save() -> None:
    means = Means()
    for value in (1.0, 2.0, 4.0):
        means.add({"loss": torch.tensor(value)}, 3, 0.5)
    other = Means()
    other.load_state_dict(json.loads(json.dumps(means.state_dict())))
    assert other.values() == means.values() == {"loss": 7 / 3} and other.rate() == means.rate() == 6


def test_a_dry_run_counts_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli(*QUICK, "--dry-run")
    assert status == 0 and not (tmp_path / "sessions").exists()
    assert "head 0: 899 images, 4 steps of 256 originals and 256 perturbed copies" in out
    assert "8 per epoch" in out and "GFLOP" in out
