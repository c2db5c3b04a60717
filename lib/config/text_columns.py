"""Text in columns as wide as the terminal."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from collections.abc import Sequence

NARROWEST, WIDEST = 60, 110  # columns
UNBROKEN = "\N{NO-BREAK SPACE}"


def width() -> int:
    """Columns of the terminal; 80 in a pipe."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, NARROWEST), WIDEST)


def unbroken(text: str) -> str:
    """A text that no line end tears."""
    return text.replace(" ", UNBROKEN)


def wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most `columns`, unless a word is longer."""
    lines = textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)
    return [line.replace(UNBROKEN, " ") for line in lines]


def beside(left: str, text: str, column: int) -> list[str]:
    """`left`, and from a column on `text`, wrapped; a `left` that reaches the column has a line for itself."""
    lines = wrapped(text, width() - column)
    indent = " " * column
    if len(left) + 1 > column or not lines:
        return [left, *(indent + line for line in lines)]
    return [left.ljust(column) + lines[0], *(indent + line for line in lines[1:])]


def command_lines(words: Sequence[str], indent: str = "  ") -> list[str]:
    """A command that can be pasted: its lines but the last end with a backslash; a flag and its value stay together."""
    pieces: list[str] = []
    for word in map(shlex.quote, words):
        if pieces and re.fullmatch(r"--[\w-]+", pieces[-1]) and not word.startswith("--"):
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    lines = [f"{indent}{pieces[0]}"]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) + len(" \\") < width():
            lines[-1] += f" {piece}"
        else:
            lines[-1] += " \\"
            lines.append(f"{indent}  {piece}")
    return lines
