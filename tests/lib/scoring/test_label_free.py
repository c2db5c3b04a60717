"""Scores without labels: what they say of clusterings whose quality is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lib.contracts import Split
from lib.scoring import metrics
from lib.scoring.inference import Embedded
from lib.scoring.label_free import Sample, directions, scaled, spread

N = 300
K = 5
CLASSES = np.arange(N) % K
SPLIT = Split(np.arange(N), np.full(N, -1))


def one_hot(clusters: NDArray[np.int64], sharpness: float = 1.0) -> NDArray[np.float32]:
    return (sharpness * np.eye(K)[clusters] + (1 - sharpness) / K).astype(np.float32)


def sample(p: NDArray[np.float32], q: NDArray[np.float32], noise: float = 0.01) -> Sample:
    random = np.random.default_rng(0)
    feature = (np.eye(K, 8)[CLASSES] + noise * random.normal(size=(N, 8))).astype(np.float32)
    return Sample(Embedded(np.arange(N), p, feature), Embedded(np.arange(N), q, feature))


def test_a_perfect_clustering() -> None:
    found = sample(one_hot(CLASSES), one_hot(CLASSES)).scores(SPLIT)
    assert found["pui"] == pytest.approx(0, abs=1e-6) and found["agreement"] == 1
    assert found["silhouette"] is not None and found["silhouette"] > 0.99


def test_an_arbitrary_clustering() -> None:
    random = np.random.default_rng(1)
    p, q = (one_hot(random.integers(0, K, N), 0.1) for _ in range(2))
    found = sample(p, q).scores(SPLIT)
    assert found["pui"] is not None and found["pui"] > 0.9
    assert abs(found["agreement"] or 1) < 0.05 and (found["silhouette"] or 1) < 0.05


def test_worse_is_worse() -> None:
    random = np.random.default_rng(2)
    rows = []
    for share in (0.0, 0.2, 0.4, 0.8):
        moved = np.where(random.random(N) < share, random.integers(0, K, N), CLASSES)
        rows.append(sample(one_hot(CLASSES, 1 - share / 2), one_hot(moved, 1 - share / 2)).scores(SPLIT))
    for key, direction in (("pui", 1), ("agreement", -1)):
        values = [row[key] or 0.0 for row in rows]
        assert (np.diff(values) * direction > 0).all(), (key, values)


def test_names_of_clusters_do_not_matter() -> None:
    order = np.array([3, 1, 4, 0, 2])
    random = np.random.default_rng(3)
    p, q = (random.dirichlet(np.full(K, 0.2), N).astype(np.float32) for _ in range(2))
    first, second = (sample(p[:, o], q[:, o]).scores(SPLIT) for o in (np.arange(K), order))
    assert first == pytest.approx(second, abs=1e-6)


def test_where_there_is_nothing_to_say() -> None:
    alone = sample(one_hot(np.zeros(N, dtype=np.int64)), one_hot(CLASSES))
    assert set(alone.scores(SPLIT).values()) == {None}
    none = Split(np.array([N + 1]), np.array([-1]))
    assert set(alone.scores(none).values()) == {None}
    each = Embedded(np.arange(K), np.eye(K, dtype=np.float32), np.eye(K, dtype=np.float32))
    assert Sample(each, each).scores(Split(np.arange(K), np.full(K, -1)))["silhouette"] is None


def test_uncertainty_is_the_mean_of_the_index_between_clusters() -> None:
    p, q = (torch.rand(20, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    pairs = [float(p[:, j] @ q[:, k] / (p[:, j].norm() * q[:, k].norm())) for j in range(4) for k in range(4) if j != k]
    assert metrics.uncertainty(p, q) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_a_sample_is_spread_evenly() -> None:
    index = np.arange(100) * 3
    assert spread(index, 100).tolist() == index.tolist()
    found = spread(index, 12)
    assert len(found) == 12 == len(set(found.tolist())) and found[0] == 0 and found[-1] == 297
    assert np.diff(found).max() - np.diff(found).min() <= 3


def test_features_of_any_scale_have_the_same_figures() -> None:
    features = np.random.default_rng(4).normal(size=(N, 8)).astype(np.float32)
    embedded = (Embedded(np.arange(N), one_hot(CLASSES), features * scale) for scale in (1, 2.0**120, 2.0**-100))
    moderate, huge, tiny = (Sample(part, part).scores(SPLIT) for part in embedded)
    assert moderate == huge == tiny


def test_scaling_is_exact() -> None:
    values = np.array([[3e38, -1e37], [0, 0], [1e-30, 2e-30]], dtype=np.float32)
    found = scaled(values, axis=1)
    np.testing.assert_array_equal(found[0] / found[0, 0], values[0] / values[0, 0])
    assert (np.abs(found).max(axis=1) >= 0.5)[[0, 2]].all() and np.abs(found).max() <= 1
    np.testing.assert_allclose(np.linalg.norm(directions(values), axis=1), [1, 0, 1], rtol=1e-6)


def test_the_silhouette_takes_memory_by_blocks() -> None:
    count = 6000  # whose distances take 137 MiB
    features = np.random.default_rng(5).normal(size=(count, 4)).astype(np.float32)
    probability = np.eye(K, dtype=np.float32)[np.arange(count) % K]
    part = Embedded(np.arange(count), probability, features)
    tracemalloc.start()
    try:
        Sample(part, part).scores(Split(np.arange(count), np.full(count, -1)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20
