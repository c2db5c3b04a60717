"""What `--help`, `--help all` and `--list` print."""

from __future__ import annotations

import dataclasses
import shlex
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lib.config.config import Config
from lib.config.registry import Registry
from lib.config.sections import Kind, all_sections, fields_of, lifetime_of, types_of
from lib.config.text_columns import beside, command_lines, unbroken, width, wrapped
from lib.config.written_values import flag_of, shown

USAGE = "usage: python main.py --cfgs FILE [FILE ...] [--NAME VALUE ...]"
INTRODUCTION = (
    "Sorts unlabelled images into clusters, by PICA or IMC-SwAV. YAML files (name: value) give the settings, and flags "
    "override them."
)
TEXT_COLUMN = 26
WHOLE = 30  # characters up to which a remark stays on one line
PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", bool: "[true|false]"}


def short(
    config: Config,
    sections: Sequence[Kind],
    everyday: Mapping[str, Mapping[str, str]],
    examples: Sequence[tuple[str, str]],
) -> str:
    """The settings of every day, by what they are for, and commands that work.

    Args:
        config: what the files and flags have set.
        sections: the settings that every run has; those of any component may be shown too.
        everyday: {title of a group: {name of a setting: its text}}.
        examples: (what it does, command) each.
    """
    owners = _owners(config, sections)
    lines = [USAGE, "", *wrapped(INTRODUCTION, width())]
    for title, texts in everyday.items():
        lines += ["", f"{title}:"]
        for name, text in texts.items():
            lines += _entry(name, owners[name], config, text)
    lines += ["", "examples:"]
    for purpose, command in examples:
        lines += [f"  # {purpose}", *command_lines(shlex.split(command))]
    return "\n".join([*lines, "", "--help all shows every setting; --list shows methods, data sets and networks."])


def complete(config: Config, sections: Sequence[Kind]) -> str:
    """Every setting: first those of the components in use, then those of the other components."""
    lines = [USAGE, "", *wrapped(INTRODUCTION, width())]
    used = config.sections
    for section in used:
        lines += _group(section, config, "")
    others = {section: (registry, name) for section, registry, name in all_sections(sections) if section not in used}
    for section, (registry, name) in others.items():
        assert registry is not None  # the sections of every run are in use
        lines += _group(section, config, f"; only with {choice_flag(registry, sections)} {name}")
    return "\n".join(lines)


def component_list(sections: Sequence[Kind]) -> str:
    """Every registered component, by kind, each with its title or the first line of its docstring."""
    lines: list[str] = []
    for section in sections:
        for name, field in fields_of(section).items():
            registry: Registry | None = field.metadata["component"]
            if registry is None:
                continue
            lines += ["", f"{_plural(registry.kind)}, for {flag_of(name)} NAME:"]
            for component, text in registry.listed():
                lines += beside(f"  {component}", text, TEXT_COLUMN)
    return "\n".join(lines[1:])


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def _group(section: Kind, config: Config, condition: str) -> list[str]:
    lines = ["", f"{section.title}{condition}:"]
    for name in fields_of(section):
        lines += _entry(name, section, config)
    return lines


def _owners(config: Config, sections: Sequence[Kind]) -> dict[str, Kind]:
    """The section of each setting; where several components have it, that of the component in use."""
    every = [*config.sections, *(section for section, _, _ in all_sections(sections))]
    return {name: section for section in reversed(every) for name in fields_of(section)}


def choice_flag(registry: Registry, sections: Sequence[Kind]) -> str:
    """The flag that chooses a component of this registry."""
    return next(
        flag_of(name)
        for section in sections
        for name, field in fields_of(section).items()
        if field.metadata["component"] is registry
    )


def _entry(name: str, section: Kind, config: Config, brief: str = "") -> list[str]:
    """A setting: its flag, its text, and in brackets the choices, the default and the value that is set.

    `brief`: a text in the place of the setting's own; a default that says nothing is then left out.
    """
    field = fields_of(section)[name]
    hint = types_of(section)[name]
    value = getattr(config.of(section), name) if section in config.sections else field.default
    is_switch = hint is bool and field.default is False
    placeholder = "" if brief and is_switch else placeholder_of(field, hint)
    remarks = list(_remarks(field, hint, value))
    if brief and (lifetime_of(name, section) == "call" or (value == field.default and value in (None, False, ""))):
        remarks = []
    bracket = f" ({'; '.join(remarks)})" if remarks else ""
    text = (brief or field.metadata["help"]) + bracket
    return beside(f"  {flag_of(name)} {placeholder}".rstrip(), text, TEXT_COLUMN)


def _remarks(field: dataclasses.Field[Any], hint: Any, value: Any) -> Iterator[str]:
    registry: Registry | None = field.metadata["component"]
    choices = choices_of(field, hint)
    if choices:
        yield f"one of: {', '.join(choices)}"
    unit = field.metadata["unit"]
    if unit and field.default is None:
        yield f"in {unit}"
    if field.default != "" or registry is None:
        yield _whole(f"default: {quantity(field.default, unit)}")
    if value != field.default:
        yield _whole(f"set here: {quantity(value, unit)}")


def _whole(remark: str) -> str:
    """A remark that no line end tears, unless it is long."""
    return unbroken(remark) if len(remark) <= WHOLE else remark


def _is_quantity(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def quantity(value: Any, unit: str) -> str:
    """A value as the help shows it, with its unit."""
    if value == "":
        return "''"
    if isinstance(value, tuple) and value:
        return " ".join(quantity(entry, "") for entry in value) + (f" {unit}" if unit else "")
    text = f"{value:.6g}" if isinstance(value, float) else shown(value)
    if not unit or not _is_quantity(value):
        return text
    return f"{text} {unit.removesuffix('s') if value == 1 else unit}"


def placeholder_of(field: dataclasses.Field[Any], hint: Any) -> str:
    """What stands for the value behind a flag, such as `FILE` or `N [N ...]`."""
    several = "tuple" in str(hint)
    word = field.metadata["value"] or ("NAME" if field.metadata["component"] else _word(hint))
    return f"{word} [{word} ...]" if several else word


def _word(hint: Any) -> str:
    """The placeholder of a type; of several, that of the first."""
    if typing.get_origin(hint) is Literal:
        return "N" if all(isinstance(choice, int) for choice in typing.get_args(hint)) else "NAME"
    arguments = [part for part in typing.get_args(hint) if part not in (types.NoneType, Ellipsis)]
    return PLACEHOLDERS[hint] if not arguments else _word(arguments[0])


def choices_of(field: dataclasses.Field[Any], hint: Any) -> list[str]:
    """The values or components between which a setting chooses; empty where it takes any value of its type."""
    registry: Registry | None = field.metadata["component"]
    return _literals(hint) if registry is None else [name for name, _ in registry.listed()]


def _literals(hint: Any) -> list[str]:
    """The values that a type lists, if it does; of a switch with one more value, none."""
    if bool in typing.get_args(hint):
        return []
    if typing.get_origin(hint) is Literal:
        return [str(choice) for choice in typing.get_args(hint)]
    return [choice for part in typing.get_args(hint) for choice in _literals(part)]
