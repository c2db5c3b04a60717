from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import official_files
import pytest
from conftest import picture, resolve, shared
from torchvision import datasets as torchvision_datasets

from lib import datasets
from lib.datasets import cifar
from lib.datasets.image_files import Index
from lib.datasets.imagenet import IMAGENET10, IMAGENET_DOGS, ImageNet10
from lib.errors import MissingData, UserError


def open_pictures(name: str, root: Path, *words: object) -> datasets.Pictures:
    imagenet = ("--cache", root.parent / "cache") if name.startswith("imagenet") else ()
    return datasets.open_pictures(resolve("--dataset", name, "--data-root", root, *imagenet, *words))


def image_net(root: Path, listed: str = IMAGENET10, per_class: int = 3) -> list[str]:
    """An ImageNet training folder with a class that nobody asks for; returns the numbers asked for."""
    wnids = [line.split()[0] for line in listed.strip().splitlines()]
    for wnid in [*wnids, "n01440764"]:
        for i in range(per_class):
            picture(root / wnid / f"{wnid}_{i}.JPEG", mode="L" if i == 0 else "RGB")
    return wnids


def test_cifar10_agrees_with_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official_files.cifar(tmp_path, "cifar10", monkeypatch)
    pictures = open_pictures("cifar10", tmp_path)
    assert len(pictures) == 36 and pictures.classes == tuple(official_files.FINE[:10])
    for split, offset in (("train", 0), ("test", 30)):
        theirs = torchvision_datasets.CIFAR10(tmp_path, train=split == "train")
        for i, (image, label) in enumerate(theirs):  # type: ignore[misc, arg-type]
            assert np.array_equal(np.asarray(pictures[offset + i][0]), np.asarray(image))
            assert pictures[offset + i][1] == label
    part = datasets.get("cifar10")(str(tmp_path), "train")
    assert part.array.shape == (30, 32, 32, 3) and np.array_equal(part.array[3], np.asarray(part[3][0]))


