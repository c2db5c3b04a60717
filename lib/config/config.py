"""Declared settings + YAML files + flags → one frozen `Config`, handed down and never reached for.

Later files override earlier ones, and flags override files. A checkpoint, where one is evaluated or
resumed, lies under the files; what its network is bound to (`Section.bound`), and what a run that goes
on cannot change (`setting(fixed=True)`), wins over files and refuses flags that say otherwise. Where
and how it was made (`Section.local`) is not taken from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from lib.config import settings
from lib.config.command_flags import Command
from lib.config.registry import Registry, UnknownNameError, nearest
from lib.config.settings import Section
from lib.config.yaml_files import load_layers, located
from lib.errors import UserError

S = TypeVar("S", bound=Section)
Kind = type[Section]
FLAG = "command line"
DEFAULT = "the program"


@dataclass(frozen=True)
class Raw:
    """A value as written, and where."""

    value: Any
    origin: str
    order: int = -1  # of the file on the command line; flags come last

    @property
    def flag(self) -> bool:
        return self.origin == FLAG


class Config:
    """All settings of a run: one frozen dataclass per component in use.

    Two configurations are equal if they run the same; what belongs to one call (`transient`) or
    has no effect (`idle`) does not count. `weights_given`: a checkpoint brings the weights of what is built from it.
    """

    def __init__(
        self, sections: Mapping[Kind, Section], notes: Sequence[str] = (), weights_given: bool = False
    ) -> None:
        self._sections = dict(sections)
        self.notes = tuple(notes)
        self.weights_given = weights_given

    def of(self, section: type[S]) -> S:
        """The settings that `section` declares."""
        return typing.cast(S, self._sections[section])

    def extra(self, component: Any) -> tuple[Any, ...]:
        """The settings that a component declares, as the arguments to append when it is built."""
        declared = getattr(component, "Settings", None)
        return () if declared is None else (self._sections[declared],)

    def identity(self) -> dict[str, Any]:
        """The settings that make a run what it is: all but where and how it is run."""
        kinds = [kind for kind in self._sections if not kind.local]
        return {name: _plain(getattr(self._sections[kind], name)) for kind in kinds for name in _lasting(kind)}

    def undecided(self) -> list[str]:
        """The settings that are left to the pictures or the machine."""
        fields = (pair for kind in self._sections for pair in fields_of(kind).items())
        plain = self.as_dict()
        return [name for name, field in fields if field.metadata["adaptive"] and plain[name] in settings.OPEN]

    def changes(self, earlier: Mapping[str, Any]) -> list[str]:
        """What differs from the settings in a checkpoint of the same run."""
        return [
            f"{name}: {shown(earlier[name])} before, {shown(value)} now"
            for name, value in self.identity().items() if name in earlier and earlier[name] != value
        ]  # fmt: skip

    def replace(self, **values: Any) -> Config:
        """A copy with other values, given under their flat names.

        Raises:
            TypeError: no section in use has a setting of that name.
        """
        unknown = set(values).difference(*(fields_of(kind) for kind in self._sections))
        if unknown:
            raise TypeError(f"no section in use has the settings {', '.join(sorted(unknown))}")
        sections = {
            kind: dataclasses.replace(
                typing.cast(Any, held), **{n: v for n, v in values.items() if n in fields_of(kind)}
            )
            for kind, held in self._sections.items()
        }
        return Config(sections, self.notes, self.weights_given)

    def noted(self, note: str) -> Config:
        """A copy that tells the user something more, when the run begins."""
        return Config(self._sections, (*self.notes, note), self.weights_given)

    def groups(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(title, {name: value}) of each section, without what belongs to one call or has no effect."""
        for kind, held in self._sections.items():
            names = _lasting(kind)
            if names:
                yield kind.title, {name: getattr(held, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """The flat set of names, plain enough for YAML, JSON and a checkpoint: tuples are lists."""
        return {name: _plain(value) for _, values in self.groups() for name, value in values.items()}

    def dump(self) -> str:
        """YAML that resolves to an equal configuration."""
        groups = (
            "\n".join([f"# {title}", *(f"{name}: {_in_yaml(value)}" for name, value in values.items())])
            for title, values in self.groups()
        )
        return "\n\n".join(groups) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def sections(self) -> tuple[Kind, ...]:
        return tuple(self._sections)


def collect(argv: Sequence[str], sections: Sequence[Kind]) -> dict[str, Raw]:
    """Read the YAML files and the flags of a command line; import the modules that they name.

    Raises:
        UserError: a file or flag that cannot be read, or an unknown flag.
    """
    argv = [_dashed(word) for word in argv]
    early = _Parser(add_help=False, allow_abbrev=False)
    for name in ("cfgs", "imports"):
        early.add_argument(f"--{name}", nargs="+", default=[], action="extend")
    first, _ = early.parse_known_args(argv)
    raw: dict[str, Raw] = {}
    layers = [layer for path in first.cfgs for layer in load_layers(located(path))]
    for order, (path, values) in enumerate(layers):
        raw |= {name: Raw(value, path, order) for name, value in values.items()}
        for name in ("cfgs", "help", "list", "dry_run"):
            if name in raw:
                raise UserError(f"{name} in {path} belongs on the command line, not into a file; remove it")
    if first.imports:
        raw["imports"] = Raw(first.imports, FLAG)
    if "imports" in raw:
        field = fields_of(Command)["imports"]
        _import(_read(raw["imports"], "imports", field, Command) or ())
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in known_fields(sections):
        parser.add_argument(flag_of(name), **_words(name, sections))
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        name = word.split("=")[0]
        if name.startswith("--"):
            hint = nearest(name, [flag_of(known) for known in known_fields(sections)])
            raise UserError(f"unknown flag {name}{hint}; --help lists the flags")
        raise UserError(f"{word!r} on the command line belongs to no flag; --help lists the flags")
    return raw | {name: Raw(value, FLAG, len(layers)) for name, value in vars(flags).items()}


def resolve(
    raw: Mapping[str, Raw],
    sections: Sequence[Kind],
    stored: Mapping[str, Any] | None = None,
    goes_on: bool = False,
) -> Config:
    """Give every setting of the chosen components its value.

    Args:
        raw: what `collect` gave.
        sections: the settings that every run has; those of chosen components join them.
        stored: the settings inside the checkpoint that is evaluated or resumed.
        goes_on: its run goes on, with its optimiser and its place among the pictures.

    Raises:
        UserError: an unknown name, a value of another type, a setting of a method that is not in
            use, or a flag that contradicts the checkpoint.
    """
    origin = "the checkpoint"
    known = _known(stored, sections)
    merged = {name: Raw(value, origin) for name, value in known.items()} | dict(raw)
    queue = list(sections)
    found = {}
    registries: dict[Registry, int] = {}  # with the order of the file that chose
    notes: list[str] = []
    while queue:
        section = queue.pop(0)
        values = {}
        for name, field in fields_of(section).items():
            if section.local and name not in raw:
                merged.pop(name, None)
            given = raw.get(name)
            is_open = given and field.metadata["adaptive"] and _read(given, name, field, section) in settings.OPEN
            if name in known and is_open:
                given = None
                merged[name] = Raw(known[name], origin)
            if name in known and (section.bound or (goes_on and field.metadata["fixed"])):
                notes += _check_bound(name, field, section, given, known[name])
                merged[name] = Raw(known[name], origin)
            values[name] = _read(merged[name], name, field, section) if name in merged else field.default
            registry = field.metadata["component"]
            if registry is not None:
                registries[registry] = merged[name].order if name in merged else -1
                component = _component(registry, str(values[name]), merged.get(name), name, known.get("imports"))
                chosen = getattr(component, "Settings", None)
                if chosen is not None:
                    queue.insert(0, chosen)
        found[section] = section(**values)
    active = {name: field for section in found for name, field in fields_of(section).items()}
    strangers = {n: r for n, r in merged.items() if n not in active and r.origin != origin}
    idle = {name: field for name, field in active.items() if field.metadata["idle"]}
    notes += [
        f"{name}: accepted, and without effect"
        for name, given in merged.items()
        if name in idle and given.value is not None and (name in raw or given.value != idle[name].default)
    ]
    return Config(found, notes + _strangers(strangers, registries, set(active)), stored is not None)


def _known(stored: Mapping[str, Any] | None, sections: Sequence[Kind]) -> dict[str, Any]:
    """The settings inside a checkpoint, with those that there were not yet when it was written."""
    if not stored:
        return {}
    fields = [field for section in sections for field in fields_of(section).values()]
    earlier = {field.name: field.metadata["earlier"] for field in fields if field.metadata["earlier"] is not None}
    return {**earlier, **stored}


def part(raw: Mapping[str, Raw], sections: Sequence[Kind]) -> Config:
    """These sections alone, before a checkpoint is looked for."""
    own = {name for section in sections for name in fields_of(section)}
    return resolve({name: given for name, given in raw.items() if name in own}, sections)


def for_other_pictures(stored: Mapping[str, Any], sections: Sequence[Kind]) -> dict[str, Any]:
    """The settings inside a checkpoint without those that say which pictures its run had."""
    known = known_fields(sections)
    return {
        name: value for name, value in stored.items() if name not in known or not known[name].metadata["about_data"]
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (on the command line)")


def fields_of(section: Kind) -> dict[str, dataclasses.Field[Any]]:
    """The settings that a section declares, by name."""
    return {field.name: field for field in dataclasses.fields(typing.cast(Any, section))}


def _lasting(section: Kind) -> list[str]:
    """The settings that are kept with a run: not those of one call, nor those without effect."""
    return [
        name for name, field in fields_of(section).items()
        if not field.metadata["transient"] and not field.metadata["idle"]
    ]  # fmt: skip


def all_sections(sections: Sequence[Kind]) -> Iterator[tuple[Kind, Registry | None, str]]:
    """Every section there is, also of components that are not chosen: (section, registry, component)."""
    for section in sections:
        yield section, None, ""
        for field in fields_of(section).values():
            registry = field.metadata["component"]
            for name in registry.names() if registry is not None else ():
                chosen = getattr(registry.get(name), "Settings", None)
                if chosen is not None:
                    yield chosen, registry, name


def known_fields(sections: Sequence[Kind]) -> dict[str, dataclasses.Field[Any]]:
    """Every setting there is, by name; of two components with one name, the first."""
    known: dict[str, dataclasses.Field[Any]] = {}
    for section, _, _ in all_sections(sections):
        known = fields_of(section) | known
    return known


def _words(name: str, sections: Sequence[Kind]) -> dict[str, Any]:
    """How many words a flag takes, for argparse."""
    section = next(section for section, _, _ in all_sections(sections) if name in fields_of(section))
    hint = typing.get_type_hints(section)[name]
    if "tuple" in str(hint):
        return {"nargs": "+"}
    return {"nargs": "?", "const": "true"} if bool in (hint, *typing.get_args(hint)) else {}


def _read(raw: Raw, name: str, field: dataclasses.Field[Any], section: Kind) -> Any:
    try:
        return settings.read(raw.value, field, typing.get_type_hints(section)[name], flag=raw.flag)
    except ValueError as error:
        raise UserError(f"{_place(name, raw)}: {error} ({field.metadata['help']})") from error


def _component(registry: Registry, chosen: str, raw: Raw | None, name: str, imports: Any) -> Any:
    """`imports`: modules of the user's that the checkpoint's run had; a checkpoint is not to say what is executed."""
    try:
        return registry.get(chosen)
    except UserError as error:
        if raw is None:
            raise
        if imports:
            again = f"--imports {' '.join(imports)}"
            raise UserError(
                f"{_place(name, raw)}: unknown {registry.kind} {chosen!r}; its run had {again}, so give that again"
            ) from error
        hint = (
            "; if a module of yours registers it, add --imports MODULE" if isinstance(error, UnknownNameError) else ""
        )
        raise UserError(f"{_place(name, raw)}: {error}{hint}") from error


def _place(name: str, raw: Raw) -> str:
    return flag_of(name) if raw.flag else f"{name} in {raw.origin}"


def _check_bound(
    name: str, field: dataclasses.Field[Any], section: Kind, given: Raw | None, stored: Any
) -> Iterator[str]:
    """A note where a file yields to the checkpoint; a flag does not."""
    value = stored if given is None else _plain(_read(given, name, field, section))
    if given is None or value == stored:
        return
    if given.flag:
        raise UserError(
            f"{flag_of(name)} {shown(value)} contradicts the checkpoint, which was trained with "
            f"{name} {shown(stored)}; leave the flag out"
        )
    if given.origin != DEFAULT:
        yield f"{name} {shown(value)} in {given.origin} yields to the checkpoint's {shown(stored)}"


def _strangers(rest: Mapping[str, Raw], registries: Mapping[Registry, int], active: set[str]) -> list[str]:
    """Refuse names that nobody declares or that belong to another method; note the idle ones."""
    owners: dict[str, list[tuple[Registry, str]]] = {}
    for registry in registries:
        for component in registry.names():
            chosen = getattr(registry.get(component), "Settings", None)
            for name in fields_of(chosen) if chosen is not None else ():
                owners.setdefault(name, []).append((registry, component))
    idle: dict[str, list[str]] = {}
    for name, raw in rest.items():
        place = flag_of(name) if raw.flag else f"the key {name!r} in {raw.origin}"
        if name not in owners:
            raise UserError(f"unknown setting: {place}{nearest(name, active | set(owners))}; --help lists the settings")
        registry, component = owners[name][0]
        if registry.exclusive:
            raise UserError(f"{place} belongs to the {registry.kind} {component}, which is not the one chosen")
        if raw.order >= registries[registry]:  # else a later file or flag has chosen another component
            idle.setdefault(f"the {registry.kind} {component}", []).append(name)
    return [f"{', '.join(names)}: of {owner}, not in use here, so without effect" for owner, names in idle.items()]


def _import(modules: Sequence[str]) -> None:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                f"--imports {module}: no module named {error.name!r}; it is looked for in {here} and on PYTHONPATH"
            ) from error
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{last.filename}, line {last.lineno}"
            raise UserError(f"--imports {module} failed: {type(error).__name__}: {error} ({place})") from error


def _dashed(word: str) -> str:
    if word == "-h":
        return "--help"
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def flag_of(name: str) -> str:
    """The flag that gives a setting."""
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _in_yaml(value: Any) -> str:
    text: str = yaml.safe_dump(_plain(value), default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def shown(value: Any) -> str:
    """A value as it is written behind a flag."""
    if isinstance(value, list | tuple):
        return " ".join(shown(entry) for entry in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
