from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from lib.config import command_line, config
from lib.config.config import Config

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED = ROOT.parent / "shared"


def shared(relative: str) -> Path:
    """A file beside the project; the test is skipped where it is missing."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path


def resolve(*words: object) -> Config:
    """The configuration of a command line."""
    raw = main.DEFAULTS | command_line.collect([str(word) for word in words], main.SECTIONS)
    return config.resolve(raw, main.SECTIONS)


DIGITS = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/digits.yaml", "--seed", 7)
# Small enough for seconds: 899 pictures, 2 heads of 4 steps.
QUICK = (*DIGITS, "--train-splits", "train", "--test-splits", "test", "--num-workers", 0, "--net-heads", 70, 10,
         "--batch-size", 256, "--net-width", 4, "--tfm-working-size", "none", "--tfm-size", 8, "--tfm-resize", 10,
         "--baseline", "none", "--eval-sample", 50, "--max-epochs", 1, "--eval-every", 1, "--display-freq", 20,
         "--base-lr", 1e-3, "--feature-engine", "eager")  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What runs keep goes to a temporary folder, for the processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "deep-image-clustering"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process, sessions going to a temporary folder: (status, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        status = main.main(["--session-root", str(tmp_path / "sessions"), *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def picture(path: Path, size: tuple[int, int] = (12, 10), mode: str = "RGB", seed: int = 0) -> Path:
    """Write a picture of noise; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def every_mode(folder: Path) -> None:
    """Write pictures of each mode that files have, 16-bit ones too."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture(folder / f"{mode}.png", mode=mode)
    picture(folder / "cmyk.jpg", mode="CMYK")
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (10, 12), dtype=np.uint16)).save(folder / "deep.png")


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Three classes of eight pictures."""
    for label in ("ant", "bee", "cat"):
        for i in range(8):
            picture(tmp_path / "pictures" / label / f"{i}.png", seed=i)
    return tmp_path / "pictures"


def fill(i: int, key: str, shape: list[int]) -> torch.Tensor:
    """The formula by which the recorded networks were filled."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    w = np.cos(0.7 * np.arange(int(np.prod(shape))) * (1 + i % 7) + i).reshape(shape)
    if key.endswith("running_mean"):
        w = 0.05 * w
    elif key.endswith("running_var"):
        w = 1 + 0.2 * w
    elif len(shape) == 1:
        w = 1 + 0.1 * w if key.endswith("weight") else 0.05 * w
    else:
        w = w * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(w)
