"""The wheel that is built from this folder, installed and run elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it, and this environment's packages behind it."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    source = folder / "source"
    for name in tracked.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    packages = next((folder / "venv/lib").glob("python*/site-packages"))
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "zz_behind.pth").write_text(f"{ours}\n")
    return folder


def run(*words: object, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_without_the_repository(installed: Path, tmp_path: Path) -> None:
    words = (
        "--cfgs",
        "configs/imc_swav/base.yaml",
        "configs/imc_swav/digits.yaml",
        "--max-epochs",
        1,
        "--baseline",
        "none",
    )
    run(installed / "venv/bin/deep-image-clustering", *words, "--session", "one", cwd=tmp_path)
    page = (tmp_path / "sessions/one/report.html").read_text(encoding="utf-8")
    assert (ROOT / "lib/report/style.css").read_text(encoding="utf-8").strip() in page
    assert (ROOT / "lib/report/script.js").read_text(encoding="utf-8").strip() in page
    question = "import main, pica, imc_swav, lib; print(main.__file__, pica.__file__, lib.__file__)"
    for file in run(installed / "venv/bin/python", "-c", question, cwd=tmp_path).split():
        assert Path(file).is_relative_to(installed / "venv")
    checkpoint = "sessions/one/checkpoint/latest.ckpt"
    run(installed / "venv/bin/deep-image-clustering", "--evaluate", checkpoint, "--processes", 2, cwd=tmp_path)
    run(installed / "venv/bin/python", "-m", "lib.report", "sessions/one", cwd=tmp_path)


@pytest.mark.slow
def test_the_wheel_lists_every_configuration(installed: Path) -> None:
    packages = next((installed / "venv/lib").glob("python*/site-packages"))
    shipped = {path.relative_to(packages) for path in packages.glob("configs/**/*.yaml")}
    assert shipped == {path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml")}
