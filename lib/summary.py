"""What several runs show together: each, their mean and deviation, and the published figures beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib.config import Config
from lib.errors import UserError
from lib.metrics import TITLES
from lib.session import METRICS, Session
from lib.settings import Section, setting
from lib.yamlfile import load_yaml

Row = Mapping[str, Mapping[str, Any]]  # split → name → value


@dataclass(frozen=True)
class PublishedSettings(Section):
    title = "published figures"
    local = True
    published: tuple[tuple[str, float, float, float], ...] | None = setting(
        None, "rows of name, ACC, NMI and ARI, which --seeds shows beside its own"
    )
    published_split: str | None = setting(None, "the score of ours that they compare with")
    published_nmi: Literal["nmi", "nmi_geometric"] = setting("nmi", "which of our NMIs theirs is")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """A file of a finished session, or a UserError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no scores")
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; name the folder of a finished session") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; name the folder of a finished session") from error
    return found


def summarise(session: Session, config: Config, runs: Mapping[str, Path]) -> None:
    """Leave summary.json over the runs of several seeds, and show its table.

    `best` is the run with the best accuracy on the first split, chosen by labels; `chosen` the one with the lowest
    training loss, which nobody's labels chose.

    Args:
        session: of all runs.
        config: theirs.
        runs: the folder of each seed.
    """
    settings = config.of(PublishedSettings)
    scores = {seed: _read(folder / "scores.json") for seed, folder in runs.items()}
    content: dict[str, Any] = {"seeds": scores, **over(list(scores.values()))}
    first = next(iter(next(iter(scores.values()))))
    content["loss"] = {seed: _last_loss(folder) for seed, folder in runs.items()}
    content["best"] = _extreme({seed: run[first]["acc"] for seed, run in scores.items()}, max)
    content["chosen"] = _extreme(content["loss"], min)
    if settings.published:
        content["published"] = {
            "split": settings.published_split, "nmi": settings.published_nmi,
            "rows": {name: dict(zip(("acc", "nmi", "ari"), rest, strict=True)) for name, *rest in settings.published},
        }  # fmt: skip
    session.write_json("summary.json", content)
    session.info("\n" + _text(content))
    session.info(f"\nsession: {session.path}")


def over(runs: list[Row]) -> dict[str, Any]:
    """Median, mean and sample deviation of every number that the runs have; the deviation of a single run is 0."""
    splits = {split: [name for name in values if name != "batchnorm"] for split, values in runs[0].items()}
    how: dict[str, Callable[[list[float]], float]] = {
        "median": statistics.median, "mean": statistics.fmean,
        "deviation": lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
    }  # fmt: skip
    return {
        title: {
            split: {name: _over([run.get(split, {}).get(name) for run in runs], function) for name in names}
            for split, names in splits.items()
        }
        for title, function in how.items()
    }


def _over(values: list[Any], function: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if isinstance(value, int | float)]
    return float(function(known)) if known else None


def _extreme(values: Mapping[str, float | None], which: Callable[..., str]) -> str | None:
    known = {seed: value for seed, value in values.items() if value is not None}
    return which(known, key=known.__getitem__) if known else None


def _last_loss(folder: Path) -> float | None:
    """The training loss of the last finished epoch: of the part that the method names as its criterion."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    loss: float | None = json.loads(lines[-1])["loss"]
    return loss


def _text(content: Mapping[str, Any]) -> str:
    runs, published = content["seeds"], content.get("published")
    nmi = published["nmi"] if published else "nmi"
    rows = {f"seed {seed}": run for seed, run in runs.items()}
    rows |= {how: content[how] for how in ("median", "mean", "deviation")}
    if content["best"] is not None:
        rows[f"best by labels, seed {content['best']}"] = runs[content["best"]]
    if content["chosen"] is not None:
        rows[f"lowest loss, seed {content['chosen']}"] = runs[content["chosen"]]
    if published:
        for name, values in published["rows"].items():
            rows[f"published, {name}"] = {published["split"]: {**values, nmi: values["nmi"]}}
    splits = list(next(iter(runs.values())))
    note = "\nNMI by the geometric mean, as published." if nmi != "nmi" else ""
    return table(rows, splits, nmi) + note


def table(rows: Mapping[str, Row], splits: list[str] | None = None, nmi: str = "nmi") -> str:
    """A line per clustering, three columns per split.

    Args:
        rows: name → split → scores.
        splits: the columns; those of the first row if they are not given.
        nmi: which NMI is shown.
    """
    splits = list(next(iter(rows.values()))) if splits is None else splits
    wide = max(len(name) for name in rows)
    titles = "".join(f"{title:>7}" for _, title in TITLES)
    shown = [" " * wide + "".join(f"   {split:^21}" for split in splits), " " * wide + f"   {titles}" * len(splits)]
    for name, scores in rows.items():
        keys = [nmi if key == "nmi" else key for key, _ in TITLES]
        cells = ("   " + "".join(_cell(scores.get(split, {}).get(key)) for key in keys) for split in splits)
        shown.append(f"{name:<{wide}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in shown)


def _cell(value: float | None) -> str:
    return f"{'–':>7}" if value is None else f"{value:7.3f}"


def compare(folders: list[Path]) -> str:
    """Sessions beside each other: their scores, of several seeds mean ± deviation, and the settings that differ.

    Raises:
        UserError: one is no finished session.
    """
    lines = [("session", "split", "seeds", *(title for _, title in TITLES))]
    for folder in folders:
        name = folder.resolve().name
        for split, (seeds, cells) in _cells(folder).items():
            lines.append((name, split, seeds, *cells))
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, wide, strict=True)).rstrip() for line in lines]
    settings = [load_yaml(folder / "config.yaml") for folder in folders]
    names = dict.fromkeys(name for held in settings for name in held if name != "session_root")
    values = {name: [held.get(name) for held in settings] for name in names}
    differing = [
        f"  {name}: " + " | ".join(map(str, found))
        for name, found in values.items()
        if found.count(found[0]) < len(found)
    ]
    return "\n".join([*shown, *(["", "Settings that differ, in this order:", *differing] if differing else [])])


def _cells(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Split → (number of seeds, a text for each column)."""
    runs = folder / "summary.json"
    found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]
    if not runs.is_file():
        found = {split: (values, {}) for split, values in _read(folder / "scores.json").items()}
        seeds = "1"
    else:
        content = _read(runs)
        seeds = str(len(content["seeds"]))
        found = {split: (values, content["deviation"][split]) for split, values in content["mean"].items()}
    return {
        split: (seeds, [_spread(values.get(key), deviations.get(key)) for key, _ in TITLES])
        for split, (values, deviations) in found.items()
    }


def _spread(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if deviation is None else f"{value:.3f} ± {deviation:.3f}"
