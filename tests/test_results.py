"""docs/results.md is what results/tables.py makes of the kept files, and these are what a session leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from lib.config.yaml_files import load_yaml
from lib.scoring import summary_over_seeds
from results import tables

KEPT = sorted(path.parent for path in (ROOT / "results").glob("*/*/summary.json"))


def test_the_page_is_made_from_what_is_kept() -> None:
    assert (ROOT / "docs/results.md").read_text(encoding="utf-8") == tables.text()


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_kept_is_whole(folder: Path) -> None:
    content = json.loads((folder / "summary.json").read_text())
    over = summary_over_seeds.over(list(content["seeds"].values()))
    assert all(content[how] == over[how] for how in ("median", "mean", "deviation"))
    settings = load_yaml(folder / "config.yaml")
    command = tables.kept(folder).command
    assert command.startswith("python main.py --cfgs ") and len(content["seeds"]) == len(settings["seeds"])


def test_a_row_of_a_paper_that_was_run_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    place = tmp_path / "results/rows/pica-stl10"
    place.mkdir(parents=True)
    values = {"acc": 0.7, "nmi": 0.6, "nmi_geometric": 0.61, "ari": 0.5}
    how = {name: {"train+test": values} for name in ("mean", "deviation")}
    (place / "summary.json").write_text(json.dumps({**how, "seeds": {"0": {}, "1": {}}, "baselines": {}}))
    source = (KEPT[0] / "provenance.jsonl").read_text()
    (place / "provenance.jsonl").write_text(source)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    text = tables.papers(ROOT / "configs", "PICA", "pica")
    assert "0.700 ± 0.700 / 0.610 ± 0.610 / 0.500 ± 0.500 (2 seeds)" in text and text.count("not run") == 5
