"""Every shipped configuration resolves, and its dry run goes through."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from lib.yamlfile import load_yaml

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_dry_run(path: Path, cli: Callable[..., tuple[int, str, str]], class_folders: Path) -> None:
    text = path.read_text()
    data = class_folders if "dataset: image_folder" in text else class_folders / "nowhere"
    data = Path("data") if "dataset: digits" in text else data
    fewer = ("--batch-size", 8) if "image_folder" in path.read_text() else ()
    status, out, err = cli("--cfgs", path.parent / "base.yaml", path, "--data-root", data, *fewer, "--dry-run")
    assert status == 0, err
    assert "pictures" in out and "per epoch" in out and "GFLOP" in out
    if "# Cost, by --dry-run" in path.read_text():
        stated = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
        steps, work = re.search(r"([\d,]+) per epoch, ([\d,]+) in", out), re.search(r"([\d,.]+) GFLOP per step", out)
        assert steps and work
        assert f"{steps[1]} steps per epoch, {steps[2]} in all, of {work[1]} GFLOP each" in stated
        hours = re.findall(r"(about [\d,.]+ hours on an (?:A100|H100 SXM))", out)
        assert len(hours) == 2 and all(one in stated for one in hours)


@pytest.mark.parametrize(
    ("name", "train", "score"),
    [
        ("cifar10", ["60,000 pictures, 235 steps of 256"] * 2, "train+test: 60,000"),
        ("cifar100", ["60,000 pictures, 235 steps of 256"] * 2, "train+test: 60,000"),
        ("stl10", ["113,000 pictures, 883 steps of 128", "13,000 pictures, 102 steps of 128"], "train+test: 13,000"),
        ("imagenet10", ["13,000 pictures, 51 steps of 256"] * 2, "train: 13,000"),
        ("imagenet_dogs", ["19,500 pictures, 77 steps of 256"] * 2, "train: 19,500"),
        ("tiny_imagenet", ["100,000 pictures, 391 steps of 256"] * 2, "train: 100,000"),
    ],
)
def test_rows_of_the_paper_have_its_sizes(
    name: str, train: list[str], score: str, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    files = ("--cfgs", ROOT / "configs/base.yaml", ROOT / f"configs/{name}.yaml")
    _, out, _ = cli(*files, "--data-root", tmp_path, "--dry-run")
    for head, line in enumerate(train):
        assert f"expected: head {head}: {line}" in out
    assert f"expected: {score} pictures" in out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_it_opens_with_its_command(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    folder = path.parent.relative_to(ROOT)
    assert f"python main.py --cfgs {folder}/base.yaml {folder}/{path.name}" in comment


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_published_figures_are_those_of_the_comment(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    held = load_yaml(path)
    assert ("Published" in comment) == ("published" in held)
    for name, *figures in held.get("published", []):
        percent = 100 if path.parent.name == "imc_swav" else 1
        shown = [f"{figure * percent:.{1 if percent > 1 else 3}f}".lstrip("0") for figure in figures]
        assert all(figure in comment for figure in shown), (name, shown)
