"""The files in results/ are what a session leaves, and results/tables.py shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from lib.config.yaml_files import load_yaml
from lib.runs import forecast
from lib.scoring import summary_over_seeds
from results import tables

KEPT = sorted(path.parent for path in (ROOT / "results").glob("*/*/summary.json"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_kept_is_whole(folder: Path) -> None:
    content = json.loads((folder / "summary.json").read_text())
    over = summary_over_seeds.over(list(content["seeds"].values()))
    assert all(content[how] == over[how] for how in ("median", "mean", "deviation"))
    settings = load_yaml(folder / "config.yaml")
    command = tables.stored_session(folder).command
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
    text = tables.paper_rows("pica")
    assert "0.700 ± 0.700 / 0.610 ± 0.610 / 0.500 ± 0.500 (2 seeds)" in text and text.count("not run") == 5
    assert "- stl10: `python main.py --cfgs " in text


def test_the_time_of_a_row_is_the_prediction_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    float32 = "# about 16.9 hours on\n# an H100 SXM at 20% of its peak.\n"
    comment = "# Predicted by --dry-run, not measured, on an H100\n# in bfloat16: 10.6 ms a step, 1,016.6 minutes for the run."
    rows = "published: [[best, 0.6, 0.5, 0.4]]\npublished_split: test"
    (folder / "one.yaml").write_text(f"{float32}{comment}\n{rows}\n")
    (folder / "two.yaml").write_text(f"{rows}\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    text = tables.paper_rows("pica")
    assert "| `one` | – | 0.600 / 0.500 / 0.400 | not run | 16.9 hours | 1,016.6 minutes |" in text
    assert "| `two` | – | 0.600 / 0.500 / 0.400 | not run | – | – |" in text
    assert "neither is a measurement" in text and f"{forecast.BF16_SHARE:.0%}" in text


def test_baselines_that_differ_name_their_session() -> None:
    def session(acc: float) -> tables.StoredSession:
        baseline = {"mean": {"test": {"acc": acc, "nmi": 0.5, "ari": 0.5}}, "deviation": {}}
        return tables.StoredSession({"seeds": {"0": {}}, "baselines": {"k-means on pixels": baseline}}, {})

    alike = tables._baselines({"pica": session(0.7), "imc_swav": session(0.7)}, set())
    assert [row[0] for row in alike] == ["k-means on pixels"]
    differing = tables._baselines({"pica": session(0.7), "imc_swav": session(0.8)}, set())
    assert [row[0] for row in differing] == ["k-means on pixels (PICA)", "k-means on pixels (IMC-SwAV)"]


def test_the_table_at_a_glance_is_short_and_says_what_was_not_run() -> None:
    lines = tables.at_a_glance().splitlines()
    assert sum(line.startswith("| digits |") for line in lines) == 2
    assert len(lines) - 2 <= 10 and sum("not run" in line for line in lines) <= 2
    assert any("`imc_swav/pretrained.yaml` | 0.674 ± 0.011 |" in line and "0.496 /" in line for line in lines)
