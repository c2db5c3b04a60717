"""Rewrite the generated parts of README.md and docs/: python docs/generate.py

A part is what is between `<!-- generated: NAME -->` and `<!-- end generated -->`, each on a line of its own.
`PARTS` has the names. Scores come from results/, speeds from benchmarks/results/, settings from their declarations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main as program  # noqa: E402, F401  (from the folder above; it registers every component)
from lib import errors  # noqa: E402
from lib.config import help_text  # noqa: E402
from lib.config.registry import Registry  # noqa: E402
from lib.config.sections import Kind, all_sections, fields_of, lifetime_of  # noqa: E402
from lib.config.settings import LIFETIMES  # noqa: E402
from lib.config.written_values import flag_of  # noqa: E402
from lib.config.yaml_files import load_yaml  # noqa: E402
from lib.errors import UserError  # noqa: E402
from lib.runs.all_settings import SECTIONS  # noqa: E402
from results import tables  # noqa: E402

BEGIN = re.compile(r"<!--\s*generated:(.*?)-->")
END = "<!-- end generated -->"
SIGNAL_REASONS = {signal.SIGINT: " (Ctrl-C)", signal.SIGHUP: " (a closed terminal)"}
FEW_FILES = 4  # of configs/, up to which all that set something are named


def documents() -> list[Path]:
    """README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def names_in(text: str) -> list[str]:
    """The names of the generated parts of a page, as they are written."""
    return [name.strip() for name in BEGIN.findall(text)]


