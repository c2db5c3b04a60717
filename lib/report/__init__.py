"""What a person gets of a finished run: its files of scores and predictions, its table, and report.html.

`python -m lib.report SESSION …` makes the reports of finished sessions again, and compares them.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Mapping
from pathlib import Path

from lib import baselines, distributed, evaluation, export, metrics, predictions, summary
from lib.checkpoint import write_atomically
from lib.command import Command
from lib.config import Config
from lib.datasets import DataSettings
from lib.evaluation import EvaluationSettings, Outcome, Scores
from lib.inference import Predictions
from lib.method import MethodSettings, Task
from lib.report import board, found, gallery, page, several
from lib.runtime import SeedSettings
from lib.session import Session, SessionSettings

SHOWN = 20  # unreadable pictures that the console lists


def finish(session: Session, task: Task, config: Config, outcome: Outcome) -> None:
    """Leave scores.json and the predictions, do what --export and --copy-to ask for, and show the table."""
    gallery.keep(session, task, config, outcome)
    skipped = distributed.merged(task.views.skipped)
    if not distributed.leads():
        return
    command, settings, predicted = config.of(Command), config.of(EvaluationSettings), outcome.predictions
    rows = {config.of(MethodSettings).method: outcome.scores}
    if settings.baseline and not command.predict:
        seed = config.of(SeedSettings).seed or 0
        rows |= baselines.scores(task, settings.baseline, settings.eval_batch_size, seed)
    if session.path is not None:
        root = Path(config.of(DataSettings).data_root).expanduser()
        session.write_bytes("predictions.csv", predictions.table(task.pictures, predicted, root))
        session.write_arrays("predictions.npz", predictions.archive(task.pictures, predicted))
    if skipped:
        _tell_of_skipped(session, skipped)
    session.write_json("scores.json", _scores_file(task, predicted, rows))  # it says that the run is done
    if command.export is not None:
        export.export(command.export, config, task.method.state_dict(), outcome.statistics, task.encode)
    target = predictions.check(task.pictures, config, session.goes_on)
    if target is not None and predictions.is_sorted(target):
        session.info(f"the pictures by cluster are there from before: {target}")
    elif target is not None:
        predictions.copy(task.pictures, predicted, target, command.link)
        session.info(f"the pictures by cluster: {target}")
    if any(values["acc"] is not None for values in outcome.scores.values()):
        session.evaluation("\n" + summary.table(rows) + _partly_labelled(task, predicted))
    else:
        session.evaluation(
            "\n" + "\n".join(f"{split}: {evaluation.line(values)}" for split, values in outcome.scores.items())
        )
    session.info(f"\nsession: {session.path or 'none, because of --debug'}")
    if command.export is not None:
        session.info(f"exported: {command.export}")
    if session.path is not None:
        if (writer := session.board()) is not None:
            board.show(writer, found.read(session.path))
        show(session, config, make(session.path))


def make(folder: Path, again: bool = True) -> Path:
    """Leave the report of a session in its folder, and those of its runs where it has several.

    Args:
        folder: of the session.
        again: also where a run has its report.

    Returns:
        the file

    Raises:
        UserError: it is no finished session, or cannot be written.
    """
    runs = summary.runs_of(folder)
    for run in runs:
        if again or not (run / page.FILE).is_file():
            write_atomically(run / page.FILE, page.page(found.read(run)).encode())
    if runs != [folder]:
        write_atomically(folder / page.FILE, several.overview(folder, runs).encode())
    return folder / page.FILE


def show(session: Session, config: Config, report: Path) -> None:
    """Say where a report lies, and open it if that is wanted."""
    address = report.resolve().as_uri()
    session.info(f"report: {address}")
    if config.of(SessionSettings).open and not webbrowser.open(address):
        session.warn(f"--open: no browser was found; open {address} in one")


def _partly_labelled(task: Task, found: Predictions) -> str:
    """A line for each split in which some pictures alone have a label."""
    lines = []
    for name, split in task.splits.items():
        _, labels = found.of(split)
        if 0 < (known := int((labels >= 0).sum())) < len(labels):
            lines.append(f"\n{name}: {known:,} of {len(labels):,} pictures have a label; ACC, NMI and ARI are theirs")
    return "".join(lines)


def _tell_of_skipped(session: Session, skipped: Mapping[int, str]) -> None:
    lines = [skipped[position] for position in sorted(skipped)]
    session.write("skipped.txt", "\n".join(lines) + "\n")
    shown = "\n".join(f"  {line}" for line in lines[:SHOWN]) + ("\n  …" if len(lines) > SHOWN else "")
    where = " (all are in skipped.txt)" if session.path else ""
    session.warn(f"{len(lines)} pictures could not be read and were left out{where}:\n{shown}")


def _scores_file(task: Task, found: Predictions, by: Mapping[str, Scores]) -> Scores:
    own, *_ = by.values()
    classes = task.pictures.classes
    content: Scores = {name: dict(values) for name, values in own.items()}
    for name, split in task.splits.items():
        rows, labels = found.of(split)
        match = metrics.matching(labels, found.cluster[rows])
        content[name]["matching"] = {
            str(cluster): classes[label] if classes else label for cluster, label in match.items()
        }
        if others := {title: scores[name] for title, scores in list(by.items())[1:]}:
            content[name]["baselines"] = others
    return content
