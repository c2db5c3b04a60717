"""Runs on a frozen backbone: trained, stopped, handed on and asked like any other."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import QUICK, picture, resolve
from PIL import Image
from runs import IMC, METHODS, RUN, assert_same_run, finished, launch, only
from test_kills import kill_and_resume

import main
from lib.checkpoints import checkpoint
from lib.datasets.digits import Digits
from lib.networks.backbone import Backbone
from lib.session import Session
from lib.training import trainer

Cli = Callable[..., tuple[int, str, str]]
FROZEN = ("--net-freeze", ".*", "--feature-views", 2)
NEIGHBOURS = (*FROZEN, "--views", "neighbours", "--feature-neighbours", 5)
WORDS: dict[str, tuple[object, ...]] = {
    "pica": (*QUICK, *FROZEN, "--base-lr", 3e-2, "--max-epochs", 3),
    "imc_swav": (*IMC, *FROZEN, "--eval-sample", 50, "--max-epochs", 3),
}


def newest(tmp_path: Path, name: str) -> Path:
    return tmp_path / "sessions" / name / "checkpoint" / "latest.ckpt"


@pytest.mark.parametrize("method", WORDS)
def test_frozen_training_leaves_the_backbone_as_it_is_and_a_tuned_one_moves(method: str, tmp_path: Path) -> None:
    made = main.build(resolve(*WORDS[method], "--max-epochs", 1))
    before = {name: value.clone() for name, value in made.encode.state_dict().items()}
    heads = {name: value.clone() for name, value in made.method.named_parameters()}
    with Session(made.config.replace(debug=True)) as session:
        trainer.Trainer(made).run(session)
    after = made.encode.state_dict()
    assert before.keys() == after.keys() and any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(weight.grad is None for weight in made.encode.parameters())
    assert not any(torch.equal(weight, heads[name]) for name, weight in made.method.named_parameters())
    tuned = main.build(resolve(*WORDS[method], "--net-freeze", "none", "--max-epochs", 1))
    drawn = {name: value.clone() for name, value in tuned.method.network.state_dict().items()}
    assert all(torch.equal(value, drawn[name.removeprefix("network.")]) for name, value in before.items()), (
        "the same draws"
    )
    with Session(tuned.config.replace(debug=True)) as session:
        trainer.Trainer(tuned).run(session)
    assert not any(torch.equal(value, drawn[name]) for name, value in tuned.method.network.state_dict().items())


@pytest.mark.parametrize("views", [FROZEN, NEIGHBOURS], ids=["random", "neighbours"])
@pytest.mark.parametrize("method", WORDS)
def test_the_loss_falls_on_features(method: str, views: tuple[object, ...], cli: Cli, tmp_path: Path) -> None:
    whole = ("--classifier-splits", "train+test") if method == "imc_swav" else ()  # a loss of all parts in each step
    status, _, err = cli(*WORDS[method], *views, *whole, "--max-epochs", 8, "--eval-every", 0, "--session", "a")
    assert status == 0, err
    lines = (tmp_path / "sessions/a/training.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 8 and losses[-1] < min(losses[:2])


@pytest.mark.parametrize("method", ["pica", pytest.param("imc_swav", marks=pytest.mark.slow)])
def test_a_frozen_run_is_scored_predicted_exported_and_loaded(method: str, cli: Cli, tmp_path: Path) -> None:
    pil = ("--tfm-backend", "pil", "--num-workers", 0)  # as a loaded model prepares pictures, to the bit
    assert cli(*WORDS[method], *pil, "--session", "a", "--baseline", "kmeans")[0] == 0
    path = newest(tmp_path, "a")
    found = np.load(tmp_path / "sessions/a/predictions.npz")
    stored = checkpoint.load(path)
    assert stored["backbone"].keys() == {"network", "digest"} and stored["backbone"]["network"] == "convnet"
    assert not any(name.startswith("network.layers") for name in stored["method"])
    status, out, err = cli("--evaluate", path, "--session", "b", *pil, "--export", tmp_path / "model.safetensors")
    assert status == 0, err
    assert "k-means on features" in out
    trained, scored = (json.loads((tmp_path / "sessions" / name / "scores.json").read_text()) for name in "ab")
    assert scored == {split: values for split, values in trained.items() if not split.endswith(":online")}

    digits = Digits("", "test")
    for i in range(len(digits)):
        (tmp_path / "digits").mkdir(exist_ok=True)
        digits[i][0].save(tmp_path / "digits" / f"{i:03}.png")
    for number, source in enumerate((path, tmp_path / "model.safetensors")):
        status, _, err = cli("--predict", source, "--data-root", tmp_path / "digits", "--session", f"c{number}", *pil)
        assert status == 0, err
        predicted = np.load(tmp_path / f"sessions/c{number}/predictions.npz")
        assert np.array_equal(predicted["cluster"], found["cluster"])
        np.testing.assert_allclose(predicted["probability"], found["probability"], atol=1e-5)
        clusters, probability = main.load(str(source)).predict([digits[i][0] for i in range(len(digits))])
        assert np.array_equal(clusters, found["cluster"])
        np.testing.assert_allclose(probability, found["probability"], atol=1e-5)

    status, _, err = cli("--evaluate", path, "--export", tmp_path / "model.onnx", "--session", "d")
    assert status == 0, err
    images = np.stack([shown(digits[i][0], stored["config"]) for i in range(100)])
    cluster, probability = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images})
    np.testing.assert_allclose(probability, found["probability"][:100], atol=1e-4)
    assert np.array_equal(cluster, found["cluster"][:100])


def shown(image: Image.Image, config: dict[str, Any]) -> Any:
    """(1, S, S) bytes of a square picture, under the test transform."""
    for side in filter(None, (config["tfm_working_size"], config["tfm_resize"])):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    edge = round((image.width - config["tfm_size"]) / 2)
    return np.asarray(image.crop((edge, edge, edge + config["tfm_size"], edge + config["tfm_size"])))[None]


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_another_backbone_is_refused_and_a_saved_one_is_taken(kind: str, cli: Cli, tmp_path: Path) -> None:
    expected = {}
    for name, words in (("a", ()), ("b", ("--save-backbone",))):
        assert cli(*WORDS["pica"], *words, "--session", name)[0] == 0
        expected[name] = np.load(tmp_path / "sessions" / name / "predictions.npz")["cluster"]
        assert cli("--evaluate", newest(tmp_path, name), "--export", tmp_path / f"{name}.safetensors")[0] == 0
    files = {name: newest(tmp_path, name) if kind == "ckpt" else tmp_path / f"{name}.safetensors" for name in "ab"}
    status, _, err = cli("--evaluate", files["a"], "--seed", 8, "--session", "c")
    assert status == 2 and len(err.splitlines()) == 1
    assert re.search(
        r"trained on features of convnet [0-9a-f]{12}, and this is convnet [0-9a-f]{12}; .*--save-backbone", err
    )
    assert not (tmp_path / "sessions/c").exists()
    assert cli("--evaluate", files["b"], "--seed", 8, "--session", "c")[0] == 0, "the copy in it serves"
    assert np.array_equal(np.load(tmp_path / "sessions/c/predictions.npz")["cluster"], expected["b"])
    assert (files["b"].stat().st_size - files["a"].stat().st_size) > 4 * 4_000, "weights"


FILED = """
import torch
from lib import networks

