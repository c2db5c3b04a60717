"""What a person reads of a finished run: its files of scores and predictions, and its table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from lib import evaluation, metrics, safetensors
from lib.config import Command, Config
from lib.evaluation import COLUMNS, EvaluationSettings, Predictions, Scores
from lib.method import MethodSettings, Task
from lib.runtime import SeedSettings
from lib.session import Session

SHOWN = 20  # unreadable pictures that the console lists


def finish(session: Session, task: Task, config: Config, predictions: Predictions, scores: Scores) -> None:
    """Leave scores.json, predictions.npz and what --export asks for, and show the table."""
    rows = {config.of(MethodSettings).method: scores}
    settings = config.of(EvaluationSettings)
    if settings.baseline == "kmeans":
        seed = config.of(SeedSettings).seed or 0
        rows["k-means on pixels"] = evaluation.kmeans(task, settings.eval_batch_size, seed)
    session.write_json("scores.json", _scores_file(task, predictions, rows))
    if session.path is not None:
        np.savez_compressed(session.path / "predictions.npz", **_predictions_file(task, predictions))
    if task.views.skipped:
        _tell_of_skipped(session, task)
    if config.of(Command).export is not None:
        safetensors.export(str(config.of(Command).export), config.as_dict(), task.method.state_dict())
    session.info("\n" + table(rows))
    session.info(f"\nsession: {session.path or 'none, because of --debug'}")


def _tell_of_skipped(session: Session, task: Task) -> None:
    lines = [task.views.skipped[position] for position in sorted(task.views.skipped)]
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


def table(rows: Mapping[str, Scores]) -> str:
    """A line per clustering, three columns per split."""
    splits = list(next(iter(rows.values())))
    wide = max(len(name) for name in rows)
    titles = "".join(f"{title:>7}" for _, title in COLUMNS)
    shown = [" " * wide + "".join(f"   {split:^21}" for split in splits), " " * wide + f"   {titles}" * len(splits)]
    for name, scores in rows.items():
        cells = ("   " + "".join(_cell(scores.get(split, {}).get(key)) for key, _ in COLUMNS) for split in splits)
        shown.append(f"{name:<{wide}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in shown)


def _cell(value: float | None) -> str:
    return f"{'–':>7}" if value is None else f"{value:7.3f}"


def summarise(session: Session, runs: Mapping[str, Scores]) -> None:
    """Leave summary.json over several seeds, and show each and their median, mean and deviation."""
    splits = {split: list(scores) for split, scores in next(iter(runs.values())).items()}
    content: dict[str, Any] = {"seeds": runs}
    for how, function in (("median", statistics.median), ("mean", statistics.fmean), ("deviation", _deviation)):
        content[how] = {
            split: {
                name: _over([run[split][name] for run in runs.values()], function)
                for name in names
                if name != "batchnorm"
            }
            for split, names in splits.items()
        }
    session.write_json("summary.json", content)
    rows = {f"seed {seed}": scores for seed, scores in runs.items()}
    rows |= {how: content[how] for how in ("median", "mean", "deviation")}
    session.info("\n" + table(rows))
    session.info(f"\nsession: {session.path or 'none, because of --debug'}")


def _over(values: list[float | None], function: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(function(known)) if known else None


def _deviation(values: list[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
