from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import picture, resolve
from PIL import Image
from sklearn.datasets import load_digits

from lib import datasets
from lib.config.registry import Registry
from lib.datasets.digits import Digits
from lib.datasets.image_files import PictureFiles
from lib.datasets.image_folder import ImageFolder
from lib.errors import UserError


def open_folder(root: Path, *words: object) -> datasets.Pictures:
    return datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", root, *words))


def test_digits_are_scikit_learns_in_halves() -> None:
    train = Digits("", "train")
    test = Digits("./data", "test")
    source = load_digits()
    assert (len(train), len(test)) == (899, 898) == tuple(Digits.splits("").sizes.values())
    assert (
        train.targets.tolist() == source.target[::2].tolist() and test.targets.tolist() == source.target[1::2].tolist()
    )
    image, label = test[5]
    assert image.mode == "L" and label == source.target[11]
    np.testing.assert_allclose(np.asarray(image), source.images[11] * 255 / 16, atol=0.5)
    with pytest.raises(UserError, match="no split 'val'"):
        Digits("", "val")


def test_class_folders(class_folders: Path) -> None:
    pictures = open_folder(class_folders)
    assert len(pictures) == 24 and pictures.classes == ("ant", "bee", "cat")
    assert pictures.labels().tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert [pictures[i][1] for i in (0, 8, 23)] == [0, 1, 2]
    assert pictures.locate(9) == ("all", 9)


def test_train_and_test_folders_share_their_classes(tmp_path: Path) -> None:
    for name in ("train/ant/a.png", "train/cat/deep/er/b.png", "test/bee/c.PNG", "test/cat/d.png"):
        picture(tmp_path / name)
    pictures = open_folder(tmp_path)
    assert pictures.classes == ("ant", "bee", "cat")
    assert pictures.labels()[pictures.index("train")].tolist() == [0, 2]
    assert pictures.labels()[pictures.index("test+train")].tolist() == [1, 2, 0, 2]
    assert ImageFolder.splits(str(tmp_path)).test == ("test", "train+test")
    assert pictures.locate(2) == ("test", 0)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.jpg")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("nor this")
    pictures = open_folder(tmp_path)
    assert len(pictures) == 3 and pictures.labels().tolist() == [-1] * 3 and pictures.classes is None


def test_orientation_is_respected(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_folder(tmp_path)[0][0].size == (4, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.write_text(""), "is a file"),
        (lambda root: root.mkdir(), "holds no picture: looked for folders train/ and test/"),
        (
            lambda root: picture(root / "ant" / "b.png") and (root / "bee").mkdir(),
            r"class folder .*bee holds no picture",
        ),
        (lambda root: (root / "train").mkdir(parents=True), "train holds no picture"),
        (lambda root: picture(root / "a.png").write_text("text"), r"a\.png: its content is no image"),
    ],
)
def test_mistakes_say_what_was_looked_for_and_where(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "pictures")
    with pytest.raises(UserError, match=message) as raised:
        open_folder(tmp_path / "pictures")
    assert str(tmp_path / "pictures") in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train-splits", "trian"), "no split 'trian': it has train, test; did you mean 'train'"),
        (("--test-splits", "train+train"), "names a part twice"),
    ],
)
def test_unknown_splits(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        datasets.open_pictures(resolve("--dataset", "digits", *words))


def test_defaults_of_a_data_set_that_declares_nothing() -> None:
    class Plain:
        def __init__(self, root: str, split: str, transform: Any = None, download: bool = False) -> None:
            self.split = split

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.new("L", (2, 2)), i

    if "plain" not in datasets.names():
        datasets.register("plain", Plain)
    pictures = datasets.open_pictures(resolve("--dataset", "plain"))
    assert len(pictures) == 6 and pictures.labels().tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("seconds", "kept"), [(10**11, 2**63 - 1), (-(10**11), -(2**63)), (5, 5 * 10**9)])
def test_a_file_may_be_of_any_year(seconds: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = datasets.Pictures({"all": PictureFiles(["a.png"], [0])})
    with monkeypatch.context() as patch:
        patch.setattr("os.stat", lambda path: SimpleNamespace(st_size=3, st_mtime_ns=seconds * 10**9))
        stamps = pictures.stamps
    assert stamps.tolist() == [[3, kept]]


def test_a_registry_refuses_doubles_and_suggests_names() -> None:
    registry = Registry("fruit")
    registry.register("apple", object)
    with pytest.raises(ValueError, match="'apple' is registered already"):
        registry.register("apple", object)
    with pytest.raises(UserError, match="unknown fruit 'aple': known are apple; did you mean 'apple'"):
        registry.get("aple")
