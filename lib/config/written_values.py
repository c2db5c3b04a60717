"""How settings and their values are written: as flags, in YAML, and in messages."""

from __future__ import annotations

from typing import Any

import yaml


def flag_of(name: str) -> str:
    """The flag that gives a setting."""
    return "--" + name.replace("_", "-")


def plain(value: Any) -> Any:
    """A value as YAML, JSON and checkpoints have it: tuples are lists."""
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def in_yaml(value: Any) -> str:
    """A value as YAML, on one line."""
    text: str = yaml.safe_dump(plain(value), default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def shown(value: Any) -> str:
    """A value as it is written behind a flag."""
    if isinstance(value, list | tuple):
        return " ".join(shown(entry) for entry in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
