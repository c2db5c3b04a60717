"""Settings: how a component declares them, and how a value from YAML or a flag becomes one.

A component's settings are a frozen dataclass beside it, each field made by `setting`.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Callable
from reprlib import repr as shown
from typing import Any, ClassVar

from lib.registry import Registry, nearest

_OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    component: Registry | None = None,
    convert: Callable[[Any], Any] | None = None,
    transient: bool = False,
    idle: bool = False,
    fixed: bool = False,
    about_data: bool = False,
    adaptive: bool = False,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: the value where neither file nor flag gives one.
        help: one line for `--help`.
        unit: what the number counts, such as "px" or "epochs".
        low, high: the smallest and the largest number allowed, for each entry of a tuple.
        component: the value names a component of this registry, whose settings join in.
        convert: a further reading of the typed value; its ValueError is the user's message.
        transient: the value belongs to one call, and is not part of what is run again.
        idle: the value is accepted, and has no effect.
        fixed: a run that has begun cannot go on with another value.
        about_data: it says which pictures a run had; --predict has others.
        adaptive: none leaves it to the pictures, so it contradicts no value that a run has found.
    """
    metadata = {
        "help": help, "unit": unit, "low": low, "high": high,
        "component": component, "convert": convert, "transient": transient, "idle": idle, "fixed": fixed,
        "about_data": about_data, "adaptive": adaptive,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of every settings dataclass: one group of settings.

    `title` heads the group in `--help` and in `config.yaml`. `bound`: a trained network means
    nothing with other values, so a checkpoint brings its own.
    """

    title: ClassVar[str] = ""
    bound: ClassVar[bool] = False
    local: ClassVar[bool] = False


def literal(text: str) -> Any:
    """Read numbers, strings, tuples and lists, and `+ - * /` on numbers: `(3./4., 4./3.)`.

    Raises:
        ValueError: anything else is in the text.
    """
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is not a number, nor a tuple of them") from error


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, str):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_evaluate(entry) for entry in node.elts)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_number(_evaluate(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_number(_evaluate(node.left)), _number(_evaluate(node.right)))
    raise SyntaxError("not a literal")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("arithmetic is for numbers")
    return value


def read(raw: Any, field: dataclasses.Field[Any], hint: Any, *, flag: bool = False) -> Any:
    """Turn a raw value into the field's declared type.

    Args:
        raw: what YAML gave, or for a flag its word or list of words.
        field: the field as declared by `setting`.
        hint: the field's type.
        flag: the value was typed on the command line, where everything is a word.

    Raises:
        ValueError: the value has another type or is out of bounds; the message says which is wanted.
    """
    value = _typed(raw, hint, flag)
    meta = field.metadata
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            if meta["low"] is not None and number < meta["low"]:
                raise ValueError(f"{number:g} is below {meta['low']:g}, the least allowed")
            if meta["high"] is not None and number > meta["high"]:
                raise ValueError(f"{number:g} is above {meta['high']:g}, the most allowed")
    return meta["convert"](value) if meta["convert"] is not None and value is not None else value


def _typed(raw: Any, hint: Any, flag: bool) -> Any:
    if flag and isinstance(raw, list) and len(raw) == 1:
        raw = raw[0]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if type(None) in arguments and (raw is None or raw in ("none", "null")):
            return None
        return _first(raw, [kind for kind in arguments if kind is not type(None)], flag)
    if origin is typing.Literal:
        known = [str(argument) for argument in arguments]
        if not isinstance(raw, str | int) or str(raw) not in known:
            raise ValueError(f"{shown(raw)} is none of {', '.join(known)}{nearest(shown(raw), known)}")
        return arguments[known.index(str(raw))]
    if origin is tuple:
        return _tuple(raw, arguments, flag)
    return _SCALARS[hint](raw, flag)


def _first(raw: Any, kinds: list[Any], flag: bool) -> Any:
    for kind in kinds[:-1]:
        try:
            return _typed(raw, kind, flag)
        except ValueError:
            continue
    return _typed(raw, kinds[-1], flag)


def _tuple(raw: Any, arguments: tuple[Any, ...], flag: bool) -> tuple[Any, ...]:
    if isinstance(raw, str) and raw.strip()[:1] + raw.strip()[-1:] in ("()", "[]"):
        raw, flag = literal(raw), False
    entries = list(raw) if isinstance(raw, list | tuple) else [raw]
    endless = len(arguments) == 2 and arguments[1] is Ellipsis
    kinds = [arguments[0]] * len(entries) if endless else list(arguments)
    if len(entries) != len(kinds):
        raise ValueError(f"{len(kinds)} values are wanted, not {len(entries)}")
    if not entries:
        raise ValueError("at least one value is wanted")
    return tuple(_typed(entry, kind, flag) for entry, kind in zip(entries, kinds, strict=True))


def _bool(raw: Any, flag: bool) -> bool:
    if flag and isinstance(raw, str) and raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    if not isinstance(raw, bool):
        raise ValueError(f"{shown(raw)} is not true or false")
    return raw


def _int(raw: Any, flag: bool) -> int:
    value = literal(raw) if isinstance(raw, str) else raw
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(raw)} is not an integer")
    return value


def _float(raw: Any, flag: bool) -> float:
    value = literal(raw) if isinstance(raw, str) else raw
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(raw)} is not a number")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{shown(raw)} is not a finite number")
    return value


def _str(raw: Any, flag: bool) -> str:
    # YAML reads `gpus: 0` as a number.
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise ValueError(f"{shown(raw)} is not a text; put it in quotes")
    return str(raw)


_SCALARS: dict[Any, Callable[[Any, bool], Any]] = {bool: _bool, int: _int, float: _float, str: _str}
