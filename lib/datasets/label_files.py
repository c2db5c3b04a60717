"""A table of labels, as people and their programs write one: `file,class` lines."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lib.config.regular_files import check_regular
from lib.datasets.folder_tree import printable
from lib.datasets.image_files import is_picture
from lib.errors import UserError

FILE_HEADINGS = {"file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "img", "name"}
CLASS_HEADINGS = {"class", "class_name", "label", "labels", "target", "category"}
NO_CLASS = {"", "nan", "none", "null", "na", "n/a", "<na>", "-1", "-1.0"}
SEPARATORS = (",", ";", "\t")
SAMPLE = 200  # lines by which separator and columns are recognised
WANTED = "a file and its class are wanted, with a comma between, or columns with headings such as `file,class`"

Row = tuple[int, list[str]]  # the number of its line, and its cells


class Labels(NamedTuple):
    """What a table says."""

    classes: dict[str, str]  # file → class
    remarks: list[str]  # what was made of the table


def read_labels(table: Path, root: Path, files: Sequence[str]) -> Labels:
    """The classes that a table gives to the files of a folder.

    Args:
        table: comma, semicolon or tab between the columns; UTF-8 or UTF-16.
        root: the folder.
        files: their paths from `root` on.

    Raises:
        UserError: the table cannot be read, names other files, or gives one file two classes.
    """
    names = _Names(table, root, files)
    rows, file_column, class_column, remarks = _columns(table, _parse(table, names), names)
    classes: dict[str, str] = {}
    counts: Counter[str] = Counter()
    unknown: list[tuple[int, str]] = []
    for number, row in rows:
        if len(row) <= max(file_column, class_column):
            raise UserError(f"{table}, line {number}: {WANTED}")
        written = row[file_column]
        label = _clean(row[class_column])
        file, form = names.find(written)
        if file is None:
            unknown.append((number, written))
            continue
        counts[form] += 1
        if label.casefold() in NO_CLASS:
            counts["empty"] += 1
            continue
        if "\0" in label:
            raise UserError(f"{table}, line {number}: the class has a NUL character in it; remove it")
        if any("\ud800" <= letter <= "\udfff" for letter in label):
            raise UserError(f"{table}, line {number}: the class is not in UTF-8; save the table as UTF-8")
        if classes.setdefault(file, label) != label:
            raise UserError(f"{table}, line {number}: {written!r} had another class before; give it one")
    if unknown:
        number, written = unknown[0]
        others = f" ({len(unknown):,} such lines in all)" if len(unknown) > 1 else ""
        # It may be hidden, or of a format without a decoder.
        reason = (
            "which is no image that can be decoded"
            if os.path.isfile(root / written)
            else "and there is no such picture"
        )
        raise UserError(
            f"{table}, line {number} names {written!r}, {reason} in {root}{others}; "
            "correct or remove the line; files are named from that folder on"
        )
    if not classes:
        given = "give a class to none" if counts["empty"] else "name none"
        raise UserError(f"the --labels {table} {given} of the pictures in {root}; files are named from there on")
    return Labels(classes, remarks + _remarks(classes, counts))


def _remarks(classes: dict[str, str], counts: Counter[str]) -> list[str]:
    found = []
    for key, one, several in (
        ("empty", "line without a class", "lines without a class"),
        ("path", "name written as another path", "names written as another path"),
        ("unicode", "name matched in another Unicode form", "names matched in another Unicode form"),
    ):
        if counts[key]:
            found.append(f"{counts[key]:,} {one if counts[key] == 1 else several}")
    spellings: dict[str, set[str]] = {}
    for label in set(classes.values()):
        spellings.setdefault(label.casefold(), set()).add(label)
    alike = [sorted(labels) for labels in spellings.values() if len(labels) > 1]
    if alike:
        found.append(f"classes that differ in capitals only: {', '.join(min(alike))}")
    return found


class _Names:
    """The files that a table may name.

    Args:
        table: its names may start at its own folder.
        root: they should start here.
        files: the files, from `root` on.
    """

    def __init__(self, table: Path, root: Path, files: Sequence[str]) -> None:
        self._known = set(files)
        # Names may also start at the working folder, or at the table's.
        self._bases = [os.path.abspath(root), os.getcwd(), os.path.abspath(table.parent)]
        self._roots = {os.path.join(base, "") for base in (self._bases[0], os.path.realpath(root))}
        self._by_form: dict[str, list[str]] = {}
        for file in files:
            self._by_form.setdefault(unicodedata.normalize("NFC", file), []).append(file)

    def find(self, name: str) -> tuple[str | None, str]:
        """(the file that a name means, how it is written: `exact`, `path` or `unicode`)."""
        if name in self._known:
            return name, "exact"
        paths = list(self._paths(name))
        for path in paths:
            if path in self._known:
                return path, "path"
        for path in paths:
            alike = self._by_form.get(unicodedata.normalize("NFC", path), [])
            if len(alike) == 1:
                return alike[0], "unicode"
        return None, ""

    def _paths(self, name: str) -> Iterator[str]:
        """A name as a path from the root on, in each way in which it may be meant."""
        for written in dict.fromkeys((name, name.replace("\\", "/"))):
            for base in self._bases:
                whole = os.path.normpath(os.path.join(base, written))
                for root in self._roots:
                    if whole.startswith(root):
                        yield whole.removeprefix(root)


def _parse(table: Path, names: _Names) -> list[Row]:
    """The lines of a table that are not blank, by the separator under which most of them name a file."""
    try:
        check_regular(table, pipes=True)
        text = _decode(table.read_bytes())
        sample = "".join(io.StringIO(text, newline="").readlines()[:SAMPLE])
        separator = max(SEPARATORS, key=lambda one: _fit(list(_rows(sample, one)), names))
        return list(_rows(text, separator))
    except (OSError, UnicodeError, csv.Error) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot read the --labels {table}: {problem}; a UTF-8 file of `file,class` lines is wanted"
        ) from error


def _decode(content: bytes) -> str:
    """The text of UTF-8, or of Excel's UTF-16; bytes of file names that are no UTF-8 stay as the system has them."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _rows(text: str, separator: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _fit(rows: Sequence[Row], names: _Names) -> tuple[int, int]:
    """(lines that name a file, lines of several columns)."""
    wide = [row for _, row in rows if len(row) > 1]
    return sum(any(names.find(cell)[0] is not None for cell in row) for row in wide), len(wide)


