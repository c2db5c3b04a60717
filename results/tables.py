"""The tables of scores in README.md and docs/, which `python docs/generate.py` writes.

results/STUDY/ROW/ has summary.json, config.yaml and provenance.jsonl of a session of several seeds, as it left them.
The rows of the papers are in STUDY `rows`, each named as its file: rows/imc_swav-cifar10 for configs/imc_swav/cifar10.yaml.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib.config.yaml_files import load_yaml  # noqa: E402  (from the folder above)
from lib.runs import forecast  # noqa: E402
from lib.scoring.text_tables import spread  # noqa: E402

SCORES = ("acc", "nmi", "ari")
TITLES = {"imc_swav": "IMC-SwAV", "pica": "PICA"}
CONFIGS = {"pica": "configs", "imc_swav": "configs/imc_swav"}
# The predicted length of a run on an H100, in the comment that opens the file of a row
PREDICTIONS = {
    "float32, the default": re.compile(r"about ([\d.,]+ hours) on an H100 SXM"),
    "bfloat16": re.compile(r"on an H100 in bfloat16: [\d.,]+ ms a step, ([\d.,]+ minutes) for the run"),
}
# (switch, row and split as shipped, row and split with the switch), of results/ablations
SWITCHES = (
    ("IMC-SwAV, BatchNorm's statistics as trained (`plain`)", ("imc_swav", "test"), ("imc_swav", "test:plain")),
    ("IMC-SwAV, of the test images, as published (`test_bn`)", ("imc_swav", "test"), ("imc_swav", "test:test_bn")),
    ("IMC-SwAV, views by Pillow (`tfm_backend: pil`)", ("imc_swav", "test"), ("imc_swav-pil", "test")),
    ("IMC-SwAV, `precision: bf16`", ("imc_swav", "test"), ("imc_swav-bf16", "test")),
    ("PICA, `pica_idle_heads: none`", ("pica-two-heads", "test"), ("pica-two-heads-idle-none", "test")),
)
# (images, study, baseline that stands beside the methods)
GLANCE = (
    ("digits", "digits", "k-means on pixels"),
    ("CIFAR-10, 12,000 images", "cpu", "k-means on pixels"),
    ("the same, features of an ImageNet network", "pretrained", "k-means on features"),
)


@dataclass(frozen=True)
class StoredSession:
    """What a session of several seeds left."""

    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def command(self) -> str:
        return shlex.join(self.provenance["command"])

    @property
    def configuration(self) -> str:
        """The file of settings that its command names last."""
        return str([word for word in self.provenance["command"] if word.endswith(".yaml")][-1])

    @property
    def origin(self) -> str:
        """When, and on what."""
        started = self.provenance["started"][:10]
        torch = self.provenance["torch"].partition("+")[0]
        cpu = f"{self.provenance['processor']}, {self.provenance['cpus']} cores"
        return f"{started}, {', '.join(self.provenance['gpus']) or cpu}, PyTorch {torch}"


def stored_session(folder: Path) -> StoredSession:
    first = (folder / "provenance.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return StoredSession(json.loads((folder / "summary.json").read_text(encoding="utf-8")), json.loads(first))


def stored_sessions(study: Path) -> dict[str, StoredSession]:
    """The sessions of a study, by the names of their folders."""
    return {path.name: stored_session(path) for path in sorted(study.iterdir()) if path.is_dir()}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, ("---",) * len(titles), *rows))


def paper_rows(method: str) -> str:
    """The rows of a method's paper: published mean and best, beside our scores or the time that a run would take."""
    rows = []
    commands = []
    for path in sorted((ROOT / CONFIGS[method]).glob("*.yaml")):
        settings = load_yaml(path)
        if "published" not in settings:
            continue
        stored = ROOT / "results/rows" / f"{method}-{path.stem}"
        if stored.is_dir():
            session = stored_session(stored)
            scores = ("acc", settings.get("published_nmi", "nmi"), "ari")
            values = (_spread(session.summary, settings["published_split"], score) for score in scores)
            ours = f"{' / '.join(values)} ({len(session.summary['seeds'])} seeds)"
            commands.append(_origin(path.stem, session))
        else:
            ours = "not run"
        rows.append(
            (f"`{path.stem}`", _published(settings, "mean"), _published(settings, "best"), ours, *_lengths(path))
        )
    times = (f"predicted time of a run, {how}" for how in PREDICTIONS)
    titles = ("data", "published mean", "published best", "ours", *times)
    return "\n\n".join([table(titles, rows), _assumption(), *(["\n".join(commands)] if commands else [])])


