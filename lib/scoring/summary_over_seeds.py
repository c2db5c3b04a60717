"""What several runs show together: each, their mean and deviation, and the published figures beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lib.config.config import Config
from lib.config.regular_files import check_regular
from lib.config.settings import Section, setting
from lib.config.yaml_files import load_yaml
from lib.datasets import parts_of
from lib.errors import UserError
from lib.machine.random_seeds import SeedSettings
from lib.scoring import choice_of_k
from lib.scoring.metrics import TITLES
from lib.scoring.score_files import FINISHED, TRAINED_AGAIN, read_metrics, read_scores, read_summary
from lib.scoring.text_tables import aligned, spread
from lib.session import METRICS, Session

Row = Mapping[str, Mapping[str, Any]]  # split → name → value
Assigned = tuple[NDArray[np.int64], NDArray[np.int64]]  # (N,) which picture, (N,) its cluster


@dataclass(frozen=True)
class Member:
    """One run of a family. None: the command gives one for all of them."""

    clusters: int | None
    seed: str | None

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(self._parts("clusters-{}", "seed-{}"))

    def __str__(self) -> str:
        return ", ".join(self._parts("{} clusters", "seed {}"))

    @property
    def words(self) -> Sequence[str]:
        """Its own part of a command line."""
        flags = " ".join(self._parts("--num-clusters {}", "--seeds none --seed {}"))
        return flags.split()

    def _parts(self, clusters: str, seed: str) -> list[str]:
        given = ((clusters, self.clusters), (seed, self.seed))
        return [text.format(value) for text, value in given if value is not None]


@dataclass(frozen=True)
class PublishedSettings(Section):
    title = "published figures"
    lifetime = "machine"
    published: tuple[tuple[str, float, float, float], ...] | None = setting(
        None, "rows of name, ACC, NMI and ARI from a paper, which --seeds shows beside its own", value="ROW"
    )
    published_split: str | None = setting(
        None, "our score that the published figures compare with, such as train+test", value="SCORE"
    )
    published_nmi: Literal["nmi", "nmi_geometric"] = setting("nmi", "our NMI that the published one compares with")


def summarise(session: Session, config: Config, runs: Mapping[Member, Path]) -> None:
    """Leave summary.json over the finished runs of a family, and show its table.

    Args:
        session: of the family.
        config: its settings.
        runs: the folder of each.
    """
    numbers = list(dict.fromkeys(member.clusters for member in runs))
    common = str(config.of(SeedSettings).seed)
    found = {
        number: of_seeds({one.seed or common: folder for one, folder in runs.items() if one.clusters == number})
        for number in numbers
    }
    content: dict[str, Any]
    if None in found:
        content = found[None] | _published(config.of(PublishedSettings))
        text = _text(content)
    else:
        content = {"num_clusters": {str(number): values for number, values in found.items()}}
        text = choice_of_k.text(content["num_clusters"])
    session.write_json("summary.json", content)
    session.evaluation("\n" + text)


def of_seeds(runs: Mapping[str, Path]) -> dict[str, Any]:
    """What the runs of several seeds show together.

    `best` is the run with the best accuracy on the first split, chosen by labels; `chosen` the one with the lowest
    training loss, which nobody's labels chose; `seed_agreement` the mean adjusted Rand index between the clusters of two
    runs on the first split, None for a single run.

    Args:
        runs: the folder of each seed.

    Raises:
        UserError: a file of a run is missing or damaged.
    """
    scores = {seed: read_scores(folder / "scores.json", TRAINED_AGAIN) for seed, folder in runs.items()}
    losses = {seed: last_loss(folder) for seed, folder in runs.items()}
    first = next(iter(next(iter(scores.values()))))
    for seed, run in scores.items():
        if first not in run:
            raise UserError(f"{runs[seed] / 'scores.json'} has no scores of {first}; {TRAINED_AGAIN}")
    return {
        "seeds": scores,
        **over(list(scores.values())),
        "baselines": _baselines(list(scores.values())),
        "loss": losses,
        "best": _extreme({seed: run[first]["acc"] for seed, run in scores.items()}, max),
        "chosen": _extreme(losses, min),
        "seed_agreement": _agreement([_clusters(folder / "predictions.npz", first) for folder in runs.values()]),
    }


def _clusters(path: Path, expression: str) -> Assigned:
    """What a run's predictions.npz says of the pictures of `split` or `split+split+…`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        check_regular(path)
        with np.load(path) as archive:
            split, index, cluster = (archive[name] for name in ("split", "index", "cluster"))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; {TRAINED_AGAIN}") from error
    parts = [(number, split == name) for number, name in enumerate(parts_of(expression))]
    keys = np.concatenate([number * 2**40 + index[own] for number, own in parts])
    return keys, np.concatenate([cluster[own] for _, own in parts])


