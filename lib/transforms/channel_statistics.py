"""What the pictures look like: the means and deviations by which they are normalised, unless settings give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lib.config.command_flags import Command
from lib.config.config import Config
from lib.datasets import DataSettings, Pictures
from lib.datasets.disk_cache import GIB
from lib.errors import UserError
from lib.machine import processes
from lib.machine.progress import progress
from lib.transforms import LoaderSettings, TransformSettings
from lib.transforms.image_reader import Reader, open_reader

SAMPLE = 2_000  # pictures that are measured, at most
Values = tuple[float, ...]


def measured(config: Config, pictures: Pictures) -> Config:
    """The same with means and deviations; where a training run leaves them to the pictures, they are measured.

    On training pictures, spread evenly, as every recipe begins with them. All pictures may be decoded for it, so
    whatever a user may have got wrong is to be looked for before.

    Raises:
        UserError: a picture cannot be read, or what is kept cannot be written.
    """
    settings = config.of(TransformSettings)
    wanted = [name for name in ("tfm_means", "tfm_stds") if getattr(settings, name) is None]
    if not wanted or not config.of(Command).trains or pictures.expected:
        return config
    reader = open_reader(config, pictures)
    index = pictures.index(pictures.train[-1])
    spread = index[np.linspace(0, len(index) - 1, min(SAMPLE, len(index))).astype(np.int64)]
    skip = config.of(DataSettings).on_bad_image == "skip"
    budget = config.of(LoaderSettings).memory_budget * GIB
    means, stds = processes.from_first(lambda: moments(reader, spread, skip, budget))
    found = {"tfm_means": means, "tfm_stds": stds}
    return config.replace(**{name: found[name] for name in wanted})


def moments(
    reader: Reader, positions: NDArray[np.int64], skip: bool = False, budget: float = 0
) -> tuple[Values, Values]:
    """Mean and deviation of each channel, on the scale [0, 1], to 4 digits; every picture counts alike.

    Args:
        reader: of the pictures.
        positions: (n,) which of them.
        skip: pass over those that cannot be read.
        budget: bytes of memory for images that the views need not decode again.

    Raises:
        UserError: a picture, or every one, cannot be read.
    """
    rows = []
    for found in progress(reader.samples(positions.tolist(), budget), "measuring pictures", len(positions)):
        if not isinstance(found, UserError):
            pixels = found.reshape(-1, reader.channels) / 255
            rows.append((pixels.mean(axis=0), np.square(pixels).mean(axis=0)))
        elif not skip:
            raise found
    if not rows:
        raise UserError(f"none of {len(positions)} training pictures can be read; mend or remove them")
    means, squares = np.mean(rows, axis=0)
    stds = np.sqrt(np.maximum(squares - np.square(means), 1 / 255**2))  # pictures of one colour have none
    return tuple(means.round(4).tolist()), tuple(stds.round(4).tolist())
