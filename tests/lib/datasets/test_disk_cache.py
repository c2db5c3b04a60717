"""Decoded pictures on disk: the same bits, whatever happens to the files, the disk or the process."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, every_mode, picture, resolve
from PIL import Image

from lib import datasets
from lib.datasets import disk_cache
from lib.datasets.disk_cache import RECORD, CacheSettings, usable
from lib.errors import UserError
from lib.machine import locks
from lib.transforms.image_reader import Reader, open_reader

Cli = Callable[..., tuple[int, str, str]]
SIDE = 8


def reader(tmp_path: Path, *words: object) -> Reader:
    """Of the pictures in `pictures`, kept in `cache`."""
    settings = resolve("--dataset", "image_folder", "--data-root", tmp_path / "pictures", "--tfm-working-size", SIDE,
                       "--cache", tmp_path / "cache", *words)  # fmt: skip
    return open_reader(settings, datasets.open_pictures(settings))


def arrays(made: Reader) -> list[Any]:
    return [np.asarray(made.read(i)) for i in range(len(made.pictures))]


def plain(made: Reader) -> list[Any]:
    """Without a cache."""
    return [np.asarray(made.decode(i)) for i in range(len(made.pictures))]


def equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def noises(folder: Path, count: int, size: tuple[int, int] = (12, 10)) -> None:
    for i in range(count):
        picture(folder / f"{i:02}.png", size=(size[0] + i % 3, size[1]), seed=i)


def store_of(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache").glob("pictures-*")
    return found


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the pictures that were decoded."""
    found: list[int] = []
    decode = Reader.decode

    def counted(self: Reader, position: int) -> Image.Image:
        found.append(position)
        return decode(self, position)

    monkeypatch.setattr(Reader, "decode", counted)
    return found


def zoo(folder: Path) -> None:
    every_mode(folder)
    noise = np.random.default_rng(0).random((10, 12), dtype=np.float32)
    Image.fromarray(noise).save(folder / "float.tiff")
    for size in ((1, 1), (1, 300), (300, 1), (7, 9), (64, 20)):
        picture(folder / "shapes" / f"{size}.png", size=size)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(folder / "upright.jpg", size=(30, 20))
    Image.open(folder / "upright.jpg").save(folder / "turned.jpg", exif=turned)
    shutil.copy(folder / "RGB.png", folder / os.fsdecode(b"not-utf8-\xff.png"))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_kept_is_bitwise_what_decoding_gives(channels: int, tmp_path: Path, decodes: list[int]) -> None:
    zoo(tmp_path / "pictures")
    first = reader(tmp_path, "--net-cin", channels)
    expected = plain(first)
    decodes.clear()
    for made in (first, reader(tmp_path, "--net-cin", channels), pickle.loads(pickle.dumps(first))):
        assert equal(arrays(made), expected)
    assert not decodes, "decoded once"
    other = reader(tmp_path, "--net-cin", 4 - channels)
    assert equal(arrays(other), plain(other)), "another number of channels is another picture"


def test_a_second_start_opens_no_file_and_a_changed_one_is_decoded_again(
    tmp_path: Path, decodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noises(tmp_path / "pictures", 6)
    reader(tmp_path)
    assert sorted(decodes) == list(range(6))
    decodes.clear()
    opened: list[Any] = []
    open_image = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **words: opened.append(file) or open_image(file, **words))  # type: ignore[func-returns-value]
    reader(tmp_path)
    assert not decodes and not opened
    changed = tmp_path / "pictures" / "03.png"
    times = changed.stat().st_mtime_ns
    picture(changed, size=(30, 9), seed=99)
    os.utime(changed, ns=(times, times))  # of another size alone
    os.utime(tmp_path / "pictures" / "04.png", ns=(times + 1, times + 1))
    made = reader(tmp_path)
    assert decodes == [3, 4] and equal(arrays(made), plain(made))
    (tmp_path / "pictures" / "00.png").unlink()
    decodes.clear()
    made = reader(tmp_path)
    assert not decodes and equal(arrays(made), plain(made)), "other numbers, the same files"


def test_the_versions_of_files_do_not_add_up_for_ever(tmp_path: Path) -> None:
    noises(tmp_path / "pictures", 4)
    reader(tmp_path)
    once = (store_of(tmp_path) / "data.bin").stat().st_size
    for version in range(1, 8):
        for file in (tmp_path / "pictures").iterdir():
            os.utime(file, ns=(version, version))
        made = reader(tmp_path)
        assert equal(arrays(made), plain(made))
        assert (store_of(tmp_path) / "data.bin").stat().st_size <= 2 * once


