"""The `pil` back end: torchvision on Pillow images, one picture at a time, in loader processes.

It takes pictures of any size and mode, and sets that do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor

from lib.contracts import Prepared, Recipe, Request
from lib.datasets.image_files import ADVICE
from lib.errors import UserError
from lib.machine import devices
from lib.transforms.image_reader import Reader, to_side
from lib.transforms.loader_processes import ImageBatch, Loader
from lib.transforms.random_draws import Draws, draw

_JITTER = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def view(image: Image.Image, recipe: Recipe, draws: Draws, n: int) -> Image.Image:
    """The view of picture number n of the draws: 8-bit, `recipe.size` wide and high."""
    top, left, height, width = draws.box[n].tolist()
    if recipe.crop != "resized":
        image = to_side(image, recipe.resize)
    image = image.crop((left, top, left + width, top + height))
    if recipe.crop == "resized":
        # After the crop, so that nothing outside of it bleeds in.
        image = image.resize((recipe.size, recipe.size), Image.Resampling.BILINEAR)
    if draws.flip[n]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.jitter is not None and draws.jittered[n]:
        for which in draws.order[n].tolist():
            if recipe.jitter[which]:
                image = _JITTER[which](image, float(draws.jitter[n, which]))
    if draws.grayscale[n]:
        image = F.to_grayscale(image, num_output_channels=len(image.getbands()))
    return image


class PILViews:
    """`Views` of a run's pictures.

    Args:
        pictures: the pictures.
        test: the recipe of `plain`.
        means, stds: one per channel, on the scale [0, 1].
        seed: of the draws.
        workers: loader processes; 0 prepares pictures in this process.
        skip: leave out pictures that cannot be read.
        device: where the views are handed over.
        why: not another back end.
    """

    kind = "pil"

    def __init__(
        self,
        pictures: Reader,
        test: Recipe,
        means: tuple[float, ...],
        stds: tuple[float, ...],
        *,
        seed: int,
        workers: int,
        skip: bool,
        device: torch.device,
        why: str = "",
    ) -> None:
        self.skipped: dict[int, str] = {}
        self._why = why
        self._kept = pictures.describe()
        self._test = test
        self._device = device
        self._means = torch.tensor(means, device=device)[:, None, None]
        self._stds = torch.tensor(stds, device=device)[:, None, None]
        self._prepare = _Prepare(pictures, seed, skip)
        self._workers = workers
        self._loader = Loader(self._prepare, workers, pinned=devices.copies_in_background(device))

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        batches = self._loader.batches(plan) if self._workers else map(self._prepare, plan)
        for batch in batches:
            self.skipped.update(batch.skipped)
            yield Prepared(batch.index, [self._normalise(view) for view in batch.views])

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, (self._test,)) for index in batches)

    def prepare(self, folder: Path | None = None) -> None:
        pass

    def describe(self) -> str:
        because = f", because {self._why}" if self._why else ""
        return f"pil, {self._workers or 'no'} loader processes{because}{self._kept}"

    def close(self) -> None:
        self._loader.close()

    def _normalise(self, view: Tensor) -> Tensor:
        moved = devices.send(view, self._device)
        return moved.float().div_(255).sub_(self._means).div_(self._stds)


class _Prepare:
    """The views of a request, 8-bit.

    Args:
        pictures: the pictures.
        seed: of the draws.
        skip: leave out pictures that cannot be read.
    """

    def __init__(self, pictures: Reader, seed: int, skip: bool) -> None:
        self._pictures = pictures
        self._seed = seed
        self._skip = skip

    def __call__(self, request: Request) -> ImageBatch:
        loaded, skipped = self._load_all(request.index)
        if not loaded:
            shapes = [(0, self._pictures.channels, recipe.size, recipe.size) for recipe in request.recipes]
            return ImageBatch(request.index[:0], [torch.empty(s, dtype=torch.uint8) for s in shapes], skipped)
        kept = request.rows(np.array([position in loaded for position in request.index.tolist()]))
        images = [loaded[position] for position in kept.index.tolist()]
        sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64)
        views = []
        for copy, recipe in enumerate(request.recipes, request.first_copy):
            draws = draw(recipe, sizes, self._seed, request.epoch, kept.numbers, copy)
            stack = np.stack([np.asarray(view(image, recipe, draws, n)) for n, image in enumerate(images)])
            views.append(torch.from_numpy(stack.reshape(*stack.shape[:3], -1)).permute(0, 3, 1, 2).contiguous())
        return ImageBatch(kept.index, views, skipped)

    def _load_all(self, index: Tensor) -> tuple[dict[int, Image.Image], dict[int, str]]:
        images = {}
        skipped = {}
        for position in dict.fromkeys(index.tolist()):
            try:
                images[position] = self._pictures.read(position)
            except UserError as error:
                if not self._skip:
                    raise
                skipped[position] = str(error).removesuffix(ADVICE)
        return images, skipped
