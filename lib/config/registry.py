"""Name → component, for everything that a setting can choose by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from lib.errors import UserError

C = TypeVar("C")


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint that ends an "unknown …" message, empty if nothing known is like `name`."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


class UnknownNameError(UserError):
    """No component has the name."""


class Family(Protocol):
    """Components of another package, by names with a prefix. The docstring's first line is shown by `--list`."""

    def names(self) -> Iterable[str]:
        """What may follow the prefix; nothing where the package is missing."""

    def get(self, name: str) -> Any | None:
        """The component of that name, without the prefix; None if there is none.

        Raises:
            UserError: the package is missing.
        """


class Registry:
    """Components of one kind, such as all networks.

    `exclusive`: a run uses one of them alone, so that a setting of another one is a mistake.
    """

    def __init__(self, kind: str, exclusive: bool = False) -> None:
        self.kind = kind
        self.exclusive = exclusive
        self._components: dict[str, Any] = {}
        self._families: dict[str, Family] = {}

    def register(self, name: str, component: C | None = None) -> Any:
        """Add a component under a name, which a setting can then choose.

        `register(name, cls)` adds it at once; `@register(name)` is the same as a decorator.

        Args:
            name: the value of the setting.
            component: what is added, usually a class. The first line of its docstring is shown by `--list`.

        Returns:
            The component, or the decorator.

        Raises:
            ValueError: the name is taken already.
        """
        if component is None:
            return lambda decorated: self.register(name, decorated)
        if name in self._components:
            raise ValueError(f"the {self.kind} {name!r} is registered already; choose another name")
        self._components[name] = component
        return component

    def register_family(self, prefix: str, family: Family) -> None:
        """Add all components of another package, each as `prefix:NAME`.

        Args:
            prefix: the word before the colon, such as `timm`.
            family: has `names()`, what may follow the colon, and `get(name)`, the component or None.
        """
        self._families[prefix] = family

    def get(self, name: str) -> Any:
        """The component of that name.

        Raises:
            UnknownNameError: no such name; the message lists the known ones and the nearest.
            UserError: a package is missing.
        """
        if name in self._components:
            return self._components[name]
        prefix, _, rest = name.partition(":")
        asked = [prefix] if prefix in self._families else list(self._families)
        component = self._families[prefix].get(rest) if asked == [prefix] and rest else None
        if component is not None:
            return component
        known = ", ".join([*self.names(), *map("{}:NAME".format, self._families)]) or "none"
        candidates = [f"{prefix}:{each}" for prefix in asked for each in self._families[prefix].names()]
        bare = [full for full in candidates if full.partition(":")[2] == name]
        hint = (
            nearest(name, bare or [*self._components, *candidates]) or (bare and f"; did you mean {bare[0]!r}?") or ""
        )
        raise UnknownNameError(f"unknown {self.kind} {name!r}: known are {known}{hint}")

    def names(self) -> list[str]:
        """The names of all components that are registered one by one, sorted."""
        return sorted(self._components)

    def listed(self) -> Iterator[tuple[str, str]]:
        """What there is, and its `title`, or else the first line of its docstring."""
        families = {f"{prefix}:NAME": family for prefix, family in self._families.items()}
        for name, component in [*sorted(self._components.items()), *families.items()]:
            yield name, getattr(component, "title", None) or (inspect.getdoc(component) or "").partition("\n")[0]