@networks.register("filed")
class Filed(torch.nn.Linear):
    feature_dim = 8

    def __init__(self, in_channels):
        super().__init__(64, 8)
        self.load_state_dict(torch.load("weights.pt"))

    def forward(self, images):
        return super().forward(images.flatten(1)).relu()
"""


def test_a_run_does_not_go_on_with_features_of_another_backbone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filed_network.py").write_text(FILED)
    torch.save(torch.nn.Linear(64, 8).state_dict(), "weights.pt")
    words = ("--imports", "filed_network", *WORDS["pica"], "--network", "filed", "--net-init", "default")
    assert cli(*words, "--session", "a", "--max-steps", 10)[0] == 0
    whole = newest(tmp_path, "a").read_bytes()
    torch.save(torch.nn.Linear(64, 8).state_dict(), "weights.pt")
    for how in (("--resume", newest(tmp_path, "a")), ("--resume", newest(tmp_path, "a"), "--restart")):
        status, _, err = cli("--imports", "filed_network", *how)
        assert status == 2 and len(err.splitlines()) == 1 and "trained on features of filed" in err, err
    assert newest(tmp_path, "a").read_bytes() == whole
    status, _, err = cli("--imports", "filed_network", "--resume", newest(tmp_path, "a"), "--feature-views", 3)
    assert status == 2 and "--feature-views 3 contradicts the checkpoint" in err


@pytest.mark.slow
@pytest.mark.parametrize(("method", "views"), [("pica", NEIGHBOURS), ("imc_swav", FROZEN)])
def test_killed_on_features_and_resumed(method: str, views: tuple[object, ...], tmp_path: Path) -> None:
    words = (*METHODS[method], *RUN, *views)
    straight = launch(words, tmp_path / "straight")
    _, err = straight.communicate()
    assert straight.returncode == 0, err
    assert kill_and_resume(words, tmp_path / "killed", 1, random.Random(0), longest=1.0) == 1
    assert_same_run(only(tmp_path / "straight"), finished(tmp_path / "killed"))


@pytest.mark.slow
def test_two_processes_learn_on_features_what_one_does(cli: Cli, tmp_path: Path) -> None:
    words = (*WORDS["imc_swav"], "--max-epochs", 2)
    two = launch((*words, "--processes", 2, "--threads", 1, "--cache", tmp_path / "cache"), tmp_path / "two")
    _, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    assert list((tmp_path / "cache").glob("features-*/data.bin"))
    assert cli(*words)[0] == 0
    ours, theirs = (
        checkpoint.load(only(tmp_path / name) / "checkpoint" / "latest.ckpt") for name in ("sessions", "two")
    )
    assert ours["backbone"] == theirs["backbone"]
    for name, value in ours["method"].items():
        if torch.is_tensor(value) and value.is_floating_point():
            torch.testing.assert_close(theirs["method"][name], value, rtol=2e-2, atol=2e-3)


def test_a_dry_run_counts_steps_on_features_and_their_cost_apart(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli(*WORDS["pica"], "--dry-run", "--net-width", 32, "--cache", tmp_path / "cache")
    assert status == 0, err
    assert "features once, unless they are kept already: 1,797 images in 3 views, " in " ".join(out.split())
    frozen, whole = (float(re.findall(r"work +([\d.,]+) GFLOP", text)[0].replace(",", "")) for text in (
        out, cli(*WORDS["pica"], "--net-freeze", "none", "--dry-run", "--net-width", 32)[1]))  # fmt: skip
    assert frozen < whole / 100 and not (tmp_path / "cache").exists()


FOLDER = ("--network", "convnet", "--net-width", 4, "--tfm-size", 8, "--tfm-resize", 10, "--max-epochs", 2, "--seed", 3)


@pytest.mark.parametrize("views", [FROZEN, NEIGHBOURS], ids=["random", "neighbours"])
@pytest.mark.parametrize("method", WORDS)
def test_a_few_pictures_of_one_class(method: str, views: tuple[object, ...], cli: Cli, tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "pictures" / "cat" / f"{i}.png", seed=i)
    own: tuple[Any, ...] = ("--prototypes", 10, "--size-crops", 8, 6) if method == "imc_swav" else ()
    base = "configs/imc_swav" if method == "imc_swav" else "configs"
    cfgs = ("--cfgs", f"{base}/base.yaml", f"{base}/image_folder.yaml")
    words = (*cfgs, *FOLDER, *own, *views, "--data-root", tmp_path / "pictures")
    status, _, err = cli(*words, "--num-clusters", 5)
    assert status == 0, err
    status, _, err = cli(*words, "--num-clusters", 5, *NEIGHBOURS, "--feature-neighbours", 20)
    assert status == 2 and "--feature-neighbours 20: there are 20 training pictures" in err.splitlines()[-1]


def test_a_backbone_stays_in_evaluation_mode() -> None:
    made = main.build(resolve(*WORDS["pica"]))
    assert isinstance(made.encode, Backbone)
    assert not any(part.training for part in made.encode.train().modules())
