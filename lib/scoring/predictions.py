"""Which image is in which cluster, for people and for other programs: predictions.csv and predictions.npz."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from lib.datasets import Pictures
from lib.scoring.inference import Predictions


def archive(pictures: Pictures, predictions: Predictions) -> dict[str, Any]:
    """What predictions.npz holds."""
    places = [pictures.locate(int(position)) for position in predictions.index]
    return {
        "split": np.array([name for name, _ in places]),
        "index": np.array([i for _, i in places]),
        "cluster": predictions.cluster,
        "label": pictures.labels()[predictions.index],
        "probability": predictions.probability,
        "classes": np.array(list(pictures.classes or ()), dtype=np.str_),
    }


def name_of(pictures: Pictures, position: int, root: Path) -> str:
    """Its path below the folder of the data set, else in full; `split/number` for a picture that is no file."""
    path = pictures.path(position)
    if path is None:
        split, i = pictures.locate(position)
        return f"{split}/{i}"
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def table(pictures: Pictures, predictions: Predictions, root: Path) -> bytes:
    """What predictions.csv holds: path, cluster, confidence, and the second most probable cluster.

    Names are as the file system has them, also where they are no UTF-8.
    """
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines.writerow(["path", "cluster", "confidence", "runner_up"])
    second = np.argsort(-predictions.probability, axis=1, kind="stable")[:, 1]
    for position, cluster, row, other in zip(
        predictions.index, predictions.cluster, predictions.probability, second, strict=True
    ):
        name = name_of(pictures, int(position), root)
        # The plain writer takes a carriage return for an ordinary letter, and its reader does not.
        (quoted if "\r" in name else lines).writerow([name, cluster, f"{row[cluster]:.4f}", other])
    return os.fsencode(text.getvalue())
