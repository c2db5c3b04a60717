"""How a value from YAML or a flag becomes one of the type that a setting declares."""

from __future__ import annotations

import ast
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from reprlib import repr as shown
from typing import Any

from lib.config.registry import nearest

MOST = 2**31 - 1  # the largest whole number; PyTorch takes no larger size
_OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


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
    if flag and isinstance(raw, list) and len(raw) == 1:
        raw = raw[0]
    meta = field.metadata
    value = _typed(_side(raw) if meta["side"] else raw, hint)
    for number in _numbers(value):
        high = MOST if meta["high"] is None and isinstance(number, int) else meta["high"]
        if meta["low"] is not None and number < meta["low"]:
            raise ValueError(f"{shown(number)} is below {meta['low']}, the least allowed")
        if high is not None and number > high:
            raise ValueError(f"{shown(number)} is above {high}, the most allowed")
    return meta["convert"](value) if meta["convert"] is not None and value is not None else value


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a value, which may be tuples of tuples."""
    if isinstance(value, tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _side(raw: Any) -> Any:
    """The side of a square that is written as a pair; anything else as it is."""
    try:
        sides = _tuple(raw, (int, ...))
    except ValueError:
        return raw
    if len(sides) > 2:
        return raw
    if sides[0] != sides[-1]:
        raise ValueError(f"the sides {sides[0]} and {sides[1]} differ, and images are square here; give one side")
    return sides[0]


def _typed(raw: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [kind for kind in arguments if kind is not type(None)]
        if len(kinds) < len(arguments) and _is_none(raw, kinds):
            return None
        return _first(raw, kinds)
    if origin is typing.Literal:
        return _choice(raw, arguments)
    if origin is tuple:
        return _tuple(raw, arguments)
    return _SCALARS[hint](raw)


def _is_none(raw: Any, kinds: list[Any]) -> bool:
    """Whether `None` is meant, in any spelling; where several values may be given, also by an empty list of them."""
    empty = ("()", "[]") if any(typing.get_origin(kind) is tuple for kind in kinds) else ()
    if isinstance(raw, str):
        return raw.strip().lower() in ("none", "null", *empty)
    return raw is None or (bool(empty) and raw in ([], ()))


def _first(raw: Any, kinds: list[Any]) -> Any:
    """The value as the first of these types that fits; what is in brackets is no text."""
    for kind in kinds[:-1]:
        try:
            return _typed(raw, kind)
        except ValueError:
            if typing.get_origin(kind) is tuple and _is_bracketed(raw):
                raise
    return _typed(raw, kinds[-1])


def _choice(raw: Any, choices: tuple[Any, ...]) -> Any:
    known = [str(choice) for choice in choices]
    word = raw.strip() if isinstance(raw, str) else raw
    if all(isinstance(choice, int) for choice in choices):
        with suppress(ValueError):
            word = _int(raw)
    if isinstance(word, bool) or not isinstance(word, str | int) or str(word) not in known:
        raise ValueError(f"{shown(raw)} is none of {', '.join(known)}{nearest(shown(raw), known)}")
    return choices[known.index(str(word))]


def _is_bracketed(raw: Any) -> bool:
    return isinstance(raw, str) and raw.strip()[:1] + raw.strip()[-1:] in ("()", "[]")


def _is_listed(raw: Any) -> bool:
    return isinstance(raw, list | tuple) or _is_bracketed(raw)


def _tuple(raw: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    endless = len(arguments) == 2 and arguments[1] is Ellipsis
    if arguments[0] is str or typing.get_origin(arguments[0]) is typing.Literal:
        raw = _texts(raw)
    elif isinstance(raw, str):
        raw = literal(raw)
    elif isinstance(raw, list) and any(isinstance(entry, str) and entry.count("(") > entry.count(")") for entry in raw):
        raw = literal(f"[{', '.join(map(str, raw))}]")  # YAML cuts [(10, 1e-1), (20, 1e-2)] at each comma
    entries = list(raw) if isinstance(raw, list | tuple) else [raw]
    if endless and typing.get_origin(arguments[0]) is tuple and not any(map(_is_listed, entries)):
        entries = [raw]  # one pair alone: `(100, 1e-3)`
    kinds = [arguments[0]] * len(entries) if endless else list(arguments)
    if len(entries) != len(kinds):
        raise ValueError(f"{len(kinds)} values are wanted, not {len(entries)}")
    if not entries:
        raise ValueError("at least one value is wanted")
    return tuple(_typed(entry, kind) for entry, kind in zip(entries, kinds, strict=True))


def _texts(raw: Any) -> Any:
    """The texts in `('a', 'b')`; anything else as it is, such as the regular expression `(stem|stages)`."""
    try:
        return literal(raw) if _is_bracketed(raw) else raw
    except ValueError:
        return raw


def _bool(raw: Any) -> bool:
    if isinstance(raw, str) and raw.strip().lower() in ("true", "false"):
        return raw.strip().lower() == "true"
    if not isinstance(raw, bool):
        raise ValueError(f"{shown(raw)} is not true or false")
    return raw


def _int(raw: Any) -> int:
    value = literal(raw) if isinstance(raw, str) else raw
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(raw)} is not an integer")
    return value


def _float(raw: Any) -> float:
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


def _str(raw: Any) -> str:
    # YAML reads `gpus: 0` as a number.
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise ValueError(f"{shown(raw)} is not a text; put it in quotes")
    text = str(raw)
    if "\0" in text:
        raise ValueError(f"{shown(text)} has a NUL character in it; remove it")
    return text


_SCALARS: dict[Any, Callable[[Any], Any]] = {bool: _bool, int: _int, float: _float, str: _str}
