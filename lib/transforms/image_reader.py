"""Pictures as every recipe begins with them, decoded or from the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lib.config.config import Config
from lib.datasets import DataSettings, Pictures, disk_cache, image_decoder
from lib.datasets.image_files import ADVICE
from lib.errors import UserError
from lib.machine import devices
from lib.machine.progress import progress
from lib.networks import NetworkSettings
from lib.transforms import TransformSettings
from lib.transforms.random_draws import resized

Array = NDArray[np.uint8]

BACKGROUND = (255, 255, 255)  # shows through transparent pictures
OBLONG = 8  # a picture that is longer is cut to its middle: 1×5000 px would become 40×200,000
READ_AHEAD = 256  # files that are decoded beside each other
_THROUGH = {"LAB": "RGB", "La": "LA"}  # Pillow converts them to no other mode


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Bring a picture of any mode to 8-bit grey (1 channel) or RGB (3 channels).

    Pictures of more than 8 bits are scaled, not clipped; transparency lies on white.

    Raises:
        Exception: of any kind, where Pillow cannot convert it.
    """
    if image.mode in _THROUGH:
        image = image.convert(_THROUGH[image.mode])
    if image.mode.startswith("I") or image.mode == "F":
        with np.errstate(invalid="ignore"):  # numbers that are none
            deep = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
        # Pillow holds 16-bit files in "I" as well; values above 65535 come from true 32-bit ones. Floats have no range.
        ranges = (1, 255, 65535) if image.mode == "F" else (65535,)
        top = next((top for top in ranges if deep.max(initial=0) <= top), deep.max(initial=0))
        image = Image.fromarray((deep.clip(0) / top * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    return image.convert("L" if channels == 1 else "RGB")


def prepare(image: Image.Image, channels: int, working_size: int | None) -> Image.Image:
    """A picture of any size and mode as every recipe begins with it.

    Raises:
        Exception: of any kind, where Pillow cannot load or convert it.
    """
    if 0 in image.size:
        raise ValueError(f"it has no pixels: its size is {image.width}×{image.height}")
    image = to_channels(_bounded(image), channels)
    return image if working_size is None else to_side(image, working_size)


def _bounded(image: Image.Image) -> Image.Image:
    """At most `OBLONG` times as long as wide, or as wide as long."""
    width, height = (min(side, OBLONG * other) for side, other in (image.size, image.size[::-1]))
    if (width, height) == image.size:
        return image
    left = (image.width - width) // 2
    top = (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_side(image: Image.Image, side: int) -> Image.Image:
    """The same with a shorter side of so many px."""
    height, width = resized(np.array([[image.height, image.width]]), side)[0].tolist()
    return image.resize((width, height), Image.Resampling.BILINEAR)


class Reader:
    """The pictures of a run, brought to 8-bit grey or RGB and to the working size.

    Args:
        pictures: the pictures.
        channels: 1 or 3, to which they are brought.
        working_size: px, to which their shorter side is brought; none: as it is.
        store: those that are kept on disk.
    """

    def __init__(
        self, pictures: Pictures, channels: int, working_size: int | None, store: disk_cache.Store | None = None
    ) -> None:
        self.pictures = pictures
        self.channels = channels
        self.working_size = working_size
        self._store = store

    def read(self, position: int) -> Image.Image:
        """The picture at a position.

        Raises:
            UserError: it cannot be read.
        """
        kept = None if self._store is None else self._store.read(position)
        return self.decode(position) if kept is None else Image.fromarray(kept[..., 0] if self.channels == 1 else kept)

    def decode(self, position: int) -> Image.Image:
        """The same from its file."""
        path = self.pictures.path(position)
        name = f"picture {position} of the run" if path is None else f"the picture {path}"
        with image_decoder.unreadable(name, ADVICE):
            found = self.pictures[position][0]
            if not isinstance(found, Image.Image):
                raise UserError(f"the data set gives {type(found).__name__}, where a Pillow image is wanted")
            return prepare(found, self.channels, self.working_size)

    def describe(self) -> str:
        """What is decoded anew each time although it could be kept, for the log."""
        count = 0 if self._store is None else self._store.unfit
        return f"; {count:,} images are not kept on disk (--disk-cache), and are decoded each time" if count else ""

    def fill(self, bound: float, skip: bool) -> None:
        """Decode once what is not kept on disk.

        Args:
            bound: bytes that all that is kept may take.
            skip: pass over what cannot be read.

        Raises:
            UserError: a picture cannot be read, or the disk is full.
        """
        if self._store is not None:
            self._store.fill(partial(self._decoded, skip), bound)

    def _decoded(self, skip: bool, positions: list[int]) -> Iterator[Array | None]:
        for found in progress(self.beside(positions, self.decode), "decoding pictures", len(positions)):
            if isinstance(found, UserError) and not skip:
                raise found
            yield None if isinstance(found, UserError) else found

    def arrays(self, positions: list[int]) -> Iterator[Array | UserError]:
        """(H, W, C) of each, or why it cannot be read."""
        for start in range(0, len(positions), READ_AHEAD):
            chunk = positions[start : start + READ_AHEAD]
            kept = self._store is not None and self._store.holds(chunk)
            # What is kept is read faster than threads hand it over.
            yield from map(partial(self._array, self.read), chunk) if kept else self.beside(chunk, self.read)

    def beside(self, positions: list[int], read: Callable[[int], Image.Image]) -> Iterator[Array | UserError]:
        """(H, W, C) of what `read` makes of each, several at a time, or why it cannot be read."""
        if not self.pictures.in_files:
            yield from map(partial(self._array, read), positions)  # a user's data set may not bear threads
            return
        with ThreadPoolExecutor(min(devices.cores(), torch.get_num_threads())) as pool:
            for start in range(0, len(positions), READ_AHEAD):
                yield from pool.map(partial(self._array, read), positions[start : start + READ_AHEAD])

    def samples(self, positions: list[int], budget: float) -> Iterator[Array | UserError]:
        """`arrays` of some, which are handed over once more without decoding, up to `budget` bytes of them."""
        taken = sum(held.nbytes for held in self.pictures.decoded.values())
        for position, found in zip(positions, self.arrays(positions), strict=True):
            if isinstance(found, np.ndarray) and self._store is None and taken + found.nbytes <= budget:
                self.pictures.decoded[position] = found
                taken += found.nbytes
            yield found

    def _array(self, read: Callable[[int], Image.Image], position: int) -> Array | UserError:
        held = self.pictures.decoded.pop(position, None)
        if held is not None:
            return held
        try:
            image = read(position)
        except UserError as error:
            return error
        return np.asarray(image).reshape(image.height, image.width, self.channels)


def open_reader(config: Config, pictures: Pictures) -> Reader:
    """The pictures of a run; those that are decoded only once are decoded here, at the first call.

    Raises:
        UserError: a picture cannot be read, or what is kept cannot be written.
    """
    channels = config.of(NetworkSettings).net_cin
    size = config.of(TransformSettings).tfm_working_size
    reader = Reader(pictures, channels, size, pictures.store)
    bound = disk_cache.open_cache(config).bound
    if bound is not None:
        reader.fill(bound, config.of(DataSettings).on_bad_image == "skip")
    return reader
