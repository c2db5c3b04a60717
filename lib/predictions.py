"""Which picture is in which cluster, for people and for other programs: a table, an archive, and folders."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lib.command import Command
from lib.config import Config
from lib.datasets import DataSettings, Pictures
from lib.errors import UserError, advice
from lib.inference import Predictions
from lib.progress import progress


def archive(pictures: Pictures, predictions: Predictions) -> dict[str, Any]:
    """What predictions.npz holds."""
    places = [pictures.locate(int(position)) for position in predictions.index]
    return {
        "split": np.array([name for name, _ in places]),
        "index": np.array([i for _, i in places]),
        "cluster": predictions.cluster,
        "label": pictures.labels()[predictions.index],
        "probability": predictions.probability,
        "classes": np.array(list(pictures.classes or ()), dtype=np.str_),
    }


def name_of(pictures: Pictures, position: int, root: Path) -> str:
    """Its path below the folder of the data set, else in full; `split/number` for a picture that is no file."""
    path = pictures.path(position)
    if path is None:
        split, i = pictures.locate(position)
        return f"{split}/{i}"
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def table(pictures: Pictures, predictions: Predictions, root: Path) -> bytes:
    """What predictions.csv holds: path, cluster, confidence, and the second most probable cluster.

    Names are as the file system has them, also where they are no UTF-8.
    """
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    lines.writerow(["path", "cluster", "confidence", "runner_up"])
    second = np.argsort(-predictions.probability, axis=1, kind="stable")[:, 1]
    for position, cluster, row, other in zip(
        predictions.index, predictions.cluster, predictions.probability, second, strict=True
    ):
        name = name_of(pictures, int(position), root)
        # The plain writer takes a carriage return for an ordinary letter, and its reader does not.
        (quoted if "\r" in name else lines).writerow([name, cluster, f"{row[cluster]:.4f}", other])
    return os.fsencode(text.getvalue())


def is_sorted(path: Path) -> bool:
    """Whether a folder holds nothing but folders for clusters, as `copy` leaves them in one piece."""
    return path.is_dir() and all(re.fullmatch(r"cluster-\d+", entry.name) for entry in path.iterdir())


def check(pictures: Pictures, config: Config, goes_on: bool = False) -> Path | None:
    """The folder that `--copy-to` names, if it does.

    Args:
        pictures: of the run.
        config: its settings.
        goes_on: the run was begun before, and may have left its copies.

    Raises:
        UserError: it exists or cannot be made, or the next run would read its copies, or the pictures are no files.
    """
    target, root = config.of(Command).copy_to, config.of(DataSettings).data_root
    if target is None:
        return None
    path = Path(target).expanduser().resolve()
    if goes_on and is_sorted(path):
        return path
    if path.exists():
        raise UserError(f"--copy-to {target}: it exists; name a new folder")
    if not path.parent.is_dir():
        raise UserError(f"--copy-to {target}: there is no folder {path.parent}; make it first")
    if path.is_relative_to(Path(root).expanduser().resolve()):
        raise UserError(
            f"--copy-to {target} lies in --data-root {root}, to whose pictures it would add; choose another place"
        )
    if pictures.path(0) is None:
        raise UserError("--copy-to copies files, and the pictures of this data set are none; leave it out")
    try:
        path.mkdir()
        path.rmdir()
    except OSError as error:
        raise UserError(f"--copy-to {target}: {error.strerror or error}; {advice(error)}") from error
    return path


def copy(pictures: Pictures, predictions: Predictions, target: Path, link: bool) -> None:
    """Sort copies of the files, or links to them, into a folder for each cluster; all of them or none.

    Raises:
        UserError: a file is gone, or the disk is full.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    taken: set[Path] = set()
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        rows = progress(
            zip(predictions.index, predictions.cluster, strict=True), "copying pictures", len(predictions.index)
        )
        for position, cluster in rows:
            source = pictures.path(int(position))
            assert source is not None
            folder = unfinished / f"cluster-{cluster:0{len(str(predictions.probability.shape[1] - 1))}}"
            folder.mkdir(parents=True, exist_ok=True)
            place = next(place for place in _places(folder, source.name) if place not in taken)
            taken.add(place)
            if link:
                place.symlink_to(source.resolve())
            else:
                shutil.copy2(source, place)
        unfinished.rename(target)
    except OSError as error:
        raise UserError(f"--copy-to {target}: {error.strerror or error}; {advice(error)}; no copy is left") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _places(folder: Path, name: str) -> Iterator[Path]:
    """`a.png`, then `a-1.png`, … for files of one name from several folders."""
    yield folder / name
    stem, ending = os.path.splitext(name)
    for i in range(1, 2**31):
        yield folder / f"{stem}-{i}{ending}"
