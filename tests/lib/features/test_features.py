"""Features of a frozen backbone: what is computed, what is kept of it, and which of it a step gets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, picture, resolve
from PIL import Image

import main
from lib import datasets
from lib.contracts import Recipe, Request, Task
from lib.errors import UserError
from lib.features import FeatureSettings, neighbours
from lib.features.neighbours import NeighbourViews
from lib.features.views import FeatureViews, canonical, columns
from lib.networks.backbone import Backbone
from lib.scoring import inference
from lib.transforms import TransformSettings, plain_recipe
from pica.data import recipes

FROZEN = ("--net-freeze", ".*")
NEIGHBOURS = (*FROZEN, "--views", "neighbours")
Calls = list[int]
Cli = Callable[..., tuple[int, str, str]]


def task(tmp_path: Path, *words: object) -> Task:
    return main.build(resolve(*QUICK, "--net-heads", 10, *FROZEN, "--cache", tmp_path / "cache", *words))


def folder(tmp_path: Path, count: int = 150) -> tuple[object, ...]:
    """Words for a folder of so many pictures, of a few sizes."""
    for i in range(count):
        picture(tmp_path / "pictures" / f"{i:03}.png", size=(12 + i % 3, 10), seed=i)
    return ("--dataset", "image_folder", "--data-root", tmp_path / "pictures", "--train-splits", "all", "--test-splits", "all",
            "--net-cin", 3, "--tfm-means", 0.5, 0.5, 0.5, "--tfm-stds", 0.2, 0.2, 0.2, "--tfm-size", 8,
            "--tfm-colorjitter", 0.4, 0.4, 0.4, 0.1)  # fmt: skip


def views_of(made: Task) -> FeatureViews:
    """Of the features themselves, where neighbours are shown too."""
    views = made.views._views if isinstance(made.views, NeighbourViews) else made.views
    assert isinstance(views, FeatureViews)
    return views


def table(made: Task) -> torch.Tensor:
    """(N, views, D): all that was computed."""
    views = views_of(made)
    views.prepare()
    count = len(made.pictures)
    wide = len(views._recipes)
    index = np.arange(count)[:, None].repeat(wide, axis=1)
    return torch.stack(views._shelf.take(index, np.arange(wide)[None].repeat(count, axis=0)), dim=1)


def store(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache").glob("features-*")
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """How many views passed the backbone, call by call."""
    found: Calls = []
    forward = Backbone.forward

    def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        found.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", counted)
    return found


@pytest.mark.parametrize("backend", ["batched", "pil"])
def test_features_are_what_the_same_network_gives_inside_of_a_method(backend: str, tmp_path: Path) -> None:
    words = ("--tfm-backend", backend)
    frozen = task(tmp_path, *words)
    images = main.build(resolve(*QUICK, "--net-heads", 10, *words))
    features = table(frozen)
    with inference.evaluating(images.method):
        index = torch.arange(0, 64)  # as many at a time: products of other sizes round differently
        (plain,) = (images.method.features(part.views[0]) for part in images.views.plain([index]))
    assert torch.equal(features[:64, 0], plain)
    assert not torch.equal(features[:64, 1], plain) and not torch.equal(features[:64, 1], features[:64, 2])
    _, perturbed = recipes(frozen.config.of(TransformSettings))
    number = main.build(resolve(*QUICK, "--net-heads", 10, *words, "--seed", 0)).views  # the draws' seed, not the run's
    request = Request(index, (perturbed,) * 5, 0, views_of(frozen)._shelf._extractor._request(index.numpy()).drawn_as)
    with inference.evaluating(images.method):
        (random,) = (images.method.features(part.views[3]) for part in number.stream([request]))
    assert torch.equal(features[:64, 3], random), "the so-manieth view of a picture is that of every back end"


def test_a_second_start_computes_nothing_and_opens_no_picture(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = folder(tmp_path)
    first = table(task(tmp_path, *words))
    assert sum(calls) == 150 * 5
    calls.clear()
    other = task(tmp_path, *words, "--seed", 7, "--batch-size", 32)
    monkeypatch.setattr(
        "lib.transforms.choose_backend.open_views", lambda *given: pytest.fail("the pictures were opened")
    )
    assert torch.equal(table(other), first) and not calls
    assert "none to compute" in other.views.describe()


@pytest.mark.parametrize("change", [("--seed", 8), ("--feature-seed", 1), ("--tfm-size", 9), ("--feature-views", 2),
                                    ("--tfm-means", 0.4, 0.4, 0.4), ("--tfm-random-hflip", 0.5), ("--precision", "bf16"),
                                    ("--net-width", 5), ("--tfm-working-size", 9)])  # fmt: skip
def test_whatever_changes_a_feature_computes_it_again(change: tuple[object, ...], tmp_path: Path, calls: Calls) -> None:
    words = folder(tmp_path, 10)
    first = table(task(tmp_path, *words))
    calls.clear()
    second = table(task(tmp_path, *words, *change))
    assert sum(calls) == 10 * second.shape[1]
    assert first.shape != second.shape or not torch.equal(first, second)


def test_changed_and_added_files_alone_are_computed_and_the_others_keep_their_views(
    tmp_path: Path, calls: Calls
) -> None:
    words = folder(tmp_path)
    first = table(task(tmp_path, *words))
    picture(tmp_path / "pictures" / "100.png", size=(12, 10), seed=1000)
    picture(tmp_path / "pictures" / "000-first.png", seed=1001)
    calls.clear()
    made = task(tmp_path, *words)
    second = table(made)
    assert "2 computed" in made.views.describe()
    assert sum(calls) == 2 * 64 * 5, "in the whole blocks that they lie in"
    kept = [i for i in range(150) if i != 100]
    assert torch.equal(second[[i + 1 for i in kept]], first[kept]) and not torch.equal(second[101], first[100])
    fresh = table(task(tmp_path / "other", *words))
    torch.testing.assert_close(second, fresh, rtol=1e-4, atol=1e-6)


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import main
from conftest import resolve
from lib.networks.backbone import Backbone
forward, calls = Backbone.forward, []
def dying(self, images):
    calls.append(1)
    if len(calls) > 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, images)
Backbone.forward = dying
main.build(resolve(*{words!r})).views.prepare()
"""


