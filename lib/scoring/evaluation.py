"""Predict a whole set of pictures, then score it. Evaluation leaves the model as it found it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lib.config.settings import Section, setting
from lib.contracts import Method, Task
from lib.datasets import DataSettings
from lib.errors import RunStopped, UserError
from lib.machine import processes
from lib.machine.random_seeds import SeedSettings
from lib.networks import batchnorm
from lib.scoring import label_free, metrics
from lib.scoring.inference import Predictions, Watch, evaluating, predict, scored, shares
from lib.scoring.label_free import Sample
from lib.session import Session
from lib.transforms import TransformSettings, plain_recipe

Scores = dict[str, dict[str, Any]]  # split → name → value
ONLINE = "online"  # behind a split's name: as the images were assigned while training
FEW = 10  # images in a cluster on average, below which it is mostly chance
HUGE = 65504  # the largest number of float16; no weight of a network that learns comes near it


@dataclass(frozen=True)
class EvaluationSettings(Section):
    title = "evaluation"
    eval_batch_size: int = setting(512, "images in a batch where nothing is trained", unit="images", low=1)
    top_k: int | None = setting(
        None,
        "also score whether the class is among the K most probable clusters; none = no such score",
        value="K",
        low=2,
    )
    eval_sample: int = setting(
        2000,
        "evenly spread images for PUI, silhouette and agreement; the report shows up to 5,000 of them; 0 = none",
        low=0,
        high=100_000,  # the silhouette compares each with each
    )
    baseline: tuple[Literal["kmeans", "pca_kmeans"], ...] | None = setting(
        None,
        "k-means that is scored beside the method; kmeans = on the pixels, or on the features of a "
        "frozen network; pca_kmeans = on 50 principal components of the same; none = no k-means",
    )


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found."""

    predictions: Predictions
    scores: Scores
    statistics: dict[str, Tensor]  # the buffers of the method, under which the predictions were made


def score(task: Task, predictions: Predictions, top_k: int | None = None, sample: Sample | None = None) -> Scores:
    """For each scored split: ACC, NMI, ARI, AMI (None without labels), balance, confidence; `top<k>` if asked for.

    With a sample, also `pui`, `silhouette` and `agreement` (`lib.scoring.label_free`).
    """
    found: Scores = {}
    for name, split in task.splits.items():
        rows, labels = predictions.of(split)
        if not len(rows):
            raise UserError(f"none of the pictures of the split {name} can be read; mend or remove them")
        clusters = predictions.cluster[rows]
        probability = predictions.probability[rows]
        found[name] = {
            **_judged(labels, clusters),
            **metrics.balance(clusters, task.method.num_clusters),
            "confidence": float(probability.max(axis=1).mean()),
            **(sample.scores(split) if sample else {}),
        }
        if top_k is not None:
            found[name][f"top{top_k}"] = metrics.top_k(labels, probability, top_k)
    return found


