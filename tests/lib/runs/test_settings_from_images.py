"""Settings that are left to the pictures: what they become, and that a run keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, picture, resolve
from PIL import Image
from runs import launch, only

import main
from lib import datasets
from lib.checkpoints import checkpoint
from lib.runs import settings_from_images
from lib.transforms.channel_statistics import SAMPLE, moments
from lib.transforms.image_reader import Reader

Cli = Callable[..., tuple[int, str, str]]
SMALL = ("--network", "convnet", "--net-width", 4, "--tfm-working-size", 10, "--tfm-size", 8, "--tfm-resize", 10,
         "--num-clusters", 3, "--num-workers", 0, "--max-steps", 2)  # fmt: skip
METHODS: dict[str, tuple[Any, ...]] = {
    "pica": ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", *SMALL),
    "imc_swav": ("--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/image_folder.yaml", *SMALL,
                 "--size-crops", 8, 6, "--prototypes", 10, "--classifier-dim", 8),
}  # fmt: skip
LEFT = ("batch_size", "max_epochs", "tfm_means", "tfm_stds")


def coloured(folder: Path, count: int = 40) -> Path:
    for i in range(count):
        shown = np.full((12, 10 + i % 4, 3), (200, 100, 10), dtype=np.uint8)
        shown[: i % 10] = (i, 2 * i, 30)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shown).save(folder / f"{i:02}.png")
    return folder


def settings_of(session: Path) -> dict[str, Any]:
    held = yaml.safe_load((session / "config.yaml").read_text())
    return {name: held[name] for name in LEFT}


def test_numbers_follow_from_the_count() -> None:
    assert [settings_from_images.batch_size(count) for count in (1, 5, 100, 128, 255, 256, 1000, 2047, 2048, 10**6)] == [
        2, 5, 16, 16, 16, 32, 64, 128, 256, 256
    ]  # fmt: skip
    for count in (40, 300, 2_000, 20_000, 64_000):
        size = settings_from_images.batch_size(count)
        number = settings_from_images.epochs(count, size)
        assert number in (20, 500) or abs(number * count / size - 5_000) <= count / size
    assert (settings_from_images.epochs(40, 16), settings_from_images.epochs(10**6, 256)) == (500, 20)
    assert (settings_from_images.epochs(12_000, 256, 1_000), settings_from_images.epochs(12_000, 256, 9_000)) == (
        21,
        107,
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_are_those_of_all_pixels(channels: int, tmp_path: Path) -> None:
    folder = coloured(tmp_path / "pictures", 9)
    pictures = datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", folder))
    made = Reader(pictures, channels, 10)
    pixels = [np.asarray(made.decode(i)).reshape(-1, channels) / 255 for i in range(9)]
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in pixels])
    whole = np.concatenate(pixels)
    means = np.average(whole, axis=0, weights=weights)
    stds = np.sqrt(np.average((whole - means) ** 2, axis=0, weights=weights))
    found = moments(made, np.arange(9))
    np.testing.assert_allclose(found, (means, stds), atol=5.1e-5)
    assert all(len(str(number)) <= 6 for values in found for number in values)


def test_pictures_of_one_colour_have_a_deviation(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (5, 5), 51).save(tmp_path / f"{i}.png")
    made = Reader(datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", tmp_path)), 1, None)
    assert moments(made, np.arange(3)) == ((0.2,), (round(1 / 255, 4),))


def test_a_large_set_is_measured_on_an_even_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(Reader, "decode", lambda self, i: looked.append(i) or Image.new("RGB", (4, 4)))  # type: ignore[func-returns-value]
    picture(tmp_path / "a.png")
    for i in range(2 * SAMPLE):
        (tmp_path / f"{i}.png").hardlink_to(tmp_path / "a.png")
    main.build(resolve(*METHODS["pica"], "--data-root", tmp_path, "--disk-cache", 0, "--tfm-backend", "pil"))
    assert len(looked) == SAMPLE and (min(looked), max(looked)) == (0, 2 * SAMPLE) and {*np.diff(looked)} <= {2, 3}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_holds_its_numbers_and_goes_on_with_them(method: str, cli: Cli, tmp_path: Path) -> None:
    words = (*METHODS[method], "--data-root", coloured(tmp_path / "pictures"), "--resume", "auto")
    _, out, _ = cli(*words, "--dry-run")
    assert cli(*words, "--seed", 1, "--session", "a")[0] == 0
    root = tmp_path / "sessions"
    held = settings_of(root / "a")
    assert held["batch_size"] == 16 and held["max_epochs"] == 20 and 0.5 < held["tfm_means"][0] < 0.8
    assert (
        f"minus {' '.join(map(str, held['tfm_means']))}, divided by" in " ".join(out.split()) and "steps of 16" in out
    )
    latest = root / "a" / "checkpoint" / "latest.ckpt"
    stored = checkpoint.load(latest)
    assert {name: stored["config"][name] for name in LEFT} == held
    # The same command, a flag that says `none`, and the checkpoint by name go on; other numbers are another run.
    none = [word for name in LEFT for word in ("--" + name.replace("_", "-"), "none")]
    for again in (
        words,
        (*words, *none),
        (*METHODS[method], "--resume", latest),
        (*METHODS[method], *none, "--resume", latest),
    ):
        status, out, err = cli(*again)
        assert status == 0 and "resumed after step 2" in out, (again, err)
        assert "before" not in err and "yields" not in err and [path.name for path in root.iterdir()] == ["a"]
    assert cli(*words, "--seed", 1, "--tfm-means", 0.5, 0.5, 0.5, "--session", "b")[0] == 0
    assert settings_of(root / "b")["tfm_means"] == [0.5] * 3 and settings_of(root / "b")["tfm_stds"] == held["tfm_stds"]
    # Other pictures are seen as this network learned to see.
    dark = tmp_path / "dark"
    for i in range(20):
        picture(dark / f"{i}.png", seed=i)
    (tmp_path / "none.yaml").write_text("tfm_means: none\ntfm_stds: none\nbatch_size: none\n")
    for name, command in (
        ("c", ("--predict", latest)),
        ("d", ("--evaluate", latest, "--cfgs", tmp_path / "none.yaml")),
    ):
        status, _, err = cli(*command, "--data-root", dark, "--session", name)
        assert status == 0 and "yields" not in err, err
        assert settings_of(root / name) | {"max_epochs": held["max_epochs"]} == held
    images = [Image.open(tmp_path / "pictures" / f"{i:02}.png") for i in range(4)]
    means, stds = (np.reshape(held[name], (3, 1, 1)) for name in LEFT[2:])
    prepared = main.load(str(latest)).prepare(images).numpy()
    assert np.abs(prepared * stds + means).max() <= 1 + 1e-6 and np.abs(prepared.mean()) < 0.5


@pytest.mark.slow
def test_seeds_and_processes_agree(tmp_path: Path) -> None:
    words = (*METHODS["pica"], "--data-root", coloured(tmp_path / "pictures"))
    found = []
    for name, extra in (("seeds", ("--seeds", "0-1")), ("ranks", ("--processes", 2, "--seed", 0))):
        process = launch((*words, *extra), tmp_path / name)
        _, err = process.communicate()
        assert process.returncode == 0, err
        session = only(tmp_path / name)
        found += [settings_of(path) for path in (sorted(session.glob("runs/*")) or [session])]
    assert len(found) == 3 and found[0] == found[1] == found[2] and all(found[0].values())


def test_pictures_that_are_not_there_are_not_measured(cli: Cli, tmp_path: Path) -> None:
    words = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/cifar10.yaml", "--data-root", tmp_path)
    status, out, err = cli(*words, "--tfm-means", "none", "--batch-size", "none", "--max-epochs", "none", "--dry-run")
    assert status == 0, err
    assert "to be measured" in out and "235 steps of 256" in out and "in 21 epochs" in out
    _, out, _ = cli(*words, "--dry-run")
    assert "minus 0.4914 0.4822 0.4465, divided by 0.2023 0.1994 0.201" in out


def test_a_mistake_is_told_before_anything_is_decoded(cli: Cli, tmp_path: Path, own_cache: Path) -> None:
    coloured(tmp_path / "pictures")
    before = set(own_cache.glob("*"))
    for method in METHODS:
        status, _, err = cli(*METHODS[method], "--data-root", tmp_path / "pictures", "--num-clusters", "none")
        assert status == 2 and "how many clusters" in err
    assert set(own_cache.glob("*")) == before


def test_none_in_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("batch_size: none\nmax_epochs: null\n")
    found = resolve("--cfgs", tmp_path / "a.yaml")
    assert found.undecided() == ["batch_size", "tfm_means", "tfm_stds", "feature_engine", "max_epochs"]


@pytest.mark.parametrize("count", [2, 3, 17, 33, 129, 257, 513, 2049, 4097])
def test_no_batch_of_this_choice_is_a_single_picture(count: int) -> None:
    assert count % settings_from_images.batch_size(count) != 1