@pytest.mark.parametrize("name", ["index.bin", "data.bin"])
def test_a_file_cut_anywhere_loses_what_is_beyond_alone(name: str, tmp_path: Path, decodes: list[int]) -> None:
    noises(tmp_path / "pictures", 5)
    expected = plain(reader(tmp_path))
    whole = {path.name: path.read_bytes() for path in store_of(tmp_path).glob("*.bin")}
    each = len(whole["index.bin"]) // 5
    offsets = [*np.frombuffer(whole["index.bin"], dtype=RECORD)["offset"].tolist(), len(whole["data.bin"])]
    for length in range(0, len(whole[name]), 19 if name == "index.bin" else 97):
        for other, content in whole.items():
            (store_of(tmp_path) / other).write_bytes(content)
        os.truncate(store_of(tmp_path) / name, length)
        held = length // each if name == "index.bin" else sum(end <= length for end in offsets[1:])
        decodes.clear()
        made = reader(tmp_path)
        assert sorted(decodes) == list(range(held, 5))
        assert equal(arrays(made), expected)
        assert {path.name: path.stat().st_size for path in store_of(tmp_path).glob("*.bin")} == {
            file: len(content) for file, content in whole.items()
        }, "nothing is left over"


@pytest.mark.parametrize("name", ["data.bin", "index.bin"])
def test_a_fifo_in_the_place_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    noises(tmp_path / "pictures", 3)
    reader(tmp_path)
    (store_of(tmp_path) / name).unlink()
    os.mkfifo(store_of(tmp_path) / name)
    with pytest.raises(UserError, match="it is no regular file; choose another folder"):
        reader(tmp_path)


def test_any_damaged_byte_is_noticed(tmp_path: Path, decodes: list[int]) -> None:
    noises(tmp_path / "pictures", 5)
    expected = plain(reader(tmp_path))
    whole = {path: path.read_bytes() for path in store_of(tmp_path).glob("*.bin")}
    random = np.random.default_rng(0)
    for path, content in whole.items():
        for place in random.choice(len(content), 10, replace=False):
            for other, intact in whole.items():
                other.write_bytes(intact)
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(random.integers(8))
            path.write_bytes(damaged)
            assert equal(arrays(reader(tmp_path)), expected)
            decodes.clear()
            assert equal(arrays(reader(tmp_path)), expected)
            decodes.clear()
            assert equal(arrays(reader(tmp_path)), expected) and not decodes, "mended"


def test_a_usual_folder_that_fails_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noises(tmp_path / "pictures", 6)
    expected = arrays(reader(tmp_path))
    kept = store_of(tmp_path)
    shutil.rmtree(kept)
    kept.write_text("")
    with pytest.raises(UserError, match="cannot keep decoded pictures.*Not a directory"):
        reader(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cache").rename(tmp_path / "deep-image-clustering")
    made = reader(tmp_path, "--cache", "none")
    assert equal(arrays(made), expected) and "6 images are not kept" in made.describe()
    (tmp_path / "deep-image-clustering" / kept.name).unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))  # of six, it holds two
    try:
        made = reader(tmp_path, "--cache", "none")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert equal(arrays(made), expected) and "4 images are not kept" in made.describe()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("warning: cannot keep decoded pictures in ") for line in lines)


