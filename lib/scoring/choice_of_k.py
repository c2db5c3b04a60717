"""Several numbers of clusters side by side, so that someone without labels can choose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lib.scoring.label_free import TITLES as LABEL_FREE
from lib.scoring.metrics import TITLES
from lib.scoring.text_tables import aligned, spread

DIRECTIONS = (
    "Better: PUI low, balance near 1 where the groups should be of one size, everything else high.\n"
    "A run whose clusters have all become one has no PUI, silhouette and agreement, and does not count there."
)


def text(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for each scored split, with a line for each number of clusters; mean ± deviation of several seeds.

    Args:
        numbers: number of clusters → what `lib.scoring.summary_over_seeds.of_seeds` gives.
    """
    splits = [split for split in next(iter(numbers.values()))["mean"] if ":" not in split]  # not other treatments
    tables = [f"{split}\n{_table(numbers, split, first=split == splits[0])}" for split in splits]
    return "\n\n".join([*tables, DIRECTIONS])


def _table(numbers: Mapping[str, Mapping[str, Any]], split: str, first: bool) -> str:
    several = any(len(found["seeds"]) > 1 for found in numbers.values())
    labelled = any(found["mean"][split].get("acc") is not None for found in numbers.values())
    shown = [*LABEL_FREE, ("entropy", "balance"), *(TITLES if labelled else ())]
    agree = several and first
    lines = [("clusters", *(title for _, title in shown), *(["seeds agree"] if agree else []))]
    for number, found in numbers.items():
        cells = []
        for key, _ in shown:
            scale = math.log(int(number)) if key == "entropy" else 1.0
            values = (found[how][split].get(key) for how in ("mean", "deviation"))
            mean, deviation = (None if value is None else value / scale for value in values)
            known = sum(run[split].get(key) is not None for run in found["seeds"].values())
            alone = f" ({known} of {len(found['seeds'])})" if 0 < known < len(found["seeds"]) else ""
            cells.append(spread(mean, deviation if known > 1 else None) + alone)
        lines.append((number, *cells, *([spread(found["seed_agreement"], None)] if agree else [])))
    return aligned(lines)
