"""Declared settings + YAML files + flags → one frozen `Config`, handed down and never reached for.

Later files override earlier ones, and flags override files. A checkpoint, where one is evaluated or resumed, is below
the files, unless the lifetime of a setting says otherwise (`lib.config.settings.LIFETIMES`).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lib.config.registry import Registry, UnknownNameError, nearest
from lib.config.sections import Kind, all_sections, fields_of, kept_names, lifetime_of, settings_of, types_of
from lib.config.settings import OPEN, Lifetime, Section
from lib.config.typed_values import read
from lib.config.written_values import flag_of, in_yaml, plain, shown
from lib.errors import UserError

S = TypeVar("S", bound=Section)
FLAG = "command line"
DEFAULT = "the program"
CHECKPOINT = "the checkpoint"


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

    Two configurations are equal if they run the same; what belongs to one call (`LIFETIMES`) or
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
        section = settings_of(component)
        return () if section is None else (self._sections[section],)

    @property
    def sections(self) -> tuple[Kind, ...]:
        return tuple(self._sections)

    def groups(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(title, {name: value}) of each section, without what belongs to one call or has no effect."""
        for section, values in self._sections.items():
            names = kept_names(section)
            if names:
                yield section.title, {name: getattr(values, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """The flat set of names, plain enough for YAML, JSON and a checkpoint: tuples are lists."""
        return {name: plain(value) for _, values in self.groups() for name, value in values.items()}

    def dump(self) -> str:
        """YAML that resolves to an equal configuration."""
        groups = (
            "\n".join([f"# {title}", *(f"{name}: {in_yaml(value)}" for name, value in values.items())])
            for title, values in self.groups()
        )
        return "\n\n".join(groups) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    def identity(self) -> dict[str, Any]:
        """The settings that make a run what it is: all but where and how it is run."""
        return {
            name: plain(getattr(values, name))
            for section, values in self._sections.items()
            for name in kept_names(section) if lifetime_of(name, section) != "machine"
        }  # fmt: skip

    def changes(self, earlier: Mapping[str, Any]) -> list[str]:
        """What differs from the settings in a checkpoint of the same run."""
        return [
            f"{name}: {shown(earlier[name])} before, {shown(value)} now"
            for name, value in self.identity().items() if name in earlier and earlier[name] != value
        ]  # fmt: skip

    def undecided(self) -> list[str]:
        """The settings that are left to the images or the machine."""
        values = self.as_dict()
        fields = (pair for section in self._sections for pair in fields_of(section).items())
        return [name for name, field in fields if field.metadata["adaptive"] and values[name] in OPEN]

    def replace(self, **values: Any) -> Config:
        """A copy with other values, given under their flat names.

        Raises:
            TypeError: no section in use has a setting of that name.
        """
        unknown = set(values).difference(*(fields_of(section) for section in self._sections))
        if unknown:
            raise TypeError(f"no section in use has the settings {', '.join(sorted(unknown))}")
        sections = {
            section: dataclasses.replace(
                typing.cast(Any, earlier), **{name: v for name, v in values.items() if name in fields_of(section)}
            )
            for section, earlier in self._sections.items()
        }
        return Config(sections, self.notes, self.weights_given)

    def noted(self, note: str) -> Config:
        """A copy that tells the user something more, when the run begins."""
        return Config(self._sections, (*self.notes, note), self.weights_given)


def resolve(
    raw: Mapping[str, Raw],
    sections: Sequence[Kind],
    stored: Mapping[str, Any] | None = None,
    goes_on: bool = False,
) -> Config:
    """Give every setting of the components in use its value.

    Args:
        raw: what `lib.config.command_line.collect` gave.
        sections: the settings that every run has; those of the components in use join them.
        stored: the settings inside the checkpoint that is evaluated or resumed.
        goes_on: its run is resumed, with its optimiser and its place among the images.

    Raises:
        UserError: an unknown name, a value of another type, a setting of a method that is not in
            use, a name that two components in use share, or a flag that contradicts the checkpoint.
    """
    precedence = _Precedence(raw, _with_earlier_values(stored or {}, sections), goes_on)
    in_use = list(_sections_in_use(sections, precedence))
    _check_names(in_use)
    values = {section: section(**precedence.values(section)) for section in in_use}
    notes = [
        *(note for section in in_use for note in precedence.notes(section)),
        *_notes_of_idle_settings(in_use, precedence),
        *_notes_of_unused_settings(in_use, precedence),
    ]
    return Config(values, notes, weights_given=stored is not None)


def resolve_only(raw: Mapping[str, Raw], sections: Sequence[Kind]) -> Config:
    """The settings of these sections, before a checkpoint is looked for."""
    names = {name for section in sections for name in fields_of(section)}
    return resolve({name: given for name, given in raw.items() if name in names}, sections)


def for_other_images(stored: Mapping[str, Any], sections: Sequence[Kind]) -> dict[str, Any]:
    """The settings inside a checkpoint without those that say which images its run had."""
    about_images = {
        name
        for section, _, _ in all_sections(sections)
        for name in fields_of(section) if lifetime_of(name, section) == "images"
    }  # fmt: skip
    return {name: value for name, value in stored.items() if name not in about_images}


def _with_earlier_values(stored: Mapping[str, Any], sections: Sequence[Kind]) -> Mapping[str, Any]:
    """The settings inside a checkpoint, with those that there were not yet when it was written."""
    if not stored:
        return {}
    fields = [field for section in sections for field in fields_of(section).values()]
    earlier = {field.name: field.metadata["earlier"] for field in fields if field.metadata["earlier"] is not None}
    return {**earlier, **stored}


@dataclass(frozen=True)
class _Precedence:
    """Which value of a setting holds: that of the files and flags, of the checkpoint, or the default."""

    raw: Mapping[str, Raw]  # of files and flags
    checkpoint: Mapping[str, Any]  # its settings; empty where there is none
    goes_on: bool  # the run of the checkpoint is resumed

    def values(self, section: Kind) -> dict[str, Any]:
        """The values of a section's settings, as declared."""
        return {name: self.value(name, section) for name in fields_of(section)}

    def value(self, name: str, section: Kind) -> Any:
        """The value of a setting, as declared."""
        winner = self.winner(name, section)
        return fields_of(section)[name].default if winner is None else value_of(winner, name, section)

    def winner(self, name: str, section: Kind) -> Raw | None:
        """The written value that holds; None where nothing gives one.

        Raises:
            UserError: a flag contradicts the checkpoint.
        """
        given = self.raw.get(name)
        lifetime = lifetime_of(name, section)
        if name not in self.checkpoint or lifetime in ("call", "machine"):
            return given
        stored = Raw(self.checkpoint[name], CHECKPOINT)
        if given is None or _leaves_open(given, name, section):
            return stored
        if not self._keeps(lifetime):
            return given
        value = plain(value_of(given, name, section))
        if not given.flag or value == stored.value:
            return stored
        if lifetime == "images":  # whoever trains sees whether they are the same
            return given
        raise UserError(
            f"{flag_of(name)} {shown(value)} contradicts the checkpoint, which was trained with "
            f"{name} {shown(stored.value)}; leave the flag out"
        )

    def _keeps(self, lifetime: Lifetime) -> bool:
        """Whether the checkpoint's value holds against that of a file."""
        return lifetime == "network" or (self.goes_on and lifetime in ("run", "images"))

    def notes(self, section: Kind) -> Iterator[str]:
        """A note for each setting where a file yields to the checkpoint."""
        for name in fields_of(section):
            given = self.raw.get(name)
            winner = self.winner(name, section)
            if given is None or winner is None or given.origin == DEFAULT or winner.origin != CHECKPOINT:
                continue
            value = plain(value_of(given, name, section))
            if value != winner.value and not _leaves_open(given, name, section):
                yield f"{name} {shown(value)} in {given.origin} yields to the checkpoint's {shown(winner.value)}"

    def component(self, name: str, section: Kind) -> Any:
        """The component that a setting names.

        Raises:
            UserError: there is none of that name.
        """
        registry: Registry = fields_of(section)[name].metadata["component"]
        component = str(self.value(name, section))
        try:
            return registry.get(component)
        except UserError as error:
            winner = self.winner(name, section)
            if winner is None:
                raise
            modules = self.checkpoint.get("imports")
            if modules:  # they are not imported by themselves: a checkpoint is not to say what is executed
                raise UserError(
                    f"{_place(name, winner)}: unknown {registry.kind} {component!r}; its run had "
                    f"--imports {' '.join(modules)}, so give that again"
                ) from error
            is_unknown = isinstance(error, UnknownNameError)
            hint = "; if a module of yours registers it, add --imports MODULE" if is_unknown else ""
            raise UserError(f"{_place(name, winner)}: {error}{hint}") from error


def value_of(raw: Raw, name: str, section: Kind) -> Any:
    """A written value as one of the type that the section declares.

    Raises:
        UserError: it has another type, or is out of bounds.
    """
    field = fields_of(section)[name]
    try:
        return read(raw.value, field, types_of(section)[name], flag=raw.flag)
    except ValueError as error:
        raise UserError(f"{_place(name, raw)}: {error} ({field.metadata['help']})") from error


def _leaves_open(raw: Raw, name: str, section: Kind) -> bool:
    """Whether a value leaves the setting to the images or the machine."""
    return fields_of(section)[name].metadata["adaptive"] and value_of(raw, name, section) in OPEN


def _place(name: str, raw: Raw) -> str:
    return flag_of(name) if raw.flag else f"{name} in {raw.origin}"


def _sections_in_use(sections: Sequence[Kind], precedence: _Precedence) -> Iterator[Kind]:
    """The given sections, each followed by those of the components that its settings name."""
    for section in sections:
        yield section
        for name in _component_names(section):
            declared = settings_of(precedence.component(name, section))
            if declared is not None:
                yield from _sections_in_use([declared], precedence)


def _check_names(in_use: Sequence[Kind]) -> None:
    """See that no two sections in use have a setting of one name, which would be one flag and one key.

    Raises:
        UserError: two have; both are named.
    """
    owners: dict[str, Kind] = {}
    for section in in_use:
        for name in fields_of(section):
            first = owners.setdefault(name, section)
            if first is not section:
                raise UserError(
                    f"the setting {name} is declared twice, by {_title(first)} and by {_title(section)}, and both are in "
                    "use; give the one that is yours another name"
                )


def _title(section: Kind) -> str:
    return f"{section.__module__}.{section.__qualname__} ({section.title})"


def _component_names(section: Kind) -> list[str]:
    """The settings that name a component."""
    return [name for name, field in fields_of(section).items() if field.metadata["component"] is not None]


def _notes_of_idle_settings(in_use: Sequence[Kind], precedence: _Precedence) -> Iterator[str]:
    """A note for each setting that is given and has no effect."""
    for section in in_use:
        for name, field in fields_of(section).items():
            winner = precedence.winner(name, section)
            if not field.metadata["idle"] or winner is None or winner.value is None:
                continue
            if name in precedence.raw or winner.value != field.default:
                yield f"{name}: accepted, and without effect"


def _notes_of_unused_settings(in_use: Sequence[Kind], precedence: _Precedence) -> list[str]:
    """A note for the settings of components that are not in use.

    Raises:
        UserError: nobody declares a setting, or another method does.
    """
    active = {name for section in in_use for name in fields_of(section)}
    choices = list(_choices(in_use, precedence))
    owners: dict[str, tuple[Registry, str, int]] = {}
    for registry, order in choices:
        for component in registry.names():
            declared = settings_of(registry.get(component))
            for name in fields_of(declared) if declared is not None else ():
                owners.setdefault(name, (registry, component, order))
    unused: dict[str, list[str]] = {}
    for name, given in precedence.raw.items():
        if name in active:
            continue
        place = flag_of(name) if given.flag else f"the key {name!r} in {given.origin}"
        if name not in owners:
            raise UserError(f"unknown setting: {place}{nearest(name, active | set(owners))}; --help lists the settings")
        registry, component, order = owners[name]
        if registry.exclusive:
            raise UserError(f"{place} belongs to the {registry.kind} {component}, which is not the one chosen")
        if given.order >= order:  # else a later file or flag has chosen another component
            unused.setdefault(f"the {registry.kind} {component}", []).append(name)
    return [f"{', '.join(names)}: of {owner}, not in use here, so without effect" for owner, names in unused.items()]


def _choices(in_use: Sequence[Kind], precedence: _Precedence) -> Iterator[tuple[Registry, int]]:
    """Each registry from which a component is taken, and the order of the file that names it."""
    for section in in_use:
        for name in _component_names(section):
            winner = precedence.winner(name, section)
            yield fields_of(section)[name].metadata["component"], -1 if winner is None else winner.order
