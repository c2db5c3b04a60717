"""What a person gets of a finished run: its files of scores, its table and report.html; not the scores themselves.

`python -m lib.report SESSION …` makes the reports of finished sessions again, and compares them.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lib.checkpoints.checkpoint import write_atomically
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.contracts import Task
from lib.datasets import DataSettings
from lib.datasets.folder_tree import counted
from lib.errors import UserError, outside
from lib.machine import processes
from lib.machine.random_seeds import SeedSettings
from lib.methods.method import MethodSettings
from lib.report import closing_block, comparison, page, session_files, sorted_copies, tensorboard_images, thumbnails
from lib.scoring import baselines, metrics, predictions, summary_over_seeds
from lib.scoring.evaluation import EvaluationSettings, Outcome, Scores
from lib.scoring.inference import Predictions
from lib.serving import export
from lib.session import Session, SessionSettings

SHOWN = 20  # unreadable pictures that the console lists


def finish(session: Session, task: Task, outcome: Outcome) -> None:
    """Leave the predictions and scores.json; then the report, and what --export and --copy-to ask for; show the table.

    Raises:
        UserError: the results cannot be written, or what follows them cannot; the results are then there.
    """
    config = task.config
    skipped = processes.merged(task.views.skipped)
    rows: dict[str, Scores] = {}
    if processes.leads():
        rows = _leave_results(session, task, outcome, skipped)
        session.complete()
    problems: list[str] = []
    with _noted(problems):
        thumbnails.keep(session, task, outcome)
    if not processes.leads():
        return
    command = config.of(Command)
    exported = False
    if command.export is not None:
        with _noted(problems):
            export.export(command.export, config, task.method.state_dict(), outcome.statistics, task.encode)
            exported = True
    if command.copy_to is not None:
        with _noted(problems):
            session.info(sorted_copies.copy(task.pictures, outcome.predictions, config, session))
    with _noted(problems):
        closing_block.show_scores(session, task, rows, _partly_labelled(task, outcome.predictions))
        if exported:
            session.info(f"\nexported: {command.export}")
    if session.path is not None:
        with _noted(problems):
            if (writer := session.board()) is not None:
                tensorboard_images.show(writer, session_files.read(session.path))
                writer.flush()
        with _noted(problems):
            open_report(session, config, make(session.path))
    with _noted(problems):
        own = next(iter(rows.values()))
        closing_block.show_next(session, task, own[next(iter(task.splits))])
    if problems:
        where = f"; the results are complete in {session.path}" if session.path is not None else ""
        raise UserError("; ".join(dict.fromkeys(problems)) + where)


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """What fails is said at the end, so that it keeps nothing else from being done."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(outside(error))


def _leave_results(session: Session, task: Task, outcome: Outcome, skipped: Mapping[int, str]) -> dict[str, Scores]:
    """Write the predictions and scores.json; returns the scores of the method and of the baselines, by their titles."""
    config = task.config
    settings = config.of(EvaluationSettings)
    predicted = outcome.predictions
    if session.path is not None:
        root = Path(config.of(DataSettings).data_root).expanduser()
        session.write_bytes("predictions.csv", predictions.table(task.pictures, predicted, root))
        session.write_arrays("predictions.npz", predictions.archive(task.pictures, predicted))
    if skipped:
        _tell_of_skipped(session, skipped)
    for split, values in outcome.scores.items():
        if "unscored" in values and not config.of(Command).predict:
            session.warn(f"{split}: {values['unscored']}")
    rows = {config.of(MethodSettings).method: outcome.scores}
    if settings.baseline and not config.of(Command).predict:
        seed = config.of(SeedSettings).number
        rows |= baselines.scores(task, settings.baseline, settings.eval_batch_size, seed)
    session.write_json("scores.json", _scores_file(task, predicted, rows))  # it says that the run is done
    return rows


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
    runs = summary_over_seeds.runs_of(folder)
    for run in runs:
        if again or not (run / page.FILE).is_file():
            write_atomically(run / page.FILE, page.page(session_files.read(run)).encode())
    if runs != [folder]:
        write_atomically(folder / page.FILE, comparison.overview(folder, runs).encode())
    return folder / page.FILE


def open_report(session: Session, config: Config, report: Path) -> None:
    """Show a report in the browser if that is wanted."""
    address = report.resolve().as_uri()
    if config.of(SessionSettings).open and not webbrowser.open(address):
        session.warn(f"--open: no browser was found; open {address} in one")


def _partly_labelled(task: Task, found: Predictions) -> str:
    """A line for each split in which some pictures alone have a label."""
    lines = []
    for name, split in task.splits.items():
        _, labels = found.of(split)
        if 0 < (known := int((labels >= 0).sum())) < len(labels) and not metrics.unscored(labels):
            lines.append(f"\n{name}: {known:,} of {len(labels):,} pictures have a label; ACC, NMI and ARI are theirs")
    return "".join(lines)


def _tell_of_skipped(session: Session, skipped: Mapping[int, str]) -> None:
    lines = [skipped[position] for position in sorted(skipped)]
    session.write("skipped.txt", "\n".join(lines) + "\n")
    shown = "\n".join(f"  {line}" for line in lines[:SHOWN]) + ("\n  …" if len(lines) > SHOWN else "")
    where = " (all are in skipped.txt)" if session.path else ""
    count = counted(len(lines), "picture", "pictures")
    verb = "was" if len(lines) == 1 else "were"
    session.warn(f"{count} could not be read and {verb} left out{where}:\n{shown}")


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
