"""The block at the end of a run: its scores in words beside a baseline's, its files, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.config import pasted_commands
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.contracts import Method, Task
from lib.datasets import DataSettings
from lib.machine.random_seeds import SeedSettings
from lib.scoring import evaluation, metrics, summary_over_seeds
from lib.scoring.evaluation import ONLINE, Scores
from lib.session import Session
from lib.training.trainer import TrainerSettings

ALIKE = 0.01  # of ACC and NMI; a smaller difference from a baseline is none
FILES = {
    "report.html": "the images of each cluster, a map of all, and curves",
    "predictions.csv": "the cluster of each image, and how sure it is",
    "scores.json": "all scores",
    "checkpoint/latest.ckpt": "the trained model",
    "summary.json": "the scores of all runs, their mean and standard deviation",
    "runs": "a folder for each run",
}
MEANINGS = {
    "acc": "{percent} of the {images} are in the cluster of their class",
    "nmi": "how much a cluster tells of the class (0: nothing, 1: all)",
    "ari": "how far pairs of images agree with the classes (0: by chance, 1: all)",
}
WITHOUT_LABELS = {
    "confidence": "how clearly an image belongs to one cluster (1: wholly)",
    "pui": "how much clusters share images (0: nothing, 1: all)",
    "silhouette": "how far clusters are apart (1: far, 0: they touch)",
    "agreement": "whether an image keeps its cluster in another view (1: always)",
}


def show_scores(session: Session, task: Task, rows: Mapping[str, Scores], remarks: str) -> None:
    """The table with a word on each score, and how it compares with the baselines.

    Args:
        session: of the run.
        task: of the run.
        rows: the scores of the method, and behind them those of the baselines, by their titles.
        remarks: lines below the table.
    """
    own, *_ = rows.values()
    first = next(iter(task.splits))
    if session.is_member:
        session.evaluation(f"finished: {evaluation.short(own[first], None)}")
        return
    is_enough = len(task.splits[first].index) >= evaluation.FEW * task.method.num_clusters
    if is_enough and not task.config.of(Command).trains:  # a training has said it
        evaluation.warn_of_collapse(session, own[first], task.method, is_early=False)
    if all(values["acc"] is None for values in own.values()):
        _show_without_labels(session, task, own)
        return
    session.evaluation("\n" + summary_over_seeds.table(_split_by_treatment(rows), list(task.splits)) + remarks)
    if f"{task.trained_name}:{ONLINE}" in own:
        session.info('"while training": the assignments made while training; the first row is the result.', indent=2)
    session.info("")
    scores = own[first]
    images = "images" if first == "all" else f"{first} images"  # `all`: a folder that is not split
    for key, title in metrics.TITLES:
        if scores[key] is not None:
            text = MEANINGS[key].format(percent=f"{100 * scores[key]:.0f} %", images=images)
            session.info(f"{title} {scores[key]:.3f}  {text}", indent=11)
    _compare(session, task, rows, first)


def _split_by_treatment(rows: Mapping[str, Scores]) -> dict[str, Scores]:
    """A row for each way in which a split was scored; the first way has the method's own name."""
    found: dict[str, Scores] = {}
    for title, scores in rows.items():
        for name, values in scores.items():
            split, _, how = name.partition(":")
            shown = "while training" if how == ONLINE else f"{title}, {how}" if how else title
            found.setdefault(shown, {})[split] = values
    return found


def _show_without_labels(session: Session, task: Task, own: Scores) -> None:
    session.evaluation("")
    for split in task.splits:
        why = own[split].get("unscored", "no labels, so no ACC, NMI and ARI")
        session.evaluation(f"{split}: {why}; {evaluation.short(own[split], None)}")
    values = own[next(iter(task.splits))]
    even = 100 / task.method.num_clusters
    session.info(f"Clusters of one size would have {even:.0f} % of the images each.")
    for key, text in WITHOUT_LABELS.items():
        if values.get(key) is not None:
            session.info(f"{values[key]:6.3f}  {key.upper() if key == 'pui' else key}: {text}", indent=8)
    if not metrics.collapsed(values["entropy"], task.method.num_clusters):
        session.info("The images tell whether these are the groups you look for: see the report.", indent=2)