def _assumption() -> str:
    """On what the predicted times rest."""
    peak, share = forecast.PEAKS["an H100 SXM"]
    return (
        "Scores are ACC / NMI / ARI. Both times are predictions of `--dry-run` for an H100, and neither is a measurement. "
        f"In float32, the prediction assumes {share:.0%} of the GPU's peak of {peak / 1e12:g} TFLOP/s, the lower of two "
        f"measured shares. In bfloat16, it assumes {forecast.BF16_SHARE:.0%} of the GPU's peak of "
        f"{forecast.BF16_PEAK / 1e12:.0f} TFLOP/s, and "
        f"{forecast.BF16_PASSES} passes over the activations at {forecast.BF16_BANDWIDTH / 1e12:.2f} TB/s. "
        "An earlier version's steps in bfloat16 took 5 (PICA) and 13 (IMC-SwAV) times as long as predicted, and today's "
        "version has not been measured there ([speed.md](speed.md#a-training-step-on-a-gpu))."
    )


def _lengths(configuration: Path) -> tuple[str, ...]:
    """The predicted lengths of a run, from the comment that opens its file."""
    comment = re.sub(r"\n#\s*", " ", configuration.read_text(encoding="utf-8"))
    matches = (prediction.search(comment) for prediction in PREDICTIONS.values())
    return tuple(match[1] if match else "–" for match in matches)


def _published(settings: Mapping[str, Any], name: str) -> str:
    """ACC / NMI / ARI; a mean has its standard deviation if that was published."""
    published = {row: values for row, *values in settings["published"]}
    if name not in published:
        return "–"
    deviations = published.get("deviation", [None] * 3) if name == "mean" else [None] * 3
    return " / ".join(spread(value, deviation) for value, deviation in zip(published[name], deviations, strict=True))


def _spread(summary: Mapping[str, Any], split: str, score: str) -> str:
    return spread(*(summary[how].get(split, {}).get(score) for how in ("mean", "deviation")))


def _origin(name: str, session: StoredSession) -> str:
    return f"- {name}: `{session.command}`, {session.origin}"


def study(name: str) -> str:
    """The sessions of a study beside each other, the baselines that they have scored, and their commands."""
    sessions = stored_sessions(ROOT / "results" / name)
    origins = "\n".join(_origin(TITLES.get(row, row), session) for row, session in sessions.items())
    return f"{study_scores(name)}\n\n{origins}"


def study_scores(name: str) -> str:
    """The sessions of a study beside each other, and the baselines that they have scored."""
    sessions = stored_sessions(ROOT / "results" / name)
    trained = {row: session for row, session in sessions.items() if _is_trained(ROOT / "results" / name / row)}
    rows = [
        cells
        for row, session in trained.items()
        for cells in _cells(TITLES.get(row, row), session.summary, len(session.summary["seeds"]))
    ]
    rows += _baselines(sessions, untrained=set(sessions) - set(trained))
    parts = [table(("", "scored on", "seeds", "ACC", "NMI", "ARI"), rows)]
    parts += _lead(trained, _baseline_scores(sessions, "k-means on pixels"))
    return "\n\n".join(parts)


def _is_trained(folder: Path) -> bool:
    return bool(load_yaml(folder / "config.yaml")["max_epochs"] != 0)


def _baselines(sessions: Mapping[str, StoredSession], untrained: set[str]) -> list[tuple[str, ...]]:
    """A row for each baseline and split; where two sessions differ, each row names its session."""
    cells = {
        (baseline, row): tuple(_cells(baseline, summary, len(session.summary["seeds"])))
        for row, session in sessions.items()
        for baseline, summary in session.summary["baselines"].items()
    }
    rows = dict[tuple[str, ...], None]()  # in order, each once
    for (baseline, row), lines in cells.items():
        differs = any(other == baseline and lines != values for (other, _), values in cells.items())
        is_unclear = differs or (row in untrained and baseline.endswith("features"))
        label = f"{baseline} ({TITLES.get(row, row)})" if is_unclear else baseline
        rows |= {(label, *line[1:]): None for line in lines}
    return list(rows)


def _baseline_scores(sessions: Mapping[str, StoredSession], baseline: str) -> dict[str, Mapping[str, Any]]:
    """The summaries of a baseline, by the session that has scored it."""
    return {
        row: session.summary["baselines"][baseline]
        for row, session in sessions.items()
        if baseline in session.summary["baselines"]
    }


