"""Reading settings from a YAML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from lib.config.regular_files import check_regular
from lib.errors import UserError

PROGRAM = Path(__file__).resolve().parents[2]  # the folder of main.py and configs/


def load_yaml(path: str | os.PathLike[str], advice: str = "check the path after --cfgs") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: of the file, or of a pipe that a shell has made.
        advice: what to do where it cannot be read.

    Raises:
        UserError: no such file, no YAML, no mapping, or a key that is no text or is given twice.
    """
    try:
        check_regular(path, pipes=True)
        content = _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file, and a YAML file is wanted; {advice}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{where} is not valid YAML: {problem}; {advice}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a mapping of settings (name: value)")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path} has the key {key!r}, which is no name of a setting")
    return {key.replace("-", "_"): value for key, value in content.items()}


def located(path: str) -> Path:
    """A file of settings; of a relative `configs/…` that is not in the working directory, the program's own."""
    own = PROGRAM / path
    is_own = Path(path).parts[:1] == ("configs",) and not Path(path).exists() and own.exists()
    return own if is_own else Path(path)


def load_layers(path: str | os.PathLike[str], includers: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The settings of a file, behind those of the files that it includes: each file's path with its mapping.

    `include: FILE`, or a list of files, is relative to the file that says it. What is included is overridden by
    the file that includes it.

    Args:
        path: of the file.
        includers: the files that led to it, each resolved.

    Raises:
        UserError: as `load_yaml`; files that include each other; or an `include` that names no files.
    """
    here = Path(path).resolve()
    if here in includers:
        chain = " includes ".join(map(str, [*includers[includers.index(here) :], here]))
        raise UserError(f"{chain}: files cannot include each other; remove one `include`")
    try:
        settings = load_yaml(path)
    except UserError as error:
        if not includers:
            raise
        raise UserError(f"{error} (`include` in {includers[-1]})") from error
    included = settings.pop("include", [])
    files = [included] if isinstance(included, str) else included
    if not isinstance(files, list) or not all(isinstance(file, str) and "\0" not in file for file in files):
        raise UserError(f"include in {path} is {included!r}; a file or a list of files is wanted")
    layers: list[tuple[str, dict[str, Any]]] = []
    for file in files:
        layers += load_layers(Path(path).parent / file, (*includers, here))
    return [*layers, (str(path), settings)]


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name = str(key.value).replace("-", "_")
            if name in lines:
                problem = f"the key {name!r} is given twice, before in line {lines[name]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)
