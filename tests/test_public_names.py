"""Public names are documented: what they do, shapes of tensors, errors; and the API pages are built from that."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT
from torch import nn

from lib.config.settings import Section
from lib.errors import UserError

MODULES: tuple[str, ...] = runpy.run_path(str(ROOT / "docs/api.py"))["MODULES"]
SHAPE = re.compile(r"\((?:[\w…]+, ?)+(?:[\w…]+)?\)|\(\)")  # (N, K), (N,), (…, N, P), ()
SUMMARY = 22  # words


def public(module: ModuleType) -> dict[str, Any]:
    """The public names of a module: those of `__all__`, else its classes and functions without an underscore."""
    declared = getattr(module, "__all__", None)
    if declared is not None:
        return {name: getattr(module, name) for name in declared}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def functions(name: str, value: Any) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """A function, or the public methods and properties of a class: name, function, documentation."""
    if not inspect.isclass(value):
        yield name, getattr(value, "__func__", value), inspect.getdoc(value) or ""
        return
    for member, held in vars(value).items():
        if isinstance(held, property | cached_property):
            function = held.fget if isinstance(held, property) else held.func
        elif isinstance(held, staticmethod | classmethod):
            function = held.__func__
        else:
            function = held
        if not member.startswith("_") and inspect.isfunction(function):
            yield f"{name}.{member}", function, inspect.getdoc(getattr(value, member)) or inspect.getdoc(function) or ""


def parsed(source: str) -> ast.AST:
    return ast.parse(textwrap.dedent(source)).body[0]


def raised(function: Callable[..., Any]) -> set[str]:
    """The exceptions that a function's own lines raise by name."""
    found = set()
    for node in ast.walk(parsed(inspect.getsource(function))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(error, ast.Name):
                found.add(error.id)
    return {name for name in found - {"NotImplementedError"} if name[0].isupper()}


def takes_arrays(function: Callable[..., Any]) -> bool:
    annotations = " ".join(map(str, getattr(function, "__annotations__", {}).values()))
    annotations = re.sub(r"Callable\[.*\]", "", annotations)  # their shapes are theirs
    return bool(re.search(r"\b(Tensor|NDArray|IntArray|Integers)\b", annotations))


def undocumented_fields(value: Any) -> list[str]:
    """Fields of a dataclass with neither a text below them nor their name in the class's text, nor a comment beside them."""
    source = inspect.getsource(value)
    body = parsed(source).body  # type: ignore[attr-defined]
    lines = textwrap.dedent(source).splitlines()
    missing = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            has_comment = "#" in lines[node.end_lineno - 1]  # type: ignore[operator]
            name = node.target.id
            if not (has_text or has_comment or name in (value.__doc__ or "") or is_plain(name)):
                missing.append(name)
    return missing


def is_plain(name: str) -> bool:
    """Whether the class named by its type says it all, such as `method: Method`."""
    return name in ("method", "source", "views", "pictures", "recipes", "epoch", "Settings")


def problems(name: str, value: Any) -> list[str]:
    """What is missing from the documentation of a public name."""
    found = []
    if inspect.isclass(value):
        text = inspect.cleandoc(value.__doc__ or "")
        is_told_by_help = issubclass(value, Section)  # each of its settings has a text
        if not is_told_by_help and (
            not text or text.startswith(f"{value.__name__}(")
        ):  # what a dataclass writes by itself
            found.append(f"{name} has no docstring")
        elif summary_is_long(text):
            found.append(f"{name}: its first sentence is too long")
        if is_dataclass(value) and not is_told_by_help:
            found += [f"{name}.{field}: no text says what it is" for field in undocumented_fields(value)]
        init = vars(value).get("__init__")
        if inspect.isfunction(init) and init.__module__ == value.__module__ and not is_dataclass(value):
            found += [f"{name}: {error} is not among its errors" for error in raised(init) if error not in text]
    for title, function, text in functions(name, value):
        if not text or (title.endswith(".forward") and not tells_of_forward(value)):
            found.append(f"{title} has no docstring")
            continue
        if summary_is_long(text):
            found.append(f"{title}: its first sentence is too long")
        if takes_arrays(function) and not SHAPE.search(text) and text != inspect.getdoc(nn.Module.forward):
            found.append(f"{title}: no shape, such as (N, K)")
        for error in sorted(raised(function)):
            if error not in text.partition("Raises")[2] and f"Raises {error}" not in text:
                found.append(f"{title}: {error} is not among its errors")
    return found


def tells_of_forward(value: type) -> bool:
    """Whether a network says what it maps: in `forward`, or in the text of a class of ours."""
    own = [kind for kind in value.__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    return any(
        getattr(vars(kind).get("forward"), "__doc__", None) or re.search("`forward`|→", kind.__doc__ or "")
        for kind in own
    )


def summary_is_long(text: str) -> bool:
    summary = re.split(r"(?<=\w[.:])\s|\n\n", text, maxsplit=1)[0]
    return len(summary.split()) > SUMMARY


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    assert len((loaded.__doc__ or "").splitlines()[0]) > 20
    names = public(loaded)
    assert names
    assert [problem for name, value in names.items() for problem in problems(name, value)] == []


def test_a_name_without_documentation_is_noticed() -> None:
    import torch

    def silent(p: torch.Tensor) -> None:
        pass

    def vague(p: Tensor) -> None:  # noqa: F821
        """Does something with it."""
        if p is None:
            raise UserError("no")

    class Bare:
        def method(self) -> None:
            pass

    class Loss(nn.Module):
        """A loss."""

        def forward(self, p: Tensor) -> Tensor:  # noqa: F821
            return p

    class Told(Loss):
        """(N, K) → a loss."""

        def forward(self, p: Tensor) -> Tensor:  # noqa: F821
            """The loss of p, (N, K)."""
            return p

    assert problems("silent", silent) == ["silent has no docstring"]
    assert problems("vague", vague) == ["vague: no shape, such as (N, K)", "vague: UserError is not among its errors"]
    assert problems("Bare", Bare) == ["Bare has no docstring", "Bare.method has no docstring"]
    assert problems("Loss", Loss) == ["Loss.forward has no docstring"]
    assert problems("Told", Told) == []


@pytest.mark.slow
def test_the_pages_are_built(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    command = [sys.executable, ROOT / "docs/api.py", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    for module in MODULES:
        page = (tmp_path / f"{module.replace('.', '/')}.html").read_text(encoding="utf-8")
        for name in public(importlib.import_module(module)):
            assert f'id="{name}"' in page, f"{module} has no {name}"
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f"{module.replace('.', '/')}.html" in index for module in MODULES)
