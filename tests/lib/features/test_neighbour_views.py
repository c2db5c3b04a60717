"""Views of nearest neighbours of images, whatever tells which images are neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, picture, resolve
from PIL import Image

import main
from lib.contracts import Recipe, Request, Task
from lib.errors import UserError
from lib.features.neighbours import NeighbourViews
from lib.scoring import inference
from lib.transforms import TransformSettings, neighbour, perturbed, plain_recipe

PLAIN = Recipe(8, "center", 8)
COUNT = 3


def task(folder: Path, *words: object) -> Task:
    """Of twelve images, of which number 4 cannot be read."""
    for i in range(12):
        path = picture(folder / "pictures" / f"{i:02}.png", (8, 8), seed=i)
        if i == 4:
            path.write_bytes(b"no image")
    return main.build(
        resolve(
            *QUICK, "--net-heads", 2, "--dataset", "image_folder", "--data-root", folder / "pictures", "--train-splits", "all",
            "--test-splits", "all", "--net-cin", 3, "--tfm-means", *[0.5] * 3, "--tfm-stds", *[0.3] * 3, "--tfm-size", 8,
            "--tfm-resize", 8, "--views", "neighbours", "--batch-size", 4, "--feature-neighbours", COUNT, "--on-bad-image",
            "skip", "--net-sobel", "false", "--disk-cache", 0, *words,
        )
    )  # fmt: skip


def views_of(made: Task) -> NeighbourViews:
    assert isinstance(made.views, NeighbourViews)
    return made.views


def rows_of(made: Task, by: str) -> tuple[list[int], torch.Tensor]:
    """Positions of the readable images, and what tells their neighbours."""
    with inference.evaluating(made.method):
        (plain,) = views_of(made)._views.plain([torch.arange(12)])
        images = plain.views[0]
        rows = images.flatten(1) if by == "pixels" else made.method.features(images)
    return plain.index.tolist(), rows.clone()


@pytest.mark.parametrize("by", ["pixels", "features"])
@pytest.mark.parametrize("backend", ["batched", "pil"])
def test_a_neighbour_is_one_of_the_nearest_and_no_unreadable_image(by: str, backend: str, tmp_path: Path) -> None:
    made = task(tmp_path, "--neighbours-by", by, "--tfm-backend", backend)
    views = views_of(made)
    index, rows = rows_of(made, by)
    assert index == [i for i in range(12) if i != 4]
    cosine = torch.nn.functional.normalize(rows.double(), dim=1)
    cosine = (cosine @ cosine.T).fill_diagonal_(-2)
    expected = np.array(index)[cosine.topk(COUNT, dim=1)[1].numpy()]
    assert (views.table[index] == expected).all() and (views.table[4] == -1).all()
    plain = views._views
    (images,) = plain.plain([torch.arange(12)])
    pixels = dict(zip(images.index.tolist(), images.views[0], strict=True))
    (shown,) = views.stream([Request(torch.arange(12), (PLAIN, *[neighbour(PLAIN)] * COUNT), 5)])
    assert shown.index.tolist() == index
    assert torch.equal(shown.views[0], images.views[0])
    (only,) = views.stream([Request(torch.arange(12), (neighbour(PLAIN),), 5)])
    assert only.index.tolist() == index, "also where a step shows no image itself"
    for row, position in enumerate(index):
        ours = sorted(view[row].flatten().tolist() for view in shown.views[1:])
        assert ours == sorted(pixels[j].flatten().tolist() for j in views.table[position]), "each of them once"
    views.close()


@pytest.mark.parametrize("backend", ["batched", "pil"])
def test_draws_are_those_of_the_image_wherever_its_neighbour_is(backend: str, tmp_path: Path) -> None:
    made = task(tmp_path, "--neighbours-by", "pixels", "--tfm-backend", backend)
    views = views_of(made)
    recipe = Recipe(6, "random", 8, flip=0.5)
    recipes = (recipe, neighbour(recipe))
    index = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11])
    (whole,) = views.stream([Request(index, recipes, 2)])
    drawn = views._drawn(Request(index, recipes, 2), views.table, 0).tolist()
    twins = [(i, j) for i in range(len(drawn)) for j in range(i) if drawn[i] == drawn[j]]
    alike = [torch.equal(whole.views[1][i], whole.views[1][j]) for i, j in twins]
    assert twins and not all(alike), "a neighbour of two images is drawn apart for each"
    for row, position in enumerate(index.tolist()):
        (alone,) = views.stream([Request(torch.tensor([position]), recipes, 2)])
        for view, single in zip(whole.views, alone.views, strict=True):
            assert torch.equal(view[row], single[0])
    (other,) = views.stream([Request(index, recipes, 3)])
    assert not torch.equal(other.views[1], whole.views[1])
    (own,) = views._views.stream([Request(index, (recipe,), 2)])
    assert torch.equal(own.views[0], whole.views[0]), "beside a neighbour, an image's own view is drawn as without"
    views.close()


@pytest.mark.parametrize("backend", ["batched", "pil"])
def test_a_request_may_hold_an_image_twice(backend: str, tmp_path: Path) -> None:
    views = views_of(task(tmp_path, "--neighbours-by", "pixels", "--tfm-backend", backend))._views
    recipe = Recipe(6, "random", 8, flip=0.5)
    (found,) = views.stream([Request(torch.tensor([7, 4, 2, 7]), (recipe,), 1, torch.tensor([70, 40, 20, 71]))])
    (once,) = views.stream([Request(torch.tensor([7]), (recipe,), 1, torch.tensor([71]))])
    assert found.index.tolist() == [7, 2, 7] and torch.equal(found.views[0][2], once.views[0][0])
    assert not torch.equal(found.views[0][0], found.views[0][2])
    views.close()


def test_an_image_that_is_gone_later_takes_those_that_show_it_with_it(tmp_path: Path) -> None:
    made = task(tmp_path, "--neighbours-by", "pixels", "--tfm-backend", "pil")
    views = views_of(made)
    table = views.table
    (tmp_path / "pictures/07.png").write_bytes(b"gone")
    request = Request(torch.tensor([0, 7, 1, 2, 3, 5]), (PLAIN, neighbour(PLAIN)), 0)
    drawn = views._drawn(request, table, 0)
    (shown,) = views.stream([request])
    expected = [i for i, j in zip(request.index.tolist(), drawn.tolist(), strict=True) if 7 not in (i, j)]
    assert shown.index.tolist() == expected
    images = {i: np.asarray(Image.open(tmp_path / f"pictures/{i:02}.png")) for i in range(12) if i not in (4, 7)}
    means, stds = (np.array(made.config.as_dict()[name]) for name in ("tfm_means", "tfm_stds"))
    for row, (i, j) in enumerate(
        (i, j) for i, j in zip(request.index.tolist(), drawn.tolist(), strict=True) if i in expected
    ):
        for view, position in zip(shown.views, (i, j), strict=True):
            pixels = (images[position] / 255 - means) / stds
            np.testing.assert_allclose(view[row].permute(1, 2, 0), pixels, atol=1e-5)
    views.close()


def test_neighbours_are_kept_and_not_found_again_with_other_weights(tmp_path: Path) -> None:
    made = task(tmp_path)
    folder = tmp_path / "session"
    folder.mkdir()
    views_of(made).prepare(folder)
    table = views_of(made).table
    again = task(tmp_path, "--seed", 8)
    views_of(again).prepare(folder)
    assert (views_of(again).table == table).all()
    fresh = views_of(task(tmp_path, "--seed", 8)).table
    assert not (fresh == table).all(), "other weights give others"
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/latest.ckpt").touch()
    (folder / "neighbours.npy").rename(folder / "away")
    with pytest.raises(UserError, match="neighbours.npy is missing, and the weights have changed"):
        views_of(task(tmp_path)).prepare(folder)
    views_of(task(tmp_path, "--neighbours-by", "pixels")).prepare(folder)
    (folder / "neighbours.npy").write_bytes((folder / "away").read_bytes()[:50])
    with pytest.raises(UserError, match="neighbours.npy is damaged"):
        views_of(task(tmp_path)).prepare(folder)
    np.save(folder / "neighbours.npy", table[:5])
    with pytest.raises(UserError, match="neighbours.npy is of other images"):
        views_of(task(tmp_path)).prepare(folder)


def test_the_rows_that_tell_neighbours_are_bounded_by_the_memory_budget(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the pixels of 12 images, .* more than --memory-budget"):
        views_of(task(tmp_path, "--neighbours-by", "pixels", "--memory-budget", 1e-6)).prepare()


def test_pica_sees_neighbours_of_a_network_that_learns(tmp_path: Path) -> None:
    made = task(tmp_path)
    transforms = made.config.of(TransformSettings)
    assert made.perturbed == perturbed(transforms) and plain_recipe(transforms) != made.perturbed
    for batch in made.source.epoch(0):
        assert len(batch.views) == 2 and 4 not in batch.index.tolist()  # type: ignore[attr-defined]