def test_no_file_is_left_open(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for count in (3, 5, 5):  # made, added to, read
            noises(tmp_path / "pictures", count)
            assert len(arrays(reader(tmp_path))) == count
        gc.collect()
    assert not [warning for warning in caught if issubclass(warning.category, ResourceWarning)]


def test_the_bound_holds_and_what_does_not_fit_is_decoded_each_time(tmp_path: Path, decodes: list[int]) -> None:
    noises(tmp_path / "pictures", 40, size=(16, 16))
    small = ("--disk-cache", 5_000 / 2**30)
    made = reader(tmp_path, *small)
    size = sum(path.stat().st_size for path in store_of(tmp_path).glob("*.bin"))
    assert 4_500 < size <= 5_000
    decodes.clear()
    found = arrays(made)
    rest = len(decodes)
    assert 0 < rest < 40 and equal(found, plain(made))
    assert made.describe() == f"; {rest} images are not kept on disk (--disk-cache), and are decoded each time"
    decodes.clear()
    assert equal(arrays(reader(tmp_path)), found), "with room they are kept"
    assert len(set(decodes)) == rest and not reader(tmp_path).describe()
    shutil.rmtree(store_of(tmp_path))
    reader(tmp_path)
    reader(tmp_path, *small)
    assert sum(path.stat().st_size for path in store_of(tmp_path).glob("*.bin")) <= 5_000, (
        "a lower bound counts at once"
    )


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    folders = []
    for name in "abc":
        noises(tmp_path / name / "pictures", 6)
        settings = ("--cache", tmp_path / "cache", "--disk-cache", 4_000 / 2**30)
        before = set((tmp_path / "cache").glob("pictures-*"))
        made = reader(tmp_path / name, *settings)
        folders += [path for path in (tmp_path / "cache").glob("pictures-*") if path not in before]
        assert equal(arrays(made), plain(made))
        os.utime(folders[-1] / "used", (len(folders), len(folders)))
        del made
    assert [path.exists() for path in folders] == [False, True, True]
    with open(folders[1] / "used", "rb") as use:
        fcntl.flock(use, fcntl.LOCK_SH)
        reader(tmp_path / "a", *settings)
    assert [path.exists() for path in folders] == [True, True, False]


def test_without_a_size_or_without_files_or_when_told_nothing_is_kept(tmp_path: Path) -> None:
    noises(tmp_path / "pictures", 3)
    for words in (
        ["--tfm-working-size", "none"],
        ["--disk-cache", 0],
        ["--debug"],
        ["--dry-run"],
        ["--dataset", "digits", "--data-root", "./data"],
    ):
        reader(tmp_path, *words)
        assert not (tmp_path / "cache").exists(), words
    reader(tmp_path)
    content = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    noises(tmp_path / "pictures", 4)
    made = reader(tmp_path, "--debug")
    assert equal(arrays(made), plain(made)) and not made.describe()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == content


def test_without_a_usual_folder_nothing_is_kept_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for home, reason in (
        ("relative", "no whole path"),
        (tmp_path / "file", "is no folder"),
        ("~nobody-here", "no home"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        settings = resolve()
        made = usable(settings)
        assert made.of(CacheSettings).disk_cache == 0 and made.notes
        assert reason in made.notes[-1] and "--cache names a folder" in made.notes[-1]
        assert usable(resolve("--debug")) == settings, "nothing is written, so nothing is missed"
        assert usable(resolve("--cache", tmp_path / "other")).notes == ()
    with pytest.raises(UserError, match="--cache .*file: .* is no folder; choose another folder, or --disk-cache 0"):
        usable(resolve("--cache", tmp_path / "file"))


def test_a_folder_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    assert f"{tmp_path} cannot be written" in usable(resolve()).notes[-1]


def test_the_folder_is_xdgs(own_cache: Path, tmp_path: Path) -> None:
    noises(tmp_path / "pictures", 3)
    before = set(own_cache.glob("*"))
    reader(tmp_path, "--cache", "none")
    assert len(set(own_cache.glob("pictures-*")) - before) == 1


def test_a_bad_picture_ends_it_in_one_line_and_what_is_done_stays(tmp_path: Path, decodes: list[int]) -> None:
    noises(tmp_path / "pictures", 5)
    cut = tmp_path / "pictures" / "03.png"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"03\.png"):
        reader(tmp_path)
    decodes.clear()
    made = reader(tmp_path, "--on-bad-image", "skip")
    assert sorted(decodes) == [3, 4] and not made.describe()
    with pytest.raises(UserError, match=r"03\.png"):
        made.read(3)


def test_a_disk_that_takes_no_more_ends_it_in_one_line(tmp_path: Path, decodes: list[int]) -> None:
    noises(tmp_path / "pictures", 6)
    (tmp_path / "a file").write_text("")
    with pytest.raises(UserError, match="cannot keep decoded pictures in .*--cache.*--disk-cache 0"):
        reader(tmp_path, "--cache", tmp_path / "a file")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(UserError, match="File too large; .*--cache.*--disk-cache 0"):
            reader(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (store_of(tmp_path) / "data.bin").stat().st_size == 600, "a picture was written in part"
    decodes.clear()
    made = reader(tmp_path)
    assert sorted(decodes) == [2, 3, 4, 5] and equal(arrays(made), plain(made))


@pytest.mark.parametrize("step", ["_entries", "_used", "_size", "_length", "_remove"])
def test_a_folder_may_vanish_at_each_step_of_making_room(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--cache", tmp_path / "cache", "--disk-cache", 4_000 / 2**30)
    for name in "abc":
        noises(tmp_path / name / "pictures", 6)
    for name in "ab":
        reader(tmp_path / name, *small)
    work = getattr(disk_cache, step)

    def others() -> None:
        for path in (tmp_path / "cache").glob("pictures-*"):
            shutil.rmtree(path)

    def raced(*words: Any) -> Any:
        if step != "_entries":
            others()
            return work(*words)
        found = work(*words)
        others()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(disk_cache, step, raced)
        made = reader(tmp_path / "c", *small)
    assert equal(arrays(made), plain(made))


@pytest.mark.parametrize("name", ["used", "filling"])
def test_the_own_folder_may_vanish_while_it_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises(tmp_path / "pictures", 6)
    hold = locks.hold
    times = []

    def raced(path: Path, **how: Any) -> Any:
        file = hold(path, **how)
        if path.name == name and len(times) < 3:
            times.append(path)
            shutil.rmtree(path.parent)
        return file

    monkeypatch.setattr(locks, "hold", raced)
    made = reader(tmp_path)
    assert len(times) == 3 and equal(arrays(made), plain(made))
    assert not reader(tmp_path).pictures.store.missing.size  # type: ignore[union-attr]


def test_images_are_read_on_when_their_folder_is_gone(tmp_path: Path, decodes: list[int]) -> None:
    noises(tmp_path / "pictures", 6)
    made = reader(tmp_path)
    expected = plain(made)
    elsewhere = pickle.dumps(made)
    shutil.rmtree(store_of(tmp_path))
    decodes.clear()
    assert equal(arrays(made), expected) and not decodes, "by the open file"
    assert equal(arrays(pickle.loads(elsewhere)), expected) and len(decodes) == 6, "in another process, decoded again"


def test_a_folder_is_not_removed_where_another_process_has_made_it_again(tmp_path: Path) -> None:
    noises(tmp_path / "pictures", 3)
    made = reader(tmp_path)
    folder = store_of(tmp_path)
    assert not disk_cache._remove(folder) and folder.exists()
    del made
    (tmp_path / "cache" / ".removed-0123").mkdir()
    assert disk_cache._remove(folder) and not folder.exists() and disk_cache._remove(folder)
    reader(tmp_path)
    assert not (tmp_path / "cache" / ".removed-0123").exists(), "what a killed process left"


WORDS = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--network", "convnet", "--net-width", 4,
         "--tfm-working-size", 12, "--tfm-size", 8, "--tfm-resize", 10, "--max-epochs", 1, "--num-clusters", 3, "--seed", 3,
         "--num-workers", 0)  # fmt: skip


def start(tmp_path: Path, session: str, cache: str) -> subprocess.Popen[str]:
    words = (*WORDS, "--data-root", tmp_path / "pictures", "--cache", tmp_path / cache, "--session-root",
             tmp_path / "sessions", "--session", session)  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "main.py", *map(str, words)], cwd=ROOT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def records(tmp_path: Path, cache: str) -> int:
    return sum(path.stat().st_size // RECORD.itemsize for path in (tmp_path / cache).glob("*/index.bin"))


@pytest.mark.slow
def test_killed_while_decoding_the_next_run_goes_on(tmp_path: Path, cli: Cli) -> None:
    noises(tmp_path / "pictures", 60, size=(1500, 1000))
    killed = start(tmp_path, "killed", "two")
    while records(tmp_path, "two") < 5:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = records(tmp_path, "two")
    assert 5 <= kept < 60
    (store,) = (tmp_path / "two").glob("pictures-*")
    begun = (store / "index.bin").read_bytes()[: kept * RECORD.itemsize]
    for session, kept_in in (("straight", "one"), ("again", "two")):
        words = (*WORDS, "--data-root", tmp_path / "pictures", "--cache", tmp_path / kept_in, "--session", session)
        assert cli(*words)[0] == 0
    assert (store / "index.bin").read_bytes().startswith(begun) and records(tmp_path, "two") == 60
    ours, theirs = (np.load(tmp_path / "sessions" / name / "predictions.npz") for name in ("straight", "again"))
    assert np.array_equal(ours["probability"], theirs["probability"])


@pytest.mark.slow
def test_two_at_once_decode_no_picture_twice(tmp_path: Path) -> None:
    noises(tmp_path / "pictures", 60, size=(1500, 1000))
    for process in [start(tmp_path, name, "cache") for name in "ab"]:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert records(tmp_path, "cache") == 60
    ours, theirs = (np.load(tmp_path / "sessions" / name / "predictions.npz") for name in "ab")
    assert np.array_equal(ours["probability"], theirs["probability"])


RACE = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, "tests/lib/datasets")
from test_disk_cache import arrays, equal, plain, reader
place, own = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(400):
    made = reader(own, "--cache", place / "cache", "--disk-cache", 700 / 2**30)
    assert equal(arrays(made), plain(made))
    del made
"""


@pytest.mark.slow
def test_processes_that_remove_each_others_folders(tmp_path: Path) -> None:
    for name in "abcd":
        noises(tmp_path / name / "pictures", 2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(tmp_path / name)], cwd=ROOT, env=environment,
            stderr=subprocess.PIPE, text=True,
        )
        for name in "aabcd"
    ]  # fmt: skip
    for process in started:
        _, err = process.communicate()
        assert process.returncode == 0, err
