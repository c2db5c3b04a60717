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


PIXELS = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)


class Plain:
    """Images from an array, with the parts that a test sets."""

    def __init__(self, root: str, split: str, transform: Any = None, download: bool = False) -> None:
        pass

    @staticmethod
    def splits(root: str) -> datasets.Splits:
        return datasets.Splits({"all": 4}, train=("all",), test=("all",))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return Image.fromarray(PIXELS[i]), 0


def open_plain(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> datasets.Pictures:
    monkeypatch.setitem(datasets._registry._components, "plain", type("Changed", (Plain,), parts))
    return datasets.open_pictures(resolve("--dataset", "plain", "--num-clusters", 2))


def failing(self: Plain, i: int) -> Any:
    return Image.fromarray((PIXELS[i] / 255).astype(np.float32)), 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"array": PIXELS / 255}, "`array` of the data set plain, split all, is float64; give 8-bit values"),
        ({"array": PIXELS.tolist()}, "is list; give a NumPy array"),
        ({"array": PIXELS[..., 0]}, r"has the shape \(4, 6, 5\); .*, such as array\[\.\.\., None\] for grey images"),
        ({"array": PIXELS.transpose(0, 3, 1, 2)}, r"has the shape \(4, 3, 6, 5\); give \(N, H, W, C\) with 1 or 3 channels$"),
        ({"array": PIXELS[:3]}, r"has the shape \(3, 6, 5, 3\), and `__len__` gives 4 images; make the numbers equal"),
        ({"targets": [0, 1, 2]}, "`targets` of the data set plain, split all, has 3 labels, and `__len__` gives 4"),
        ({"targets": [0.0, 1.0, 2.0, float("nan")]}, "is float64; give integers, -1 for an unknown class"),
        ({"targets": ["cat", "dog", "cat", "dog"]}, "is <U3; give integers"),
        ({"__getitem__": failing}, r"`__getitem__\(0\)` of the data set plain, split all, fails: TypeError: Cannot handle"),
        ({"__getitem__": lambda self, i: (PIXELS[i], 0)}, "gives ndarray, where a Pillow image is wanted; give Image.fromarray"),
        ({"__getitem__": lambda self, i: (Image.fromarray(PIXELS[i]), "cat")}, "fails: ValueError: .*and the number of its class"),
        ({"__getitem__": lambda self, i: Image.fromarray(PIXELS[i])}, r"fails: TypeError: .*; let it give a Pillow image"),
    ],
)  # fmt: skip
def test_mistakes_in_a_class_end_at_the_start(
    parts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        open_plain(monkeypatch, **parts)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("targets", [[0, -1, 1, 2], np.arange(4, dtype=np.uint8), np.array([[0], [1], [2], [3]])])
def test_images_from_an_array_with_labels(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = open_plain(monkeypatch, array=PIXELS, targets=targets)
    assert pictures.labels().tolist() == np.asarray(targets).reshape(-1).tolist(), "`targets` wins over `__getitem__`"
