"""Who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = (
    {"contracts", "errors", "registry", "settings", "yamlfile", "progress", "columns"},
    {
        "runtime",
        "distributed",
        "launch",
        "locks",
        "metrics",
        "schedules",
        "checkpoint",
        "safetensors",
        "faults",
        "means",
        "batchnorm",
        "tuning",
        "weights",
    },
    {
        "command",
        "config",
        "session",
        "resume",
        "optimizers",
        "networks",
        "datasets",
        "transforms",
        "method",
        "batches",
        "backbone",
        "features",
        "onnx",
        "export",
        "family",
    },
    {"inference", "labelfree", "baselines", "evaluation", "predictions", "report", "summary", "choice"},
    {"trainer"},
    {"adaptive", "forecast", "sections", "model", "runs"},
)
FILES = sorted(path for folder in ("lib", "pica", "imc_swav") for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "lib" else set()
            found |= names or {str(node.module)}
    return found


def layer(module: str) -> int:
    part = module.split(".")[1]
    return next(i for i, names in enumerate(LAYERS) if part in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    for module in imported(path):
        root = module.split(".")[0]
        assert root not in ("main", "tests", "conftest")
        if parts[0] == "lib":
            assert root not in ("pica", "imc_swav"), f"{path} knows a method"
            if root == "lib" and parts[1] != "__init__":
                assert layer(module) <= layer(".".join(parts)), f"{path} imports {module}, which stands above it"
        else:
            assert root not in {"pica", "imc_swav"} - {parts[0]}, f"{path} knows another method"
            if root == "lib":
                assert module.split(".")[1] not in ("trainer", "session", "evaluation", "report", "forecast")


def test_nothing_in_lib_names_a_method() -> None:
    for path in FILES:
        if path.is_relative_to(ROOT / "lib"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            names = {node.id.lower() for node in nodes if isinstance(node, ast.Name)}
            texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
            assert not {name for name in names if "pica" in name or "swav" in name}, path
            assert not texts & {"pica", "imc_swav"}, path


def test_device_kinds_are_named_in_one_file() -> None:
    for path in [*FILES, ROOT / "main.py"]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        literals = {str(node.value).split(":")[0] for node in nodes if isinstance(node, ast.Constant)}
        attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        if path != ROOT / "lib/machine/devices.py":
            assert not {"cuda", "cpu", "mps"} & literals, path
            assert not {"cuda", "is_cuda"} & attributes, path
