"""What is made of a person's folder: layouts, links, odd files; and that each of these is said."""

from __future__ import annotations

import os
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture, resolve
from PIL import Image

from lib import datasets
from lib.datasets import folder_tree, image_formats
from lib.datasets.image_files import Index
from lib.datasets.image_folder import ImageFolder
from lib.errors import UserError

Cli = Callable[..., tuple[int, str, str]]


def open_folder(root: Path, *words: object) -> datasets.Pictures:
    return datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", root, *words))


def fill(root: Path, *folders: str, count: int = 2) -> None:
    for folder in folders:
        for i in range(count):
            picture(root / folder / f"{i}.png", seed=i)


def said(pictures: datasets.Pictures) -> str:
    return "\n".join(pictures.describe())


@pytest.mark.parametrize(
    ("folders", "splits", "scored"),
    [
        (("train/a", "train/b", "test/a"), {"train": 4, "test": 2}, ("test", "train+test")),
        (("Train/a", "TEST/a"), {"train": 2, "test": 2}, ("test", "train+test")),
        (("training/a", "testing/a"), {"train": 2, "test": 2}, ("test", "train+test")),
        (("training_set", "test-images"), {"train": 2, "test": 2}, ("test", "train+test")),
        (("train2017", "val2017"), {"train": 2, "val": 2}, ("val", "train+val")),
        (("train/a", "valid/a"), {"train": 2, "val": 2}, ("val", "train+val")),
        (("train/a", "dev/a", "test/a"), {"train": 2, "val": 2, "test": 2}, ("test", "train+test")),
        (("train/a", "unlabelled/x", "test/a"), {"train": 2, "unlabeled": 2, "test": 2}, ("test", "train+test")),
        (("train/a", "train/b"), {"train": 4}, ("train",)),
        (("test/a",), {"test": 2}, ("test",)),
        (("car", "train", "bus"), {"all": 6}, ("all",)),
        (("train/a", "test/a", "samples"), {"all": 6}, ("all",)),
        (("train/a", "val/a", "validation/a"), {"all": 6}, ("all",)),
        (("val/a", "dev2/a"), {"all": 4}, ("all",)),
    ],
)
def test_splits_are_known_by_their_names_and_by_the_whole_layout(
    folders: tuple[str, ...], splits: dict[str, int], scored: tuple[str, ...], tmp_path: Path
) -> None:
    fill(tmp_path, *folders)
    known = ImageFolder.splits(str(tmp_path))
    assert known.sizes == splits and known.test == scored
    assert sum(len(part) for _, part in open_folder(tmp_path, "--train-splits", "+".join(splits)).parts()) == sum(
        splits.values()
    )


@pytest.mark.parametrize(
    ("folders", "line"),
    [
        (("car", "train", "bus"), "train is taken for a class, since bus, car are no splits"),
        (("train/a", "val/a", "dev/a"), "are taken for classes, since val would be the same split"),
        (("train/a", "val/a"), "val/ is scored, since there is no folder for tests"),
        (("train/a", "test/b"), "train/ and test/ share no class"),
        (("train/a", "val/a", "Testing/a"), "6 images, 1 class (2 in train/, 2 in val/, 2 in Testing/)"),
        (("train/a", "val/a", "test/a"), "2 images of the split val are not used; --train-splits"),
        (("flowers/rose", "flowers/tulip"), "all images are in one class; for the folders in it, --data-root"),
        ((".", "a"), "class folders are not used as labels, because 2 images are directly in the folder: 0.png, 1.png"),
        (("train", "train/a"), "because 2 images are directly in train/: 0.png, 1.png"),
        ((".", "train/a", "test/a"), "test, train are not taken for splits, since 2 images are beside: 0.png, 1.png"),
    ],
)
def test_what_is_made_of_a_layout_is_said(folders: tuple[str, ...], line: str, tmp_path: Path) -> None:
    fill(tmp_path, *folders)
    assert line in said(open_folder(tmp_path))


def test_images_of_a_validation_split_are_trained_on_when_it_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "train/a", "val/a", "test/a")
    pictures = open_folder(tmp_path, "--train-splits", "train+val+test")
    assert len(pictures) == 6 and "not used" not in said(pictures)


