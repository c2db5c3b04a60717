"""Which back end makes the views: `batched` where the pictures have one size and fit, otherwise `pil`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib import runtime
from lib.config import Command, Config
from lib.datasets import DataSettings, Pictures
from lib.datasets.files import ADVICE, PictureFiles
from lib.errors import UserError
from lib.method import Views
from lib.networks import NetworkSettings
from lib.progress import progress
from lib.runtime import DeviceSettings, SeedSettings
from lib.transforms import LoaderSettings, TransformSettings, normalisation
from lib.transforms.batched import BatchedViews
from lib.transforms.pil import PILViews, load
from lib.transforms.recipe import Recipe

READ_AHEAD = 256  # files that are decoded beside each other
GIB = 2**30


class _Unfit(Exception):
    """Why the pictures cannot be held as bytes of one shape."""


def open_views(config: Config, pictures: Pictures, test: Recipe) -> Views:
    """The views of a run's pictures, by the back end that the settings and the pictures ask for.

    Args:
        config: all settings.
        pictures: the pictures.
        test: the recipe of `Views.plain`.

    Raises:
        UserError: the back end asked for cannot serve these pictures, or one of them cannot be read.
    """
    transforms, loading = config.of(TransformSettings), config.of(LoaderSettings)
    channels, size = config.of(NetworkSettings).net_cin, transforms.tfm_working_size
    means, stds = normalisation(transforms, channels)
    device, seed = runtime.device(config.of(DeviceSettings).gpus), config.of(SeedSettings).seed or 0
    skip = config.of(DataSettings).on_bad_image == "skip"
    if loading.tfm_backend != "pil" and not config.of(Command).dry_run:
        try:
            held = _Held(pictures, channels, size, loading.memory_budget, skip)
            return BatchedViews(held.arrays, held.skipped, test, means, stds, seed=seed, device=device)
        except _Unfit as reason:
            if loading.tfm_backend == "batched":
                raise UserError(f"--tfm-backend batched: {reason}; or take --tfm-backend pil") from None
    workers = runtime.workers(loading.num_workers, device)
    return PILViews(
        pictures, test, means, stds, working_size=size, seed=seed, workers=workers, skip=skip, device=device
    )


class _Held:
    """All pictures of a run as bytes.

    Args:
        pictures: the pictures.
        channels: 1 or 3, to which they are brought.
        working_size: px, to which their shorter side is brought; none: as it is.
        budget: GiB that they may take.
        skip: note unreadable pictures, and leave them black.

    Raises:
        _Unfit: they differ in size, or are more than the budget.
        UserError: one cannot be read.
    """

    def __init__(self, pictures: Pictures, channels: int, working_size: int | None, budget: float, skip: bool) -> None:
        self._pictures, self._channels, self._working_size = pictures, channels, working_size
        self._budget, self._skip = budget, skip
        self._shape: tuple[int, ...] | None = None  # of each picture: height, width, channels
        self.skipped: dict[int, str] = {}
        self.arrays = [self._array(positions, part) for positions, part in pictures.parts()]

    def _array(self, positions: range, part: Any) -> NDArray[np.uint8]:
        array = getattr(part, "array", None)
        if isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 4 and len(array) == len(part):
            height, width, channels = array.shape[1:]
            if channels == self._channels and self._working_size in (None, min(height, width)):
                self._admit(array.shape[1:])
                return array
        return self._decode(positions, part)

    def _decode(self, positions: range, part: Any) -> NDArray[np.uint8]:
        array: NDArray[np.uint8] | None = None
        found = progress(self._read_all(positions, part), "reading pictures", len(positions))
        for i, picture in enumerate(found):
            if isinstance(picture, UserError):
                if not self._skip:
                    raise picture
                self.skipped[positions[i]] = str(picture).removesuffix(ADVICE)
                continue
            self._admit(picture.shape)
            if array is None:
                array = np.zeros((len(positions), *picture.shape), dtype=np.uint8)
            array[i] = picture
        if array is None:
            raise UserError("none of the pictures of a split can be read; mend or remove them")
        return array

    def _admit(self, shape: tuple[int, ...]) -> None:
        if self._shape is None:
            self._shape = shape
            size = len(self._pictures) * math.prod(shape) / GIB
            if size > self._budget:
                raise _Unfit(f"the pictures take {size:.1f} GiB; give a larger --memory-budget than {self._budget:g}")
        if shape != self._shape:
            (h, w, _), (height, width, _) = self._shape, shape
            raise _Unfit(
                f"the pictures differ in size, such as {w}×{h} and {width}×{height} px; bring them to one size"
            )

    def _read_all(self, positions: range, part: Any) -> Iterator[NDArray[np.uint8] | UserError]:
        if not isinstance(part, PictureFiles):  # a user's data set may not bear threads
            yield from map(self._read, positions)
            return
        with ThreadPoolExecutor(runtime.cores()) as pool:
            for start in range(0, len(positions), READ_AHEAD):
                yield from pool.map(self._read, positions[start : start + READ_AHEAD])

    def _read(self, position: int) -> NDArray[np.uint8] | UserError:
        try:
            image = load(self._pictures, position, self._channels, self._working_size)
        except UserError as error:
            return error
        return np.asarray(image).reshape(image.height, image.width, self._channels)