def test_cifar100_has_superclasses_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official_files.cifar(tmp_path, "cifar100", monkeypatch)
    coarse = open_pictures("cifar100", tmp_path)
    fine = open_pictures("cifar100", tmp_path, "--label-level", "fine")
    assert coarse.classes == tuple(official_files.COARSE) and fine.classes == tuple(official_files.FINE)
    theirs = torchvision_datasets.CIFAR100(tmp_path).targets + torchvision_datasets.CIFAR100(tmp_path, False).targets
    assert fine.labels().tolist() == theirs
    assert coarse.labels().tolist() == [label // 5 for label in theirs]


def test_stl10_agrees_with_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official_files.stl10(tmp_path, monkeypatch)
    pictures = open_pictures("stl10", tmp_path)
    assert [len(pictures.index(name)) for name in ("train", "unlabeled", "test", "train+unlabeled")] == [5, 7, 4, 12]
    assert len(pictures.index("train+unlabeled+test")) == 16 and len(pictures.classes or ()) == 10
    labels = pictures.labels()
    assert (labels[pictures.index("unlabeled")] == -1).all() and (labels[pictures.index("train+test")] >= 0).all()
    theirs = torchvision_datasets.STL10(tmp_path, "test")
    position = int(pictures.index("test")[2])
    assert np.array_equal(np.asarray(pictures[position][0]), np.asarray(theirs[2][0]))
    assert pictures[position][1] == theirs[2][1]
    part = datasets.get("stl10")(str(tmp_path), "test")
    assert np.array_equal(part.array[2], np.asarray(theirs[2][0]))


def test_tiny_imagenet_on_real_files() -> None:
    root = shared("data/tiny-imagenet-10")
    pictures = open_pictures("tiny_imagenet", root, "--test-splits", "val")
    wnids = (root / "wnids.txt").read_text().split()
    assert len(pictures.index("train")) == 3000 and len(pictures.index("val")) == 500
    assert len(pictures.classes or ()) == 10 and (pictures.classes or ("",))[0] == "bullfrog"
    labels = pictures.labels()
    assert np.bincount(labels[pictures.index("train")]).tolist() == [300] * 10
    assert np.bincount(labels[pictures.index("val")]).tolist() == [50] * 10
    part = datasets.get("tiny_imagenet")(str(root), "val")
    assert all(str(part.path(i)).endswith(f"val_{part.path(i).stem[4:]}.JPEG") for i in range(500))
    notes = dict(line.split("\t")[:2] for line in (root / "val/val_annotations.txt").read_text().splitlines())
    assert all(notes[part.path(i).name] == wnids[part.targets[i]] for i in range(500))
    modes = {pictures[i][0].mode for i in range(len(pictures))}
    assert modes == {"L", "RGB"}, "grey pictures are among them"


def test_tiny_imagenet_trains_from_the_folder_above(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    folder = tmp_path / "data" / "tiny-imagenet-200"
    for number, wnid in enumerate(("n02000000", "n01000000")):
        for i in range(6):
            picture(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", (64, 64), "L" if i else "RGB", number)
    picture(folder / "val" / "images" / "val_0.JPEG", (64, 64))
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01000000\t0\t0\t63\t63\n")
    (folder / "wnids.txt").write_text("n02000000\nn01000000\n")
    (folder / "words.txt").write_text("n01000000\tsecond, other\nn02000000\tfirst\n")
    pictures = open_pictures("tiny_imagenet", tmp_path / "data", "--test-splits", "val")
    assert pictures.classes == ("first", "second") and pictures.labels().tolist() == [0] * 6 + [1] * 7
    words = ("--dataset", "tiny_imagenet", "--data-root", tmp_path / "data", "--num-clusters", 2, "--network", "convnet",
             "--net-width", 4, "--batch-size", 6, "--tfm-size", 16, "--tfm-resize", 20, "--num-workers", 0)  # fmt: skip
    status, out, err = cli(*words, "--max-epochs", 1, "--test-splits", "train", "val")
    assert status == 0 and "ACC" in out, err


def test_imagenet_subsets_take_their_folders_in_the_papers_order(tmp_path: Path) -> None:
    root = tmp_path / "train"
    wnids = image_net(root)
    pictures = open_pictures("imagenet10", root)
    assert len(pictures) == 30 and pictures.labels().tolist() == sorted([*range(10)] * 3)
    assert pictures.classes is not None and pictures.classes[0] == "king penguin"
    part = ImageNet10(str(root), "train")
    assert [part.path(i).parent.name for i in range(0, 30, 3)] == wnids
    image_net(tmp_path / "dogs", IMAGENET_DOGS)
    assert len(open_pictures("imagenet_dogs", tmp_path / "dogs")) == 45
    assert len(open_pictures("imagenet", root)) == 33, "without a list, every class folder"
    (tmp_path / "list.txt").write_text("n07747607 orange  # the fruit\n\nn01440764\n")
    chosen = open_pictures("imagenet", root, "--class-list", tmp_path / "list.txt")
    assert chosen.classes == ("orange", "n01440764") and len(chosen) == 6
    assert ImageNet10.splits("").sizes == {"train": 13_000}


def test_an_index_is_kept_and_notices_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "train"
    cache = tmp_path / "cache"
    for name in ("a", "b"):
        picture(root / name / "1.png")
        os.utime(root / name, (1e9, 1e9))
    scanned: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(Path(path).name) or scandir(path))  # type: ignore[func-returns-value]
    for _ in range(2):
        assert Index(root, cache).files(["b", "a"]) == [["1.png"], ["1.png"]]
    assert scanned == ["b", "a"], "read once"
    picture(root / "a" / "0.png")
    assert Index(root, cache).files(["b", "a"]) == [["1.png"], ["0.png", "1.png"]]
    assert scanned == ["b", "a", "a"]
    assert Index(root, cache).files(["a"]) == [["0.png", "1.png"]]
    assert scanned == ["b", "a", "a", "a"], "changed this very moment: not trusted"
    next(cache.iterdir()).write_text("[no list")
    assert Index(root, cache).files(["b"]) == [["1.png"]]
    files = sorted(cache.iterdir())
    assert Index(root, None).files(["b"]) == [["1.png"]] and sorted(cache.iterdir()) == files


def test_debug_keeps_no_index(tmp_path: Path) -> None:
    image_net(tmp_path / "train")
    for words in (["--debug"], ["--disk-cache", 0], ["--dry-run"]):
        open_pictures("imagenet10", tmp_path / "train", *words)
    assert not (tmp_path / "cache").exists()
    open_pictures("imagenet10", tmp_path / "train")
    assert (tmp_path / "cache").exists()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "root", "message"),
    [
        (lambda d: _flip(d / "cifar-10-batches-py/data_batch_2"), "", r"data_batch_2 is damaged: its checksum .* --down"),
        (lambda d: _flip(d / "cifar-10-batches-py/batches.meta"), "", r"batches\.meta is damaged"),
        (lambda d: (d / "cifar-10-batches-py/test_batch").unlink(), "", r"test_batch is missing; --download fetches"),
        (lambda d: None, "..", "one level too high; give .*data"),
        (lambda d: None, "cifar-10-batches-py", "one level too low; give .*data"),
        (lambda d: shutil.move(d / "cifar-10-batches-py", d / "away"), "", "no folder cifar-10-batches-py in .*--download"),
        (
            lambda d: shutil.move(d / "cifar-10-batches-py", d / "away") and (d / "cifar-10-python.tar.gz").write_text("x"),
            "",
            r"cifar-10-python\.tar\.gz is incomplete or damaged; --download mends it",
        ),
    ],
)  # fmt: skip
def test_mistakes_with_cifar(
    break_it: Any, root: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    official_files.cifar(tmp_path / "data", "cifar10", monkeypatch)
    break_it(tmp_path / "data")
    opened = []
    unpickle = cifar._unpickle
    monkeypatch.setattr(cifar, "_unpickle", lambda path: opened.append(path.name) or unpickle(path))
    with pytest.raises(UserError, match=message):
        open_pictures("cifar10", tmp_path / "data" / root, "--test-splits", "test", "--train-splits", "train+test")
    assert not {"data_batch_2", "test_batch", "batches.meta"} & set(opened) or "test_batch" in message, "unverified"
    status, _, err = cli("--dataset", "cifar10", "--data-root", tmp_path / "data" / root, "--num-clusters", 10)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_a_foreign_name_in_a_file_of_cifar_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(pickle.dumps({"data": Path}))
    with pytest.raises(UserError, match=r"names pathlib\.Path, which it does not need"):
        cifar._unpickle(tmp_path / "train")


def test_an_archive_that_was_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = torchvision_datasets.CIFAR10
    folder = official_files.cifar(tmp_path, "cifar10", monkeypatch)
    official_files.pack(folder, tmp_path / source.filename)
    monkeypatch.setattr(source, "tgz_md5", official_files.md5(tmp_path / source.filename))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="was not unpacked"):
        open_pictures("cifar10", tmp_path)
    assert len(open_pictures("cifar10", tmp_path, "--download")) == 36, "the whole archive is taken, not fetched"
    shutil.rmtree(folder)
    (tmp_path / source.filename).write_bytes(b"half of it")
    monkeypatch.setattr(source, "url", (tmp_path / "nowhere").as_uri())
    with pytest.raises(UserError, match="cannot download file:.*try again, or fetch it by hand"):
        open_pictures("cifar10", tmp_path, "--download")


