"""Which back end makes the views: `batched` where the pictures fit into memory, otherwise `pil`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.config.config import Config
from lib.contracts import Recipe, Views
from lib.datasets import DataSettings, Pictures
from lib.datasets.image_files import ADVICE, PictureFiles
from lib.errors import UserError
from lib.machine import devices
from lib.machine.progress import progress
from lib.machine.random_seeds import SeedSettings
from lib.networks import NetworkSettings
from lib.transforms import LoaderSettings, TransformSettings, ViewSettings, normalisation
from lib.transforms.batched_views import BatchedViews
from lib.transforms.image_reader import Reader, open_reader
from lib.transforms.images_in_memory import Part, Pile, whole
from lib.transforms.pillow_views import PILViews
from lib.transforms.streamed_views import StreamedViews

SPREAD = 64  # pictures, from all over the run, that are looked at before all are decoded,
SURE = 8  # of which so many may tell that there is no room for all
LARGE = 4  # sides of a view that a picture may have, beyond which Pillow is faster
STEP = 8  # px, in which the sides of pictures of several sizes are rounded up: fewer groups, few zeros
GIB = 2**30


class _Unfit(Exception):
    """Why the pictures cannot be held as bytes."""


def open_views(config: Config, pictures: Pictures, test: Recipe, once: bool = False) -> Views:
    """The views of a run's pictures, by the back end that the settings and the pictures ask for.

    Args:
        config: all settings.
        pictures: the pictures.
        test: the recipe of `Views.plain`.
        once: each picture is asked for once, so none has to stay in memory.

    Raises:
        UserError: the back end asked for cannot serve these pictures, or one of them cannot be read.
    """
    transforms = config.of(TransformSettings)
    loading = config.of(LoaderSettings)
    means, stds = normalisation(transforms, config.of(NetworkSettings).net_cin)
    placement = devices.placement(config)
    device = placement.device
    seed = config.of(SeedSettings).number
    skip = config.of(DataSettings).on_bad_image == "skip"
    wanted = config.of(ViewSettings).tfm_backend
    passes = once and pictures.in_files
    why = ""
    reader = open_reader(config, pictures)

    def batched(parts: list[Part], skipped: dict[int, str]) -> BatchedViews:
        return BatchedViews(
            parts, skipped, test, means, stds,
            seed=seed, device=device, compiled=placement.compiles, channels_last=placement.channels_last,
        )  # fmt: skip

    if wanted != "pil" and not placement.is_dry:
        held = _Held(reader, loading.memory_budget, skip, fixed=wanted == "batched")
        try:
            if passes:
                limit = math.inf if wanted == "batched" else (LARGE * transforms.size) ** 2
                return StreamedViews(reader, test, held.places(limit), lambda parts: batched(parts, {}), skip)
            return batched(held.parts(), held.skipped)
        except _Unfit as reason:
            if wanted == "batched":
                raise UserError(f"--tfm-backend batched: {reason}; or take --tfm-backend pil") from None
            why = str(reason)
        finally:
            if not passes:
                pictures.decoded.clear()
    workers = devices.workers(loading.num_workers, device)
    if passes and loading.num_workers is None:  # the network waits for pictures, and its threads leave their cores then
        workers = min(devices.own_cores(), devices.MOST_WORKERS)
    return PILViews(reader, test, means, stds, seed=seed, workers=workers, skip=skip, device=device, why=why)


class _Held:
    """Brings the pictures of a run into memory.

    Args:
        reader: of the pictures.
        budget: GiB that they may take.
        skip: note unreadable pictures, and leave them black.
        fixed: the user vouches that every access to a picture gives the same.
    """

    def __init__(self, reader: Reader, budget: float, skip: bool, fixed: bool) -> None:
        self._reader = reader
        self._pictures = reader.pictures
        self._channels = reader.channels
        self._working_size = reader.working_size
        self._budget = budget
        self._skip = skip
        self._fixed = fixed
        self._bytes = 0
        self._count = 0  # of pictures that are held
        self._step = 1  # px, in which sides are rounded up
        self._piles: dict[tuple[int, ...], Pile] = {}  # by height, width and channels of their places
        self.skipped: dict[int, str] = {}

    def parts(self) -> list[Part]:
        """All pictures; a split's own array where that will do.

        Raises:
            _Unfit: they are more than the budget, or may be drawn anew each time.
            UserError: one cannot be read, or a split's array is not of its pictures.
        """
        found = []
        others = []
        for positions, part in self._pictures.parts():
            own = _own_array(part)
            if own is not None and self._serves(own):
                found.append(whole(own, positions[0]))
                self._admit(own.size, len(own))
            elif own is None and not self._fixed and not isinstance(part, PictureFiles):
                raise _Unfit("the data set has no `array`, and may draw its pictures anew each time")
            else:
                others.append(positions)
        if others:
            self._look(np.concatenate(others), self._budget * GIB)
        for positions in others:
            self._decode(positions)
        return found + [pile.part() for pile in self._piles.values()]

    def places(self, limit: float) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
        """Where pictures are held that come batch by batch, each by its shape.

        Args:
            limit: pixels that they may have on average.

        Raises:
            _Unfit: they have more, as a few of them tell.
        """
        shapes = self._look(np.arange(len(self._pictures)), budget=math.inf)
        pixels = float(np.mean([math.prod(shape[:2]) for shape in shapes]))
        if pixels > limit:
            raise _Unfit(
                f"the pictures have {pixels / 1e3:,.0f} thousand pixels on average, which Pillow makes small faster"
            )
        return self._place

    def _serves(self, array: NDArray[np.uint8]) -> bool:
        height, width, channels = array.shape[1:]
        return channels == self._channels and self._working_size in (None, min(height, width))

    def _look(self, positions: NDArray[np.int64], budget: float) -> list[tuple[int, ...]]:
        """Decode a few: have all one size, and is there surely no room for them in `budget` bytes?

        Returns:
            the shapes of those that can be read
        """
        shapes: list[tuple[int, ...]] = []
        for position in np.random.default_rng(0).permutation(positions)[:SPREAD].tolist():
            (sample,) = self._reader.samples([position], self._budget * GIB)
            shapes.append(sample.shape if isinstance(sample, np.ndarray) else (0, 0, 0))
            differ = len({shape for shape in shapes if any(shape)}) > 1
            self._step = STEP if differ else 1
            sizes = np.array([math.prod(self._place(shape)) for shape in shapes])
            about = sizes.mean() * len(positions)
            doubt = 3 * sizes.std() / math.sqrt(len(sizes)) * len(positions)
            surely = len(sizes) >= min(SURE, len(positions))
            if surely and self._bytes + about - doubt > budget:
                raise self._unfit(f"the pictures take{' about' * differ}", self._bytes + about)
        return [shape for shape in shapes if any(shape)] or [(0, 0, 0)]

    def _decode(self, positions: range) -> None:
        found = progress(self._reader.arrays(list(positions)), "reading pictures", len(positions))
        readable = 0
        for position, picture in zip(positions, found, strict=True):
            if isinstance(picture, UserError):
                if not self._skip:
                    raise picture
                self.skipped[position] = str(picture).removesuffix(ADVICE)
                continue
            place = self._place(picture.shape)
            self._admit(math.prod(place))
            if place not in self._piles:
                self._piles[place] = Pile(place)
            self._piles[place].add(position, picture)
            readable += 1
        if not readable:
            raise UserError(f"none of the {len(positions)} pictures from {self._name(positions[0])} on can be read")

    def _place(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        height, width, channels = shape
        return -(-height // self._step) * self._step, -(-width // self._step) * self._step, channels

    def _admit(self, size: int, count: int = 1) -> None:
        self._bytes = self._bytes + size
        self._count = self._count + count
        if self._bytes > self._budget * GIB:
            alone = "" if self._count == len(self._pictures) else f"{self._count:,} of "
            raise self._unfit(f"{alone}the pictures take", self._bytes)

    def _unfit(self, what: str, size: float) -> _Unfit:
        return _Unfit(f"{what} {size / GIB:.3g} GiB, and --memory-budget is {self._budget:g}")

    def _name(self, position: int) -> str:
        split, i = self._pictures.locate(position)
        return str(self._pictures.path(position) or f"number {i} of {split}")


def _own_array(part: Any) -> NDArray[np.uint8] | None:
    """The array that a data set offers, checked on its first picture; its type and shape were checked at the start."""
    array: NDArray[np.uint8] | None = getattr(part, "array", None)
    if array is None:
        return None
    name = type(part).__name__
    first = array[0, ..., 0] if array.shape[3] == 1 else array[0]
    if not array.size or not np.array_equal(np.asarray(part[0][0]), first):
        raise UserError(f"the `array` of the data set {name} does not show its first picture; mend it, or leave it out")
    return array
