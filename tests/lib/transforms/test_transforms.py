from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from conftest import every_mode, resolve
from PIL import Image
from scipy import stats

from lib import datasets
from lib.contracts import Recipe, Request
from lib.errors import UserError
from lib.transforms import TransformSettings, normalisation
from lib.transforms.image_reader import Reader, to_channels
from lib.transforms.pillow_views import PILViews, view
from lib.transforms.random_draws import draw, uniforms

JITTER = (0.4, 0.4, 0.4, 0.1)


def sizes(n: int, height: int, width: int) -> np.ndarray:
    return np.tile(np.array([[height, width]]), (n, 1))


def test_draws_depend_on_seed_epoch_picture_and_copy_alone() -> None:
    base = uniforms(1, 2, np.arange(50), 3, 8)
    assert base.min() >= 0 and base.max() < 1
    np.testing.assert_array_equal(uniforms(1, 2, np.array([7, 31]), 3, 8), base[[7, 31]])
    for other in (uniforms(9, 2, np.arange(50), 3, 8), uniforms(1, 9, np.arange(50), 3, 8),
                  uniforms(1, 2, np.arange(50), 9, 8), uniforms(1, 2, np.arange(50) + 50, 3, 8)):  # fmt: skip
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.2
        assert not np.isin(base, other).any()


def test_draws_are_uniform_and_independent() -> None:
    u = uniforms(0, 0, np.arange(100_000), 0, 3)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    for a, b in ((u[:, 0], u[:, 1]), (u[:-1, 0], u[1:, 0])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.015


@pytest.mark.parametrize(
    ("height", "width", "scale", "n"),
    [(32, 32, (0.2, 1.0), 100_000), (40, 90, (0.08, 0.4), 20_000), (10, 300, (0.9, 1.0), 10_000)],
)
def test_resized_crops_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], n: int
) -> None:
    ours = draw(Recipe(32, "resized", scale=scale), sizes(n, height, width), 0, 0, np.arange(n), 0).box
    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    theirs = np.array([T.RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()


def test_colour_flip_and_grey_are_distributed_as_torchvisions() -> None:
    n = 100_000
    recipe = Recipe(8, "random", 10, jitter=JITTER, jitter_probability=0.8, grayscale=0.2, flip=0.5)
    draws = draw(recipe, sizes(n, 20, 20), 0, 0, np.arange(n), 0)
    for column, (low, high) in enumerate(((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))):
        assert stats.kstest(draws.jitter[:, column], "uniform", (low, high - low)).pvalue > 1e-3
    for flags, share in ((draws.jittered, 0.8), (draws.grayscale, 0.2), (draws.flip, 0.5)):
        assert stats.binomtest(int(flags.sum()), n, share).pvalue > 1e-3
    orders, counts = np.unique(draws.order, axis=0, return_counts=True)
    assert len(orders) == 24 and stats.chisquare(counts).pvalue > 1e-3
    corners = draws.box[:, :2]
    assert corners.min() == 0 and corners.max() == 2 and stats.chisquare(np.bincount(corners[:, 0])).pvalue > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (50, 37), (37, 64)])
