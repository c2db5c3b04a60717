"""Settings that were left to the pictures, and follow from how many there are."""

from __future__ import annotations

from lib.config import Config
from lib.datasets import DataSettings, Pictures
from lib.trainer import TrainerSettings

BATCHES = 8  # in an epoch, at least
SMALLEST, LARGEST = 16, 256  # pictures in a batch
STEPS = 5_000  # of the main head
FEWEST, MOST = 20, 500  # epochs


def counted(config: Config, pictures: Pictures) -> Config:
    """The same with a batch size and a number of epochs; those that are `none` follow from the training pictures."""
    count = len(pictures.index(pictures.train[-1]))
    size, number = config.of(DataSettings).batch_size, config.of(TrainerSettings).max_epochs
    size = batch_size(count) if size is None else size
    return config.replace(batch_size=size, max_epochs=epochs(count, size) if number is None else number)


def batch_size(count: int) -> int:
    """The largest power of two of which so many pictures make 8, between 16 and 256, and at most all of them."""
    largest = 1 << max(1, count // BATCHES).bit_length() - 1
    return min(max(SMALLEST, min(LARGEST, largest)), max(2, count))


def epochs(count: int, size: int) -> int:
    """What makes about 5,000 batches of `size` out of so many pictures, between 20 and 500."""
    return min(MOST, max(FEWEST, round(STEPS * size / max(1, count))))
