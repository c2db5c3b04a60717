"""What TensorBoard shows of a finished run beside its curves: features, pictures of each cluster, settings with scores."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lib.report import thumbnails
from lib.report.session_files import Found, Shown

ACROSS = 6  # pictures in a row


def show(writer: Any, found: Found) -> None:
    """Write to the curves' SummaryWriter."""
    plain = {
        key: value if isinstance(value, bool | int | float) else _line(str(value))
        for key, value in found.settings.items()
        if value is not None
    }
    finals = {
        f"Final/{split}/{name}": value
        for split, values in found.scores.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }
    writer.add_hparams(plain, finals, run_name=".")
    if found.shown is None:
        return
    looks = cut_out(found.shown)
    cluster = found.cluster[found.shown.row]
    confidence = found.confidence
    told = [
        [_line(found.names[row]), str(k), f"{confidence[row]:.3f}", _label(found, row)]
        for row, k in zip(found.shown.row.tolist(), cluster.tolist(), strict=True)
    ]
    # The order of axes is that of torch: N, C, H, W.
    images = np.ascontiguousarray(looks.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    header = ["name", "cluster", "confidence", "class"]
    shutil.rmtree(Path(writer.log_dir) / "00000", ignore_errors=True)  # of a run that was finished before
    writer.add_embedding(found.shown.feature, told, torch.from_numpy(images), metadata_header=header, tag="features")
    for k in range(found.k):
        own = np.flatnonzero(cluster == k)
        best = own[np.argsort(-confidence[found.shown.row[own]], kind="stable")][: thumbnails.MOST_CONFIDENT]
        if len(best):
            writer.add_image(f"Clusters/{k:03}", _sheet(looks[best]), dataformats="HWC")


def cut_out(shown: Shown) -> NDArray[np.uint8]:
    """(n, side, side, 3), cut from the sheet."""
    sheet = np.asarray(Image.open(io.BytesIO(shown.sprite)))
    side = shown.cell
    count = len(shown.row)
    cells = sheet.reshape(sheet.shape[0] // side, side, -1, side, 3).swapaxes(1, 2)
    return cells.reshape(-1, side, side, 3)[:count]


def _sheet(looks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    count = len(looks)
    side = looks.shape[1]
    wide = min(ACROSS, count)
    high = -(-count // ACROSS)
    sheet = np.zeros((high, side, wide, side, 3), dtype=np.uint8)
    for n, look in enumerate(looks):
        sheet[n // ACROSS, :, n % ACROSS] = look
    return sheet.reshape(high * side, wide * side, 3)


def _line(name: str) -> str:
    """A name as one field of a table without quotes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _label(found: Found, row: int) -> str:
    return _line(found.class_name(int(found.label[row]))) if found.label[row] >= 0 else ""