def _judged(labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> dict[str, Any]:
    """The scores by labels; where there are labels and yet no scores, `unscored` says why."""
    why = metrics.unscored(labels) if (labels >= 0).any() else ""
    return {**metrics.scores(labels, clusters), **({"unscored": why} if why else {})}


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
    own = {**_judged(labels, clusters), **metrics.balance(clusters, task.method.num_clusters)}
    return {f"{task.trained_name}:{ONLINE}": own}


def evaluate(task: Task, watch: Watch = iter) -> Outcome:
    """Predict and score under each of the method's treatments of BatchNorm; the first gives the predictions.

    `plain` is as trained. `train_bn` re-estimates the statistics on training pictures under the test
    transform, from scratch. `test_bn` goes on from the trained ones with the scored pictures, as the
    IMC-SwAV authors do; its figures are comparable with theirs alone. Everything is put back.

    Raises:
        UserError: no picture of a split can be read.
        RunStopped: the run diverged: weights are huge, or a statistic, feature or probability is not finite.
    """
    settings = task.config.of(EvaluationSettings)
    plain = plain_recipe(task.config.of(TransformSettings))
    first: Predictions | None = None
    found: Scores = {}
    statistics: dict[str, Tensor] = {}
    processes.follow_first(task.method.buffers())
    _check_weights(task.method)
    for treatment in task.method.treatments:
        with batchnorm.restored(task.method):
            _treat(task, treatment, watch)
            if not batchnorm.finite(task.method):
                raise RunStopped(
                    f"the run diverged: BatchNorm statistics ({treatment}) are not finite; a lower --base-lr may help"
                )
            predictions = predict(task, settings.eval_batch_size, watch)
            statistics = statistics or {name: value.detach().clone() for name, value in task.method.named_buffers()}
            size = settings.eval_batch_size
            count = 0 if first else settings.eval_sample
            sample = label_free.sample(task, plain, count, size, watch)
        scores = processes.from_first(partial(score, task, predictions, settings.top_k, sample))
        for name, values in scores.items():
            # The result goes by the split's own name, the others by what they are.
            key = name if first is None else f"{name}:{treatment}"
            found[key] = values if len(task.method.treatments) == 1 else {**values, "batchnorm": treatment}
        first = first or predictions
    assert first is not None
    return Outcome(first, found, statistics)


def _check_weights(method: Method) -> None:
    """Raises RunStopped where weights have grown beyond all measure: what is predicted by them is no result."""
    weights = (weight.detach() for weight in method.parameters() if weight.numel())
    largest = max((float(weight.abs().max()) for weight in weights), default=0.0)
    if largest > HUGE:
        raise RunStopped(f"the run diverged: weights are as large as {largest:.2g}; a lower --base-lr may help")


def adopt(method: Method, stored: Mapping[str, Any]) -> str:
    """Predict under the BatchNorm statistics of the run's own predictions; the pictures at hand change nothing.

    Returns:
        what to know of the predictions, or nothing

    Raises:
        UserError: those in the checkpoint are of another network.
    """
    statistics = stored.get("statistics") or {}
    first = method.treatments[0]
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


def _treat(task: Task, treatment: str, watch: Watch) -> None:
    if treatment == "plain":
        return
    own = treatment == "train_bn"
    size = task.config.of(DataSettings).batch
    index = task.trained.index if own else scored(task)
    # Full batches alone, where there is one: each has the same weight.
    count = min(batchnorm.BATCHES, max(1, len(index) // size)) * size
    drawn = np.random.default_rng(task.config.of(SeedSettings).number).permutation(index)[:count]
    seen = 0

    def run() -> Iterator[Tensor]:
        nonlocal seen
        for prepared in watch(task.views.plain(shares(drawn, size))):
            whole, counts, _ = processes.exchange(prepared.index, processes.largest_share(size))
            if len(whole) > 1:  # a single picture has no variance
                seen += 1
                yield task.method.classify(processes.gather(task.method.features(prepared.views[0]), counts))

    with evaluating(task.method):
        batchnorm.reestimate(task.method, run(), afresh=own)
    if not seen:
        raise UserError(f"{treatment} needs batches of two pictures or more; give a larger --batch-size")


def line(scores: Mapping[str, Any]) -> str:
    """One split's scores in a line of log.txt."""
    return _in_full(scores, f"shares {scores['smallest']:.1%} to {scores['largest']:.1%}")


def _in_full(scores: Mapping[str, Any], sizes: str) -> str:
    by_labels = ", ".join(f"{title} {scores[key]:.4f}" for key, title in metrics.TITLES if scores[key] is not None)
    others = "".join(f", {title} {scores[key]:.3f}" for key, title in label_free.TITLES if scores.get(key) is not None)
    return f"{by_labels or scores.get('unscored', 'no labels')}; {sizes}{others}"


def short(scores: Mapping[str, Any], loss: float | None) -> str:
    """One split's scores in a line of the console."""
    known = ", ".join(f"{title} {scores[key]:.3f}" for key, title in metrics.TITLES if scores[key] is not None)
    sizes = f"cluster sizes {sizes_of(scores)}"
    if known:
        return f"{known}; {sizes}"
    loss_part = "" if loss is None else f"loss {loss:.2f}, "
    return f"{loss_part}confidence {scores['confidence']:.2f}; {sizes}"


def sizes_of(scores: Mapping[str, Any]) -> str:
    """The smallest and the largest cluster, in percent of the images."""
    return f"{_percent(scores['smallest'])}–{_percent(scores['largest'])} %"


def _percent(share: float) -> str:
    value = 100 * share
    return f"{value:.1f}" if 0.05 <= value < 1 else f"{value:.0f}"


def full(name: str, scores: Mapping[str, Any]) -> str:
    """All scores of a split in a line of the console, for `--verbose`.

    Args:
        name: of the split, behind which a colon may say how it was scored.
        scores: of it.
    """
    split, _, how = name.partition(":")
    heading = split
    if how == ONLINE:
        heading = f"{split}, accuracy of the assignments made while training"
    elif how:
        heading = f"{split}, under BatchNorm statistics {how}"
    return f"  {heading}: {_in_full(scores, f'cluster sizes {sizes_of(scores)}')}"


def warn_of_collapse(session: Session, scores: Mapping[str, Any], method: Method, is_early: bool) -> bool:
    """A word where most of the images share few clusters.

    Args:
        session: that shows it.
        scores: of a split.
        method: that was trained.
        is_early: less than half of the training is done.

    Returns:
        whether they do
    """
    k = method.num_clusters
    if not metrics.collapsed(scores["entropy"], k):
        return False
    text = f"the clusters collapse: the largest of {k} holds {_percent(scores['largest'])} % of the images. "
    if is_early and method.frees_clusters:
        text += "This often passes while training. If it does not, stop (Ctrl-C) and "
    else:
        text += "The result is of little use; "
    session.warn(f"{text}try {method.remedy}.")
    return True
