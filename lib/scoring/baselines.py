"""What people do without training: k-means on the same pictures, or on a frozen backbone's features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lib.contracts import Task
from lib.networks.backbone import Backbone
from lib.scoring import metrics
from lib.scoring.inference import batches, common, scored
from lib.scoring.label_free import scaled

COMPONENTS = 50  # principal ones, or fewer where there is less
RESTARTS = 10  # of k-means; the one with the least sum of squares stays
TITLES = {"kmeans": "k-means", "pca_kmeans": "PCA and k-means"}


def scores(task: Task, names: tuple[str, ...], batch_size: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """The scores of each baseline on each split, by the baseline's title; the clusters are found on all scored pictures.

    Args:
        task: of a run; its method is not used.
        names: keys of `TITLES`.
        batch_size: pictures at a time.
        seed: of k-means and of PCA.
    """
    what = "features" if isinstance(task.encode, Backbone) else "pixels"
    index, values = _plain(task, batch_size)
    found = {}
    for name in names:
        clusters = _clusters(values, name, task.method.num_clusters, seed)
        found[f"{TITLES[name]} on {what}"] = {
            split: metrics.scores(labels, clusters[rows])
            for split, held in task.splits.items()
            for rows, labels in (common(index, held),)
        }
    return found


def _plain(task: Task, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(N,) positions and (N, D) pixels or features under the test transform."""
    prepared = [
        (part.index, part.views[0].flatten(1).cpu())
        for part in task.views.plain(map(torch.from_numpy, batches(scored(task), batch_size)))
    ]
    index, values = (torch.cat(parts).numpy() for parts in zip(*prepared, strict=True))
    return index, values


def _clusters(values: NDArray[np.float32], name: str, count: int, seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    kmeans = KMeans(min(count, len(values)), n_init=RESTARTS, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # of images that are all alike, or fewer than the clusters
        values = scaled(values)
        if name == "pca_kmeans":
            values = PCA(min(COMPONENTS, *values.shape), random_state=seed).fit_transform(values)
        clusters: NDArray[np.int64] = kmeans.fit_predict(values)
    return clusters
