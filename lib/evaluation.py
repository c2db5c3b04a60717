"""Predict a whole set of pictures, then score it. Evaluation leaves the model as it found it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib import batchnorm, distributed, metrics
from lib.config import Config
from lib.datasets import DataSettings
from lib.errors import UserError
from lib.method import Method, Split, Task
from lib.runtime import SeedSettings
from lib.session import Session
from lib.settings import Section, setting

Scores = dict[str, dict[str, Any]]  # split → name → value


@dataclass(frozen=True)
class EvaluationSettings(Section):
    title = "evaluation"
    eval_batch_size: int = setting(512, "pictures per batch when nothing is trained", low=1)
    top_k: int | None = setting(
        None, "also score whether the class is among this many of the most probable clusters", low=2
    )
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


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found."""

    predictions: Predictions
    scores: Scores
    statistics: dict[str, Tensor]  # the buffers of the method, under which the predictions were made


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


def _batches(index: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (index[i : i + size] for i in range(0, len(index), size))


def _shares(index: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    """Each rank's part of each batch, so that all ranks have equally many."""
    return (torch.from_numpy(distributed.share(batch)) for batch in _batches(index, size))


def predict(task: Task, batch_size: int, tick: Callable[[], None] = lambda: None) -> Predictions:
    """Cluster probabilities of every picture of every scored split, under the test transform.

    Args:
        task: whose pictures, by whose method.
        batch_size: pictures at a time, of all processes.
        tick: called after each batch; what it raises ends the prediction.
    """
    index, rows = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, task.method.num_clusters)]
    with evaluating(task.method):
        for prepared in task.views.plain(_shares(_scored(task), batch_size)):
            if len(prepared.index):
                index.append(prepared.index)
                rows.append(task.method.predict(prepared.views[0]).float().cpu())
            tick()
        whole, counts = distributed.exchange(torch.cat(index))
        probability = distributed.gather(torch.cat(rows), counts)
    if not len(whole):
        raise UserError("none of the scored pictures can be read; mend or remove them")
    order = whole.argsort()
    return Predictions(whole[order].numpy(), probability[order].numpy())


def score(task: Task, predictions: Predictions, top_k: int | None = None) -> Scores:
    """For each scored split: ACC, NMI, ARI, AMI (None without labels), balance, confidence; `top<k>` if asked for."""
    found: Scores = {}
    for name, split in task.splits.items():
        rows, labels = predictions.of(split)
        if not len(rows):
            raise UserError(f"none of the pictures of the split {name} can be read; mend or remove them")
        clusters, probability = predictions.cluster[rows], predictions.probability[rows]
        found[name] = {
            **metrics.scores(labels, clusters),
            **metrics.balance(clusters, task.method.num_clusters),
            "confidence": float(probability.max(axis=1).mean()),
        }
        if top_k is not None:
            found[name][f"top{top_k}"] = metrics.top_k(labels, probability, top_k)
    return found


def online(task: Task, assigned: NDArray[np.int64]) -> Scores:
    """The training split by the clusters that its pictures were assigned to while training.

    Args:
        assigned: (all pictures,) the cluster of each, −1 where there was none.
    """
    rows = task.trained.index[assigned[task.trained.index] >= 0]
    if not len(rows):
        return {}
    labels = task.trained.labels[np.isin(task.trained.index, rows)]
    clusters = assigned[rows]
    own = {**metrics.scores(labels, clusters), **metrics.balance(clusters, task.method.num_clusters)}
    return {f"{task.trained_name}:online": own}


