"""Reading a command line: its YAML files, its flags, and the modules that it imports."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import sysconfig
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.config.command_flags import Command
from lib.config.config import FLAG, Raw, value_of
from lib.config.registry import nearest
from lib.config.sections import Kind, all_sections, fields_of, known_fields, types_of
from lib.config.written_values import flag_of
from lib.config.yaml_files import load_layers, located
from lib.errors import UserError

LIBRARY = Path(__file__).parents[1]
NOT_IN_A_FILE = ("cfgs", "help", "list", "dry_run")


def collect(argv: Sequence[str], sections: Sequence[Kind]) -> dict[str, Raw]:
    """Read the YAML files and the flags of a command line; import the modules that they name.

    Raises:
        UserError: a file or flag that cannot be read, or an unknown flag.
    """
    words = [_dashed(word) for word in argv]
    files, modules = _files_and_modules(words)
    layers = [layer for path in files for layer in load_layers(located(path))]
    raw = _from_files(layers)
    if modules:
        raw["imports"] = Raw(modules, FLAG)
    if "imports" in raw:  # before the flags are read: a module declares flags
        _import(value_of(raw["imports"], "imports", Command) or ())
    return raw | {name: Raw(value, FLAG, len(layers)) for name, value in _flags(words, sections).items()}


def _dashed(word: str) -> str:
    if word == "-h":
        return "--help"
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _files_and_modules(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What `--cfgs` and `--imports` name, whatever else is on the command line."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name in ("cfgs", "imports"):
        parser.add_argument(flag_of(name), nargs="+", default=[], action="extend")
    arguments, _ = parser.parse_known_args(words)
    return arguments.cfgs, arguments.imports


def _from_files(layers: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Raw]:
    """The values in YAML files, the path of each with its mapping; a later file overrides an earlier one."""
    raw: dict[str, Raw] = {}
    for order, (path, values) in enumerate(layers):
        raw |= {name: Raw(value, path, order) for name, value in values.items()}
        for name in NOT_IN_A_FILE:
            if name in raw:
                raise UserError(f"{name} in {path} belongs on the command line, not into a file; remove it")
    return raw


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
            what = f": {error}" if isinstance(error, UserError) else f" failed: {type(error).__name__}: {error}"
            raise UserError(f"--imports {module}{what} ({_place(error)})") from error


def _place(error: Exception) -> str:
    """The last line of a file of the user's on the way to an error; of any file where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    folders = (str(LIBRARY), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
    others = (*(f"{folder}{os.sep}" for folder in folders), "<frozen")
    last = [frame for frame in frames if not frame.filename.startswith(others)] or frames
    return f"{last[-1].filename}, line {last[-1].lineno}"


def _flags(words: Sequence[str], sections: Sequence[Kind]) -> dict[str, Any]:
    """The word, or the list of words, behind each flag."""
    names = list(known_fields(sections))
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(flag_of(name), **_number_of_words(name, sections))
    flags, unknown = parser.parse_known_args(words)
    for word in unknown:
        flag = word.split("=")[0]
        if flag.startswith("--"):
            raise UserError(f"unknown flag {flag}{nearest(flag, map(flag_of, names))}; --help lists the flags")
        raise UserError(f"{word!r} on the command line belongs to no flag; --help lists the flags")
    return vars(flags)


def _number_of_words(name: str, sections: Sequence[Kind]) -> dict[str, Any]:
    """How many words a flag takes, for argparse."""
    section = next(section for section, _, _ in all_sections(sections) if name in fields_of(section))
    hint = types_of(section)[name]
    if "tuple" in str(hint):
        return {"nargs": "+"}
    return {"nargs": "?", "const": "true"} if bool in (hint, *typing.get_args(hint)) else {}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message} (on the command line)")
