"""Predict a whole set of pictures, then score it. Evaluation leaves the model as it found it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib import metrics
from lib.config import Config
from lib.method import Split, Task
from lib.session import Session
from lib.settings import Section, setting

Scores = dict[str, dict[str, Any]]  # split → name → value
COLUMNS = (("acc", "ACC"), ("nmi", "NMI"), ("ari", "ARI"))


@dataclass(frozen=True)
class EvaluationSettings(Section):
    title = "evaluation"
    eval_batch_size: int = setting(512, "pictures per batch when nothing is trained", low=1)
    baseline: Literal["none", "kmeans"] = setting("none", "also score k-means on the pixels of the same pictures")


@dataclass(frozen=True)
class Predictions:
    """Every scored picture once, by its position among the run's pictures, ascending."""

    index: NDArray[np.int64]  # (N,)
    probability: NDArray[np.float32]  # (N, K)

    @property
    def cluster(self) -> NDArray[np.int64]:
        clusters: NDArray[np.int64] = self.probability.argmax(axis=1).astype(np.int64)
        return clusters

    def of(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and labels of the pictures of a split that could be read."""
        return _common(self.index, split)


def _common(index: NDArray[np.int64], split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    kept = np.isin(split.index, index)
    return np.searchsorted(index, split.index[kept]).astype(np.int64), split.labels[kept]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each part is put back into the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _scored(task: Task) -> NDArray[np.int64]:
    return np.unique(np.concatenate([split.index for split in task.splits.values()]))


def _batches(index: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    return (torch.from_numpy(index[i : i + size]) for i in range(0, len(index), size))


def predict(task: Task, batch_size: int, tick: Callable[[], None] = lambda: None) -> Predictions:
    """Cluster probabilities of every picture of every scored split, under the test transform.

    Args:
        task: whose pictures, by whose method.
        batch_size: pictures at a time.
        tick: called after each batch; what it raises ends the prediction.
    """
    index, rows = [], []
    with evaluating(task.method):
        for prepared in task.views.plain(_batches(_scored(task), batch_size)):
            index.append(prepared.index)
            rows.append(task.method.predict(prepared.views[0]).float().cpu())
            tick()
    return Predictions(torch.cat(index).numpy(), torch.cat(rows).numpy())


def score(task: Task, predictions: Predictions) -> Scores:
    """For each scored split: ACC, NMI, ARI, AMI (None without labels), balance, confidence."""
    found: Scores = {}
    for name, split in task.splits.items():
        rows, labels = predictions.of(split)
        clusters = predictions.cluster[rows]
        found[name] = {
            **metrics.scores(labels, clusters),
            **metrics.balance(clusters, task.method.num_clusters),
            "confidence": float(predictions.probability[rows].max(axis=1).mean()),
        }
    return found


def evaluate(task: Task, config: Config, tick: Callable[[], None] = lambda: None) -> tuple[Predictions, Scores]:
    """`predict`, then `score`."""
    predictions = predict(task, config.of(EvaluationSettings).eval_batch_size, tick)
    return predictions, score(task, predictions)


def kmeans(task: Task, batch_size: int, seed: int) -> Scores:
    """k-means on the pixels of the same pictures under the test transform, scored in the same way."""
    from sklearn.cluster import KMeans

    prepared = list(task.views.plain(_batches(_scored(task), batch_size)))
    index = torch.cat([part.index for part in prepared]).numpy()
    pixels = torch.cat([part.views[0].flatten(1).cpu() for part in prepared]).numpy()
    clusters = KMeans(task.method.num_clusters, n_init=10, random_state=seed).fit_predict(pixels)
    found = {}
    for name, split in task.splits.items():
        rows, labels = _common(index, split)
        found[name] = metrics.scores(labels, clusters[rows])
    return found


def line(scores: Mapping[str, Any]) -> str:
    """One split's scores in a line."""
    known = ", ".join(f"{title} {scores[key]:.4f}" for key, title in COLUMNS if scores[key] is not None)
    shares = f"shares {scores['smallest']:.1%} to {scores['largest']:.1%}, confidence {scores['confidence']:.3f}"
    return f"{known or 'no labels'}; {shares}"


def warn_of_collapse(session: Session, scores: Mapping[str, Any], k: int) -> None:
    """A word where most of the pictures share few clusters."""
    if scores["entropy"] < math.log(k) / 2:
        session.warn(
            f"the clusters collapse: the largest holds {scores['largest']:.1%} of the pictures, and the entropy of "
            f"the sizes is {scores['entropy']:.2f} of {math.log(k):.2f}"
        )
