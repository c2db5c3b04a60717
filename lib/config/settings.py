"""Settings: how a component declares them, and how long the value of each holds.

A component's settings are a frozen dataclass beside it, each field made by `setting`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from lib.config.registry import Registry

__all__ = ["Section", "setting"]

OPEN = (None, "auto")  # values of an adaptive setting for which the run finds another

Lifetime = Literal["call", "machine", "start", "run", "images", "network"]

LIFETIMES: dict[Lifetime, str] = {
    "call": "The value belongs to one call. Neither `config.yaml` nor a checkpoint keeps it.",
    "machine": "The value says where and how a run is computed. `config.yaml` keeps it, and no checkpoint brings it. "
    "A run with another value is the same run.",
    "start": "A checkpoint brings the value, and a file or a flag may give another at each start. "
    "A resumed run reports the change.",
    "run": "A resumed run keeps the value of its checkpoint. A file with another value is passed over, with a note. "
    "A flag with another value is an error.",
    "images": "The value says which images a run has, so `--predict` leaves it out. A resumed run keeps it, and passes "
    "over a file with another value, with a note. A flag may give another value; a run that trains on other images is "
    "then an error.",
    "network": "The trained network means nothing with another value, so its checkpoint brings the value to "
    "`--evaluate`, `--predict` and `--resume`. A file with another value is passed over, with a note. "
    "A flag with another value is an error.",
}
"""How long the value of a setting holds, and what `--evaluate`, `--predict` and `--resume` take from a checkpoint."""


def setting(
    default: Any,
    help: str,
    *,
    lifetime: Lifetime | None = None,
    unit: str = "",
    value: str = "",
    low: float | None = None,
    high: float | None = None,
    component: Registry | None = None,
    convert: Callable[[Any], Any] | None = None,
    idle: bool = False,
    adaptive: bool = False,
    side: bool = False,
    earlier: Any = None,
) -> Any:
    """Declare a setting: a field of a settings dataclass, which becomes a flag and a YAML key.

    Args:
        default: the value where neither file nor flag gives one.
        help: one line for `--help`.
        lifetime: how long a value holds, one of `LIFETIMES`, which docs/command-line.md explains; none: that of the
            section.
        unit: what the number counts, in words such as "pixels" or "epochs".
        value: what stands for the value in `--help`, such as "FILE"; else a word for its type.
        low, high: the smallest and the largest number allowed, for each entry of a tuple; a whole number is at most
            `lib.config.typed_values.MOST` where `high` is none.
        component: the value names a component of this registry, whose settings join in.
        convert: a further reading of the typed value; its ValueError is the user's message.
        idle: the value is accepted, and has no effect; it is not kept with a run.
        adaptive: `none` or `auto` leaves it to the images or the machine, so it contradicts no value of a resumed run.
        side: of a square; a pair of equal sides, such as `(32, 32)`, is that side.
        earlier: the value in checkpoints from before there was this setting; none: the default.

    Raises:
        ValueError: there is no such lifetime.
    """
    if lifetime is not None and lifetime not in LIFETIMES:
        raise ValueError(f"no setting has the lifetime {lifetime!r}; the lifetimes are {', '.join(LIFETIMES)}")
    metadata = {
        "help": help, "lifetime": lifetime, "unit": unit, "value": value, "low": low, "high": high,
        "component": component, "convert": convert, "idle": idle, "adaptive": adaptive, "side": side,
        "earlier": earlier,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of every settings dataclass: one group of settings."""

    title: ClassVar[str] = ""
    """What heads the group in `--help` and in `config.yaml`."""

    lifetime: ClassVar[Lifetime] = "start"
    """How long the values of its settings hold, unless a setting says otherwise (`setting`)."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if vars(cls).get("bound") is True:  # how a section said so before there were lifetimes
            cls.lifetime = "network"
        if cls.lifetime not in LIFETIMES:
            raise ValueError(f"{cls.__name__} has the lifetime {cls.lifetime!r}; there are {', '.join(LIFETIMES)}")


def expanded(path: str) -> str:
    """A path without `~`; for `setting(convert=expanded)`.

    Raises:
        ValueError: it is empty, or nobody knows the home directory that `~` names.
    """
    if not path:
        raise ValueError("an empty value; name a file or a folder, or leave it out")
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no home directory for the ~; write the whole path") from error
