"""How good a clustering is where there are no labels, from a sample of its pictures.

Each figure asks something else: whether the pictures fall clearly into one cluster (confidence, partition
uncertainty), whether they stay there when the view changes (agreement), and whether the clusters lie apart in
the space of the features (silhouette). None of them sees whether the groups are those that a person means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lib.contracts import Recipe, Split, Task
from lib.scoring import metrics
from lib.scoring.inference import Embedded, Watch, common, embed, scored

MEMORY = 64  # MiB of distances that the silhouette holds at a time
TITLES = (("confidence", "confidence"), ("pui", "PUI"), ("silhouette", "silhouette"), ("agreement", "agreement"))


def spread(index: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the positions, evenly spread over all."""
    if len(index) <= count:
        return index
    return index[np.linspace(0, len(index) - 1, count).round().astype(np.int64)]


def scaled(values: NDArray[np.float32], axis: int | None = None) -> NDArray[np.float32]:
    """Divided by a power of two, so that the largest is from 0.5 to 1: exact, and no square overflows.

    Args:
        values: (N, D), finite.
        axis: along which one power serves; none: one for all.
    """
    largest = np.maximum(values.max(axis, keepdims=True, initial=0), -values.min(axis, keepdims=True, initial=0))
    found: NDArray[np.float32] = np.ldexp(values, -np.frexp(largest)[1])
    return found


def directions(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D), each brought to length 1; zeros stay."""
    moderate = scaled(features, axis=1)
    found: NDArray[np.float32] = moderate / np.maximum(np.linalg.norm(moderate, axis=1, keepdims=True), 1e-12)
    return found


@dataclass(frozen=True)
class Sample:
    """Some of the scored pictures as they are, and in a random view of the training."""

    plain: Embedded
    perturbed: Embedded

    def scores(self, split: Split) -> dict[str, float | None]:
        """The figures of those pictures that belong to a split.

        Returns:
            `pui` (0 to 1, the lower the better): `lib.scoring.metrics.uncertainty` between the two views;
            `silhouette` (−1 to 1): of the clusters, on cosine distances of the features (Rousseeuw, 1987);
            `agreement` (1: the same): adjusted Rand index between the clusters in the two views.
            Each None where it has no meaning: without pictures, or with a single cluster.
        """
        from sklearn import config_context
        from sklearn.metrics import adjusted_rand_score, silhouette_score

        rows, _ = common(self.plain.index, split)
        p = self.plain.probability[rows]
        q = self.perturbed.probability[rows]
        clusters = p.argmax(axis=1) if len(rows) else np.zeros(0)
        count = len(np.unique(clusters))
        if count < 2:
            return {"pui": None, "silhouette": None, "agreement": None}
        apart = None
        if count < len(rows):
            with config_context(working_memory=MEMORY):
                apart = silhouette_score(directions(self.plain.feature[rows]), clusters, metric="cosine")
        return {
            "pui": metrics.uncertainty(torch.from_numpy(p), torch.from_numpy(q)),
            "silhouette": None if apart is None else float(apart),
            "agreement": float(adjusted_rand_score(clusters, q.argmax(axis=1))),
        }


def sample(task: Task, plain: Recipe, count: int, batch_size: int, watch: Watch = iter) -> Sample | None:
    """Look at `count` of the scored pictures, evenly spread; None for 0.

    Args:
        task: whose pictures, by whose method.
        plain: the test view.
        count: pictures at most.
        batch_size: pictures at a time, of all processes.
        watch: passes the batches on.
    """
    if not count:
        return None
    return Sample(*embed(task, spread(scored(task), count), (plain, task.perturbed), batch_size, watch))
