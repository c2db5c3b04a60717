"""Every shipped configuration resolves, and its dry run goes through."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

import main
from lib.config import command_line, config
from lib.config.config import Raw
from lib.config.yaml_files import load_layers, load_yaml
from lib.runs.forecast import PEAKS

CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml" and path.parent.name != "data"
)

METHODS = [{"method": Raw(name, "a test"), "num_clusters": Raw(10, "a test")} for name in ("pica", "imc_swav")]


def pica(first: str, second: str, scored: str, steps: str) -> list[str]:
    trained = [f"expected: head {head}: {text} originals" for head, text in enumerate((first, second))]
    return [*trained, f"expected: {scored} images", f" {steps} in 200 epochs"]


def imc(trained: str, large: int, small: int, scored: str, steps: str) -> list[str]:
    views = f"in 6 views ({large}+{large}+{small}+{small}+{small}+{small} px)"
    return [f"expected: {trained} {views}", f"expected: {scored} images", f" {steps} in 500 epochs"]


CIFAR = pica(*["60,000 images, 235 steps of 256"] * 2, "train+test: 60,000", "94,000")
CIFAR_TRAIN = "50,000 images, 50,000 for the classifier, {} steps of {}"
STL10 = "105,000 images, 5,000 for the classifier, 410 steps of 256"
TINY = "100,000 images, 100,000 for the classifier, 195 steps of 512"
ROWS = {  # of the papers: what a dry run says of them
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "stl10": pica(
        "113,000 images, 883 steps of 128", "13,000 images, 102 steps of 128", "train+test: 13,000", "197,000"
    ),
    "imagenet10": pica(*["13,000 images, 51 steps of 256"] * 2, "train: 13,000", "20,400"),
    "imagenet_dogs": pica(*["19,500 images, 77 steps of 256"] * 2, "train: 19,500", "30,800"),
    "tiny_imagenet": pica(*["100,000 images, 391 steps of 256"] * 2, "train: 100,000", "156,400"),
    "imc_swav/cifar10": imc(CIFAR_TRAIN.format(195, 256), 28, 18, "test: 10,000", "97,500"),
    "imc_swav/cifar20": imc(CIFAR_TRAIN.format(195, 256), 28, 18, "test: 10,000", "97,500"),
    "imc_swav/cifar100": imc(CIFAR_TRAIN.format(97, 512), 28, 18, "test: 10,000", "48,500"),
    "imc_swav/stl10": imc(STL10, 76, 52, "test: 8,000", "205,000"),
    "imc_swav/tiny_imagenet": imc(TINY, 56, 36, "val: 10,000", "97,500"),
}


def base(path: Path) -> Path:
    """What stands before it; of the files in cpu/, each of which is named as its method, the method's own."""
    folder = {"cpu/pica": ROOT / "configs", "cpu/imc_swav": ROOT / "configs/imc_swav"}
    return folder.get(str(path.relative_to(ROOT / "configs").with_suffix("")), path.parent) / "base.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_dry_run(path: Path, cli: Callable[..., tuple[int, str, str]], class_folders: Path) -> None:
    (dataset,) = {values["dataset"] for _, values in load_layers(path) if "dataset" in values}
    data = {"image_folder": class_folders, "digits": Path("data")}.get(dataset, class_folders / "nowhere")
    fewer = ("--batch-size", 8) if dataset == "image_folder" else ()
    status, out, err = cli("--cfgs", base(path), path, "--data-root", data, *fewer, "--dry-run")
    assert status == 0, err
    out = " ".join(out.split())
    assert "images" in out and "per epoch" in out and "GFLOP" in out
    if "# Cost, by --dry-run" in path.read_text():
        stated = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
        steps = re.search(r"([\d,]+) per epoch, ([\d,]+) in", out)
        work = re.search(r"([\d,.]+) GFLOP per step", out)
        assert steps and work
        assert f"{steps[1]} steps per epoch, {steps[2]} in all, of {work[1]} GFLOP each" in stated
        hours = re.findall(r"(about [\d,.]+ hours on an (?:A100|H100 SXM))", out)
        assert len(hours) == 2 and all(one in stated for one in hours)
        time = re.search(r"predicted on an H100 in bfloat16: (.+ ms a step, [\d,.]+ minutes for the run)", out)
        assert time and f"Predicted by --dry-run, not measured, on an H100 in bfloat16: {time[1]}." in stated
    for said in ROWS.get(str(path.relative_to(ROOT / "configs").with_suffix("")), []):
        assert said in out


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_papers_open_with_all_that_one_wants_to_know(row: str) -> None:
    comment = re.match(r"(#.*\n)+", (ROOT / f"configs/{row}.yaml").read_text())
    assert comment
    text = comment[0].replace("\n# ", " ")
    paper = "Ntelemis, Jin, Thomas, 2021" if "imc_swav" in row else "Huang, Gong, Zhu, CVPR 2020"
    assert f"Published ({paper}" in text and "ACC" in text
    costs = [f"hours on {name} at {share:.0%} " for name, (_, share) in PEAKS.items()]
    for part in ("Data: ", "Cost, by --dry-run: ", "Predicted by --dry-run, not measured", *costs, "Our choice"):
        assert part in text, part
    assert "Not run by us yet." in text or "Ours (" in text


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_papers_do_not_wait_for_scores_after_each_epoch(row: str) -> None:
    held = load_yaml(ROOT / f"configs/{row}.yaml")
    assert held["eval_every"] == 10 and held["save_every_epochs"] == 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_it_opens_with_its_command(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"python main.py --cfgs {base(path).relative_to(ROOT)} {path.relative_to(ROOT)}" in comment


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_published_figures_are_those_of_the_comment(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    held = load_yaml(path)
    assert ("Published" in comment) == ("published" in held)
    for name, *figures in held.get("published", []):
        percent = 100 if path.parent.name == "imc_swav" else 1
        shown = [f"{figure * percent:.{1 if percent > 1 else 3}f}".lstrip("0") for figure in figures]
        assert all(figure in comment for figure in shown), (name, shown)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/data").glob("*.yaml")), ids=lambda path: path.stem)
def test_files_of_data_name_no_setting_of_a_method(path: Path) -> None:
    for method in METHODS:
        config.resolve(method | command_line.collect(["--cfgs", str(path)], main.SECTIONS), main.SECTIONS)
    users = [other for other in CONFIGS if str(path) in [str(Path(name).resolve()) for name, _ in load_layers(other)]]
    assert users, "no configuration includes it"
