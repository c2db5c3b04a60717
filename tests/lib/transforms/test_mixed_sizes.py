"""The `batched` back end on pictures of several sizes, against Pillow on the same draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, resolve
from PIL import Image

from lib import datasets
from lib.contracts import Prepared, Recipe, Request, Views
from lib.transforms import batched_views, choose_backend
from lib.transforms.batched_views import BatchedViews
from lib.transforms.choose_backend import open_views

SIZES = [(40, 40), (40, 53), (53, 40), (40, 320), (41, 47)]  # height, width
JITTER = (0.4, 0.4, 0.4, 0.1)
RECIPES = (
    Recipe(32, "center", 36),
    Recipe(32, "random", 40, flip=0.5),
    Recipe(28, "resized", scale=(0.2, 1.0), flip=0.5),
    Recipe(18, "resized", scale=(0.08, 0.4), jitter=JITTER, jitter_probability=0.8, grayscale=0.25, flip=0.5),
    Recipe(32, "center", 32),
)


def paint(path: Path, size: tuple[int, int], seed: int) -> None:
    """A smooth slope with noise on it, as PNG."""
    height, width = size
    random = np.random.default_rng(seed)
    slopes = random.uniform(-1, 1, (2, 3))
    y = np.linspace(-1, 1, height)[:, None, None]
    x = np.linspace(-1, 1, width)[:, None]
    whole = 128 + 50 * (y * slopes[0] + x * slopes[1]) + random.normal(0, 15, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(whole.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Splits of 30 and 10 pictures, all sizes in each, and one unreadable in each: positions 7 and 33."""
    for split, n in (("train", 30), ("test", 10)):
        for i in range(n):
            paint(tmp_path / "mixed" / split / f"{i:02}.png", SIZES[i % 5], seed=i)
    for broken in ("train/07.png", "test/03.png"):
        (tmp_path / "mixed" / broken).write_bytes(b"no picture")
    return tmp_path / "mixed"


def folder_views(root: Path, *words: object) -> Views:
    settings = resolve("--cfgs", "configs/base.yaml", "configs/image_folder.yaml", "--data-root", root, "--num-workers",
                       0, "--num-clusters", 3, "--on-bad-image", "skip", "--seed", 4, "--tfm-means",
                       "none", "--tfm-stds", "none", "--tfm-working-size", "none", *words)  # fmt: skip
    return open_views(settings, datasets.open_pictures(settings), Recipe(32, "center", 36))


def made(views: Views, *batches: object) -> Iterator[Prepared]:
    return views.stream([Request(torch.as_tensor(batch), RECIPES, 2) for batch in batches])


BATCHES = (np.random.default_rng(1).permutation(40), [12], [7, 33], [35, 2, 7, 31])


@pytest.mark.parametrize("words", [(), ("--tfm-working-size", 24), ("--net-cin", 1)])
def test_the_same_draws_give_pillows_pictures(mixed: Path, words: tuple[object, ...]) -> None:
    ours, theirs = (folder_views(mixed, "--tfm-backend", name, *words) for name in ("batched", "pil"))
    assert isinstance(ours, BatchedViews) and len(ours._parts) > 2, "groups"
    for one, other in zip(made(ours, *BATCHES), made(theirs, *BATCHES), strict=True):
        assert torch.equal(one.index, other.index)
        for recipe, view, expected in zip(RECIPES, one.views, other.views, strict=True):
            assert view.shape == expected.shape and view.is_contiguous()
            apart = (view - expected).abs() * 255
            if len(apart):
                each = apart.flatten(1).mean(1)
                if recipe.jitter:
                    assert (each.mean() <= 1.5 or len(each) < 30) and each.max() <= 2 and apart.quantile(0.999) <= 8
                else:
                    assert each.max() < 0.5 and apart.max() <= 2.01  # Pillow rounds after each axis
    assert ours.skipped == theirs.skipped and list(ours.skipped) == [7, 33]


@pytest.mark.parametrize("words", [(), ("--net-cin", 1)])
def test_static_views_of_several_sizes(mixed: Path, words: tuple[object, ...]) -> None:
    ours: Any = folder_views(mixed, *words)
    ours.static = True
    assert len(ours._parts) > 2, "groups"
    others = folder_views(mixed, *words)
    for one, other in zip(made(ours, *BATCHES), made(others, *BATCHES), strict=True):
        assert torch.equal(one.index, other.index) and not one.views.is_static
        for view, expected in zip(one.views, other.views, strict=True):
            scale = ours._finish.stds[0].item()
            torch.testing.assert_close(view * scale, expected * scale, rtol=0, atol=2e-6)