def test_the_test_view_is_torchvisions_resize_and_center_crop(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    recipe = Recipe(32, "center", 40)
    ours = view(image, recipe, draw(recipe, sizes(1, size[1], size[0]), 0, 0, np.array([0]), 0), 0)
    theirs = T.Compose([T.Resize(40), T.CenterCrop(32)])(image)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_random_view_is_torchvisions_with_the_same_draw() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    recipe = Recipe(32, "resized", scale=(0.2, 1.0), jitter=JITTER, grayscale=0.5, flip=0.5)
    draws = draw(recipe, sizes(20, 40, 60), 0, 0, np.arange(20), 0)
    assert draws.flip.any() and draws.grayscale.any() and not draws.grayscale.all()
    F = T.functional  # noqa: N806
    for n in range(20):
        theirs: Any = F.resized_crop(image, *draws.box[n].tolist(), [32, 32])
        theirs = F.hflip(theirs) if draws.flip[n] else theirs
        for which in draws.order[n]:
            adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[which]
            theirs = adjust(theirs, float(draws.jitter[n, which]))
        theirs = F.to_grayscale(theirs, 3) if draws.grayscale[n] else theirs
        np.testing.assert_array_equal(np.asarray(view(image, recipe, draws, n)), np.asarray(theirs))


def test_modes_are_brought_to_eight_bits_without_clipping() -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    for deep in (Image.fromarray(ramp.astype(np.uint16)), Image.fromarray(ramp.astype(np.int32))):
        found = np.asarray(to_channels(deep, 1))
        np.testing.assert_allclose(found, ramp / 257, atol=0.51)
    clear = Image.new("RGBA", (2, 2), (200, 0, 0, 0))
    assert np.asarray(to_channels(clear, 3)).min() == 255  # what is transparent shows white
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert np.asarray(to_channels(palette, 3))[0, 0].tolist() == [10, 20, 30]
    assert to_channels(Image.new("CMYK", (2, 2)), 3).mode == "RGB"
    assert to_channels(Image.new("RGB", (2, 2), (255, 0, 0)), 1).getpixel((0, 0)) == 76


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_the_same_whoever_prepares_them_and_in_any_batch(workers: int, class_folders: Any) -> None:
    config = resolve("--dataset", "image_folder", "--data-root", class_folders)
    pictures = datasets.open_pictures(config)
    recipe = Recipe(8, "resized", jitter=JITTER, flip=0.5)
    test = Recipe(8, "center", 9)
    options: dict[str, Any] = {"seed": 5, "skip": False, "device": torch.device("cpu")}
    here = PILViews(Reader(pictures, 3, None), test, (0.5,) * 3, (0.2,) * 3, workers=0, **options)
    there = PILViews(Reader(pictures, 3, None), test, (0.5,) * 3, (0.2,) * 3, workers=workers, **options)
    (whole,) = here.stream([Request(torch.arange(24), (recipe, recipe), 3)])
    parts = list(there.stream(Request(index, (recipe, recipe), 3) for index in torch.arange(24).split(7)))
    for copy in range(2):
        assert torch.equal(whole.views[copy], torch.cat([part.views[copy] for part in parts]))
    assert not torch.equal(whole.views[0], whole.views[1])
    plain = torch.cat([part.views[0] for part in there.plain(torch.arange(24).split(5))])
    assert plain.shape == (24, 3, 8, 8) and torch.equal(plain, next(here.plain([torch.arange(24)])).views[0])
    there.close()


def test_a_picture_that_breaks_later_is_named_by_a_loader_process_too(class_folders: Any) -> None:
    pictures = datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", class_folders))
    whole = (class_folders / "bee" / "3.png").read_bytes()
    (class_folders / "bee" / "3.png").write_bytes(whole[: len(whole) // 2])
    for workers in (0, 1):
        views = make_views(pictures, workers=workers)
        with pytest.raises(UserError, match=r"bee/3\.png"):
            list(views.plain([torch.arange(24)]))
        views.close()


def test_a_picture_that_breaks_later_can_be_left_out(class_folders: Any) -> None:
    pictures = datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", class_folders))
    for name in ("bee/3.png", "cat/0.png"):
        (class_folders / name).write_bytes((class_folders / name).read_bytes()[:80])
    for workers in (0, 1):
        views = make_views(pictures, workers=workers, skip=True)
        parts = list(views.plain(torch.arange(24).split(10)))
        assert torch.cat([part.index for part in parts]).tolist() == [i for i in range(24) if i not in (11, 16)]
        assert [len(part.views[0]) for part in parts] == [10, 8, 4]
        assert sorted(views.skipped) == [11, 16] and "bee/3.png" in views.skipped[11]
        (nothing,) = views.plain([torch.tensor([11, 16])])
        assert len(nothing.index) == 0 and nothing.views[0].shape == (0, 3, 8, 8)
        views.close()


def make_views(
    pictures: datasets.Pictures, working_size: int | None = None, workers: int = 0, skip: bool = False
) -> PILViews:
    return PILViews(Reader(pictures, 3, working_size), Recipe(8, "center", 9), (0.0,) * 3, (1.0,) * 3, seed=0,
                    workers=workers, skip=skip, device=torch.device("cpu"))  # fmt: skip


def test_a_working_size_comes_before_everything(class_folders: Any) -> None:
    pictures = datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", class_folders))
    images = next(make_views(pictures, working_size=20).plain([torch.arange(2)])).views[0]
    first = T.Compose([T.Resize(20), T.Resize(9), T.CenterCrop(8), T.ToTensor()])(pictures[0][0].convert("RGB"))
    assert torch.equal(images[0], first)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(UserError, match="tfm_resize 20 is below tfm_size 32"):
        TransformSettings(tfm_size=32, tfm_resize=20)
    with pytest.raises(UserError, match="tfm_scale"):
        TransformSettings(tfm_scale=(1.0, 0.5))
    with pytest.raises(UserError, match="hue"):
        TransformSettings(tfm_colorjitter=(0.4, 0.4, 0.4, 0.6))
    with pytest.raises(UserError, match="tfm_means has 1 values"):
        normalisation(TransformSettings(tfm_means=(0.5,)), 3)


def test_pictures_of_any_mode_pass_through_the_folder(tmp_path: Any) -> None:
    every_mode(tmp_path)
    Image.fromarray(np.arange(120, dtype=np.int32).reshape(10, 12) * 500).save(tmp_path / "deep.tiff")
    pictures = datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", tmp_path))
    views = make_views(pictures)
    images = next(views.plain([torch.arange(len(pictures))])).views[0]
    assert images.shape == (9, 3, 8, 8) and torch.isfinite(images).all()