def test_download_fetches_verifies_and_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = torchvision_datasets.CIFAR10
    there = tmp_path / "there" / "cifar-10-python.tar.gz"
    official_files.pack(official_files.cifar(tmp_path / "there", "cifar10", monkeypatch), there)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=there.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(source, "url", f"http://127.0.0.1:{server.server_port}/{there.name}")
        with pytest.raises(UserError, match="cannot download http.*corrupted"):  # its sum is not the official one
            open_pictures("cifar10", tmp_path / "here", "--download")
        monkeypatch.setattr(source, "tgz_md5", official_files.md5(there))
        assert len(open_pictures("cifar10", tmp_path / "here", "--download")) == 36
        server.shutdown()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: _flip(d / "unlabeled_X.bin"), r"unlabeled_X\.bin is damaged"),
        (lambda d: (d / "test_y.bin").unlink(), r"test_y\.bin is missing"),
    ],
)
def test_mistakes_with_stl10(break_it: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(official_files.stl10(tmp_path, monkeypatch))
    with pytest.raises(UserError, match=message):
        open_pictures("stl10", tmp_path)


def test_mistakes_with_imagenet(tmp_path: Path) -> None:
    wnids = image_net(tmp_path / "ILSVRC" / "train")
    root = tmp_path / "ILSVRC" / "train"
    cases = [
        (tmp_path / "ILSVRC", "too high; give .*ILSVRC/train"), (tmp_path, "too high; give .*ILSVRC/train"),
        (root / wnids[0], "one level too low; give .*train"), (tmp_path / "nowhere", "no class folder of ImageNet"),
    ]  # fmt: skip
    for place, message in cases:
        with pytest.raises(UserError, match=message):
            open_pictures("imagenet10", place)
    with pytest.raises(UserError, match="image-net.org"):
        open_pictures("imagenet10", root, "--download")
    shutil.rmtree(root / wnids[3])
    (root / f"{wnids[3]}.tar").write_text("")
    with pytest.raises(UserError, match=f"lacks 1 of 10 class folders, such as {wnids[3]} .*unpack it"):
        open_pictures("imagenet10", root)
    (root / wnids[3]).mkdir()
    with pytest.raises(UserError, match=f"{wnids[3]} holds no picture; unpack"):
        open_pictures("imagenet10", root)
    for text, message in (
        ("cat\n", "'cat' names no class"),
        ("# none\n", "is empty"),
        ("n01440764\n" * 2, "comes twice"),
    ):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            open_pictures("imagenet", root, "--class-list", tmp_path / "list.txt")
    (tmp_path / "a file").write_text("")
    with pytest.raises(UserError, match="cannot keep the list of files"):
        datasets.open_pictures(
            resolve("--dataset", "imagenet", "--data-root", root.parent / "train", "--cache", tmp_path / "a file" / "x",
                    "--class-list", _list(tmp_path, wnids[:2]))
        )  # fmt: skip


def _list(folder: Path, wnids: list[str]) -> Path:
    (folder / "good.txt").write_text("\n".join(wnids))
    return folder / "good.txt"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "tiny_imagenet", "imagenet10", "imagenet"])
