"""The JSON files of a session, read back: a damaged one ends in one line, and reaches no table and no report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib.config.regular_files import check_regular
from lib.errors import UserError
from lib.scoring import label_free, metrics

BALANCE = ("smallest", "largest", "entropy")
SHOWN = (
    *metrics.NAMES,
    *(key for key, _ in label_free.TITLES),
    *BALANCE,
)  # by tables and reports, each a number or null
FINISHED = "name the folder of a finished session"
TRAINED_AGAIN = "remove the run's folder, and it is trained again"
LEFT_OUT = "remove that line, and the report does without it"


def read_scores(path: Path, advice: str = FINISHED) -> dict[str, dict[str, Any]]:
    """scores.json: split → name → value.

    Args:
        path: of the file.
        advice: what to do where it cannot be read.

    Raises:
        UserError: it is missing or damaged.
    """
    return _read(path, _check_scores, advice)


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json (`lib.scoring.summary_over_seeds.summarise`).

    Raises:
        UserError: it is missing or damaged.
    """
    return _read(path, _check_summary, FINISHED)


def read_metrics(path: Path, advice: str = LEFT_OUT) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where it is missing.

    Raises:
        UserError: it is damaged.
    """
    return _read_lines(path, _check_metrics, advice)


def read_training(path: Path) -> list[dict[str, Any]]:
    """The lines of training.jsonl; none where it is missing.

    Raises:
        UserError: it is damaged.
    """
    return _read_lines(path, _check_training, LEFT_OUT)


def read_provenance(path: Path) -> list[dict[str, Any]]:
    """The lines of provenance.jsonl; none where it is missing.

    Raises:
        UserError: it is damaged.
    """
    return _read_lines(path, _check_provenance, LEFT_OUT)


Check = Callable[[Mapping[str, Any]], None]
"""Raises ValueError where a structure is not as it is written."""


def _read(path: Path, check: Check, advice: str) -> dict[str, Any]:
    try:
        check_regular(path)
        return _parsed(path.read_text(encoding="utf-8"), check)
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; {advice}") from error
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {problem}; {advice}") from error


def _read_lines(path: Path, check: Check, advice: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        check_regular(path)
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(_parsed(line, check))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {advice}") from error
    except ValueError as error:
        raise UserError(f"cannot read {path}, line {len(found) + 1}: {error}; {advice}") from error
    return found


def _parsed(text: str, check: Check) -> dict[str, Any]:
    """The mapping in a JSON text.

    Raises:
        ValueError: the text is not JSON, or not of the structure.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested without end") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no mapping")
    check(found)
    return found


def _check_scores(content: Mapping[str, Any]) -> None:
    if not content:
        raise ValueError("it holds no scores")
    for split, values in content.items():
        _check_numbers(values, split)
        if missing := [name for name in ("acc", *BALANCE) if name not in values]:
            raise ValueError(f"{split} has no {missing[0]}")
        if any(values[name] is None for name in BALANCE):
            raise ValueError(f"{split} has no sizes of clusters")
        if not isinstance(values.get("unscored", ""), str):
            raise ValueError(f"unscored of {split} is no text")
        for name, scores in _mapping(values.get("baselines", {}), f"baselines of {split}").items():
            _check_numbers(scores, name)


def _check_summary(content: Mapping[str, Any]) -> None:
    families = _mapping(content.get("num_clusters", {"0": content}), "num_clusters")
    if not families:
        raise ValueError("it holds no scores")
    for number, family in families.items():
        _mapping(family, "num_clusters")
        if not number.isdecimal():
            raise ValueError(f"{number[:40]!r} is no number of clusters")
        _mapping(family.get("seeds"), "seeds")
        for how in ("mean", "deviation"):
            for split, values in _mapping(family.get(how), how).items():
                _check_numbers(values, split)
        if family["mean"].keys() != family["deviation"].keys():
            raise ValueError("mean and deviation are of different splits")
        _check_number(family.get("seed_agreement"), "seed_agreement")


def _check_metrics(line: Mapping[str, Any]) -> None:
    _check_numbers(line, "the line")
    for name in ("epoch", "step", "loss"):
        _check_number(line.get(name), name)


def _check_training(line: Mapping[str, Any]) -> None:
    for name, value in line.items():
        _check_number(value, name)
    for name in ("epoch", "step", "seconds", "pictures_per_second"):
        if line.get(name) is None:
            raise ValueError(f"it has no {name}")


def _check_provenance(line: Mapping[str, Any]) -> None:
    if not isinstance(line.get("command", []), list):
        raise ValueError("the command is no list")


def _check_numbers(values: Any, where: str) -> None:
    for name, value in _mapping(values, where).items():
        if name in SHOWN:
            _check_number(value, f"{name} of {where}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds no mapping")
    return value


def _check_number(value: Any, where: str) -> None:
    """None passes: it stands for a number that is not known."""
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (abs(value) < 2**63 and math.isfinite(value)):
        raise ValueError(f"{where} is no number")
