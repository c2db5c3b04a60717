"""k-means without training, against scikit-learn on arrays that are made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DIGITS, resolve
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import main
from lib.contracts import Task
from lib.scoring import baselines, metrics, summary_over_seeds
from lib.scoring.baselines import COMPONENTS


@pytest.fixture(scope="module")
def task() -> Task:
    """Digits as they are: 8×8 px, nothing cropped, subtracted or divided."""
    return main.build(
        resolve(*DIGITS, "--tfm-working-size", "none", "--tfm-size", 8, "--tfm-resize", 8, "--tfm-means", 0,
                "--tfm-stds", 1, "--num-workers", 0, "--net-sobel", "false", "--seed", 0, "--net-avgpool-size", "none")
    )  # fmt: skip


def test_they_are_those_of_scikit_learn_on_the_same_pixels(task: Task) -> None:
    found = baselines.scores(task, ("kmeans", "pca_kmeans"), 100, 3)
    assert list(found) == ["k-means on pixels", "PCA and k-means on pixels"]
    digits = load_digits()
    pixels = np.round(digits.data * 255 / 16).astype(np.float32) / 255
    centred = pixels - pixels.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    for title, values in zip(found, (pixels, centred @ axes[:COMPONENTS].T), strict=True):
        clusters = KMeans(10, n_init=10, random_state=3).fit_predict(values)
        expected = metrics.scores(digits.target, clusters)
        assert found[title]["train+test"]["acc"] == pytest.approx(expected["acc"], abs=0.01)


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("name", ["kmeans", "pca_kmeans"])
@pytest.mark.parametrize("distinct", [1, 3], ids=["copies of one image", "fewer images than clusters"])
def test_degenerate_images_pass_without_a_word(name: str, distinct: int) -> None:
    values = np.random.default_rng(0).random((distinct, 12)).astype(np.float32)
    found = baselines._clusters(values.repeat(20, axis=0), name, 5, 0)
    assert len(baselines._clusters(values, name, 5, 0)) == distinct
    assert len(found) == 20 * distinct


@pytest.mark.parametrize("name", ["kmeans", "pca_kmeans"])
def test_k_means_is_the_same_at_every_scale(name: str) -> None:
    values = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    found = [baselines._clusters(values * scale, name, 5, 0).tolist() for scale in (1, np.float32(2.0**120))]
    assert found[0] == found[1]


def test_several_seeds_have_their_mean_and_deviation() -> None:
    runs = [
        {"test": {"acc": 0.9, "baselines": {"k-means on pixels": {"acc": value}}}, "test:online": {"acc": 0.8}}
        for value in (0.5, 0.7)
    ]
    found = summary_over_seeds._baselines(runs)["k-means on pixels"]
    assert found["mean"]["test"]["acc"] == pytest.approx(0.6)
    assert found["deviation"]["test"]["acc"] == pytest.approx(0.2 / 2**0.5)
