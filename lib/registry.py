"""Name → component, for everything that a setting can choose by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

from lib.errors import UserError

C = TypeVar("C")


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint that ends an "unknown …" message, empty if nothing known is like `name`."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


class Registry:
    """Components of one kind, such as all networks.

    `exclusive`: a run uses one of them alone, so that a setting of another one is a mistake.
    """

    def __init__(self, kind: str, exclusive: bool = False) -> None:
        self.kind = kind
        self.exclusive = exclusive
        self._components: dict[str, Any] = {}

    def register(self, name: str, component: C | None = None) -> Any:
        """Add a component, as a call `register(name, cls)` or as a decorator `@register(name)`.

        Raises:
            ValueError: the name is taken already.
        """
        if component is None:
            return lambda decorated: self.register(name, decorated)
        if name in self._components:
            raise ValueError(f"the {self.kind} {name!r} is registered already")
        self._components[name] = component
        return component

    def get(self, name: str) -> Any:
        """The component of that name.

        Raises:
            UserError: no such name; the message lists the known ones and the nearest.
        """
        if name not in self._components:
            known = ", ".join(self.names()) or "none"
            raise UserError(f"unknown {self.kind} {name!r}: known are {known}{nearest(name, self._components)}")
        return self._components[name]

    def names(self) -> list[str]:
        return sorted(self._components)