def _columns(table: Path, rows: list[Row], names: _Names) -> tuple[list[Row], int, int, list[str]]:
    """(the rows below the heading, the file's column, the class's column, remarks)."""
    if not rows:
        return [], 0, 1, []
    number, first = rows[0]
    headings = [cell.strip().casefold() for cell in first]
    file_columns = [i for i, heading in enumerate(headings) if heading in FILE_HEADINGS]
    class_columns = [i for i, heading in enumerate(headings) if heading in CLASS_HEADINGS]
    if file_columns and len(class_columns) > 1:
        which = ", ".join(first[i].strip() for i in class_columns)
        raise UserError(f"{table}, line {number}: several columns may be the class: {which}; keep one of them")
    if file_columns and class_columns and names.find(first[file_columns[0]])[0] is None:
        body = rows[1:]

        def fit(column: int) -> int:
            return sum(names.find(row[column])[0] is not None for _, row in body[:SAMPLE] if column < len(row))

        column = max(file_columns, key=fit)
        used = f"columns {first[column].strip()} and {first[class_columns[0]].strip()}"
        return body, column, class_columns[0], [used] if len(first) > 2 else []
    for line, row in rows:
        if any(cell.strip() for cell in row[2:]) or len(row) < 2:
            raise UserError(f"{table}, line {line}: {WANTED}")
    if names.find(first[0])[0] is None and not is_picture(os.path.basename(first[0].replace("\\", "/"))):
        return rows[1:], 0, 1, [f"line {number} taken for a heading: {printable(','.join(first))}"]
    return rows, 0, 1, []


def _clean(label: str) -> str:
    """A class without spaces and quotes around it, in one Unicode form."""
    label = label.strip()
    if len(label) > 1 and label[0] == label[-1] == '"':  # a space before the quote makes it part of the cell
        label = label[1:-1].strip()
    return unicodedata.normalize("NFC", label)