def test_a_view_depends_neither_on_its_batch_nor_on_how_many_are_at_work(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = folder_views(mixed)
    (whole,) = made(views, range(40))
    (few,) = made(views, [35, 2, 31])
    monkeypatch.setattr(batched_views, "WORK", 32 * 3 * 40 * 320 * 2)  # two of the largest
    (parts,) = made(views, range(40))
    rows = [whole.index.tolist().index(position) for position in (35, 2, 31)]
    for all_, again, some in zip(whole.views, parts.views, few.views, strict=True):
        torch.testing.assert_close(all_, again, rtol=0, atol=2e-5)
        torch.testing.assert_close(all_[rows], some, rtol=0, atol=2e-5)


def test_pictures_of_one_size_are_not_padded(tmp_path: Path) -> None:
    for i in range(20):
        paint(tmp_path / f"{i:02}.png", (41, 47), seed=i)
    views: Any = folder_views(tmp_path)
    assert [part.shape for part in views._parts] == [(20, 41, 3, 47)]
    assert views.describe() == "batched, 20 images of 47×41 px in memory"
    stored = views._parts[0].permute(0, 1, 3, 2).numpy()
    assert all((stored[i] == np.asarray(Image.open(tmp_path / f"{i:02}.png"))).all() for i in range(20))


def test_a_size_that_the_first_look_missed(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(made(folder_views(mixed), *BATCHES))
    monkeypatch.setattr(choose_backend, "SPREAD", 1)  # all seem to have one size, so nothing is padded
    views: Any = folder_views(mixed)
    assert {part.shape[1::2] for part in views._parts} == set(SIZES)
    for one, other in zip(made(views, *BATCHES), expected, strict=True):
        for view, before in zip(one.views, other.views, strict=True):
            torch.testing.assert_close(view, before, rtol=0, atol=2e-5)


def test_the_budget_is_kept_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a first look that tells, and with one."""
    for i in range(40):
        paint(tmp_path / f"{i:02}.png", (16, 16) if i % 2 else (16, 24), seed=i)
    padded = 20 * (16 * 16 + 16 * 24) * 3
    words = ("--tfm-backend", "auto", "--memory-budget")
    assert folder_views(tmp_path, *words, padded / 2**30).kind == "batched"
    taken: list[int] = []
    admit = choose_backend._Held._admit
    monkeypatch.setattr(
        choose_backend._Held, "_admit", lambda held, *args: (admit(held, *args), taken.append(held._bytes))
    )
    views = folder_views(tmp_path, *words, (padded - 1) / 2**30)
    assert views.kind == "pil" and "because the pictures take 3.58e-05 GiB, and --memory" in views.describe()
    assert max(taken) < padded and len(taken) == 39
    taken.clear()
    views = folder_views(tmp_path, *words, padded / 2 / 2**30)
    assert "because the pictures take about 3." in views.describe() and not taken, (
        "a few tell, and the rest is not read"
    )
    monkeypatch.setattr(choose_backend, "SPREAD", 4)  # too few to tell
    views = folder_views(tmp_path, *words, padded / 2 / 2**30)
    assert "because 21 of the pictures take 1." in views.describe() and len(taken) == 20


def test_a_run_gives_the_same_predictions_by_either_back_end(cli: Any, mixed: Path, tmp_path: Path) -> None:
    found = {}
    for name, words in (("auto", ()), ("pil", ("--tfm-backend", "pil"))):
        status, out, err = cli(*QUICK[:1], "configs/base.yaml", "configs/image_folder.yaml", "--network", "convnet",
                               "--net-width", 4, "--data-root", mixed, "--num-clusters", 3, "--seed", 1, "--max-epochs",
                               0, "--num-workers", 0, "--baseline", "none", "--on-bad-image", "skip", "--session", name,
                               *words)  # fmt: skip
        assert status == 0, err
        assert ("views    batched, 38 images of 5 sizes in memory" in out) == (name == "auto")
        found[name] = np.load(tmp_path / "sessions" / name / "predictions.npz")
    for key in ("split", "index"):
        assert (found["auto"][key] == found["pil"][key]).all()
    np.testing.assert_allclose(found["auto"]["probability"], found["pil"]["probability"], atol=2e-3)
    assert (found["auto"]["cluster"] == found["pil"]["cluster"]).mean() > 0.9
