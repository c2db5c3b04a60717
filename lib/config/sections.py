"""Which settings a section declares, how long each holds, and which sections there are."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from lib.config.registry import Registry
from lib.config.settings import Lifetime, Section

Kind = type[Section]
_hints: Callable[[Any], dict[str, Any]] = cache(typing.get_type_hints)


def fields_of(section: Kind) -> dict[str, dataclasses.Field[Any]]:
    """The settings that a section declares, by name."""
    return {field.name: field for field in dataclasses.fields(typing.cast(Any, section))}


def types_of(section: Kind) -> dict[str, Any]:
    """The type that a section declares for each of its settings."""
    return _hints(section)


def lifetime_of(name: str, section: Kind) -> Lifetime:
    """How long the value of a section's setting holds."""
    lifetime: Lifetime | None = fields_of(section)[name].metadata["lifetime"]
    return section.lifetime if lifetime is None else lifetime


def kept_names(section: Kind) -> list[str]:
    """The settings that are kept with a run: not those of one call, nor those without effect."""
    fields = fields_of(section).items()
    return [name for name, field in fields if lifetime_of(name, section) != "call" and not field.metadata["idle"]]


def all_sections(sections: Sequence[Kind]) -> Iterator[tuple[Kind, Registry | None, str]]:
    """Every section there is, also of components that are not in use: (section, registry, component)."""
    for section in sections:
        yield section, None, ""
        for field in fields_of(section).values():
            registry = field.metadata["component"]
            for name in registry.names() if registry is not None else ():
                declared = settings_of(registry.get(name))
                if declared is not None:
                    yield declared, registry, name


def known_fields(sections: Sequence[Kind]) -> dict[str, dataclasses.Field[Any]]:
    """Every setting there is, by name; of two components with one name, the first."""
    fields: dict[str, dataclasses.Field[Any]] = {}
    for section, _, _ in all_sections(sections):
        fields = fields_of(section) | fields
    return fields


def settings_of(component: Any) -> Kind | None:
    """The section that a component declares, if it has settings."""
    return getattr(component, "Settings", None)
