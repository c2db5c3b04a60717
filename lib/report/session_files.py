"""What a finished session's files say, read back for its report."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lib.config.regular_files import check_regular
from lib.config.yaml_files import load_yaml
from lib.errors import UserError
from lib.report import thumbnails
from lib.scoring import score_files
from lib.scoring.label_free import directions

EVALUATED_AGAIN = "--evaluate with its checkpoint makes a session with new ones"


@dataclass(frozen=True)
class Shown:
    """The n pictures that a report shows (`lib.report.thumbnails`)."""

    row: NDArray[np.int64]  # (n,) among the predictions, ascending
    feature: NDArray[np.float32]  # (n, D), each of length 1
    place: NDArray[np.float32]  # (n, 2) in [0, 1]
    sprite: bytes  # JPEG
    cell: int  # px, side of a thumbnail
    pixelated: bool


@dataclass(frozen=True)
class Found:
    """A finished run: its scores over time, and the prediction of each of its N pictures."""

    path: Path
    settings: Mapping[str, Any]
    provenance: Sequence[Mapping[str, Any]]  # of each start
    scores: Mapping[str, Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    training: Sequence[Mapping[str, Any]]
    skipped: Sequence[str]
    names: Sequence[str]  # (N,)
    cluster: NDArray[np.int64]  # (N,)
    label: NDArray[np.int64]  # (N,), −1 where unknown
    probability: NDArray[np.float32]  # (N, K)
    classes: Sequence[str]
    shown: Shown | None

    @property
    def k(self) -> int:
        return int(self.probability.shape[1])

    @property
    def confidence(self) -> NDArray[np.float32]:
        confidence: NDArray[np.float32] = self.probability.max(axis=1)
        return confidence

    def class_name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)


def read(path: Path) -> Found:
    """The files of a session.

    Raises:
        UserError: it is no finished session, or one of its files is damaged.
    """
    wanted = ("config.yaml", "scores.json", "predictions.npz", "predictions.csv")
    missing = [name for name in wanted if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path} has no {missing[0]}; name the folder of a finished session")
    settings = load_yaml(path / "config.yaml", score_files.FINISHED)
    provenance = score_files.read_provenance(path / "provenance.jsonl")
    scores = score_files.read_scores(path / "scores.json", EVALUATED_AGAIN)
    metrics = score_files.read_metrics(path / "metrics.jsonl")
    training = score_files.read_training(path / "training.jsonl")
    try:
        with np.load(path / "predictions.npz") as archive:
            cluster, label, probability = (archive[name] for name in ("cluster", "label", "probability"))
            classes = archive["classes"].tolist()
        with open(path / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="") as lines:
            names = [row[0] for row in list(csv.reader(lines))[1:]]
        if not len(names) == len(cluster) == len(label) == len(probability):
            raise ValueError("predictions.csv and predictions.npz are of different runs")
        _check_predictions(cluster, label, probability)
        return Found(
            path, settings, provenance, scores, metrics, training, _texts(path / "skipped.txt"), names, cluster, label,
            probability, classes, _shown(path / thumbnails.FILE, len(names)),
        )  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError, csv.Error, BadZipFile, zlib.error, EOFError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read the predictions or images of {path} ({problem}); {EVALUATED_AGAIN}") from error


def _check_predictions(cluster: NDArray[Any], label: NDArray[Any], probability: NDArray[Any]) -> None:
    """Raises ValueError where they are no N clusters, N labels and (N, K) probabilities."""
    if probability.ndim != 2 or probability.dtype.kind != "f":
        raise ValueError("the probabilities are no table of numbers")
    if any(column.ndim != 1 or column.dtype.kind not in "iu" for column in (cluster, label)):
        raise ValueError("the clusters and labels are no whole numbers")
    if not 0 <= cluster.min(initial=0) <= cluster.max(initial=0) < probability.shape[1]:
        raise ValueError("there are more clusters than probabilities")


def _shown(path: Path, count: int) -> Shown | None:
    check_regular(path)
    if not path.exists():
        return None
    with np.load(path) as held:
        feature = directions(np.nan_to_num(held["feature"].astype(np.float32)))  # float16 may have overflowed
        row = held["row"]
        if len(row) and row.max() >= count:
            raise ValueError(f"{path.name} is of another run")
        return Shown(
            row, feature, held["place"], held["sprite"].tobytes(), int(held["cell"]), bool(held["pixelated"])
        )  # fmt: skip


def _texts(path: Path) -> list[str]:
    check_regular(path)
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
