"""examples/cifar10_folder.py writes the pictures of the official files, under their names."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import official_files
import pytest
from conftest import ROOT, resolve
from PIL import Image

from examples.cifar10_folder import main
from lib import datasets
from lib.datasets.cifar import CIFAR10


def test_all_pictures_or_those_of_a_list_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    official_files.cifar(tmp_path / "data", "cifar10", monkeypatch)
    words = [str(tmp_path / "data"), str(tmp_path / "all")]
    assert main(words) == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["all", "data"]
    for split, count in (("train", 30), ("test", 6)):
        official = CIFAR10(str(tmp_path / "data"), split)
        for array, label, name in zip(official.array, official.targets, official.filenames, strict=True):
            written = tmp_path / "all" / split / official.classes[label] / name
            assert np.array_equal(np.asarray(Image.open(written)), array)
        assert len(list((tmp_path / "all" / split).glob("*/*"))) == count
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    some = sorted(str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").glob("t*/*/*"))[::2]
    chosen = tmp_path / "list.gz"
    chosen.write_bytes(gzip.compress("\n".join(some).encode()))
    words = [str(tmp_path / "data"), str(tmp_path / "some"), str(chosen)]
    assert main(words) == 0
    opened = datasets.open_pictures(resolve("--dataset", "image_folder", "--data-root", tmp_path / "some"))
    assert len(opened) == len(some) == 18
    damaged = {gzip.compress(b"train/cat/no.png"): "has no train/cat/no.png", b"no gzip": "no list of",
               gzip.compress(b""): "names no pictures"}  # fmt: skip
    for content, said in damaged.items():
        chosen.write_bytes(content)
        assert main([*words[:1], str(tmp_path / "none"), str(chosen)]) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    for place, said in (("nowhere/some", "cannot write"), ("data/cifar-10-batches-py", "is there already")):
        assert main([words[0], str(tmp_path / place)]) == 2 and said in capsys.readouterr().err
    assert main([*words[:2], str(tmp_path / "nolist.gz")]) == 2 and "is there already" in capsys.readouterr().err
    assert main([words[0], str(tmp_path / "none"), str(tmp_path / "no.gz")]) == 2 and "no.gz" in capsys.readouterr().err
    assert main(words[:1]) == 2 and "two or three words" in capsys.readouterr().err


def test_the_list_of_the_study_names_as_many_of_each_class() -> None:
    names = gzip.decompress((ROOT / "results/cpu/pictures.txt.gz").read_bytes()).decode().split()
    folders = [name.rpartition("/")[0] for name in names]
    assert len(set(names)) == 12_000 and len(set(folders)) == 20
    assert all(folders.count(folder) == (1000 if folder.startswith("train/") else 200) for folder in set(folders))
