"""Write docs/results.md from what is kept in results/: python results/tables.py

results/STUDY/ROW/ holds summary.json, config.yaml and provenance.jsonl of a session of several seeds, as it left them.
The rows of the papers are in STUDY `rows`, each named as its file: rows/imc_swav-cifar10 for configs/imc_swav/cifar10.yaml.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib.config.yaml_files import load_yaml  # noqa: E402
from lib.scoring.text_tables import spread  # noqa: E402  (from the folder above)

SCORES = ("acc", "nmi", "ari")
# (switch, row and split as shipped, row and split with the switch), of results/ablations
SWITCHES = (
    ("IMC-SwAV, BatchNorm's statistics as trained (`plain`)", ("imc_swav", "test"), ("imc_swav", "test:plain")),
    ("IMC-SwAV, of the test pictures, as published (`test_bn`)", ("imc_swav", "test"), ("imc_swav", "test:test_bn")),
    ("IMC-SwAV, `group_crops`", ("imc_swav", "test"), ("imc_swav-group-crops", "test")),
    ("IMC-SwAV, views by Pillow (`tfm_backend: pil`)", ("imc_swav", "test"), ("imc_swav-pil", "test")),
    ("IMC-SwAV, `precision: bf16`", ("imc_swav", "test"), ("imc_swav-bf16", "test")),
    ("PICA, `pica_idle_heads: none`", ("pica-two-heads", "test"), ("pica-two-heads-idle-none", "test")),
)
HEAD = """# Results

Made by `python results/tables.py` from the files in `results/`, which sessions left: `summary.json`, `config.yaml`,
`provenance.jsonl`.
Mean ± sample deviation over the seeds. Every command is the one that was run.
"""


@dataclass(frozen=True)
class Kept:
    """A session of several seeds."""

    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def command(self) -> str:
        return shlex.join(self.provenance["command"])

    @property
    def origin(self) -> str:
        """When, and on what."""
        started = self.provenance["started"][:10]
        torch = self.provenance["torch"].partition("+")[0]
        machine = (
            ", ".join(self.provenance["gpus"]) or f"{self.provenance['processor']}, {self.provenance['cpus']} cores"
        )
        return f"{started}, {machine}, PyTorch {torch}"


def kept(folder: Path) -> Kept:
    first = (folder / "provenance.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return Kept(json.loads((folder / "summary.json").read_text(encoding="utf-8")), json.loads(first))


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, ("---",) * len(titles), *rows))


def papers(folder: Path, title: str, prefix: str) -> str:
    """The rows of a paper: published mean and best beside ours."""
    rows = []
    commands = []
    for path in sorted(folder.glob("*.yaml")):
        settings = load_yaml(path)
        text = path.read_text(encoding="utf-8")
        if "published" not in settings:
            continue
        published = {name: values for name, *values in settings["published"]}
        ours = "not run: it needs a GPU"
        place = ROOT / "results/rows" / f"{prefix}-{path.stem}"
        if hours := re.search(r"about\s(?:#\s)?([\d.,]+)\s(?:#\s)?hours on an H100", text):
            ours += f" for about {hours[1]} hours (an H100)"
        if place.is_dir():
            held = kept(place)
            split = settings["published_split"]
            scores = ("acc", settings.get("published_nmi", "nmi"), "ari")
            ours = " / ".join(_spread(held.summary, split, score) for score in scores)
            ours += f" ({len(held.summary['seeds'])} seeds)"
            commands.append(f"{path.stem}: `{held.command}`, {held.origin}")
        rows.append((path.stem, *(_published(published, name) for name in ("mean", "best")), ours))
    lines = [f"## {title}", "", table(("data", "published mean", "published best", "ours"), rows)]
    return "\n".join([*lines, *(["", *(f"- {line}" for line in commands)] if commands else []), ""])


def _published(rows: Mapping[str, list[float]], name: str) -> str:
    """ACC / NMI / ARI, of a mean with its deviation if there is one."""
    if name not in rows:
        return "–"
    deviations = rows.get("deviation", [None] * 3) if name == "mean" else [None] * 3
    return " / ".join(spread(value, deviation) for value, deviation in zip(rows[name], deviations, strict=True))


def _spread(summary: Mapping[str, Any], split: str, score: str) -> str:
    return spread(*(summary[how].get(split, {}).get(score) for how in ("mean", "deviation")))


def study(folder: Path) -> str:
    """The sessions of a folder beside each other, and the baselines that they have scored; some have nothing else."""
    about = (folder / "about.md").read_text(encoding="utf-8")
    rows = []
    commands = []
    accuracies = dict[str, list[float]]()
    floor = None
    baselines: list[tuple[str, ...]] = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        held = kept(place)
        seeds = len(held.summary["seeds"])
        trained = load_yaml(place / "config.yaml")["max_epochs"] != 0
        if trained:
            rows += _cells(place.name, held.summary, seeds)
            accuracies[place.name] = _accuracies(held.summary, "test")
        for name, found in held.summary["baselines"].items():
            baselines += _cells(name if trained else f"{place.name}: {name}", found, seeds)
            floor = found["mean"]["test"]["acc"] if name == "k-means on pixels" else floor
        commands.append(f"- {place.name}: `{held.command}`, {held.origin}")
    titles = ("", "scored on", "seeds", "ACC", "NMI", "ARI")
    lines = [about, table(titles, [*rows, *dict.fromkeys(baselines)]), "", *commands, ""]
    if floor is not None:
        above = (
            f"{name} by {(statistics.fmean(found) - floor) / statistics.stdev(found):.1f}"
            for name, found in accuracies.items()
        )
        lines.insert(
            3,
            f"ACC on `test` is above that of k-means on pixels, in deviations of the method's own seeds: {', '.join(above)}.\n",
        )
    return "\n".join(lines)


def ablations(folder: Path) -> str:
    """Each switch: accuracy as shipped and with it, and whether the difference is more than noise."""
    held = {path.name: kept(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    rows = []
    for switch, *sides in SWITCHES:
        found = [_accuracies(held[name].summary, split) for name, split in sides]
        (mean, square), (other, others) = ((statistics.fmean(f), statistics.variance(f) / len(f)) for f in found)
        error = math.sqrt(square + others)
        verdict = "matters" if abs(other - mean) > 2 * error else "within noise"
        shown = [spread(statistics.fmean(values), statistics.stdev(values)) for values in found]
        rows.append((switch, *shown, f"{other - mean:+.3f} ± {error:.3f}", verdict))
    titles = ("switch", "as shipped", "with it", "difference ± standard error", "verdict")
    commands = [f"- {name}: `{one.command}`, {one.origin}" for name, one in held.items()]
    return "\n".join([(folder / "about.md").read_text(encoding="utf-8"), table(titles, rows), "", *commands, ""])


def _accuracies(summary: Mapping[str, Any], split: str) -> list[float]:
    return [run[split]["acc"] for run in summary["seeds"].values()]


def _cells(name: str, summary: Mapping[str, Any], seeds: int) -> Iterator[tuple[str, ...]]:
    for split in summary["mean"]:
        if not split.endswith(":online"):
            yield name, split, str(seeds), *(_spread(summary, split, score) for score in SCORES)


def text() -> str:
    """All of docs/results.md."""
    parts = [
        papers(ROOT / "configs", "The rows of PICA", "pica"),
        papers(ROOT / "configs/imc_swav", "The rows of IMC-SwAV", "imc_swav"),
        study(ROOT / "results/cpu"),
        study(ROOT / "results/pretrained"),
        ablations(ROOT / "results/ablations"),
    ]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    (ROOT / "docs/results.md").write_text(text(), encoding="utf-8")
