from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN, ROOT

from lib.scoring import metrics


@pytest.mark.parametrize("case", range(3))
def test_scores_equal_the_authors(case: int) -> None:
    golden = np.load(GOLDEN / "metrics.npz", allow_pickle=False)
    found = metrics.scores(golden[f"case{case}_labels"], golden[f"case{case}_clusters"])
    for name in ("acc", "nmi", "ari"):
        np.testing.assert_allclose(found[name], golden[f"case{case}_{name}"], rtol=1e-9)


def example(clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, 200)
    return labels, np.where(draw.random(200) < 0.7, labels % clusters, draw.integers(0, clusters, 200))


@pytest.mark.parametrize("clusters", [2, 4, 7])
def test_laws(clusters: int) -> None:
    labels, found = example(clusters)
    scores = metrics.scores(labels, found)
    renamed = metrics.scores(labels, (found * 13 + 5) % 101)
    assert renamed == pytest.approx(scores, rel=1e-9)
    swapped = metrics.scores(found, labels)
    for name in metrics.NAMES:  # each of them is symmetric, ACC too, since the matching is one to one
        assert swapped[name] == pytest.approx(scores[name], rel=1e-9)
    unknown = metrics.scores(np.append(labels, [-1] * 50), np.append(found, np.arange(50) % clusters))
    assert unknown == pytest.approx(scores, rel=1e-9)


def test_acc_where_clusters_outnumber_classes_and_the_reverse() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert metrics.scores(labels, np.array([5, 5, 2, 3, 3, 3]))["acc"] == pytest.approx(5 / 6)
    assert metrics.scores(labels, np.zeros(6, dtype=int))["acc"] == pytest.approx(3 / 6)
    assert metrics.matching(labels, np.array([5, 5, 2, 3, 3, 3])) == {3: 1, 5: 0}


def test_geometric_and_arithmetic_nmi_differ_where_the_entropies_do() -> None:
    labels = np.array([0, 0, 1, 1])
    clusters = np.array([0, 1, 2, 3])
    scores = metrics.scores(labels, clusters)  # H(L) = I = log 2, H(C) = 2 log 2
    assert scores["nmi"] == pytest.approx(2 / 3) and scores["nmi_geometric"] == pytest.approx(2**-0.5)


def test_no_labels_give_none() -> None:
    assert metrics.scores(np.array([-1, -1]), np.array([0, 1])) == dict.fromkeys(metrics.NAMES)
    assert metrics.scores(np.array([], dtype=int), np.array([], dtype=int)) == dict.fromkeys(metrics.NAMES)
    assert metrics.matching(np.array([-1]), np.array([0])) == {}


@pytest.mark.parametrize("clusters", [np.zeros(6, dtype=int), np.arange(6)])
def test_a_single_class_gives_none(clusters: np.ndarray) -> None:
    labels = np.array([3, 3, 3, -1, 3, -1])
    assert metrics.scores(labels, clusters) == dict.fromkeys(metrics.NAMES)
    assert metrics.top_k(labels, np.eye(6)[clusters], 2) is None
    assert "all 4 labelled images have one class" in metrics.unscored(labels)
    assert not metrics.unscored(np.array([0, 1, -1]))


def test_bad_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        metrics.scores(np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match="integers"):
        metrics.scores(np.array([0.5]), np.array([0]))


def test_balance() -> None:
    assert metrics.balance(np.array([0, 1, 2, 3]), 4) == pytest.approx(
        {"entropy": np.log(4), "smallest": 0.25, "largest": 0.25}
    )
    assert metrics.balance(np.array([1, 1]), 4) == {"entropy": 0.0, "smallest": 0.0, "largest": 1.0}


def test_a_remark_of_joblib_stays_off_the_console() -> None:
    program = "import warnings, lib.scoring.metrics; warnings.warn('[Errno 30] Read-only.  joblib will operate in serial mode')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
