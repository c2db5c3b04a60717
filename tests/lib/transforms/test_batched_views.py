"""The `batched` back end against torchvision, on real photographs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from conftest import resolve
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import photographs
from lib import datasets
from lib.contracts import Recipe, Request, Views
from lib.datasets.fingerprint import fingerprint
from lib.errors import UserError
from lib.machine import devices
from lib.transforms import batched_views, colour, view_operations
from lib.transforms.batched_views import BatchedViews
from lib.transforms.choose_backend import open_views
from lib.transforms.images_in_memory import whole
from lib.transforms.pillow_views import PILViews
from lib.transforms.pillow_views import view as pil_view
from lib.transforms.random_draws import Draws, draw

JITTER = (0.4, 0.4, 0.4, 0.1)
STRONG = (0.8, 0.8, 0.8, 0.5)


def both(pictures: NDArray[np.uint8], recipe: Recipe, copy: int = 0) -> tuple[Tensor, Tensor]:
    """(N, C, size, size) of the same draws: by whole batches, and by torchvision on Pillow pictures, on the scale 255."""
    n, height, width, channels = pictures.shape
    sizes = np.tile([[height, width]], (n, 1))
    draws = draw(recipe, sizes, 3, 1, np.arange(n), copy)
    plan = view_operations.plan(recipe, draws, sizes, devices.CPU)
    ours = view_operations.view([torch.from_numpy(pictures).permute(0, 1, 3, 2) / 255], plan).transpose(0, 1) * 255
    images = [Image.fromarray(part if channels == 3 else part[..., 0]) for part in pictures]
    theirs = np.stack([np.asarray(pil_view(image, recipe, draws, i)) for i, image in enumerate(images)])
    return ours, torch.from_numpy(theirs.reshape(*ours.shape[:1], *ours.shape[2:], -1)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 96), (40, 70)])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(32, "resized", scale=(0.2, 1.0), flip=0.5),
        Recipe(18, "resized", scale=(0.08, 0.4), flip=0.5),
        Recipe(64, "resized", scale=(0.02, 0.1), ratio=(0.3, 3.0), flip=0.5),
        Recipe(32, "random", 40, flip=0.5),
        Recipe(32, "center", 40),
        Recipe(28, "center", 28),
    ],
    ids=lambda recipe: f"{recipe.crop}-{recipe.size}",
)
def test_crop_resize_and_flip_are_pillows(height: int, width: int, recipe: Recipe) -> None:
    ours, theirs = both(photographs(60, height, width), recipe)
    assert (ours - theirs).abs().max() <= 2  # Pillow rounds after each axis
    assert (ours - theirs).abs().mean() < 0.5


def floats(n: int = 12) -> Tensor:
    """(N, 3, H, W) in [0, 1], some pixels grey, black, white or of two equal channels."""
    pictures = torch.from_numpy(photographs(n, 24, 20)).permute(0, 3, 1, 2) / 255
    pictures[:, :, 0] = pictures[:, :1, 0]
    pictures[:, :, 1] = 0
    pictures[:, :, 2] = 1
    pictures[:, 1, 3] = pictures[:, 0, 3]
    pictures[:, 2, 4] = pictures[:, 1, 4]
    return pictures


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (colour.brightness, F.adjust_brightness, 0.0, 2.0),
        (colour.contrast, F.adjust_contrast, 0.0, 2.0),
        (colour.saturation, F.adjust_saturation, 0.0, 2.0),
        (colour.hue, F.adjust_hue, -0.5, 0.5),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_those_of_torchvisions_float_tensors(
    ours: Callable[..., None], theirs: Callable[..., Tensor], low: float, high: float, channels: int
) -> None:
    pictures = floats()[:, :channels]
    factors = torch.linspace(low, high, len(pictures))
    planes = pictures.transpose(0, 1).contiguous()
    ours(planes, factors)
    expected = torch.stack([theirs(one, float(factor)) for one, factor in zip(pictures, factors, strict=True)])
    assert (planes.transpose(0, 1) - expected).abs().max() < 1e-5


def test_grayscale_is_that_of_torchvisions_float_tensors() -> None:
    pictures = floats()
    planes = pictures.transpose(0, 1).contiguous()
    colour.grayscale(planes)
    assert (planes.transpose(0, 1) - F.rgb_to_grayscale(pictures, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(32, "resized", scale=(0.2, 1.0), jitter=(0.4,) * 4, grayscale=0.2, flip=0.5),
        Recipe(28, "resized", scale=(0.2, 1.0), jitter=JITTER, jitter_probability=0.8, grayscale=0.25, flip=0.5),
        Recipe(18, "resized", scale=(0.08, 0.4), jitter=JITTER, jitter_probability=0.8, grayscale=0.25, flip=0.5),
    ],
    ids=["pica", "imc-large", "imc-small"],
)
def test_the_whole_chain_is_torchvisions_on_pillow_pictures(side: int, recipe: Recipe) -> None:
    ours, theirs = both(photographs(200, side, side), recipe)
    apart = (ours - theirs).abs().numpy()
    assert (
        apart.mean() <= 1.5 and np.quantile(apart, 0.999) <= 8
    )  # Pillow has 256 steps of hue, and cuts off after each operation


def test_grey_pictures_and_strong_jitter() -> None:
    grey = photographs(50, 32, 32)[..., :1].copy()
    ours, theirs = both(grey, Recipe(24, "resized", jitter=STRONG, grayscale=0.5, flip=0.5))
    assert (ours - theirs).abs().mean() <= 1.5


def test_a_view_does_not_depend_on_its_batch() -> None:
    views = held(photographs(40, 32, 32))
    recipe = Recipe(20, "resized", scale=(0.2, 1.0), jitter=JITTER, jitter_probability=0.8, grayscale=0.25, flip=0.5)
    (whole,) = views.stream([Request(torch.arange(40), (recipe,) * 3, 4)])
    (part,) = views.stream([Request(torch.tensor([31, 2, 17]), (recipe,) * 3, 4)])
    for one, other in zip(whole.views, part.views, strict=True):
        torch.testing.assert_close(one[[31, 2, 17]], other, rtol=0, atol=1e-5)
    assert not torch.allclose(whole.views[0], whole.views[1])


def held(*arrays: NDArray[np.uint8], skipped: dict[int, str] | None = None, static: bool = False) -> BatchedViews:
    starts = np.cumsum([0, *map(len, arrays)]).tolist()
    parts = [whole(array, start) for array, start in zip(arrays, starts, strict=False)]
    channels = arrays[0].shape[3]
    views = BatchedViews(parts, skipped or {}, Recipe(32, "center", 32), (0.5,) * channels, (0.25,) * channels,
                         seed=0, device=devices.CPU)  # fmt: skip
    views.static = static
    return views


IMC = {"jitter": JITTER, "jitter_probability": 0.8, "grayscale": 0.25, "flip": 0.5}
IMC_RECIPES = (Recipe(28, "resized", scale=(0.2, 1.0), **IMC),) * 2 + (
    Recipe(18, "resized", scale=(0.08, 0.4), **IMC),
) * 4
PICA_RECIPES = (Recipe(32, "random", 40),) + (
    Recipe(32, "resized", scale=(0.2, 1.0), jitter=(0.4,) * 4, grayscale=0.2, flip=0.5),
) * 3
RECIPES_OF_ALL_KINDS = (
    Recipe(20, "center", 24),
    Recipe(16, "resized", jitter=STRONG, jitter_probability=0.5, flip=0.5),
    Recipe(20, "random", 24, jitter=(0.4, 0.0, 0.0, 0.5), grayscale=1.0),
    Recipe(20, "resized", jitter=(0.0, 0.8, 0.8, 0.0), jitter_probability=0.9),
    Recipe(12, "center", 12),
    Recipe(16, "random", 16, grayscale=0.5),
)


@pytest.mark.parametrize("recipes", [IMC_RECIPES, PICA_RECIPES, RECIPES_OF_ALL_KINDS], ids=["imc", "pica", "all-kinds"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chosen", [[], [7], range(60)], ids=len)
def test_static_views_are_those_of_the_images_that_drew_an_operation(
    recipes: tuple[Recipe, ...], channels: int, chosen: Any
) -> None:
    arrays = [photographs(60, 32, 32)[..., :channels].copy() for _ in range(2)]
    index = torch.tensor([*chosen], dtype=torch.int64) + 25  # of both arrays
    ours, expected = (
        next(held(*arrays, static=static).stream([Request(index, recipes, 4)])).views for static in (True, False)
    )
    for recipe, view, other in zip(recipes, ours, expected, strict=True):
        assert view.shape == other.shape == (len(index), channels, recipe.size, recipe.size) and view.is_contiguous()
        torch.testing.assert_close(view * 0.25, other * 0.25, rtol=0, atol=1e-6)


def test_neutral_numbers_leave_an_image_exactly_as_it_is() -> None:
    planes = floats().transpose(0, 1).contiguous()
    n = planes.shape[1]
    blended = planes.clone()
    colour.blend(blended, torch.ones(n), torch.zeros(n), torch.zeros(n))
    assert torch.equal(blended, planes)
    assert torch.equal(colour.turned(planes, torch.zeros(n)), planes)
    assert torch.equal(colour.where_grey(planes, torch.zeros(n, dtype=torch.bool)), planes)


class Operations(TorchDispatchMode):
    """Records what is dispatched, with the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self.entries.append((str(func), [tensor.shape for tensor in tensors]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recipes", "bound"), [(IMC_RECIPES, 500), (PICA_RECIPES, 250)], ids=["imc", "pica"])
def test_static_views_are_the_same_operations_on_the_same_shapes_in_each_step(
    recipes: tuple[Recipe, ...], bound: int
) -> None:
    arrays = [photographs(n, 32, 32) for n in (5, 20)]
    views = held(*arrays, static=True)
    random = np.random.default_rng(0)
    steps = []
    for epoch in range(20):
        index = torch.from_numpy(random.choice(25, 4, replace=False))  # of either array, or of both
        with Operations() as operations:
            list(views.stream([Request(index, recipes, epoch)]))
        steps.append(operations.entries)
    assert all(step == steps[0] for step in steps)
    assert len(steps[0]) < bound, "with those that only look at a tensor in another shape"


def test_static_views_of_one_size_are_neighbours_in_memory() -> None:
    (prepared,) = held(photographs(9, 32, 32), static=True).stream([Request(torch.arange(9), IMC_RECIPES)])
    for views in (prepared.views[:2], prepared.views[2:]):
        ends = [view.data_ptr() + view.nbytes for view in views]
        assert [view.data_ptr() for view in views[1:]] == ends[:-1]


@pytest.mark.parametrize("static", [False, True])
def test_views_come_in_the_layout_of_the_network(static: bool) -> None:
    views = held(photographs(9, 32, 32), static=static)
    request = Request(torch.arange(9), IMC_RECIPES)
    (plain,) = views.stream([request])
    views._finish = dataclasses.replace(views._finish, channels_last=True)
    (prepared,) = views.stream([request])
    for view, expected in zip(prepared.views, plain.views, strict=True):
        assert view.is_contiguous(memory_format=torch.channels_last) and not view.is_contiguous()
        assert torch.equal(view, expected)


def test_several_parts_are_one_numbering_and_unreadable_pictures_are_left_out() -> None:
    pictures = photographs(30, 32, 32)
    views = held(pictures[:12], pictures[12:], skipped={20: "broken"})
    (prepared,) = views.plain([torch.tensor([25, 3, 20, 12, 11])])
    assert prepared.index.tolist() == [25, 3, 12, 11]
    expected = (torch.from_numpy(pictures[[25, 3, 12, 11]]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(prepared.views[0], expected)
    (empty,) = views.plain([torch.tensor([20])])
    assert len(empty.index) == 0 and empty.views[0].shape == (0, 3, 32, 32)


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_an_array_of_any_layout_is_used_without_a_copy(layout: tuple[int, ...]) -> None:
    pictures = photographs(6, 32, 32)
    stored = np.ascontiguousarray(pictures.transpose(layout))
    views = held(stored.transpose(np.argsort(layout)))
    before = next(iter(views.plain([torch.arange(6)]))).views[0]
    stored[:] = 0
    after = next(iter(views.plain([torch.arange(6)]))).views[0]
    assert before.mean() != after.mean() and (after == -2).all()


def folder_views(root: Path, *words: object) -> Views:
    settings = resolve("--cfgs", "configs/base.yaml", "configs/image_folder.yaml", "--data-root", root,
                       "--num-clusters", 3, "--tfm-working-size", "none", *words)  # fmt: skip
    return open_views(settings, datasets.open_pictures(settings), Recipe(8, "center", 9))


def test_pictures_that_fit_are_held_and_others_are_not(class_folders: Path) -> None:
    assert isinstance(folder_views(class_folders), BatchedViews)
    assert isinstance(folder_views(class_folders, "--tfm-backend", "pil"), PILViews)
    assert isinstance(folder_views(class_folders, "--memory-budget", 1e-9), PILViews)
    with pytest.raises(UserError, match="batched: the pictures take .* GiB, and --memory-budget is 1e-09"):
        folder_views(class_folders, "--tfm-backend", "batched", "--memory-budget", 1e-9)


def test_the_log_says_why_pillow_serves(class_folders: Path) -> None:
    views = folder_views(class_folders, "--num-workers", 0, "--memory-budget", 1e-9)
    assert views.describe().startswith("pil, no loader processes, because the pictures take 8.05e-06 GiB, and --memory")
    assert "because" not in folder_views(class_folders, "--tfm-backend", "pil").describe()


class Own:
    """A data set of a user's, without an array unless one is set."""

    array: Any

    def __init__(self, root: str, split: str, transform: Any = None, download: bool = False) -> None:
        self.pictures = photographs(20, 16, 16)
        self.reads = 0
        if offered is not None:
            self.array = offered(self.pictures)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.reads += 1
        return answer(self.pictures[i]), i % 3


offered: Callable[[NDArray[np.uint8]], Any] | None = None
answer: Callable[[NDArray[np.uint8]], Any] = Image.fromarray


def own_views(monkeypatch: pytest.MonkeyPatch, *words: object, **globals_: Any) -> Views:
    for name, value in globals_.items():
        monkeypatch.setitem(globals(), name, value)
    monkeypatch.setitem(datasets._registry._components, "own", Own)
    settings = resolve("--dataset", "own", "--num-clusters", 3, *words)
    return open_views(settings, datasets.open_pictures(settings), Recipe(16, "center", 16))


def test_pictures_that_may_be_drawn_anew_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_views(monkeypatch).kind == "pil"
    assert own_views(monkeypatch, "--tfm-backend", "batched").kind == "batched", "the user vouches for them"
    assert own_views(monkeypatch, offered=lambda pictures: pictures).kind == "batched"
    assert own_views(monkeypatch, "--tfm-working-size", 20, offered=lambda pictures: pictures).kind == "batched"


def test_arrays_in_odd_orders_are_taken(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    def turned(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(pictures[:, ::-1])[:, ::-1]  # negative strides

    def fixed(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.frombuffer(pictures.tobytes(), dtype=np.uint8).reshape(pictures.shape)  # read-only

    found = [
        next(iter(own_views(monkeypatch, offered=how).plain([torch.arange(5)]))).views[0] for how in (turned, fixed)
    ]
    expected = torch.from_numpy(photographs(5, 16, 16)).permute(0, 3, 1, 2) / 255
    for views in found:
        torch.testing.assert_close(views, expected, rtol=0, atol=1e-6)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda p: p[:, 0], r"`array` of the data set own, .* \(20, 16, 3\); give \(N, H, W, C\)"),
        (lambda p: p / 255, "is float64"),
        (lambda p: p[:10], r"\(10, 16, 16, 3\)"),
        (lambda p: list(p), "is list"),
        (lambda p: p[:, :0, :0], "does not show its first picture"),
        (lambda p: 255 - p, "does not show its first picture"),
        (lambda p: p.transpose(0, 3, 1, 2), r"\(20, 3, 16, 16\); give \(N, H, W, C\) with 1 or 3 channels"),
    ],
)
def test_an_array_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, how: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        own_views(monkeypatch, offered=how)


@pytest.mark.parametrize("backend", ["batched", "pil"])
def test_a_data_set_that_fails_or_gives_no_picture(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    def fail(picture: NDArray[np.uint8]) -> Any:
        raise OSError("gone")

    for how, message in (
        (fail, "cannot read picture 0 of the run: gone"),
        (lambda p: p, "gives ndarray, where a Pillow"),
    ):
        with pytest.raises(UserError, match=message):
            list(
                own_views(monkeypatch, "--tfm-backend", backend, "--num-workers", 0, answer=how).plain(
                    [torch.arange(5)]
                )
            )


class Broken(Own):
    """Fails in another way with each image but the first three."""

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i < 3:
            return super().__getitem__(i)
        if i == 3:
            raise TypeError("of\ntwo lines")
        if i == 4:
            raise RuntimeError
        cut = io.BytesIO()
        super().__getitem__(0)[0].save(cut, "PNG")
        cut.truncate(300)
        return Image.open(cut), 0  # it fails as it is loaded


@pytest.mark.parametrize("words", [("batched",), ("pil", "--num-workers", 0), ("pil", "--num-workers", 1)])
def test_whatever_a_data_set_raises_is_an_unreadable_image(
    monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    monkeypatch.setitem(globals(), "Own", Broken)
    with pytest.raises(UserError, match=r"^cannot read picture 3 of the run: TypeError: of two lines; "):
        with closing(own_views(monkeypatch, "--tfm-backend", *words)) as views:
            list(views.plain([torch.arange(2, 6)]))
    views = own_views(monkeypatch, "--tfm-backend", *words, "--on-bad-image", "skip")
    assert [prepared.index.tolist() for prepared in views.plain([torch.arange(6)])] == [[0, 1, 2]]
    lines = [views.skipped[i] for i in (3, 4, 5)]
    views.close()
    prefixes = ("3 of the run: TypeError: of two lines", "4 of the run: RuntimeError", "5 of the run: ")
    for line, prefix in zip(lines, prefixes, strict=True):
        assert line.startswith(f"cannot read picture {prefix}") and line.isprintable()


def test_a_data_set_with_unreadable_images_has_a_fingerprint_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = datasets.Pictures({"all": Broken("", "train")})
    assert pictures.labels().tolist()[:6] == [0, 1, 2, -1, -1, 0]
    assert fingerprint(pictures, "").pictures == fingerprint(pictures, "").pictures


def test_large_pictures_are_transformed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    views = held(photographs(10, 32, 32))
    recipe = Recipe(20, "resized", jitter=JITTER, flip=0.5)
    (whole,) = views.stream([Request(torch.arange(10), (recipe,) * 2)])
    monkeypatch.setattr(batched_views, "WORK", 32 * 32 * 32 * 3 * 4)  # four pictures
    (parts,) = views.stream([Request(torch.arange(10), (recipe,) * 2)])
    for one, other in zip(whole.views, parts.views, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_static_views_are_computed_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    views = held(photographs(10, 32, 32), static=True)
    (whole,) = views.stream([Request(torch.arange(10), PICA_RECIPES)])
    monkeypatch.setattr(batched_views, "STATIC_WORK", 32 * 32 * 32 * 3 * 4 * 3)  # three images, of four views
    (parts,) = views.stream([Request(torch.arange(10), PICA_RECIPES)])
    for one, other in zip(whole.views, parts.views, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_both_back_ends_show_the_same_pictures(class_folders: Path) -> None:
    recipe = Recipe(8, "resized", scale=(0.5, 1.0), jitter=JITTER, flip=0.5)
    (class_folders / "bee" / "3.png").write_bytes(b"no picture")
    for words in ((), ("--net-cin", 1, "--tfm-means", 0.5, "--tfm-stds", 0.2), ("--tfm-working-size", 16)):
        found = []
        for backend in ("batched", "pil"):
            views = folder_views(class_folders, "--tfm-backend", backend, "--on-bad-image", "skip", *words)
            plan = [Request(torch.tensor([4, 23, 11, 0]), (recipe,), 2), Request(torch.arange(5), (recipe,) * 2, 3)]
            found.append([*views.stream(plan), *views.plain([torch.arange(12, 20)])])
            assert list(views.skipped) == [11]
            views.close()
        for one, other in zip(*found, strict=True):
            assert torch.equal(one.index, other.index)
            for ours, theirs in zip(one.views, other.views, strict=True):
                assert (ours - theirs).abs().mean() < 1.5 / 255 / 0.2 and ours.is_contiguous()


def test_an_unreadable_picture_is_an_error(class_folders: Path) -> None:
    (class_folders / "bee" / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="3.png"):
        folder_views(class_folders)


def test_no_step_means_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that draw no jitter stay as they are; the others go through each operation once."""
    calls: list[tuple[int, int]] = []

    def note(which: int) -> Callable[[Tensor, Tensor], None]:
        return lambda planes, factor: calls.append((which, planes.shape[1]))

    monkeypatch.setattr(colour, "JITTER", tuple(map(note, range(4))))
    n = 400
    recipe = Recipe(8, "resized", jitter=(0.4, 0.4, 0.0, 0.1), jitter_probability=0.5)
    sizes = np.tile([[16, 16]], (n, 1))
    draws: Draws = draw(recipe, sizes, 0, 0, np.arange(n), 0)
    view_operations.view([torch.rand(n, 16, 3, 16)], view_operations.plan(recipe, draws, sizes, devices.CPU))
    counts = {which: sum(count for w, count in calls if w == which) for which in range(4)}
    assert counts == {0: draws.jittered.sum(), 1: draws.jittered.sum(), 2: 0, 3: draws.jittered.sum()}