def _compare(session: Session, task: Task, rows: Mapping[str, Scores], split: str) -> None:
    (name, own), *_ = rows.items()
    baselines = {title: scores[split] for title, scores in list(rows.items())[1:]}
    scored = {title: values for title, values in baselines.items() if values["acc"] is not None}
    if own[split]["acc"] is None or not scored:
        return
    title = max(scored, key=lambda name: float(scored[name]["acc"]))
    differences = [own[split][key] - scored[title][key] for key in ("acc", "nmi")]
    beside = f"{title} (ACC {scored[title]['acc']:.3f}, NMI {scored[title]['nmi']:.3f})"
    if min(differences) > ALIKE:
        session.info(f"On {split}, {name} is better than {beside}.", indent=2)
    elif max(differences) < -ALIKE:
        advice = _advice(task, own[split])
        session.warn(f"on {split}, {name} is worse than {beside}, which trains no network.{advice}")
    else:
        session.info(f"On {split}, {name} is about as good as {beside}, which trains no network.", indent=2)


def _advice(task: Task, scores: Mapping[str, Any]) -> str:
    if not task.config.of(Command).trains:
        return ""
    if metrics.collapsed(scores["entropy"], task.method.num_clusters):
        return " The clusters collapsed: more epochs will not help."
    return f" Train for more epochs (--max-epochs), or try {task.method.remedy}."


def show_next(session: Session, task: Task, scores: Mapping[str, Any]) -> None:
    """The files, and commands for what a person may want now.

    Args:
        session: of the run.
        task: of the run.
        scores: of the split that is scored first.
    """
    config = task.config
    folder = session.path
    if folder is None:
        session.info("\nNo file was written, because of --debug.")
        return
    _show_files(session, folder)
    command = config.of(Command)
    steps = _report(folder)
    if command.trains and metrics.collapsed(scores["entropy"], task.method.num_clusters):
        seed = config.of(SeedSettings).number + 1
        steps.append(("train anew, as from another seed", pasted_commands.again(folder, config, "--seed", seed)))
    elif command.trains:
        latest = folder / "checkpoint" / "latest.ckpt"
        steps += _predictions(latest, config)
        steps += [_longer(folder, config), _other_numbers(folder, config, task.method)]
    _show_steps(session, steps)


def show_next_of_family(session: Session, config: Config, folders: Sequence[Path], best: Path | None) -> None:
    """The same for several runs.

    Args:
        session: of the family.
        config: the settings that its runs share.
        folders: of the runs that are done.
        best: the folder of a run that no labels chose.
    """
    assert session.path is not None
    _show_files(session, session.path)
    steps = _report(session.path)
    steps += _predictions((best or folders[0]) / "checkpoint" / "latest.ckpt", config)
    if best is None:
        session.info(
            f"\nThe commands below take the run {folders[0].name}; put the folder of another one in its place."
        )
    steps.append(
        (
            "resume runs that are missing; with --seeds or --num-clusters, add others",
            pasted_commands.resume_family(session.path),
        )
    )
    _show_steps(session, steps)


def _report(folder: Path) -> list[tuple[str, str]]:
    file = folder / "report.html"
    if not file.exists():
        return []
    return [("open the report in a browser", pasted_commands.module("webbrowser", file.resolve().as_uri()))]


def _predictions(latest: Path, config: Config) -> list[tuple[str, str]]:
    data = config.of(DataSettings)
    if data.dataset != "image_folder":
        title = "cluster other images of this kind; put their folder in the place of FOLDER"
        return [(title, pasted_commands.predict(latest, "FOLDER", config))]
    copies = f"sorted-{latest.parent.parent.name}"
    return [
        (
            "cluster other images; put their folder in the place of this one",
            pasted_commands.predict(latest, data.data_root, config),
        ),
        (
            f"sort copies of the images into {copies}/, a folder for each cluster",
            pasted_commands.predict(latest, data.data_root, config, "--copy-to", copies),
        ),
    ]


def _longer(folder: Path, config: Config) -> tuple[str, str]:
    settings = config.of(TrainerSettings)
    words = ["--max-epochs", 2 * settings.epochs or 1]
    if settings.max_steps is not None:
        words += ["--max-steps", 2 * settings.max_steps or 1]
    return "resume the training, to twice its length", pasted_commands.resume(folder, config, *words)


def _other_numbers(folder: Path, config: Config, method: Method) -> tuple[str, str]:
    k = method.num_clusters
    step = max(1, round(k / 5))
    numbers = [number for number in (k - step, k, k + step) if number > 1]
    return "compare other numbers of clusters", pasted_commands.again(folder, config, *method.words_for(*numbers))


def _show_files(session: Session, folder: Path) -> None:
    session.info(f"\nfiles in {folder}/")
    there = {name: text for name, text in FILES.items() if (folder / name).exists()}
    wide = max(map(len, there), default=0)
    for name, text in there.items():
        session.info(f"  {name:<{wide}}  {text}", indent=wide + 4)


def _show_steps(session: Session, steps: Sequence[tuple[str, str]]) -> None:
    session.info("\nnext")
    for title, command in steps:
        session.info(f"  {title}:\n    {command}")
