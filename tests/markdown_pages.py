"""What a page of Markdown consists of: sentences, links, images and the anchors of its headings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST_SENTENCE = 22  # words
CODE = "CODE"  # stands for a span of code, which is read as one word
ABBREVIATIONS = ("e.g.", "i.e.", "et al.", "cf.", "vs.", "Fig.", "Eq.", "Sec.", "pp.")

_FENCE = re.compile(r"^( *)(```+|~~~+).*?^ *\2`*~* *$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_IMAGE = re.compile(r"!\[([^\]]*)\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_DEFINITION = re.compile(r"^ {0,3}\[([^\]]+)\]:\s*<?(\S+?)>?(?:\s.*)?$", re.MULTILINE)
_HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"\b(id|name|href|src|alt)\s*=\s*([\"'])(.*?)\2", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^>]*>")
_HEADING = re.compile(r"^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+(?:\[[ xX]\]\s+)?")
_RULE = re.compile(r"^\s*\|?[\s:|-]*-[\s:|-]*\|?\s*$")
_END = re.compile(r"([.!?][\"')\]]*)\s+(?=[\"'(\[]*[A-Z0-9~])")


@dataclass(frozen=True)
class Image:
    """An image of a page: where its file is, and the text for those who do not see it."""

    target: str
    alternative: str


def without_code(text: str) -> str:
    """The page without blocks of code and without comments."""
    return _COMMENT.sub("", _FENCE.sub("", text))


def sentences(text: str) -> list[str]:
    """Every sentence of a page, without marks; a heading, a cell of a table and an item of a list each begin one.

    A span of code counts as one word, since it is read as one name. Code blocks, images and addresses are left out.
    """
    found: list[str] = []
    for block in _text_blocks(without_code(text)):
        found += _sentences_of(_plain(block))
    return found


def long_sentences(text: str, most: int = LONGEST_SENTENCE) -> list[str]:
    """Sentences of a page with more words than `most`, each behind its number of words."""
    counted = [(number_of_words(sentence), sentence) for sentence in sentences(text)]
    return [f"{count} words: {sentence}" for count, sentence in counted if count > most]


def number_of_words(sentence: str) -> int:
    """Words, numbers and spans of code; a sign such as × or ± by itself is none."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def links(text: str) -> list[str]:
    """Where the links and images of a page lead."""
    body = _SPAN.sub(CODE, without_code(text))
    targets = [found[2] for found in _LINK.finditer(body)]
    targets += [found[2] for found in _DEFINITION.finditer(body)]
    targets += [found[3] for found in _ATTRIBUTE.finditer(body) if found[1].lower() == "href"]
    # A link around an image holds two targets.
    targets += [image.target for image in images(text)]
    return targets


def images(text: str) -> list[Image]:
    """The images of a page, in Markdown or HTML."""
    body = _SPAN.sub(CODE, without_code(text))
    found = [Image(image[2], image[1].strip()) for image in _IMAGE.finditer(body)]
    for tag in _HTML_IMAGE.findall(body):
        attributes = {name.lower(): value for name, _, value in _ATTRIBUTE.findall(tag)}
        found.append(Image(attributes.get("src", ""), attributes.get("alt", "").strip()))
    return found


def anchors(text: str) -> set[str]:
    """What may follow `#` in a link to the page: headings as GitHub names them, and explicit ids."""
    seen: Counter[str] = Counter()
    found = {value for name, _, value in _ATTRIBUTE.findall(without_code(text)) if name.lower() in ("id", "name")}
    for heading in _HEADING.finditer(without_code(text)):
        name = slug(heading[2])
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def slug(heading: str) -> str:
    """GitHub's anchor of a heading: its text in small letters, without punctuation, with hyphens for spaces."""
    text = _LINK.sub(r"\1", _IMAGE.sub("", heading))
    text = re.sub(r"(?<!\w)_(.+?)_(?!\w)", r"\1", _TAG.sub("", text.replace("`", "")))
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _text_blocks(text: str) -> Iterator[str]:
    """Paragraphs, headings, items of lists and cells of tables, each in one line."""
    gathered: list[str] = []
    for line in [*text.splitlines(), ""]:
        stripped = re.sub(r"^[ >]+", "", line) if line.lstrip().startswith(">") else line.strip()
        is_heading = bool(_HEADING.match(stripped))
        is_row = stripped.startswith("|")
        is_item = bool(_ITEM.match(line))
        if (not stripped or is_heading or is_row or is_item) and gathered:
            yield " ".join(gathered)
            gathered = []
        if is_heading:
            yield _HEADING.sub(r"\2", stripped)
        elif is_row:
            # A | in a span of code would end a cell.
            cells = _SPAN.sub(CODE, stripped).replace("\\|", " ").strip("|").split("|")
            yield from ([] if _RULE.match(stripped) else (cell.strip() for cell in cells))
        elif stripped and not _DEFINITION.match(stripped):
            gathered.append(_ITEM.sub("", line).strip() if is_item else stripped)


def _plain(block: str) -> str:
    """The words of a block, without marks."""
    text = _SPAN.sub(CODE, block)
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
    text = re.sub(r"\[([^\]]+)\]\[[^\]]*\]", r"\1", text)
    text = re.sub(r"<(https?://[^>]+)>", r"\1", text)
    text = _TAG.sub("", text)
    text = re.sub(r"(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)", "", text)
    return " ".join(text.split())


def _sentences_of(text: str) -> list[str]:
    for abbreviation in ABBREVIATIONS:
        text = re.sub(rf"(?<!\w){re.escape(abbreviation)}", abbreviation.replace(".", "\0"), text)
    text = re.sub(r"\b([A-Z])\. (?=[A-Z])", "\\1\0 ", text)  # initials
    parts = _END.sub(r"\1\n", text).splitlines()
    return [part.replace("\0", ".") for part in parts if part]
