"""What a person reads of a finished run: its files of scores and predictions, and its table.

`python -m lib.report SESSION …` shows the scores of finished sessions beside each other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import distributed, evaluation, metrics, safetensors, summary
from lib.config import Command, Config
from lib.errors import UserError, exit_status
from lib.evaluation import EvaluationSettings, Predictions, Scores
from lib.method import MethodSettings, Task
from lib.runtime import SeedSettings
from lib.session import Session

SHOWN = 20  # unreadable pictures that the console lists


def finish(session: Session, task: Task, config: Config, predictions: Predictions, scores: Scores) -> None:
    """Leave scores.json, predictions.npz and what --export asks for, and show the table."""
    skipped = distributed.merged(task.views.skipped)
    if not distributed.leads():
        return
    rows = {config.of(MethodSettings).method: scores}
    settings = config.of(EvaluationSettings)
    if settings.baseline == "kmeans":
        seed = config.of(SeedSettings).seed or 0
        rows["k-means on pixels"] = evaluation.kmeans(task, settings.eval_batch_size, seed)
    if session.path is not None:
        np.savez_compressed(session.path / "predictions.npz", **_predictions_file(task, predictions))
    if skipped:
        _tell_of_skipped(session, skipped)
    if config.of(Command).export is not None:
        safetensors.export(str(config.of(Command).export), config.as_dict(), task.method.state_dict())
    session.write_json("scores.json", _scores_file(task, predictions, rows))  # last: it says that the run is done
    session.info("\n" + summary.table(rows))
    session.info(f"\nsession: {session.path or 'none, because of --debug'}")


def _tell_of_skipped(session: Session, skipped: Mapping[int, str]) -> None:
    lines = [skipped[position] for position in sorted(skipped)]
    session.write("skipped.txt", "\n".join(lines) + "\n")
    shown = "\n".join(f"  {line}" for line in lines[:SHOWN]) + ("\n  …" if len(lines) > SHOWN else "")
    where = " (all are in skipped.txt)" if session.path else ""
    session.warn(f"{len(lines)} pictures could not be read and were left out{where}:\n{shown}")


def _scores_file(task: Task, predictions: Predictions, found: Mapping[str, Scores]) -> Scores:
    own, *others = found.values()
    classes = task.pictures.classes
    content: Scores = {name: dict(values) for name, values in own.items()}
    for name, split in task.splits.items():
        rows, labels = predictions.of(split)
        match = metrics.matching(labels, predictions.cluster[rows])
        content[name]["matching"] = {
            str(cluster): classes[label] if classes else label for cluster, label in match.items()
        }
        for other in others:
            content[name]["kmeans"] = other[name]
    return content


def _predictions_file(task: Task, predictions: Predictions) -> dict[str, Any]:
    places = [task.pictures.locate(int(position)) for position in predictions.index]
    return {
        "split": np.array([name for name, _ in places]),
        "index": np.array([i for _, i in places]),
        "cluster": predictions.cluster,
        "label": task.pictures.labels()[predictions.index],
        "probability": predictions.probability,
    }


@exit_status
def main(folders: Sequence[str]) -> None:
    """Compare sessions."""
    if not folders or folders[0].startswith("-"):
        raise UserError("name the folders of one or more sessions: python -m lib.report sessions/NAME …")
    print(summary.compare([Path(folder) for folder in folders]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