def test_data_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="--data-root"):
        open_pictures(name, tmp_path / "data")
    with pytest.raises(UserError, match="has no split 'trian'"):
        open_pictures(name, tmp_path, "--train-splits", "trian")


def test_a_dry_run_counts_what_is_there_and_expects_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., tuple[int, str, str]]
) -> None:
    words = (
        "--dataset",
        "cifar10",
        "--data-root",
        tmp_path,
        "--net-heads",
        70,
        10,
        "--network",
        "convnet",
        "--dry-run",
    )
    status, out, _ = cli(*words, "--tfm-size", 32)
    out = " ".join(out.split())
    assert status == 0 and "expected: head 0: 60,000 images, 235 steps" in out
    assert "cifar10 in " in out and "not there" in out
    official_files.cifar(tmp_path, "cifar10", monkeypatch)
    status, out, _ = cli(*words, "--tfm-size", 32)
    out = " ".join(out.split())
    assert status == 0 and "expected" not in out and "head 0: 36 images" in out


@pytest.mark.slow
def test_sixty_thousand_pictures_load_fast_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, per_file in (("cifar10", 10_000), ("cifar100", 50_000)):
        official_files.cifar(tmp_path, name, monkeypatch, per_file)
        # Another process has the official sums; in their place it reads the files once more.
        measured = subprocess.run(
            [sys.executable, "-c", f"""
import time, tracemalloc
from lib import datasets
import lib.datasets.cifar
lib.datasets.cifar.verify = lambda folder, files: [open(folder / name, "rb").read() for name, _ in files] and None
began = time.perf_counter()
parts = [datasets.get({name!r})({str(tmp_path)!r}, split) for split in ("train", "test")]
seconds = time.perf_counter() - began
del parts
tracemalloc.start()
parts = [datasets.get({name!r})({str(tmp_path)!r}, split) for split in ("train", "test")]
print(seconds, tracemalloc.get_traced_memory()[1] - sum(part.array.nbytes for part in parts))
"""], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])  # fmt: skip
        seconds, extra = map(float, measured.stdout.split())
        print(f"{name}: {seconds:.1f} s, {extra / 1e6:.0f} MB above the pictures")
        assert extra < 200e6, f"{name}: {extra / 1e6:.0f} MB above the pictures, after {seconds:.1f} s"


@pytest.mark.slow
def test_a_million_links_are_indexed_once(tmp_path: Path) -> None:
    picture(tmp_path / "one.JPEG")
    root = tmp_path / "train"
    names = [f"n{i:08d}" for i in range(1000)]
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(1300):
            os.symlink(tmp_path / "one.JPEG", root / name / f"{name}_{i}.JPEG")
        os.utime(root / name, (1e9, 1e9))
    took = []
    for _ in range(2):
        began = time.perf_counter()
        assert len(open_pictures("imagenet", root)) == 1_300_000
        took.append(time.perf_counter() - began)
    print(f"first {took[0]:.1f} s, kept {took[1]:.1f} s")
    (root / names[7] / f"{names[7]}_3.JPEG").unlink()
    assert len(open_pictures("imagenet", root)) == 1_299_999
