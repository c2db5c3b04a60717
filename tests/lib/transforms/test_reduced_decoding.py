"""JPEG files that are decoded no larger than the views need, alike wherever a model sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, resolve
from PIL import Image

import main
from lib import datasets
from lib.checkpoints import checkpoint
from lib.contracts import Recipe, Request
from lib.datasets import image_decoder
from lib.transforms import TransformSettings, choose_backend, needed_side
from lib.transforms.streamed_views import StreamedViews

Cli = Callable[..., tuple[int, str, str]]
WHOLE = (320, 240)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 JPEG files of smooth colours with noise, and a PNG file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(24):
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(WHOLE, Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + random.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:02}.jpg", quality=90)
    Image.fromarray(noisy).save(folder / "24.png")
    return folder


def words(folder: Path, *more: object) -> tuple[object, ...]:
    return (*QUICK, "--net-heads", 5, "--dataset", "image_folder", "--data-root", folder, "--train-splits", "all",
            "--test-splits", "all", "--net-cin", 3, "--tfm-means", 0.5, 0.5, 0.5, "--tfm-stds", 0.2, 0.2, 0.2,
            "--batch-size", 5, "--tfm-decode-side", "auto", "--tfm-backend", "pil", *more)  # fmt: skip


def test_the_side_that_views_need() -> None:
    settings = TransformSettings()
    plain = Recipe(112, "center", 128)
    crop = Recipe(112, "resized", scale=(0.25, 1.0), ratio=(3 / 4, 4 / 3))
    assert needed_side(settings, (plain,)) == 256
    assert needed_side(settings, (plain, crop)) == 259  # 112 / (1/2 · √(3/4))
    assert needed_side(TransformSettings(tfm_working_size=40), (plain, crop)) == 80


@pytest.mark.parametrize(("side", "size"), [(None, (320, 240)), (241, (320, 240)), (121, (320, 240)), (120, (160, 120)),
                                            (60, (80, 60)), (1, (40, 30))])  # fmt: skip
def test_the_scale_at_which_a_jpeg_is_decoded(side: int | None, size: tuple[int, int], photos: Path) -> None:
    image = image_decoder.decode(photos / "00.jpg", 1, side)
    assert image.size == size
    whole = image_decoder.decode(photos / "00.jpg", 1)
    difference = np.asarray(whole.resize(size, Image.Resampling.BOX)).astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 6
    assert image_decoder.decode(photos / "24.png", 1, side).size == WHOLE


def test_a_turned_jpeg_is_turned_as_a_whole_one(photos: Path) -> None:
    image = Image.open(photos / "00.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(photos / "turned.jpg", exif=exif)
    assert image_decoder.decode(photos / "turned.jpg", 1, 60).size == (60, 80)


@pytest.mark.parametrize("frozen", [True, False])
def test_training_and_predictions_decode_alike(frozen: bool, photos: Path, cli: Cli, tmp_path: Path) -> None:
    more = ("--net-freeze", ".*") if frozen else ()
    status, _, err = cli(*words(photos, *more), "--session", "a")
    assert status == 0, err
    path = tmp_path / "sessions/a/checkpoint/latest.ckpt"
    settings = checkpoint.load(path)["config"]
    assert settings["tfm_decode_side"] == (20 if not settings["tfm_scale"] else max(
        20, int(np.ceil(8 / np.sqrt(settings["tfm_scale"][0] * 0.75)))))  # fmt: skip
    trained = np.load(tmp_path / "sessions/a/predictions.npz")["probability"]
    assert (
        cli("--predict", path, "--data-root", photos, "--session", "b", "--tfm-backend", "pil", "--num-workers", 0)[0]
        == 0
    )
    predicted = np.load(tmp_path / "sessions/b/predictions.npz")["probability"]
    model = main.load(str(path))
    files = sorted(photos.glob("*.*"))
    _, found = model.predict([Image.open(file) for file in files])
    np.testing.assert_allclose(predicted, trained, atol=1e-6)
    np.testing.assert_allclose(found, trained, atol=1e-6)
    seen = model.prepare([Image.open(file) for file in files])
    pictures = datasets.open_pictures(resolve(*words(photos, "--tfm-decode-side", settings["tfm_decode_side"])))
    views = choose_backend.open_views(resolve(*words(photos)), pictures, Recipe(8, "center", 10))
    (prepared,) = views.plain([torch.arange(25)])
    assert torch.equal(prepared.views[0], seen), "as in training, to the bit"
    whole = [Image.open(file) for file in files]
    for image in whole:
        image.load()
    assert (model.prepare(whole) - seen).abs().amax(dim=(1, 2, 3))[:24].min() > 0.01, "at their own size they differ"


def test_a_checkpoint_from_before_keeps_whole_files(photos: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli(*words(photos), "--tfm-decode-side", "full", "--max-epochs", 1, "--session", "a")[0] == 0
    path = tmp_path / "sessions/a/checkpoint/latest.ckpt"
    stored = checkpoint.load(path)
    del stored["config"]["tfm_decode_side"]
    checkpoint.save({name: value for name, value in stored.items() if name != "format"}, path)
    status, _, err = cli("--evaluate", path, *words(photos), "--session", "b")
    assert status == 0, err
    found = [np.load(tmp_path / f"sessions/{name}/predictions.npz")["probability"] for name in "ab"]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


def test_what_is_kept_of_files_goes_by_the_side(photos: Path, tmp_path: Path) -> None:
    kept = {}
    for side in ("full", "auto"):
        config = resolve(
            *words(photos, "--tfm-working-size", 12, "--cache", tmp_path / "cache"), "--tfm-decode-side", side
        )
        pictures = datasets.open_pictures(config)
        assert pictures.store is not None
        kept[side] = pictures.store.folder
        assert pictures.decode_side == (24 if side == "auto" else None)
    assert kept["full"] != kept["auto"]


def test_rows_of_the_papers_decode_whole_files() -> None:
    assert TransformSettings().tfm_decode_side == "full"
    settings = resolve("--cfgs", "configs/imc_swav/base.yaml", "configs/imc_swav/tiny_imagenet.yaml").of(
        TransformSettings
    )
    assert settings.tfm_decode_side == "full"


@pytest.mark.parametrize("backend", ["auto", "batched"])
def test_images_that_are_read_beside_the_network_are_those_in_memory(
    backend: str, photos: Path, tmp_path: Path
) -> None:
    Image.open(photos / "03.jpg").resize((300, 280)).save(photos / "03.jpg")
    (photos / "05.jpg").write_bytes(b"no image")
    config = resolve(
        *words(photos, "--on-bad-image", "skip"), "--tfm-backend", "batched", "--tfm-size", 120, "--tfm-resize", 130
    )
    test = Recipe(120, "center", 130)
    random = Recipe(100, "resized", scale=(0.2, 1), jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.3, flip=0.5)
    index = torch.arange(25)
    plan = [Request(part, (test, random), 0, part * 7 + 1) for part in index.split(10)]
    whole = choose_backend.open_views(config, datasets.open_pictures(config), test)
    streamed = choose_backend.open_views(
        config.replace(tfm_backend=backend), datasets.open_pictures(config), test, once=True
    )
    assert isinstance(streamed, StreamedViews)
    for one, other in zip(whole.stream(plan), streamed.stream(plan), strict=True):
        assert torch.equal(one.index, other.index)
        for ours, theirs in zip(one.views, other.views, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert list(streamed.skipped) == [5]


def test_large_images_go_through_pillow_where_each_is_needed_once(photos: Path) -> None:
    config = resolve(*words(photos), "--tfm-backend", "auto", "--tfm-decode-side", "full")
    views = choose_backend.open_views(config, datasets.open_pictures(config), Recipe(8, "center", 10), once=True)
    assert views.kind == "pil" and "which Pillow makes small faster" in views.describe()