def _lead(trained: Mapping[str, StoredSession], floors: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """By how much each method is above k-means on the pixels, if that was scored."""
    if not floors:
        return
    leads = []
    for row, session in trained.items():
        scores = accuracies(session.summary, "test")
        floor = floors.get(row, next(iter(floors.values())))["mean"]["test"]["acc"]
        leads.append(f"{(statistics.fmean(scores) - floor) / statistics.stdev(scores):.1f} ({TITLES.get(row, row)})")
    yield (
        f"The mean ACC on `test` exceeds that of k-means on pixels by {' and '.join(leads)} standard deviations of the "
        "method's seeds."
    )


def seed_range(name: str) -> str:
    """The lowest, median and highest ACC on `test` among the seeds of each method of a study."""
    rows = []
    for row, session in stored_sessions(ROOT / "results" / name).items():
        scores = accuracies(session.summary, "test")
        shown = " ".join(f"{score:.3f}" for score in scores)
        rows.append((TITLES.get(row, row), shown, *(f"{how(scores):.3f}" for how in (min, statistics.median, max))))
    return table(("method", "ACC of each seed", "lowest", "median", "highest"), rows)


def ablations() -> str:
    """Each switch: accuracy as shipped and with it, and whether the difference is more than noise."""
    sessions = stored_sessions(ROOT / "results/ablations")
    rows = []
    for switch, shipped, switched in SWITCHES:
        before, after = (accuracies(sessions[row].summary, split) for row, split in (shipped, switched))
        difference = statistics.fmean(after) - statistics.fmean(before)
        error = math.sqrt(sum(statistics.variance(scores) / len(scores) for scores in (before, after)))
        verdict = "matters" if abs(difference) > 2 * error else "within noise"
        shown = (spread(statistics.fmean(scores), statistics.stdev(scores)) for scores in (before, after))
        rows.append((switch, *shown, f"{difference:+.3f} ± {error:.3f}", verdict))
    titles = ("switch", "as shipped", "with it", "difference ± standard error", "verdict")
    return "\n\n".join([table(titles, rows), "\n".join(_origin(row, one) for row, one in sessions.items())])


def at_a_glance() -> str:
    """What was run, k-means and the published figures, on one screen."""
    rows = []
    for images, name, baseline in GLANCE:
        sessions = stored_sessions(ROOT / "results" / name)
        floors = _baseline_scores(sessions, baseline)
        for method in ("pica", "imc_swav"):
            session = sessions[method]
            floor = floors.get(method, next(iter(floors.values())))
            file = session.configuration.removeprefix("configs/")
            scores = (_spread(session.summary, "test", score) for score in SCORES)
            beside = " / ".join(f"{floor['mean']['test'][score]:.3f}" for score in SCORES)
            seeds = str(len(session.summary["seeds"]))
            rows.append((images, f"{TITLES[method]}, `{file}`", *scores, seeds, beside, "–"))
    rows += [_whole_cifar10(method) for method in ("pica", "imc_swav")]
    titles = ("images", "method, file in `configs/`", "ACC", "NMI", "ARI", "seeds", "k-means", "published mean")
    return table(titles, rows)


def _whole_cifar10(method: str) -> tuple[str, ...]:
    """The row of the paper, which needs a GPU."""
    path = ROOT / CONFIGS[method] / "cifar10.yaml"
    settings = load_yaml(path)
    stored = ROOT / "results/rows" / f"{method}-cifar10"
    scores = ("not run", "–", "–")
    seeds = "–"
    if stored.is_dir():
        session = stored_session(stored)
        names = ("acc", settings.get("published_nmi", "nmi"), "ari")
        acc, nmi, ari = (_spread(session.summary, settings["published_split"], score) for score in names)
        scores = (acc, nmi, ari)
        seeds = str(len(session.summary["seeds"]))
    file = str(path.relative_to(ROOT / "configs"))
    return ("CIFAR-10, 60,000 images", f"{TITLES[method]}, `{file}`", *scores, seeds, "–", _published(settings, "mean"))


def accuracies(summary: Mapping[str, Any], split: str) -> list[float]:
    """ACC of each seed."""
    return [run[split]["acc"] for run in summary["seeds"].values()]


def _cells(name: str, summary: Mapping[str, Any], seeds: int) -> Iterator[tuple[str, ...]]:
    for split in summary["mean"]:
        if not split.endswith(":online"):
            yield name, f"`{split}`", str(seeds), *(_spread(summary, split, score) for score in SCORES)
