"""The `batched` back end for images that are looked at once: a batch is read, decoded and transformed, and then let go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.contracts import Prepared, Recipe, Request, Views
from lib.datasets.image_files import ADVICE
from lib.errors import UserError
from lib.machine.background import ahead
from lib.transforms.image_reader import Reader
from lib.transforms.images_in_memory import Part, Pile

Shape = tuple[int, ...]


class StreamedViews:
    """`Views` of images in files, of which a few batches at a time are in memory.

    The next batch is prepared in a thread while the caller works with the one before it.

    Args:
        reader: of the images.
        test: the recipe of `plain`.
        place: (height, width, channels) of the place in which an image of such a shape is held.
        views_of: makes the views of images in memory, numbered from 0.
        skip: leave out images that cannot be read.
    """

    kind = "batched"

    def __init__(
        self,
        reader: Reader,
        test: Recipe,
        place: Callable[[Shape], Shape],
        views_of: Callable[[list[Part]], Views],
        skip: bool,
    ) -> None:
        self.skipped: dict[int, str] = {}
        self._reader = reader
        self._test = test
        self._place = place
        self._views_of = views_of
        self._skip = skip

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        return ahead(self._prepared(request) for request in plan)

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, (self._test,)) for index in batches)

    def prepare(self, folder: Path | None = None) -> None:
        pass

    def describe(self) -> str:
        return f"batched, images are read beside the network{self._reader.describe()}"

    def close(self) -> None:
        self._reader.pictures.decoded.clear()

    def _prepared(self, request: Request) -> Prepared:
        piles: dict[Shape, Pile] = {}
        readable: list[int] = []  # rows of the request
        positions = request.index.tolist()
        for row, image in enumerate(self._reader.arrays(positions)):
            if isinstance(image, UserError):
                if not self._skip:
                    raise image
                self.skipped[positions[row]] = str(image).removesuffix(ADVICE)
                continue
            place = self._place(image.shape)
            piles.setdefault(place, Pile(place)).add(len(readable), image)
            readable.append(row)
        request = request.rows(np.array(readable, dtype=np.int64))
        if not readable:
            channels = self._reader.channels
            return Prepared(request.index, [torch.empty(0, channels, each.size, each.size) for each in request.recipes])
        numbers = torch.from_numpy(request.numbers)
        local = replace(request, index=torch.arange(len(readable)), drawn_as=numbers)
        (made,) = self._views_of([pile.part() for pile in piles.values()]).stream([local])
        return Prepared(request.index, list(made.views))
