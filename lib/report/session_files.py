"""What a finished session's files say, read back for its report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lib.config.yaml_files import load_yaml
from lib.errors import UserError
from lib.report import thumbnails
from lib.scoring.label_free import directions


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
    try:
        with np.load(path / "predictions.npz") as archive:
            cluster, label, probability = (archive[name] for name in ("cluster", "label", "probability"))
            classes = archive["classes"].tolist()
        with open(path / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="") as lines:
            names = [row[0] for row in list(csv.reader(lines))[1:]]
        if not len(names) == len(cluster) == len(label) == len(probability):
            raise ValueError("predictions.csv and predictions.npz are of different runs")
        return Found(
            path, load_yaml(path / "config.yaml"), _lines(path / "provenance.jsonl"),
            json.loads((path / "scores.json").read_text(encoding="utf-8")), _lines(path / "metrics.jsonl"),
            _lines(path / "training.jsonl"), _texts(path / "skipped.txt"), names, cluster, label, probability, classes,
            _shown(path / thumbnails.FILE, len(names)),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, EOFError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read the files of {path} ({problem}); --evaluate makes them again") from error


def _shown(path: Path, count: int) -> Shown | None:
    if not path.is_file():
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
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _lines(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in _texts(path)]