def test_a_killed_computation_goes_on_with_what_is_there(tmp_path: Path, calls: Calls) -> None:
    pictures = folder(tmp_path)
    words = (*QUICK, "--net-heads", 10, *FROZEN, "--cache", tmp_path / "cache", *pictures)
    script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), words=tuple(map(str, words)))
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    found = table(task(tmp_path, *pictures))
    assert sum(calls) == (150 - 64) * 5, "the block that was whole is not computed again"
    assert torch.equal(found, table(task(tmp_path / "straight", *pictures)))


def test_what_was_cut_off_or_damaged_is_computed_again(tmp_path: Path, calls: Calls) -> None:
    words = folder(tmp_path, 130)
    first = table(task(tmp_path, *words))
    data = store(tmp_path) / "data.bin"
    whole = bytearray(data.read_bytes())
    whole[1000] ^= 4
    data.write_bytes(whole[: len(whole) * 2 // 3])
    calls.clear()
    assert torch.equal(table(task(tmp_path, *words)), first) and calls
    assert torch.equal(table(task(tmp_path, *words)), first)
    calls.clear()
    assert torch.equal(table(task(tmp_path, *words)), first) and not calls, "mended"


def test_nothing_is_written_where_nothing_is_to_be_kept(tmp_path: Path, calls: Calls) -> None:
    first = table(task(tmp_path))
    words = ("--cache", tmp_path / "none")
    for other in (("--debug",), ("--disk-cache", 0)):
        for _ in range(2):
            calls.clear()
            made = task(tmp_path, *words, *other)
            assert torch.equal(table(made), first) and sum(calls) == 5 * 1797
            assert "1,797 are not kept on disk (--disk-cache), and are computed at each start" in made.views.describe()
    assert not (tmp_path / "none").exists()
    calls.clear()
    assert torch.equal(table(task(tmp_path, "--debug")), first) and not calls, "reading writes nothing"


def test_the_bound_counts_features_and_the_rest_is_computed(tmp_path: Path, calls: Calls) -> None:
    pictures = folder(tmp_path)
    made = task(tmp_path, *pictures, "--disk-cache", 30_000 / 2**30)
    found = table(made)
    size = sum(path.stat().st_size for path in store(tmp_path).glob("*.bin"))
    assert 29_000 < size <= 30_000
    (unkept,) = re.findall(r"; (\d+) are not kept", made.views.describe())
    assert 0 < int(unkept) < 150
    assert torch.equal(found, table(task(tmp_path / "whole", *pictures)))


def test_more_than_the_memory_is_read_from_disk_by_batches(tmp_path: Path) -> None:
    small = ("--memory-budget", 1e-4)
    held = task(tmp_path)
    read = task(tmp_path, *small)
    assert "in memory" in held.views.describe() and "read from disk" in read.views.describe()
    for one, other in zip(held.source.epoch(1), read.source.epoch(1), strict=True):
        assert torch.equal(one.index, other.index)
        assert all(map(torch.equal, one.views, other.views))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="more than --memory-budget .* --disk-cache, or take fewer --feature-views"):
        task(tmp_path, *small, "--disk-cache", 0).views.prepare()


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_features_on_disk_that_are_lost_are_computed_again(damage: str, tmp_path: Path) -> None:
    words = (*folder(tmp_path), "--memory-budget", 1e-5)
    made = task(tmp_path, *words)
    whole = table(made)
    data = store(tmp_path) / "data.bin"
    if damage == "removed":
        shutil.rmtree(data.parent)  # the open file stays
    else:
        os.truncate(data, data.stat().st_size // 2)
    assert torch.equal(table(made), whole)


def test_pictures_that_cannot_be_read_are_left_out(tmp_path: Path, calls: Calls) -> None:
    words = folder(tmp_path, 70)
    (tmp_path / "pictures" / "003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="003.png"):
        task(tmp_path, *words)
    for computed in (69 * 5, 0):
        calls.clear()
        made = task(tmp_path, *words, "--on-bad-image", "skip")
        (prepared,) = made.views.plain([torch.arange(70)])
        assert list(made.views.skipped) == [3] and prepared.index.tolist() == [i for i in range(70) if i != 3]
        assert prepared.views[0].shape == (69, 16) and sum(calls) == computed


def test_a_data_set_with_unreadable_images_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, root: str, split: str, transform: Any = None, download: bool = False) -> None:
            pass

        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            if i in (3, 5):
                raise TypeError("broken")
            return Image.new("L", (10, 10), 10 * i), -1

    monkeypatch.setitem(datasets._registry._components, "broken", Broken)
    words = ("--dataset", "broken", "--train-splits", "train", "--test-splits", "train")
    with pytest.raises(UserError, match="picture 3 of the run: TypeError: broken"):
        task(tmp_path, *words).views.prepare()
    made = task(tmp_path, *words, "--on-bad-image", "skip")
    (prepared,) = made.views.plain([torch.arange(20)])
    assert sorted(made.views.skipped) == [3, 5] and len(prepared.index) == 18


def drawn(made: Task, index: list[int], epoch: int, copies: int = 4) -> list[list[int]]:
    """For each picture, which of its views are drawn."""
    views = views_of(made)
    _, perturbed = recipes(made.config.of(TransformSettings))
    _, places = views._chosen(Request(torch.tensor(index), (perturbed,) * copies, epoch))
    return places.tolist()  # type: ignore[no-any-return]


def test_which_view_is_drawn_follows_from_seed_epoch_and_picture(tmp_path: Path) -> None:
    made = task(tmp_path)
    many = drawn(made, list(range(500)), 3)
    assert drawn(made, [77, 5, 400], 3) == [many[77], many[5], many[400]]
    assert all(sorted(row) == [1, 2, 3, 4] for row in many), "none twice"
    assert drawn(made, list(range(500)), 4) != many != drawn(task(tmp_path, "--seed", 8), list(range(500)), 3)
    assert np.bincount(np.array(many)[:, 0])[1:].min() > 80, "each as often"
    six = np.array(drawn(made, list(range(500)), 3, copies=6))
    assert (six[:, :4] == many).all() and (six[:, 4:] == six[:, :2]).all(), "only then again"


def test_crops_of_several_kinds_take_turns(tmp_path: Path) -> None:
    large = Recipe(12, "resized", 99)
    small = Recipe(8, "resized")
    test = Recipe(12, "center", 14)
    random = (large, large, small, small, small, small)
    sizes = [r.size for r in columns(FeatureSettings(feature_views=8), test, random)]
    assert sizes == [12, 12, 8, 12, 8, 8, 8, 12, 8]
    assert canonical(large) == canonical(Recipe(12, "resized", 5)) != canonical(small)
    with pytest.raises(UserError, match="--feature-views 1: the views of a step are of 2 kinds.*give 2 or more, or 6"):
        columns(FeatureSettings(feature_views=1), test, random)


def brute_force(features: torch.Tensor, among: list[int], count: int) -> list[list[int]]:
    units = features.double() / features.double().norm(dim=1, keepdim=True)
    found = []
    for i, own in enumerate(units):
        order = sorted((j for j in among if j != i), key=lambda j: -float(own @ units[j]))
        found.append(order[:count])
    return found


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize("memory", [4, 1e-6])
def test_neighbours_are_the_nearest(block: int, memory: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    for i in range(60):
        picture(tmp_path / "pictures" / ("train" if i < 40 else "test") / "x" / f"{i}.png", seed=i)
    words = (*folder(tmp_path, 0), "--train-splits", "train", "--test-splits", "test")
    made = task(tmp_path, *words, *NEIGHBOURS, "--feature-neighbours", 5, "--memory-budget", memory)
    features = table(made)
    views = made.views
    assert isinstance(views, NeighbourViews)
    assert features.shape == (60, 1, 16), "the plain view alone is computed"
    expected = brute_force(features[:, 0], made.pictures.index("train").tolist(), 5)
    assert views.table.tolist() == expected
    (prepared,) = views.stream(
        [Request(torch.arange(60), (plain_recipe(made.config.of(TransformSettings)), *[made.perturbed] * 5))]
    )
    assert torch.equal(prepared.views[0], features[:, 0])
    for i, near in enumerate(expected):
        ours = sorted(view[i].tolist() for view in prepared.views[1:])
        assert ours == sorted(features[j, 0].tolist() for j in near), "each once"


@pytest.mark.parametrize(("room", "groups"), [(0, 9), (14, 5), (28, 3)])
def test_neighbours_on_disk_are_those_in_memory_and_are_read_once_for_each_group(
    room: int, groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    for i in range(60):
        picture(tmp_path / "pictures" / f"{i}.png", seed=i // 3)  # three of each: their cosines tie
    words = (*folder(tmp_path, 0), *NEIGHBOURS, "--feature-neighbours", 5)
    views = task(tmp_path, *words).views
    assert isinstance(views, NeighbourViews)
    expected = views.table
    bytes_ = room * (4 * 16 + 12 * 5)
    features = views_of(task(tmp_path, *words, "--memory-budget", bytes_ / 2**30 + 1e-9))
    reads: list[int] = []
    read = features._shelf._read
    monkeypatch.setattr(features._shelf, "_read", lambda positions: [reads.extend(positions), read(positions)][1])
    found = neighbours.nearest(features, np.arange(60), np.arange(60), 5)
    assert (found == expected).all()
    assert len(reads) == 60 + 60 * groups


@pytest.mark.parametrize(("words", "message"), [
    ((*FROZEN, "--feature-views", 0), "--feature-views: 0 is below 1"),
    (("--views", "neighbours", "--feature-neighbours", 899), "--feature-neighbours 899: there are 899 training pictures"),
    (("--views", "neighbours", "--neighbours-by", "pixel"), "--neighbours-by: .*features, pixels"),
    ((*NEIGHBOURS, "--feature-neighbours", 899), "--feature-neighbours 899: there are 899 training pictures"),
    ((*FROZEN, "--net-width", 4, "--views", "near"), "--views: .*random, neighbours"),
])  # fmt: skip
def test_mistakes_end_in_one_line(words: tuple[Any, ...], message: str, cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli(*QUICK, *words)
    assert status == 2 and len(err.splitlines()) == 1 and re.search(message, err), err
    assert not (tmp_path / "sessions").exists()


def test_a_partly_frozen_network_stays_in_the_method() -> None:
    made = main.build(resolve(*QUICK, "--net-freeze", r"layers\.0"))
    assert not isinstance(made.encode, Backbone) and any(w.requires_grad for w in made.method.network.parameters())
