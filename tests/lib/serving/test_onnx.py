"""An exported model gives the run's clusters without PyTorch, and says what it wants done to a picture."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import QUICK, ROOT, picture
from PIL import Image
from runs import IMC, beside_collapse

import main
from lib.checkpoints import checkpoint
from lib.datasets.digits import Digits
from lib.networks.convnet import ConvNet

Cli = Callable[..., tuple[int, str, str]]
PIL = ("--tfm-backend", "pil", "--num-workers", 0)
DIGITS: dict[str, tuple[object, ...]] = {
    "pica with sobel": (*QUICK, "--net-sobel", "true", "--max-epochs", 4, "--base-lr", 1e-2),
    "imc_swav": (*IMC, "--max-epochs", 2),
}
FOLDER = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--network", "convnet", "--net-width", 4,
          "--tfm-size", 8, "--tfm-resize", 10, "--tfm-working-size", 11, "--batch-size", 16, "--num-clusters", 4,
          "--seed", 3, "--max-epochs", 2)  # fmt: skip


def example(model: Path, *pictures: str) -> dict[str, Any]:
    """Run the document's example on these files; returns its names."""
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    names: dict[str, Any] = {}
    exec(code.replace("model.onnx", str(model)).replace('("a.jpg", "b.jpg")', repr(pictures)), names)
    return names


def exported(cli: Cli, folder: Path, *words: object) -> tuple[Path, Any]:
    """The file, and predictions.npz of the run."""
    status, _, err = cli(*words, *PIL, "--session", "a")
    assert status == 0, err
    path = folder / "sessions/a/checkpoint/latest.ckpt"
    file = folder / "model.onnx"
    status, out, err = cli("--evaluate", path, "--export", file, "--session", "b", *PIL)
    assert status == 0 and not beside_collapse(err) and f"exported: {file}\n" in out, err
    assert "onnx" not in out.replace(str(file), "").lower()  # the exporter is silent
    return file, np.load(folder / "sessions/a/predictions.npz")


@pytest.mark.parametrize(
    "words", [pytest.param(DIGITS["pica with sobel"], marks=pytest.mark.slow), DIGITS["imc_swav"]], ids=DIGITS
)
def test_a_batch_of_any_size_gives_the_runs_clusters(words: tuple[object, ...], cli: Cli, tmp_path: Path) -> None:
    file, archive = exported(cli, tmp_path, *words)
    splits = {name: Digits("", name) for name in set(archive["split"].tolist())}
    images = [splits[name][i][0] for name, i in zip(archive["split"], archive["index"], strict=True)][:40]
    files = [io.BytesIO() for _ in images]
    for image, held in zip(images, files, strict=True):
        image.save(held, "png")
    picture(tmp_path / "a.png", mode="L")
    names = example(file, str(tmp_path / "a.png"))
    stack = np.stack([names["prepare"](Image.open(held)) for held in files])
    clusters, probabilities = main.load(str(tmp_path / "sessions/a/checkpoint/latest.ckpt")).predict(images)
    assert len(set(clusters.tolist())) > 1
    for size in (1, 7, 40):
        parts = [names["model"].run(None, {"images": stack[i : i + size]}) for i in range(0, 40, size)]
        cluster, probability = (np.concatenate(part) for part in zip(*parts, strict=True))
        assert cluster.dtype == np.int64 and probability.dtype == np.float32
        assert cluster.tolist() == clusters.tolist() == archive["cluster"][:40].tolist()
        for expected in (probabilities, archive["probability"][:40]):
            np.testing.assert_allclose(probability, expected, atol=1e-5)


def test_the_example_prepares_any_picture_and_the_metadata_say_how(cli: Cli, tmp_path: Path) -> None:
    modes = ("RGB", "L", "RGBA", "P")
    files = [
        picture(tmp_path / f"pictures/{i:02}.png", size=(10 + i, 35 - i), mode=modes[i % 4], seed=i) for i in range(24)
    ]
    file, archive = exported(cli, tmp_path, *FOLDER, "--data-root", tmp_path / "pictures")
    names = example(file, *map(str, files))
    assert names["cluster"].tolist() == archive["cluster"].tolist()
    np.testing.assert_allclose(names["probability"], archive["probability"], atol=1e-5)
    (given,) = names["model"].get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", 3, 8, 8])
    metadata = names["model"].get_modelmeta().custom_metadata_map
    assert json.loads(metadata["preprocessing_json"]) == names["steps"] == {
        "orientation": "exif", "oblong": 8, "deep": "value / 65535 * 255", "background": [255, 255, 255], "channels": 3,
        "working_size": 11, "resize": 10, "filter": "bilinear", "crop": 8,
    }  # fmt: skip
    assert (
        "8-bit RGB" in metadata["preprocessing"]
        and "is 11 px, and then again so that it is 10 px" in metadata["preprocessing"]
    )
    assert str(ROOT).encode() not in file.read_bytes()


@pytest.mark.slow
def test_what_fails_leaves_the_file_that_was_there(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*QUICK, "--max-steps", 1, "--session", "a")[0] == 0
    words = (
        "--evaluate",
        tmp_path / "sessions/a/checkpoint/latest.ckpt",
        "--debug",
        "--export",
        tmp_path / "model.onnx",
    )
    (tmp_path / "model.onnx").write_text("earlier")

    def refused(part: str) -> None:
        status, _, err = cli(*words)
        assert status == 2 and part in err and len(beside_collapse(err)) == 1, err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "sessions"]
        assert (tmp_path / "model.onnx").read_text() == "earlier"

    with monkeypatch.context() as patch:
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
        refused("pip install onnxscript\n")
    with monkeypatch.context() as patch:
        forward = ConvNet.forward
        patch.setattr(ConvNet, "forward", lambda self, x: forward(self, x) if float(x.sum()) > 0 else forward(self, -x))
        refused("cannot be written as ONNX")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        refused("free some space")
    assert cli(*words)[0] == 0  # replaced, like any export
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    shape = session.run(["probability"], {"images": torch.zeros(3, 1, 8, 8, dtype=torch.uint8).numpy()})[0].shape
    assert shape == (3, 10)
