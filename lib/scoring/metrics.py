"""Scores of a clustering, from two integer arrays; and the partition uncertainty index.

Natural logarithms throughout. A label of −1 means "unknown", and that image is left out. `lib.metrics` is another name
of this module's public part.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What scikit-learn says on import where /dev/shm cannot be used, which matters to nothing here.
warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")

IntArray = NDArray[np.integer[Any]]
TITLES = (("acc", "ACC"), ("nmi", "NMI"), ("ari", "ARI"))  # of those that are shown
NAMES = ("acc", "nmi", "nmi_geometric", "ari", "ami")


def contingency(labels: IntArray, clusters: IntArray) -> tuple[NDArray[np.int64], IntArray, IntArray]:
    """Count images by class (rows) and cluster (columns).

    Args:
        labels: (N,) true classes, −1 where unknown.
        clusters: (N,) assigned clusters.

    Returns:
        The table of counts, the classes of its rows and the clusters of its columns; unknown labels are left out.

    Raises:
        ValueError: the arrays are not one-dimensional integers of one length.
    """
    labels = np.asarray(labels)
    clusters = np.asarray(clusters)
    if labels.ndim != 1 or labels.shape != clusters.shape:
        raise ValueError(f"labels {labels.shape} and clusters {clusters.shape} must be of one length")
    if not (np.issubdtype(labels.dtype, np.integer) and np.issubdtype(clusters.dtype, np.integer)):
        raise ValueError(f"labels ({labels.dtype}) and clusters ({clusters.dtype}) must be integers")
    known = labels >= 0
    rows, row = np.unique(labels[known], return_inverse=True)
    columns, column = np.unique(clusters[known], return_inverse=True)
    table = np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns))
    return table.reshape(len(rows), len(columns)).astype(np.int64), rows, columns


def matching(labels: IntArray, clusters: IntArray) -> dict[int, int]:
    """Match clusters to classes one to one, so that the most images agree (Kuhn, 1955).

    Args:
        labels: (N,) true classes, −1 where unknown.
        clusters: (N,) assigned clusters.

    Returns:
        Cluster → class. Where one side has more members, some of them are left out.

    Raises:
        ValueError: the arrays are not one-dimensional integers of one length.
    """
    table, rows, columns = contingency(labels, clusters)
    return {int(columns[column]): int(rows[row]) for row, column in zip(*_pairs(table), strict=True)}


def _pairs(table: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table, maximize=True)
    return rows, columns


def scores(labels: IntArray, clusters: IntArray) -> dict[str, float | None]:
    """Score clusters against classes: ACC, NMI (arithmetic and geometric), ARI and AMI.

    Args:
        labels: (N,) true classes, −1 where unknown.
        clusters: (N,) assigned clusters; there may be more of them than classes, or fewer.

    Returns:
        `{"acc", "nmi", "nmi_geometric", "ari", "ami"}`. ACC is the share of images in agreement under `matching`.
        All are None where no label is known, or where all known labels are the same.

    Raises:
        ValueError: the arrays are not one-dimensional integers of one length.
    """
    from sklearn import metrics

    labels = np.asarray(labels)
    clusters = np.asarray(clusters)
    table, _, _ = contingency(labels, clusters)
    if unscored(labels):
        return dict.fromkeys(NAMES)
    known = labels >= 0
    truth = labels[known]
    found = clusters[known]
    return {
        "acc": float(table[_pairs(table)].sum() / table.sum()),
        "nmi": float(metrics.normalized_mutual_info_score(truth, found, average_method="arithmetic")),
        "nmi_geometric": float(metrics.normalized_mutual_info_score(truth, found, average_method="geometric")),
        "ari": float(metrics.adjusted_rand_score(truth, found)),
        "ami": float(metrics.adjusted_mutual_info_score(truth, found)),
    }


def unscored(labels: IntArray) -> str:
    """Why no score can be taken against these labels; empty: it can. All images in one cluster would score 1."""
    known = labels[labels >= 0]
    if not len(known):
        return "no labels"
    if known.min() == known.max():
        return f"all {len(known):,} labelled images have one class, against which ACC, NMI and ARI mean nothing"
    return ""


def top_k(labels: IntArray, probability: NDArray[np.floating[Any]], k: int) -> float | None:
    """Share of the images whose class is among their k most probable clusters, after `matching`.

    Args:
        labels: (N,) true classes, −1 where unknown.
        probability: (N, K) of the clusters.
        k: how many clusters count.

    Returns:
        A share from 0 to 1; None where no label is known, or where all known labels are the same.
    """
    if unscored(labels):
        return None
    match = matching(labels, probability.argmax(axis=1))
    known = labels >= 0
    classes = np.array([match.get(cluster, -2) for cluster in range(probability.shape[1])])
    best = np.argsort(-probability[known], axis=1, kind="stable")[:, :k]
    return float((classes[best] == labels[known, None]).any(axis=1).mean())


def balance(clusters: IntArray, k: int) -> dict[str, float]:
    """How evenly images fall into clusters.

    Args:
        clusters: (N,) assigned clusters, from 0 to k − 1.
        k: number of clusters, of which some may be empty.

    Returns:
        `{"entropy", "smallest", "largest"}`: the entropy of the sizes in nats, and two shares from 0 to 1.
    """
    share = np.bincount(clusters, minlength=k) / max(len(clusters), 1)
    filled = share[share > 0]
    entropy = max(0.0, float(-(filled * np.log(filled)).sum()))
    return {"entropy": entropy, "smallest": float(share.min()), "largest": float(share.max())}


def collapsed(entropy: float, k: int) -> bool:
    """Whether most pictures share few of k clusters, by the entropy (nats) of the sizes."""
    return entropy < math.log(k) / 2


def partition_uncertainty(p: Tensor, q: Tensor) -> Tensor:
    """The partition uncertainty index (PUI): cosines of the columns of p and q (Huang et al., 2020, section 3).

    Args:
        p, q: (N, K) probabilities of the same N images in two views.

    Returns:
        (K, K), in which entry (j, k) is the cosine of column j of p and column k of q. A column without mass has cosine
        0 with everything, and receives no gradient.
    """
    return _unit_columns(p).T @ _unit_columns(q)


def _unit_columns(p: Tensor) -> Tensor:
    square = p.square().sum(dim=0)
    # An empty column has no direction. Dividing it by a small constant, as a plain normalisation
    # does (torch's is 1e-12), would give gradients of 1e12.
    filled = square > 1e-24
    return torch.where(filled, p / torch.where(filled, square, 1).sqrt(), 0)


def uncertainty(p: Tensor, q: Tensor) -> float:
    """How much clusters share images: the mean of the partition uncertainty index over pairs of different clusters.

    Args:
        p, q: (N, K) probabilities of the same N images in two views.

    Returns:
        A number from 0, where no two clusters share an image, to 1, where all clusters have the same images.
    """
    index = partition_uncertainty(p, q)
    k = p.shape[1]
    return float((index.sum() - index.trace()) / (k * (k - 1)))