def regenerated(text: str, page: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """The text of a page with its generated parts as they are to be.

    Args:
        text: of the page.
        page: its name, for errors.
        parts: {name: what makes the part}.

    Raises:
        UserError: a marker without a name or with an unknown one, or one that does not end.
    """
    pieces = []
    position = 0
    for begin in BEGIN.finditer(text):
        name = begin[1].strip()
        if name not in parts:
            problem = f"unknown generated part {name!r}" if name else "a generated part without a name"
            raise UserError(f"{problem} in {page}; the names are {', '.join(parts)}")
        end = text.find(END, begin.end())
        following = BEGIN.search(text, begin.end())
        if end < 0 or (following and following.start() < end):
            raise UserError(f"the generated part {name!r} in {page} has no end; write {END} behind it")
        pieces += [text[position : begin.start()], f"<!-- generated: {name} -->\n\n{parts[name]()}\n\n"]
        position = end
    if text.count(END) != len(names_in(text)):
        raise UserError(f"{page} has {END} without a beginning; write <!-- generated: NAME --> before it")
    return "".join([*pieces, text[position:]])


def benchmark(name: str) -> str:
    """The table that a script of benchmarks/ left, and when and where it ran."""
    text = (ROOT / f"benchmarks/results/{name}.md").read_text(encoding="utf-8")
    return text.partition("\n\n")[2].strip()


def benchmark_names() -> list[str]:
    return sorted(path.stem for path in (ROOT / "benchmarks/results").glob("*.md"))


def settings() -> str:
    """Every setting: first those of every run, then those that come with a method, a data set, a network, …"""
    files = _files_that_set()
    parts = ["### Settings of every run"]
    parts += [_group(section, section.title, files) for section in SECTIONS if fields_of(section)]
    owners: dict[Registry, dict[Kind, list[str]]] = {}
    for section, registry, name in all_sections(SECTIONS):
        if registry is not None:
            owners.setdefault(registry, {}).setdefault(section, []).append(name)
    for registry, sections in owners.items():
        flag = help_text.choice_flag(registry, SECTIONS)
        parts.append(f"### Settings that come with `{flag}`")
        for section, names in sections.items():
            choices = ", ".join(f"`{flag} {name}`" for name in names)
            parts.append(_group(section, f"{section.title} (only with {choices})", files))
    return "\n\n".join(parts)


def _group(section: Kind, title: str, files: Mapping[str, Sequence[str]]) -> str:
    hints = typing.get_type_hints(section)
    rows = [
        (*_row(name, field, hints[name], files), lifetime_of(name, section))
        for name, field in fields_of(section).items()
    ]
    columns = ("flag", "what it does", "default", "set in", "lifetime")
    return f"#### {title[0].upper()}{title[1:]}\n\n" + tables.table(columns, rows)


def _row(
    name: str, field: dataclasses.Field[Any], hint: Any, files: Mapping[str, Sequence[str]]
) -> tuple[str, str, str, str]:
    flag = f"{flag_of(name)} {help_text.placeholder_of(field, hint)}"
    choices = [f"`{choice}`" for choice in help_text.choices_of(field, hint)]
    what = f"{field.metadata['help']}. One of {', '.join(choices)}" if choices else field.metadata["help"]
    return f"`{_in_cell(flag)}`", _in_cell(what), _default(field), ", ".join(files.get(name, ()))


def _default(field: dataclasses.Field[Any]) -> str:
    """With its unit; nothing where a component must be named."""
    if field.default == "" and field.metadata["component"] is not None:
        return ""
    unit = field.metadata["unit"]
    return f"`{help_text.quantity(field.default, unit)}`" + (f", in {unit}" if unit and field.default is None else "")


def _in_cell(text: str) -> str:
    """A bar would end the cell of a table, and a newline the table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _files_that_set() -> dict[str, list[str]]:
    """{setting: the files of configs/ that set it}; where they are many, their number."""
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for name in load_yaml(path):
            files.setdefault(name, []).append(f"`{path.relative_to(ROOT / 'configs')}`")
    return {name: paths if len(paths) <= FEW_FILES else [f"{len(paths)} files"] for name, paths in files.items()}


def lifetimes() -> str:
    """How long the value of a setting holds."""
    return tables.table(("lifetime", "what holds"), list(LIFETIMES.items()))


def exit_statuses() -> str:
    """What the program's exit status says."""
    rows = [
        (f"`{_status(None)}`", "the command did what it was asked for"),
        (f"`{_status(errors.RunStopped('…'))}`", "a run stopped itself, such as at a loss that is not finite, "
         "or a process of it was lost; also a fault of the program, with a traceback"),
        (f"`{_status(UserError('…'))}`", "something that the user can correct: a wrong setting, missing data, a full disk, "
         "too little memory; stderr has one line, which says what to do"),
    ]  # fmt: skip
    rows += [
        (f"`{_status(errors.Interrupted(number))}`", f"{number.name}{SIGNAL_REASONS.get(number, '')} ended the program; "
         "a run in training saves its state first, if it can")
        for number in sorted(errors.SIGNALS)
    ]  # fmt: skip
    return tables.table(("status", "meaning"), rows)


def _status(error: BaseException | None) -> int:
    """The exit status of a program that ends by this error, or well."""

    def end(argv: Sequence[str]) -> int | None:
        if error is not None:
            raise error
        return None

    with contextlib.redirect_stderr(io.StringIO()):
        return errors.exit_status(end)([])


PARTS: dict[str, Callable[[], str]] = {
    "at-a-glance": tables.at_a_glance,
    "pica-rows": partial(tables.paper_rows, "pica"),
    "imc-swav-rows": partial(tables.paper_rows, "imc_swav"),
    "digits": partial(tables.study, "digits"),
    "digits-seeds": partial(tables.seed_range, "digits"),
    "cpu": partial(tables.study, "cpu"),
    "pretrained": partial(tables.study, "pretrained"),
    "pretrained-scores": partial(tables.study_scores, "pretrained"),
    "ablations": tables.ablations,
    "settings": settings,
    "lifetimes": lifetimes,
    "exit-statuses": exit_statuses,
    **{f"benchmark-{name.replace('_', '-')}": partial(benchmark, name) for name in benchmark_names()},
}


def changes() -> Iterator[tuple[Path, str]]:
    """Each page that has generated parts, and its text as it is to be.

    Raises:
        UserError: a marker is wrong, or no page shows a part.
    """
    shown = set()
    for page in documents():
        text = page.read_text(encoding="utf-8")
        shown.update(names_in(text))
        if END in text or names_in(text):
            yield page, regenerated(text, str(page.relative_to(ROOT)), PARTS)
    if missing := [name for name in PARTS if name not in shown]:
        raise UserError(f"no page of docs/ shows {', '.join(missing)}; write <!-- generated: NAME --> where it belongs")


@errors.exit_status
def main(argv: Sequence[str]) -> None:
    if argv:
        raise UserError(f"{argv[0]}: docs/generate.py takes no arguments")
    for page, text in list(changes()):
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