def test_images_of_an_unlabelled_split_have_no_label(tmp_path: Path) -> None:
    fill(tmp_path, "train/a", "unlabeled/x")
    pictures = open_folder(tmp_path)
    assert pictures.train == ("train+unlabeled",) and pictures.labels().tolist() == [0, 0, -1, -1]


def test_files_beside_class_folders_take_no_label_away_unless_they_are_images(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    for name in ("notes.txt", "movie.mpg", "table.h5", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    pictures = open_folder(tmp_path)
    assert pictures.labels().tolist() == [0, 0, 1, 1]
    assert said(pictures) == "4 images, 2 classes; left out: 1 .h5, 1 .mpg, 1 .txt, 1 hidden file"


def test_only_formats_that_pillow_decodes_are_images() -> None:
    endings = image_formats.endings()
    assert {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".webp", ".ppm"} <= endings
    assert not endings & {".h5", ".hdf", ".bufr", ".grib", ".wmf", ".emf", ".mpg", ".mpeg", ".eps", ".ps", ".pdf"}


def without_plugins(patch: pytest.MonkeyPatch) -> None:
    """As where Pillow has no plug-ins, and cannot read AVIF."""
    known = {ending for ending in image_formats.endings() if ending not in image_formats.PACKAGES}
    patch.setattr("lib.datasets.image_files.endings", lambda: known)


def test_images_without_a_decoder_are_named_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_plugins(monkeypatch)
    fill(tmp_path, "a", "b")
    for i in range(3):
        (tmp_path / "a" / f"{i}.HEIC").write_bytes(b"x")
    (tmp_path / "a" / "x.jxl").write_bytes(b"x")
    assert said(open_folder(tmp_path)) == (
        "4 images, 2 classes; left out: 3 .heic (no decoder; pip install pillow-heif), "
        "1 .jxl (no decoder; pip install pillow-jxl-plugin)"
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.heic").write_bytes(b"x")
    with pytest.raises(UserError, match="class folder .*c holds no picture.* 1 .heic .no decoder; pip install"):
        open_folder(tmp_path)
    with pytest.raises(UserError, match="c holds no picture: looked for.* 1 .heic .no decoder; pip install"):
        open_folder(tmp_path / "c")


def test_folders_of_something_else_are_no_empty_classes(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    (tmp_path / "sessions" / "one").mkdir(parents=True)
    (tmp_path / "sessions" / "one" / "log.txt").touch()
    assert said(open_folder(tmp_path)) == "4 images, 2 classes; left out: 1 .txt, 1 folder without images (sessions)"
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="class folder .*c holds no picture; fill or remove it"):
        open_folder(tmp_path)


@pytest.mark.parametrize(("ending", "module"), [("heic", "pillow_heif"), ("jxl", "pillow_jxl")])
def test_images_are_read_by_a_plugin_that_is_installed(ending: str, module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    assert f".{ending}" in image_formats.endings()
    picture(tmp_path / f"a.{ending.upper()}", size=(64, 64))
    assert open_folder(tmp_path)[0][0].size == (64, 64)


def test_a_plugin_that_cannot_be_imported_is_as_one_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise OSError("built for another Pillow")

    monkeypatch.setattr(Image, "registered_extensions", lambda: {".png": "PNG"})
    monkeypatch.setattr(image_formats.importlib, "import_module", fail)
    assert "PNG" in image_formats.decodable.__wrapped__()


def test_a_kept_list_of_files_is_read_again_with_another_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a")
    (tmp_path / "a" / "x.heic").write_bytes(b"x")
    os.utime(tmp_path / "a", (1e9, 1e9))
    for endings, count in ((frozenset({".png"}), 2), (frozenset({".png", ".heic"}), 3)):
        monkeypatch.setattr("lib.datasets.image_files.endings", lambda endings=endings: endings)
        assert len(Index(tmp_path, tmp_path / "cache").files(["a"])[0]) == count


def test_no_real_folder_is_read_twice(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    fill(root, "a", "b")
    fill(tmp_path, "elsewhere/deep")
    for link, target in (
        ("self", "."),
        ("up", ".."),
        ("beside", "a"),
        ("a/deep", "../b"),
        ("c", "../elsewhere"),
        ("d", "../elsewhere/deep"),
    ):
        (root / link).symlink_to(target)
    (root / "b" / "link.png").symlink_to("0.png")
    pictures = open_folder(root)
    assert pictures.classes == ("a", "b", "c") and pictures.labels().tolist() == [0] * 2 + [1] * 3 + [2] * 2
    assert said(pictures).endswith(
        "left out: 3 links to folders that are read already (beside, d, self), 1 link to a folder (a/deep), "
        "1 link to a folder above (up)"
    )


def test_class_folders_of_a_split_may_be_links(tmp_path: Path) -> None:
    fill(tmp_path, "store/a", "store/b")
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
    for link in ("train/a", "test/b"):
        (tmp_path / "data" / link).symlink_to(tmp_path / "store" / link[-1])
    assert open_folder(tmp_path / "data").labels().tolist() == [0, 0, 1, 1]


def test_what_is_no_file_is_left_out_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a", "b")
    os.mkfifo(tmp_path / "a" / "fifo.png")
    (tmp_path / "a" / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "b" / "round.png").symlink_to("round.png")
    monkeypatch.chdir(tmp_path / "b")  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        pictures = open_folder(tmp_path)
    assert said(pictures) == (
        "4 images, 2 classes; left out: 2 FIFOs, sockets or devices (a/fifo.png, b/socket.png), "
        "2 broken links (a/broken.png, b/round.png)"
    )
    assert Index(tmp_path, None).files(["a", "b"]) == [["0.png", "1.png"]] * 2


def test_folders_of_systems_and_odd_endings_are_left_out_and_named(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", "@eaDir", "a/@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "a/.git", "lost+found")
    for name in ("a/._0.png", "a/.DS_Store", "b/Thumbs.db", "b/x.jpg.part", "b/README", "b/a.jpg?size=large"):
        (tmp_path / name).write_bytes(b"x")
    picture(tmp_path / "a" / "UPPER.PNG")
    pictures = open_folder(tmp_path)
    assert said(pictures) == (
        "5 images, 2 classes; left out: 2 files without an ending, 2 folders @eaDir, 2 hidden files, 1 .db, 1 .part, "
        "1 folder #recycle, 1 folder $RECYCLE.BIN, 1 folder .git, 1 folder __MACOSX, 1 folder lost+found"
    )


def test_of_many_kinds_the_rest_is_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for i in range(folder_tree.KINDS + 3):
        (tmp_path / f"x.e{i}").write_bytes(b"x")
    assert said(open_folder(tmp_path)).endswith(", 3 of 3 other kinds")


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_a_folder_that_cannot_be_read_is_named(
    problem: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a", "b", "b/deep/er")
    closed = tmp_path / "b" / "deep"
    scandir = os.scandir

    def scan(path: Any) -> Any:
        if Path(path) == closed:
            raise problem
        return scandir(path)

    monkeypatch.setattr(folder_tree.os, "scandir", scan)
    assert said(open_folder(tmp_path)) == "4 images, 2 classes; left out: 1 folder that cannot be read (b/deep)"
    closed = tmp_path / "b"
    with pytest.raises(UserError, match=r"cannot read the folder .*b: .*; give access"):
        open_folder(tmp_path)
    closed = tmp_path
    with pytest.raises(UserError, match=r"cannot read the folder .*; give access"):
        open_folder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_closed_folder_is_a_mistake(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    (tmp_path / "b").chmod(0)
    with pytest.raises(UserError, match="permission denied"):
        open_folder(tmp_path)
    (tmp_path / "b").chmod(0o700)


def test_paths_that_are_too_long_are_named_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a")
    monkeypatch.chdir(tmp_path / "a")
    for _ in range(45):
        os.mkdir("x" * 100)
        os.chdir("x" * 100)
    line = said(open_folder(tmp_path))
    assert "1 folder that cannot be read (a/xxx" in line and len(line) < 300
    with pytest.raises(UserError, match="does not exist"):
        open_folder(tmp_path / ("x" * 5000))


def test_every_folder_is_scanned_once_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "train/a", "train/b", "test/a", "val/a/deep")
    scanned: list[str] = []
    scandir = os.scandir

    def scan(path: Any) -> Any:
        scanned.append(os.path.relpath(path, tmp_path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    pictures = open_folder(tmp_path, "--train-splits", "train+val+test")
    assert len(pictures) == 8
    assert sorted(scanned) == [".", "test", "test/a", "train", "train/a", "train/b", "val", "val/a", "val/a/deep"]


def test_a_data_set_without_targets_is_read_once_for_its_labels() -> None:
    class Counted:
        reads = 0

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            self.reads += 1
            return Image.new("L", (2, 2)), i

    part = Counted()
    pictures = datasets.Pictures({"all": part})
    assert [pictures.labels().tolist() for _ in range(3)] == [[0, 1, 2]] * 3 and part.reads == 3


def test_the_start_says_what_is_used_and_what_is_left_out(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    fill(root, "car", "train", "new\nline", os.fsdecode(b"\xff"), count=6)
    (root / "car" / "notes.txt").write_text("x")
    words = ("--dataset", "image_folder", "--data-root", root, "--network", "convnet", "--net-width", 4, "--tfm-size", 8,
             "--tfm-resize", 10, "--batch-size", 8, "--net-heads", 3, "--max-epochs", 1, "--num-workers", 0,
             "--eval-sample", 0)  # fmt: skip
    lines = (
        "24 images, 4 classes; left out: 1 .txt",
        r"train is taken for a class, since car, new\nline, \udcff are no splits",
    )
    status, out, err = cli(*words, "--dry-run")
    assert status == 0 and all(f"data     {line}\n" in out for line in lines), err
    status, out, err = cli(*words, "--session", "a")
    assert status == 0 and "Traceback" not in err and all(f"{' ' * 9}{line}\n" in out for line in lines), err
    latest = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    for flag in ("--evaluate", "--predict"):
        status, out, err = cli(flag, latest, "--data-root", root, "--session", flag.strip("-"))
        assert status == 0 and all(f"{' ' * 9}{line}\n" in out for line in lines), err


def labelled(root: Path, table: Path, content: str | bytes) -> tuple[list[str | None], str]:
    """(the class of each image, what is said of the table)."""
    table.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", errors="surrogateescape"))
    pictures = open_folder(root, "--labels", table)
    classes = pictures.classes or ()
    return [classes[i] if i >= 0 else None for i in pictures.labels()], pictures.describe()[-1]


TABLE = "file,class\na.png,x\nb c.png,y\nd/e.png,x\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE + "\n\n,\n",
        "\ufeff" + TABLE,
        TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        TABLE.replace(",", "\t").encode("utf-16"),
        TABLE.replace(",x", ", x ").replace(",y", ',  "y" '),
        TABLE.replace("b c.png,y", '"b c.png","y"'),
        TABLE.partition("\n")[2],
        TABLE.replace("file,class", "Path,Label"),
        "id,label,filename,size\n1,x,a.png,3\n2,y,b c.png,3\n3,x,d/e.png,3\n",
        "class,image\nx,a.png\ny,b c.png\nx,d/e.png\n",
    ],
)
def test_tables_of_labels_are_read_as_programs_write_them(content: str | bytes, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name in ("a.png", "b c.png", "d/e.png"):
        picture(root / name)
    classes, line = labelled(root, tmp_path / "labels.csv", content)
    assert classes == ["x", "y", "x"] and line.startswith("labels: 3 of 3 images have one, 2 classes")


def test_names_in_a_table_are_matched_exactly_then_in_another_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pictures"
    table = tmp_path / "labels.csv"
    names = ["a.png", "d/e.png", "d/f.png", "end .png ", "g.png", unicodedata.normalize("NFD", "größe.png"), "z\\y.png"]
    for name in names:
        picture(root / name.strip()).rename(root / name)
    assert len(ImageFolder(str(root), "all")) == 6, "a name that ends in a space has no ending of an image"
    (root / "end .png ").rename(root / " end.png")
    lines = (
        f"{root / 'a.png'},1", "d\\e.png,2", "./d/f.png,3", " end.png,4", "pictures/g.png,5", "größe.png,6",
        "z\\y.png,7",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for place in (root, Path("pictures")):
        classes, line = labelled(place, table, "\n".join(lines))
        assert classes == ["4", "1", "2", "3", "5", "6", "7"]
        assert line == (
            "labels: 7 of 7 images have one, 7 classes; 4 names written as another path, "
            "1 name matched in another Unicode form"
        )


def test_some_classes_mean_that_there_is_none(tmp_path: Path) -> None:
    for i in range(9):
        picture(tmp_path / "pictures" / f"{i}.png")
    words = ("", " ", "nan", "NaN", "None", "null", "NA", "-1", "cat")
    text = "".join(f"{i}.png,{word}\n" for i, word in enumerate(words))
    classes, line = labelled(tmp_path / "pictures", tmp_path / "labels.csv", text)
    assert classes == [None] * 8 + ["cat"]
    assert line == "labels: 1 of 9 images have one, 1 class; 8 lines without a class"


def test_what_is_odd_in_a_table_is_said(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    table = tmp_path / "labels.csv"
    fill(root, ".")
    assert labelled(root, table, "0.png,Cat\n1.png,cat")[1].endswith("classes that differ in capitals only: Cat, cat")
    assert labelled(root, table, "Datei,Art\n0.png,a")[1].endswith("line 1 taken for a heading: Datei,Art")
    assert labelled(root, table, "n,label,path\n1,a,0.png")[1].endswith("columns path and label")
    composed = [unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD")]
    assert labelled(root, table, f"0.png,{composed[0]}\n1.png,{composed[1]}")[0] == [composed[0]] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "0.png,a\n8.png,a\n9.png,a",
            r"line 2 names '8.png', and there is no such picture in .* .2 such lines in all.",
        ),
        ("9.png,a\n0.png,a", "line 1 names '9.png'"),
        ("0.png,a\nnotes.txt,a", "line 2 names 'notes.txt', which is no image that can be decoded"),
        ("0.png,a\n./0.png,b", "line 2: './0.png' had another class before"),
        ("0.png,a,b\n1.png,a,b", "line 1: a file and its class are wanted"),
        ("file,class\n0.png,a\n1.png", "line 3: a file and its class are wanted"),
        ("file,class,label\n0.png,a,b", "several columns may be the class: class, label"),
        ("0.png,nan", "give a class to none of the pictures"),
        ("file,class\n", "name none of the pictures"),
        (b"0.png,\xe9", "line 1: the class is not in UTF-8"),
        (b"\xff\xfe0", "cannot read the --labels"),
    ],
)
def test_mistakes_in_a_table_are_one_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    fill(tmp_path / "pictures", ".")
    (tmp_path / "pictures" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=message) as raised:
        labelled(tmp_path / "pictures", tmp_path / "labels.csv", content)
    assert "\n" not in str(raised.value)


def test_a_table_labels_the_images_of_all_splits(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    table = tmp_path / "labels.csv"
    fill(root, "train", "test")
    classes, line = labelled(root, table, "train/0.png,x\ntest/1.png,y")
    assert classes == ["x", None, None, "y"] and line == "labels: 2 of 4 images have one, 2 classes"


def test_labels_come_in_the_order_of_their_files(tmp_path: Path) -> None:
    fill(tmp_path, "b", "a", "a b", "a/deep", count=12)
    pictures = open_folder(tmp_path)
    files = [pictures.path(i) for i in range(len(pictures))]
    assert files == sorted(files, key=lambda file: file.relative_to(tmp_path).parts)  # type: ignore[union-attr]
    assert [pictures.classes[i] for i in pictures.labels()] == [  # type: ignore[index]
        file.relative_to(tmp_path).parts[0]
        for file in files  # type: ignore[union-attr]
    ]
    assert np.bincount(pictures.labels()).tolist() == [24, 12, 12]


def test_a_device_is_no_table(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b")
    with pytest.raises(UserError, match="--labels /dev/zero: it is no regular file"):
        open_folder(tmp_path, "--labels", "/dev/zero")


def test_a_fifo_is_no_table_and_the_pipe_of_a_shell_is(tmp_path: Path) -> None:
    fill(tmp_path / "images", "", count=2)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="fifo: it is no regular file"):
        open_folder(tmp_path / "images", "--labels", tmp_path / "fifo")
    reading, writing = os.pipe()
    os.write(writing, f"{names[0]},x\n{names[1]},y\n".encode())
    os.close(writing)
    assert open_folder(tmp_path / "images", "--labels", f"/dev/fd/{reading}").classes == ("x", "y")
    os.close(reading)


def test_a_class_with_a_nul_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "images", "", count=2)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    (tmp_path / "labels.csv").write_text(f"{names[0]},x\n{names[1]},y\0z\n")
    with pytest.raises(UserError, match="labels.csv, line 2: the class has a NUL"):
        open_folder(tmp_path / "images", "--labels", tmp_path / "labels.csv")
