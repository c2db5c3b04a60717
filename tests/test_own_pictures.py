"""A folder of anybody's pictures: nothing in it crashes a run, and every file is accounted for."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, picture
from PIL import Image
from runs import beside_collapse, only

from lib.datasets.image_folder import ImageFolder
from lib.errors import UserError

Cli = Callable[..., tuple[int, str, str]]
NAMES = (
    "with space",
    "with 'quotes' and \"more\"",
    "with\nnewline",
    "<script>alert(1)</script>",
    "Größe",
    "猫",
    "🐈",
    "a,b;c",
    "-rf",
    "=1+1",
    "carriage\rreturn",
)
SIZES = ((1, 1), (1, 5000), (5000, 1), (7, 9), (40, 30), (64, 200))
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")
ENDINGS = ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "jp2", "ico", "pcx")
WORDS = ("--network", "convnet", "--net-width", 4, "--tfm-size", 8, "--tfm-resize", 10, "--batch-size", 32, "--max-epochs", 1,
         "--num-clusters", 4, "--seed", 3, "--num-workers", 0)  # fmt: skip
METHODS: dict[str, tuple[Any, ...]] = {
    "pica": ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", *WORDS),
    "imc_swav": ("--cfgs", ROOT / "configs/imc_swav/base.yaml", ROOT / "configs/imc_swav/image_folder.yaml", *WORDS,
                 "--size-crops", 8, 6, "--tfm-working-size", 10, "--prototypes", 10, "--classifier-dim", 8),
}  # fmt: skip


def zoo(root: Path) -> tuple[set[str], set[str]]:
    """Pictures of every kind that Pillow writes, below `root`; (names of whole ones, names of broken ones)."""
    root.mkdir(parents=True)
    whole = set[str]()
    random = np.random.default_rng(0)
    for mode in MODES:
        for ending in ENDINGS:
            for width, height in SIZES:
                noise = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
                image = noise.convert("I").convert(mode) if mode == "I;16" else noise.convert(mode)
                name = f"{mode.replace(';', '-')}-{width}x{height}.{ending}"
                try:
                    image.save(root / name)
                    whole.add(name)
                except (OSError, ValueError, KeyError, SystemError):  # no such mode in this format
                    (root / name).unlink(missing_ok=True)
    for name in NAMES:
        whole.add(os.path.relpath(picture(root / "deep" / "er" / f"{name}.png"), root))
    (root / "deep" / os.fsdecode(b"not-utf8-\xff.png")).write_bytes((root / "RGB-7x9.png").read_bytes())
    whole.add(os.fsdecode(b"deep/not-utf8-\xff.png"))
    frames = [Image.fromarray(random.integers(0, 256, (9, 7), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(root / "animated.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20), "red").save(root / "turned.jpg", exif=turned)
    Image.new("RGB", (30, 20), "red").save(root / "no-exif.webp", exif=b"garbage")
    whole |= {"animated.gif", "turned.jpg", "no-exif.webp"}
    Image.new("RGB", (30, 20), "red").save(root / "bits.avif")
    content = (root / "bits.avif").read_bytes()
    (root / "bits.avif").write_bytes(content.partition(b"mdat")[0] + b"mdat" + bytes(99))  # a RuntimeError
    (root / "cut.png").write_bytes((root / "RGB-64x200.png").read_bytes()[:2000])
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.png").write_text("no picture")
    (root / "notes.txt").write_text("of another kind")
    return whole, {"cut.png", "bits.avif", "empty.jpg", "text.png"}


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(os.fsdecode((path / "predictions.csv").read_bytes()), newline="")))


@pytest.mark.parametrize("method", ["pica", pytest.param("imc_swav", marks=pytest.mark.slow)])
def test_every_file_of_a_zoo_is_accounted_for(method: str, cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    whole, broken = zoo(root)
    assert len(whole) > 300
    status, out, err = cli(
        *METHODS[method], "--data-root", root, "--on-bad-image", "skip", "--copy-to", tmp_path / "sorted"
    )
    assert status == 0, err
    session = only(tmp_path / "sessions")
    heading, *rows = table(session)
    assert heading == ["path", "cluster", "confidence", "runner_up"]
    assert sorted(row[0] for row in rows) == sorted(whole)
    skipped = (session / "skipped.txt").read_text()
    assert all(name in skipped for name in broken) and len(skipped.splitlines()) == len(broken)
    assert "no labels" in out and f"{len(broken)} pictures could not be read" in err

    archive = np.load(session / "predictions.npz")
    assert [int(row[1]) for row in rows] == archive["cluster"].tolist()
    for row, probability in zip(rows, archive["probability"], strict=True):
        order = np.argsort(-probability, kind="stable")
        assert [int(row[1]), int(row[3])] == order[:2].tolist() and float(row[2]) == pytest.approx(
            probability.max(), abs=1e-4
        )
    copies = [path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]
    assert len(copies) == len(rows) and {path.parent.name for path in copies} == {f"cluster-{row[1]}" for row in rows}
    contents = sorted((root / name).read_bytes() for name in whole)
    assert sorted(path.read_bytes() for path in copies) == contents

    latest = session / "checkpoint" / "latest.ckpt"
    status, _, err = cli("--predict", latest, "--data-root", root, "--on-bad-image", "skip", "--session", "again",
                         "--copy-to", tmp_path / "linked", "--link")  # fmt: skip
    assert status == 0, err
    again = tmp_path / "sessions" / "again"
    assert [row[:2] for row in table(again)] == [row[:2] for row in table(session)]
    np.testing.assert_allclose(np.load(again / "predictions.npz")["probability"], archive["probability"], atol=1e-5)
    links = list((tmp_path / "linked").rglob("*.png"))
    assert all(link.is_symlink() and link.resolve().is_relative_to(root) for link in links) and links


def test_other_pictures_are_labelled_by_an_exported_file(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    other = tmp_path / "others"
    for i in range(40):
        picture(folder / f"{i:02}.png", size=(10, 10), seed=i)
    for i in range(3):  # fewer than clusters, and one of another size
        picture(other / "deep" / f"{i}.png", size=(10 + i, 10), seed=i)
    assert cli(*METHODS["imc_swav"], "--data-root", folder, "--session", "a")[0] == 0
    latest = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    file = tmp_path / "weights.safetensors"
    assert cli("--evaluate", latest, "--export", file, "--session", "b")[0] == 0
    for source, name in ((latest, "c"), (file, "d")):
        status, _, err = cli("--predict", source, "--data-root", other, "--session", name)
        assert status == 0 and not beside_collapse(err), err
    tables = [table(tmp_path / "sessions" / name) for name in "cd"]
    assert tables[0] == tables[1] and [row[0] for row in tables[0][1:]] == [f"deep/{i}.png" for i in range(3)]


@pytest.mark.parametrize("method", METHODS)
def test_the_example_in_python_gives_the_clusters_of_the_run(method: str, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for i in range(40):
        picture(folder / f"{i:02}.png", size=(10 + i, 12), mode=("RGB", "L", "RGBA")[i % 3], seed=i)
    assert cli(*METHODS[method], "--data-root", folder, "--tfm-backend", "pil")[0] == 0
    session = only(tmp_path / "sessions")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    example = (
        example.replace("sessions/NAME", str(session))
        .replace("a.jpg", str(folder / "00.png"))
        .replace("b.jpg", str(folder / "01.png"))
    )
    names: dict[str, Any] = {}
    exec(example, names)
    archive = np.load(session / "predictions.npz")
    assert names["clusters"].tolist() == archive["cluster"][:2].tolist()
    images = [Image.open(folder / f"{i:02}.png") for i in range(40)]
    clusters, probability = names["model"].predict(images, batch_size=7)
    assert clusters.tolist() == archive["cluster"].tolist()
    np.testing.assert_allclose(probability, archive["probability"], atol=1e-5)

    turned = Image.Exif()
    turned[0x0112] = 6
    images[0].save(tmp_path / "turned.tiff", exif=turned)  # shown upright, it is turned by a quarter
    upright = images[0].transpose(Image.Transpose.ROTATE_270)
    (_, first), (_, second) = (names["model"].predict([one]) for one in (Image.open(tmp_path / "turned.tiff"), upright))
    np.testing.assert_allclose(first, second, atol=1e-6)

    tensor = torch.from_numpy(
        np.stack([np.asarray(image.convert("RGB").resize((12, 12))) for image in images])
    ).permute(0, 3, 1, 2)
    shown = [Image.fromarray(array) for array in tensor.permute(0, 2, 3, 1).numpy()]
    for ours, theirs in zip(names["model"].predict(tensor), names["model"].predict(shown), strict=True):
        assert (ours == theirs).all()
    assert [part.shape for part in names["model"].predict([])] == [(0,), (0, 4)]
    closed = Image.open(folder / "00.png")
    closed.close()
    gone = Image.open(io.BytesIO((folder / "00.png").read_bytes()))
    gone.fp.close()
    cut = Image.open(io.BytesIO((folder / "00.png").read_bytes()[:200]))
    for image in (closed, gone, cut, Image.new("RGB", (0, 5))):
        with pytest.raises(UserError, match=r"^cannot read image 8: .") as raised:
            names["model"].predict([*images[:8], image], batch_size=7)
        assert str(raised.value).isprintable()
    for wrong, told in (
        (images[0], "a list of images is wanted, not a single one"),
        ("a.jpg", "a path is no list of images"),
        (np.asarray(tensor), "a NumPy array is no tensor"),
        (["a.jpg"], r"\[Image.open\(path\) for path in paths\] opens paths; .*not a list with str"),
        ([*images[:8], np.zeros((5, 5))], "^give a list of Pillow images, or .*not a list with ndarray"),
        (5, "not int"),
    ):
        for call in (names["model"].predict, names["model"].prepare):
            with pytest.raises(TypeError, match=told):
                call(wrong)
    with pytest.raises(ValueError, match=r"not \(40, 12, 12\) torch.uint8"):
        names["model"].predict(tensor[:, 0], batch_size=7)  # the whole shape, not that of a batch
    with pytest.raises(ValueError, match="of bytes"):
        names["model"].predict(tensor.float())
    with torch.no_grad():
        next(names["model"].method.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not finite: its training diverged"):
        names["model"].predict(tensor)


def test_labels_from_a_table_score_the_result(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    labels = tmp_path / "labels.csv"
    for i in range(40):
        picture(folder / f"{i:02}.png", seed=i)
    lines = ["file,class", *(f"{i:02}.png,{'odd' if i % 2 else 'even'}" for i in range(30))]
    labels.write_text("\n".join(lines))
    words = (*METHODS["pica"], "--data-root", folder, "--labels", labels)
    status, out, err = cli(*words, "--session", "a")
    assert status == 0 and "30 of 40 pictures have a label" in out, err
    found = np.load(tmp_path / "sessions" / "a" / "predictions.npz")["label"]
    assert found.tolist() == [i % 2 for i in range(30)] + [-1] * 10
    for text, part in (
        ("99.png,odd\n98.png,odd", "line 1 names '99.png', and there is no such picture"),
        ("00.png,odd\n00.png,even", "line 2: '00.png' had another class before"),
        ("a\n", "line 1: a file and its class"),
        ("", "name none"),
    ):
        labels.write_text(text)
        status, _, err = cli(*words)
        assert status == 2 and part in err and err.count("\n") == 1, err


def test_mistakes_with_copies_leave_nothing(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for i in range(12):
        picture(folder / f"{i}.png", seed=i)
    words = (*METHODS["pica"], "--data-root", folder, "--debug")
    for extra, part in (
        (("--copy-to", folder / "sorted"), "lies in --data-root"),
        (("--copy-to", tmp_path), "it exists"),
        (("--copy-to", tmp_path / "no" / "where"), "make it first"),
        (("--link",), "--link needs --copy-to"),
        (("--predict", tmp_path / "no.ckpt"), "no.ckpt"),
        (("--copy-to", "/proc/sorted"), "choose another place"),
        (("--predict", tmp_path / "no.ckpt", "--resume", "auto"), "exclude each other"),
    ):
        status, _, err = cli(*words, *extra)
        assert status == 2 and part in err and err.count("\n") == 1, err
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(f"{i}.png" for i in range(12))


def copies_of(folder: Path) -> dict[str, list[str]]:
    """Cluster → names of the copies in it."""
    return {cluster.name: sorted(file.name for file in cluster.iterdir()) for cluster in sorted(folder.iterdir())}


def assert_sorted_by(session: Path, folder: Path) -> None:
    """The copies are all that predictions.csv has, and nothing else."""
    expected: dict[str, list[str]] = {}
    for row in table(session)[1:]:
        expected.setdefault(f"cluster-{row[1]}", []).append(row[0])
    assert copies_of(folder) == {cluster: sorted(names) for cluster, names in expected.items()}
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}")]


def folder_of(tmp_path: Path, count: int = 24) -> Path:
    for i in range(count):
        picture(tmp_path / "pictures" / f"{i:02}.png", seed=i)
    return tmp_path / "pictures"


@pytest.mark.parametrize("extra", [(), ("--link",)])
def test_copies_of_a_resumed_run_follow_its_predictions(extra: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    copies = tmp_path / "sorted"
    words = (*METHODS["pica"], "--data-root", folder_of(tmp_path), "--base-lr", 0.05, "--copy-to", copies, *extra)
    assert cli(*words)[0] == 0
    session = only(tmp_path / "sessions")
    words = (*words, "--resume", session / "checkpoint" / "latest.ckpt")
    before = table(session)
    status, out, err = cli(*words)
    assert status == 0 and "there from before" in out, err
    assert cli(*words, "--max-epochs", 3)[0] == 0
    assert [row[:2] for row in table(session)] != [row[:2] for row in before], "the case is one"
    assert_sorted_by(session, copies)


def test_copies_of_a_resumed_run_replace_nothing_else(cli: Cli, tmp_path: Path) -> None:
    copies = tmp_path / "sorted"
    words = (*METHODS["pica"], "--data-root", folder_of(tmp_path), "--copy-to", copies)
    assert cli(*words)[0] == 0
    session = only(tmp_path / "sessions")
    other = tmp_path / "other"
    words = (*words, "--resume", session / "checkpoint" / "latest.ckpt")
    cluster = next(copies.iterdir())
    (cluster / "mine.txt").write_text("mine")

    def refused(part: object, *extra: object) -> None:
        before = (session / "metrics.jsonl").read_bytes()
        status, _, err = cli(*words, "--max-epochs", 2, *extra)
        assert status == 2 and err.count("\n") == 1 and "it exists" in err and str(part) in err, err
        assert (session / "metrics.jsonl").read_bytes() == before, "nothing was trained"

    refused(cluster / "mine.txt")
    (cluster / "mine.txt").unlink()
    (copies / "other").mkdir()
    refused(copies / "other")
    (copies / "other").rmdir()
    moved = next(cluster.iterdir())
    moved.rename(copies / "moved.png")
    refused(copies / "moved.png")
    (copies / "moved.png").rename(moved)
    moved.write_bytes(b"edited")
    refused(moved)
    moved.unlink()
    (other / "cluster-0").mkdir(parents=True)
    (other / "cluster-0" / "00.png").write_text("of another program")
    refused(other / "cluster-0", "--copy-to", other)
    assert cli(*words, "--max-epochs", 2)[0] == 0, "a copy that is gone is made again"
    assert_sorted_by(session, copies)


def test_copies_of_an_earlier_version_are_known_by_the_predictions(cli: Cli, tmp_path: Path) -> None:
    copies = tmp_path / "sorted"
    words = (*METHODS["pica"], "--data-root", folder_of(tmp_path), "--base-lr", 0.05, "--copy-to", copies)
    assert cli(*words)[0] == 0
    session = only(tmp_path / "sessions")
    words = (*words, "--resume", session / "checkpoint" / "latest.ckpt")
    (session / "copies.json").unlink()
    first = (session / "predictions.csv").read_bytes()
    status, _, err = cli(*words, "--max-epochs", 3)
    assert status == 0, err
    assert_sorted_by(session, copies)
    (session / "copies.json").unlink()
    (session / "predictions.csv").write_bytes(first)
    status, _, err = cli(*words, "--max-epochs", 4)
    assert status == 2 and "this run did not write" in err, err


def test_copies_survive_a_run_that_was_killed_between_two_renames(cli: Cli, tmp_path: Path) -> None:
    copies = tmp_path / "sorted"
    words = (*METHODS["pica"], "--data-root", folder_of(tmp_path), "--resume", "auto", "--copy-to", copies)
    assert cli(*words)[0] == 0
    whole = copies_of(copies)
    copies.rename(tmp_path / ".sorted.replaced")
    status, out, err = cli(*words)
    assert status == 0 and "there from before" in out, err
    assert copies_of(copies) == whole
    shutil.copytree(copies, tmp_path / ".sorted.replaced")  # or after the second
    assert cli(*words)[0] == 0
    assert_sorted_by(only(tmp_path / "sessions"), copies)


@pytest.mark.parametrize("method", METHODS)
def test_more_clusters_than_pictures_are_refused_at_once(method: str, cli: Cli, tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / "pictures" / f"{i}.png", seed=i)
    for numbers in ((13,), (3, 13)):
        words = (*METHODS[method], "--data-root", tmp_path / "pictures", "--batch-size", 4, "--num-clusters", *numbers)
        status, out, err = cli(*words)
        assert status == 2 and err.startswith("error: 12 pictures do not make 13 clusters") and not out
        assert not (tmp_path / "sessions").exists()


def test_digits_read_no_folder(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("--data-root", tmp_path, "--num-clusters", 3, "--dry-run")
    assert status == 2 and "reads no folder" in err and err.count("\n") == 1


def test_pictures_beside_folders_of_pictures_have_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "2019" / "trip" / "b.png")
    assert set(ImageFolder(str(tmp_path), "all").targets) == {-1}


def test_an_epoch_without_a_batch_is_a_mistake(cli: Cli, tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / f"{i:02}.png", seed=i)
        if i > 0:
            (tmp_path / f"{i:02}.png").write_bytes(b"broken")
    status, _, err = cli(*METHODS["pica"], "--data-root", tmp_path, "--on-bad-image", "skip", "--batch-size", 2,
                         "--num-clusters", 2, "--seed", 1)  # fmt: skip
    assert status == 2 and "two pictures that can be read" in err.splitlines()[-1], err
