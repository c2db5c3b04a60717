"""The examples and commands of the documents, run as they are written."""

from __future__ import annotations

import ast
import os
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, picture

import main
from lib.yamlfile import load_yaml

SHORTEN = ("--num-workers", "0", "--eval-sample", "50")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(path: Path) -> list[str]:
    lines = "".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if "main.py" in line]


def run(command: str, folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    assert words[:2] == ["python", "main.py"]
    return subprocess.run([sys.executable, str(ROOT / "main.py"), *words[2:], *extra], cwd=folder, text=True,
                          capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def fashion_mnist(root: Path) -> None:
    """40 and 20 pictures of noise in the official layout, whose presence makes a download needless."""
    raw, random = root / "FashionMNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for name, size in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, size, 28, 28) + images.tobytes())
        labels = random.integers(0, 10, size, dtype=np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, size) + labels.tobytes())


def test_the_components_of_extend_md_run_as_written(tmp_path: Path) -> None:
    path = ROOT / "docs/extend.md"
    names = re.findall(r"`(my_\w+\.py)`:$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    code = blocks(path, "python")
    assert len(names) == len(code) == len(commands(path)) == 3
    for name, text in zip(names, code, strict=True):
        assert len([line for line in text.splitlines() if line.strip()]) <= 20
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    fashion_mnist(tmp_path / "data")
    for command in commands(path):
        done = run(command, tmp_path, *SHORTEN)
        assert done.returncode == 0, done.stderr
        assert "ACC" in done.stdout


@pytest.mark.parametrize(
    "document", ["README.md", "docs/fidelity.md", "docs/checkpoints.md", "docs/parallel.md", "docs/pretrained.md"]
)
def test_every_command_of_the_documents_is_understood(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(300):
        picture(tmp_path / "pictures" / f"{i}.png", seed=i)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for command in commands(ROOT / document):
        if "sessions/NAME" in command or "theirs.ckpt" in command:
            continue  # needs the session of another command; tests/test_resume.py and test_authors.py have them
        words = shlex.split(command.replace("~/pictures", str(tmp_path / "pictures")))
        words = words[words.index("main.py") + 1 :]
        if "--gpus" in words and not torch.cuda.is_available():
            at = words.index("--gpus")
            del words[at : at + 2]
        status = main.main(words if "--list" in words else [*words, "--dry-run"])
        assert status == 0, f"{command}: {capsys.readouterr().err}"


@pytest.mark.parametrize("document", ["README.md", "docs/speed.md", "docs/parallel.md"])
def test_figures_of_speed_are_those_that_the_benchmarks_left(document: str) -> None:
    results = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks/results").glob("*.md")]
    if any("--short" in text for text in results):
        pytest.skip("`make bench` has written others")
    rows = [line for text in results for line in text.splitlines()]
    measured = re.findall(
        r"^\| .*(?: px \| [\d,]| s \|| ms \||pictures/s|steps/s|convnet, width|exponent|% \|).*$",
        (ROOT / document).read_text(),
        re.MULTILINE,
    )
    assert measured and not [row for row in measured if row not in rows]


def names(body: list[ast.stmt], inside: str = "") -> set[str]:
    """What a module defines at its top level, and `Class.member` for what its classes define."""
    found = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(inside + node.name)
        if isinstance(node, ast.ClassDef):
            found |= names(node.body, f"{inside}{node.name}.")
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        found |= {inside + part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


@pytest.mark.parametrize("document", ["docs/pica.md", "docs/imc_swav.md"])
def test_references_to_the_code_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    spans = re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", text))
    references = [span.partition(": ") for span in spans if re.match(r"\S+\.(py|yaml)\b", span)]
    assert len(references) > 20
    for path, _, name in references:
        file = ROOT / path
        defined = set(load_yaml(file)) if file.suffix == ".yaml" else names(ast.parse(file.read_text("utf-8")).body)
        assert name in defined, f"{path}: {name}"