def _agreement(runs: Sequence[Assigned]) -> float | None:
    """The mean adjusted Rand index of all pairs, each on the pictures that both have; a single cluster agrees with nothing."""
    from sklearn.metrics import adjusted_rand_score

    found = []
    for (keys, clusters), (others, theirs) in combinations(runs, 2):
        _, ours, other = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
        trivial = min(len(np.unique(clusters[ours])), len(np.unique(theirs[other]))) < 2
        found.append(0.0 if trivial else float(adjusted_rand_score(clusters[ours], theirs[other])))
    return statistics.fmean(found) if found else None


def _baselines(runs: list[Row]) -> dict[str, Any]:
    """What `over` gives, for each baseline."""
    held = [{split: v["baselines"] for split, v in run.items() if "baselines" in v} for run in runs]
    names: list[str] = list(next(iter(held[0].values()), {}))
    return {
        name: over([{split: found[name] for split, found in run.items() if name in found} for run in held])
        for name in names
    }


def _published(settings: PublishedSettings) -> dict[str, Any]:
    if not settings.published:
        return {}
    rows = {name: dict(zip(("acc", "nmi", "ari"), rest, strict=True)) for name, *rest in settings.published}
    return {"published": {"split": settings.published_split, "nmi": settings.published_nmi, "rows": rows}}


def over(runs: list[Row]) -> dict[str, Any]:
    """Median, mean and sample deviation of every number that the runs have; the deviation of a single run is 0."""
    splits = {
        split: [name for name, value in values.items() if not isinstance(value, dict | str)]
        for split, values in runs[0].items()
    }
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


def last_loss(folder: Path) -> float | None:
    """The training loss of the last finished epoch: of the part that the method names as its criterion."""
    path = folder / METRICS
    lines = read_metrics(path, TRAINED_AGAIN)
    if not lines or "loss" not in lines[-1]:
        raise UserError(f"{path} has lost its last line; {TRAINED_AGAIN}")
    loss: float | None = lines[-1]["loss"]
    return loss


def _text(content: Mapping[str, Any]) -> str:
    runs = content["seeds"]
    published = content.get("published")
    nmi = published["nmi"] if published else "nmi"
    rows = {f"seed {seed}": run for seed, run in runs.items()}
    rows |= {how: content[how] for how in ("median", "mean", "deviation")}
    if content["best"] is not None:
        rows[f"best by labels, seed {content['best']}"] = runs[content["best"]]
    if content["chosen"] is not None:
        rows[f"lowest loss, seed {content['chosen']}"] = runs[content["chosen"]]
    for name, found in content["baselines"].items():
        rows |= {f"{name}, {how}": found[how] for how in ("mean", "deviation")}
    if published:
        for name, values in published["rows"].items():
            rows[f"published, {name}"] = {published["split"]: {**values, nmi: values["nmi"]}}
    splits = list(next(iter(runs.values())))
    notes = ["NMI by the geometric mean, as published."] if nmi != "nmi" else []
    if content["seed_agreement"] is not None:
        index = f"{content['seed_agreement']:.3f}"
        notes.append(
            f"The seeds agree by {index} on {splits[0]} (adjusted Rand index of their clusters, mean of all pairs)."
        )
    return "\n".join([table(rows, splits, nmi), *notes])


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
        for name, split, seeds, *cells in _cells(folder):
            lines.append((folder.resolve().name + name, split, seeds, *cells))
    settings = [load_yaml(folder / "config.yaml", FINISHED) for folder in folders]
    names = dict.fromkeys(name for held in settings for name in held if name != "session_root")
    values = {name: [held.get(name) for held in settings] for name in names}
    differing = [
        f"  {name}: " + " | ".join(map(str, found))
        for name, found in values.items()
        if found.count(found[0]) < len(found)
    ]
    return "\n".join([aligned(lines), *(["", "Settings that differ, in this order:", *differing] if differing else [])])


def _cells(folder: Path) -> Iterator[tuple[str, ...]]:
    """Of a single run, of all seeds, or of each number of clusters: what to add to the name, split, seeds, a text each."""
    held = folder / "summary.json"
    if not held.is_file():
        for split, values in read_scores(folder / "scores.json").items():
            yield "", split, "1", *(spread(values.get(key), None) for key, _ in TITLES)
        return
    content = read_summary(held)
    numbers = {f"/clusters-{number}": found for number, found in content.get("num_clusters", {}).items()}
    for name, found in (numbers or {"": content}).items():
        for split, values in found["mean"].items():
            deviations = found["deviation"][split]
            cells = (spread(values.get(key), deviations.get(key)) for key, _ in TITLES)
            yield name, split, str(len(found["seeds"])), *cells


def runs_of(folder: Path) -> list[Path]:
    """The finished runs of a session: itself, or the members of its family."""
    if not (folder / "summary.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("runs/*/scores.json"))
