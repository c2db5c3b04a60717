"""The figures of the documents: small, described where they are shown, and as their scripts draw them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FOLDER = ROOT / "docs" / "figures"
FIGURES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".png", ".svg"))
DIAGRAMS = ("imc_swav.svg", "pica.svg")
LARGEST = 300_000  # bytes
SHORTEST = 20  # letters that say what there is to see


def shown() -> dict[str, list[str]]:
    """Name of each figure that a page shows → the alternative texts."""
    found: dict[str, list[str]] = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        pairs = re.findall(r"!\[([^]]*)\]\(([^) ]+)\)", text)
        for tag in re.findall(r"<img\s[^>]*>", text):
            attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
            pairs.append((attributes.get("alt", ""), attributes["src"]))
        for alternative, address in pairs:
            if "://" not in address:
                path = (page.parent / address).resolve()
                assert path.is_file(), f"{page} shows {address}, which is not there"
                found.setdefault(path.name, []).append(alternative)
    return found


def test_all_figures_are_there() -> None:
    assert FIGURES == [
        "acc-over-time.svg", "clusters-digits.png", "confusion-digits.svg", "imc_swav.svg", "map.png", "pica.svg",
        "report-desktop.png", "report-phone.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_small_and_a_page_describes_it(name: str) -> None:
    assert (FOLDER / name).stat().st_size <= LARGEST
    texts = shown().get(name)
    assert texts, f"no page shows docs/figures/{name}"
    assert all(len(text) >= SHORTEST for text in texts), f"docs/figures/{name} is shown without an alternative text"


def test_the_diagrams_are_as_their_script_draws_them(tmp_path: Path) -> None:
    script = shutil.copy(FOLDER / "diagrams.py", tmp_path)
    subprocess.run([sys.executable, script], check=True)
    for name in DIAGRAMS:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"run docs/figures/diagrams.py: {name}"