def evaluate(task: Task, config: Config, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Predict and score under each of the method's treatments of BatchNorm; the first gives the predictions.

    `plain` is as trained. `train_bn` re-estimates the statistics on training pictures under the test
    transform, from scratch. `test_bn` goes on from the trained ones with the scored pictures, as the
    IMC-SwAV authors do; its figures are comparable with theirs alone. Everything is put back.
    """
    settings, first, found = config.of(EvaluationSettings), None, {}
    statistics: dict[str, Tensor] = {}
    distributed.follow_first(task.method)
    for treatment in task.method.treatments:
        with batchnorm.restored(task.method):
            _treat(task, config, treatment, tick)
            predictions = predict(task, settings.eval_batch_size, tick)
            statistics = statistics or {name: value.detach().clone() for name, value in task.method.named_buffers()}
        scores = distributed.from_first(partial(score, task, predictions, settings.top_k))
        for name, values in scores.items():
            # The result goes by the split's own name, the others by what they are.
            key = name if first is None else f"{name}:{treatment}"
            found[key] = values if len(task.method.treatments) == 1 else {**values, "batchnorm": treatment}
        first = first or predictions
    assert first is not None
    return Outcome(first, found, statistics)


def adopt(method: Method, stored: Mapping[str, Any]) -> str:
    """Predict under the BatchNorm statistics of the run's own predictions; the pictures at hand change nothing.

    Returns:
        what to know of the predictions, or nothing

    Raises:
        UserError: those in the checkpoint are of another network.
    """
    statistics, first = stored.get("statistics") or {}, method.treatments[0]
    method.treatments = ("plain",)
    if not statistics:
        return (
            "" if first == "plain" else f"the checkpoint has no {first} statistics; those of the training steps serve"
        )
    try:
        for name, buffer in method.named_buffers():
            buffer.copy_(statistics[name])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"the checkpoint's BatchNorm statistics do not fit its network: {error!r}") from error
    return ""


def _treat(task: Task, config: Config, treatment: str, tick: Callable[[], None]) -> None:
    if treatment == "plain":
        return
    own, size = treatment == "train_bn", config.of(DataSettings).batch_size
    index = task.trained.index if own else _scored(task)
    # Full batches alone, where there is one: each has the same weight.
    count = min(batchnorm.BATCHES, max(1, len(index) // size)) * size
    drawn = np.random.default_rng(config.of(SeedSettings).seed or 0).permutation(index)[:count]
    seen = 0

    def run() -> Iterator[Tensor]:
        nonlocal seen
        for prepared in task.views.plain(_shares(drawn, size)):
            whole, counts = distributed.exchange(prepared.index)
            if len(whole) > 1:  # a single picture has no variance
                seen += 1
                yield task.method.classify(distributed.gather(task.method.features(prepared.views[0]), counts))
            tick()

    with evaluating(task.method):
        batchnorm.reestimate(task.method, run(), afresh=own)
    if not seen:
        raise UserError(f"{treatment} needs batches of two pictures or more; give a larger --batch-size")


def kmeans(task: Task, batch_size: int, seed: int) -> Scores:
    """k-means on the pixels of the same pictures under the test transform, scored in the same way."""
    from sklearn.cluster import KMeans

    prepared = [
        (part.index, part.views[0].flatten(1).cpu())
        for part in task.views.plain(map(torch.from_numpy, _batches(_scored(task), batch_size)))
    ]
    index, pixels = (torch.cat(parts).numpy() for parts in zip(*prepared, strict=True))
    clusters = KMeans(min(task.method.num_clusters, len(pixels)), n_init=10, random_state=seed).fit_predict(pixels)
    found = {}
    for name, split in task.splits.items():
        rows, labels = _common(index, split)
        found[name] = metrics.scores(labels, clusters[rows])
    return found


def line(scores: Mapping[str, Any]) -> str:
    """One split's scores in a line."""
    known = ", ".join(f"{title} {scores[key]:.4f}" for key, title in metrics.TITLES if scores[key] is not None)
    shares = f"shares {scores['smallest']:.1%} to {scores['largest']:.1%}"
    confidence = f", confidence {scores['confidence']:.3f}" if "confidence" in scores else ""
    return f"{known or 'no labels'}; {shares}{confidence}"


def warn_of_collapse(session: Session, scores: Mapping[str, Any], k: int) -> None:
    """A word where most of the pictures share few clusters."""
    if scores["entropy"] < math.log(k) / 2:
        session.warn(
            f"the clusters collapse: the largest holds {scores['largest']:.1%} of the pictures, and the entropy of "
            f"the sizes is {scores['entropy']:.2f} of {math.log(k):.2f}"
        )
