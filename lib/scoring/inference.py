"""What a trained method says of many pictures: cluster probabilities, and the features that they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib.contracts import Prepared, Recipe, Request, Split, Task
from lib.errors import RunStopped, UserError
from lib.machine import processes
from lib.methods import method_checks

Watch = Callable[[Iterable[Prepared]], Iterable[Prepared]]


@dataclass(frozen=True)
class Predictions:
    """Every picture that could be read once, by its position among the run's pictures, ascending."""

    index: NDArray[np.int64]  # (N,)
    probability: NDArray[np.float32]  # (N, K)

    @property
    def cluster(self) -> NDArray[np.int64]:
        clusters: NDArray[np.int64] = self.probability.argmax(axis=1).astype(np.int64)
        return clusters

    def of(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and labels of the pictures of a split that are among these."""
        return common(self.index, split)


@dataclass(frozen=True)
class Embedded(Predictions):
    """Predictions with the features that they were made from."""

    feature: NDArray[np.float32]  # (N, feature_dim)


def common(index: NDArray[np.int64], split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `index`, which ascends, that belong to the split; and their labels."""
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


def scored(task: Task) -> NDArray[np.int64]:
    """(N,) positions of all pictures that are scored, ascending."""
    return np.unique(np.concatenate([split.index for split in task.splits.values()]))


def batches(index: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (index[i : i + size] for i in range(0, len(index), size))


def shares(index: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    """Each rank's part of each batch, so that all ranks have equally many."""
    return (torch.from_numpy(processes.share(batch)) for batch in batches(index, size))


def predict(task: Task, batch_size: int, watch: Watch = iter) -> Predictions:
    """Cluster probabilities of every picture of every scored split, under the test transform.

    Args:
        task: whose pictures, by whose method.
        batch_size: pictures at a time, of all processes.
        watch: passes the batches on; what it raises ends the prediction.

    Raises:
        UserError: no picture can be read, or the method gives no probabilities.
        RunStopped: a probability is not finite.
    """
    (found,) = _infer(task, task.views.plain(shares(scored(task), batch_size)), 1, watch, features=False)
    if not len(found.index):
        raise UserError("none of the scored pictures can be read; mend or remove them")
    return found


def embed(
    task: Task,
    index: NDArray[np.int64],
    recipes: tuple[Recipe, ...],
    batch_size: int,
    watch: Watch = iter,
) -> list[Embedded]:
    """Features and cluster probabilities of some pictures, in one view of each recipe.

    Args:
        task: whose pictures, by whose method.
        index: (N,) positions of the pictures, ascending.
        recipes: of the views; the random draws of a picture are the same at every call.
        batch_size: pictures at a time, of all processes.
        watch: passes the batches on; what it raises ends the work.

    Raises:
        UserError: the method gives no probabilities.
        RunStopped: a feature or a probability is not finite.
    """
    plan = (Request(share, recipes) for share in shares(index, batch_size))
    return _infer(task, task.views.stream(plan), len(recipes), watch, features=True)


def _infer(task: Task, prepared: Iterable[Prepared], views: int, watch: Watch, features: bool) -> list[Embedded]:
    method = task.method
    index = [torch.empty(0, dtype=torch.int64)]
    kept: list[list[Tensor]] = [[] for _ in range(views)]
    rows: list[list[Tensor]] = [[torch.empty(0, method.num_clusters)] for _ in range(views)]
    with evaluating(method):
        for part in watch(prepared):
            if len(part.index):
                index.append(part.index)
                for view, images in enumerate(part.views):
                    feature = method.features(images)
                    clusters = method.classify(feature)
                    method_checks.check_shape(method, clusters, len(feature))
                    rows[view].append(clusters.float().cpu())
                    kept[view].append(feature.cpu() if features else torch.empty(len(feature), 0))
        own = torch.cat(index)
        whole, counts, _ = processes.exchange(own, processes.largest(len(own)))
        order = whole.argsort()
        width = processes.largest(max((held[0].shape[1] for held in kept if held), default=0))
        found = []
        for view in range(views):
            held = torch.cat([torch.empty(0, width), *kept[view]])
            probability, feature = (processes.gather(part, counts)[order] for part in (torch.cat(rows[view]), held))
            _check_finite(probability, feature)
            method_checks.check_sums(method, probability)
            found.append(Embedded(whole[order].numpy(), probability.numpy(), feature.numpy()))
    return found


def _check_finite(probability: Tensor, feature: Tensor) -> None:
    broken = ~(probability.isfinite().all(dim=1) & feature.isfinite().all(dim=1))
    if broken.any():
        raise RunStopped(
            f"the run diverged: {int(broken.sum()):,} of {len(broken):,} images have features or probabilities that are "
            "not finite; a lower --base-lr may help"
        )
