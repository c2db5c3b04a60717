"""Who may import whom."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = (
    {"errors"},
    {"config"},
    {"machine"},
    {"checkpoints"},
    {"session"},
    {"contracts"},
    {"datasets", "transforms", "networks"},
    {"features"},
    {"methods"},
    {"scoring"},
    {"training"},
    {"serving"},
    {"report"},
    {"runs"},
)
OLD_NAMES = {
    "lib.backbone.Features": "lib.networks.backbone",
    "lib.batches.ViewBatch": "lib.methods.batches",
    "lib.distributed.gather": "lib.machine.processes",
    "lib.method.Entry": "lib.methods.method",
    "lib.method.Request": "lib.contracts",
    "lib.method.Task": "lib.contracts",
    "lib.methods.method.Split": "lib.contracts",
    "lib.methods.method.Task": "lib.contracts",
    "lib.methods.method.assemble": "lib.methods.building",
    "lib.metrics.partition_uncertainty": "lib.scoring.metrics",
    "lib.optimizers.register": "lib.training.optimizers",
    "lib.progress.progress": "lib.machine.progress",
    "lib.runtime.SeedSettings": "lib.machine.devices",
    "lib.schedules.register": "lib.training.schedules",
    "lib.settings.Section": "lib.config.settings",
    "lib.transforms.measure.measured": "lib.transforms.channel_statistics",
}  # as documents showed them once → where they are
FILES = sorted(
    path
    for folder in ("lib", "pica", "imc_swav")
    for path in (ROOT / folder).rglob("*.py")
    if path.parent.name != "old_names" and path != ROOT / "lib/__init__.py"
)


def imported(path: Path) -> set[str]:
    modules = set()
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for_types = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    assert not for_types or path == ROOT / "lib/contracts.py", f"{path} imports for types only"
    unloaded = {inner for node in for_types for inner in ast.walk(node)}
    for node in nodes:
        if node in unloaded:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "lib" else set()
            modules |= names or {str(node.module)}
    return modules


def layer(module: str) -> int:
    room = module.split(".")[1]
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    for module in imported(path):
        root = module.split(".")[0]
        assert root not in ("main", "tests", "conftest")
        if parts[0] == "lib":
            assert root not in ("pica", "imc_swav"), f"{path} knows a method"
            if root == "lib":
                assert layer(module) <= layer(".".join(parts)), f"{path} imports {module}, which is above it"
        else:
            assert root not in {"pica", "imc_swav"} - {parts[0]}, f"{path} knows another method"
            assert not module.startswith(("lib.session", "lib.training.trainer")), f"{path} knows a run"


def test_the_contracts_load_nothing_of_the_project() -> None:
    assert {module for module in imported(ROOT / "lib/contracts.py") if module.startswith("lib")} == set()


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (ROOT / "lib").glob("*/__init__.py")))
def test_a_room_opens_with_what_is_inside(room: str) -> None:
    text = (ROOT / "lib" / room / "__init__.py").read_text(encoding="utf-8")
    sentence = ast.get_docstring(ast.parse(text))
    assert sentence is not None and len(sentence.splitlines()[0]) > 40


@pytest.mark.parametrize("name", OLD_NAMES)
def test_a_former_name_is_the_same_thing(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    former = getattr(importlib.import_module(module), attribute)
    assert former is getattr(importlib.import_module(OLD_NAMES[name]), attribute)
