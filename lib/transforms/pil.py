"""The `pil` back end: torchvision on Pillow images, one picture at a time, in loader processes.

It takes pictures of any size and mode, and sets that do not fit into memory.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.datasets.files import ADVICE
from lib.errors import SIGNALS, RunStopped, UserError
from lib.method import Prepared, Request
from lib.runtime import copies_in_background
from lib.transforms.draws import Draws, draw
from lib.transforms.reader import Reader, to_side
from lib.transforms.recipe import Recipe

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
        self._why, self._kept = why, pictures.describe()
        self._test, self._device = test, device
        self._means = torch.tensor(means, device=device)[:, None, None]
        self._stds = torch.tensor(stds, device=device)[:, None, None]
        self._plan = _Plan()
        self._loader: DataLoader[_Outcome | UserError | RunStopped] = DataLoader(
            _Prepare(pictures, seed, skip),
            sampler=self._plan,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=copies_in_background(device),
            worker_init_fn=_ignore_signals,
            # Of its own: a loader draws from it each time it starts, which a resumed run does more often.
            generator=torch.Generator(),
        )

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        self._plan.requests = plan
        for outcome in self._loader:
            if isinstance(outcome, UserError | RunStopped):
                raise outcome
            self.skipped.update(outcome.skipped)
            yield Prepared(outcome.index, [self._normalise(view) for view in outcome.views])

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, (self._test,)) for index in batches)

    def prepared(self) -> Self:
        return self

    def describe(self) -> str:
        because = f", because {self._why}" if self._why else ""
        return f"pil, {self._loader.num_workers or 'no'} loader processes{because}{self._kept}"

    def close(self) -> None:
        self._loader._iterator = None

    def _normalise(self, view: Tensor) -> Tensor:
        moved = view.to(self._device, non_blocking=True)
        return moved.float().div_(255).sub_(self._means).div_(self._stds)


class _Plan:
    """The loader's sampler; it stays while the plan changes, so that its processes can stay too."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


@dataclass(frozen=True)
class _Outcome:
    index: Tensor
    views: list[Tensor]  # 8-bit
    skipped: dict[int, str]


class _Prepare(Dataset[_Outcome | UserError | RunStopped]):
    def __init__(self, pictures: Reader, seed: int, skip: bool) -> None:
        self._pictures, self._seed, self._skip = pictures, seed, skip

    def __getitem__(self, request: Request) -> _Outcome | UserError | RunStopped:
        # An exception would come out of a loader process with that process's traceback as its text.
        try:
            return self._prepare(request)
        except (UserError, RunStopped) as error:
            return error

    def _load_all(self, index: Tensor) -> tuple[dict[int, Image.Image], dict[int, str]]:
        images, skipped = {}, {}
        for position in index.tolist():
            try:
                images[position] = self._pictures.read(position)
            except UserError as error:
                if not self._skip:
                    raise
                skipped[position] = str(error).removesuffix(ADVICE)
        return images, skipped

    def _prepare(self, request: Request) -> _Outcome:
        loaded, skipped = self._load_all(request.index)
        if not loaded:
            shapes = [(0, self._pictures.channels, recipe.size, recipe.size) for recipe in request.recipes]
            return _Outcome(request.index[:0], [torch.empty(s, dtype=torch.uint8) for s in shapes], skipped)
        positions, images = np.array(list(loaded), dtype=np.int64), list(loaded.values())
        sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64)
        views, numbers = [], request.numbers(positions)
        for copy, recipe in enumerate(request.recipes):
            draws = draw(recipe, sizes, self._seed, request.epoch, numbers, copy)
            stack = np.stack([np.asarray(view(image, recipe, draws, n)) for n, image in enumerate(images)])
            views.append(torch.from_numpy(stack.reshape(*stack.shape[:3], -1)).permute(0, 3, 1, 2).contiguous())
        return _Outcome(torch.from_numpy(positions), views, skipped)


def _ignore_signals(worker: int) -> None:
    # Ctrl-C, and a SIGTERM to the process group, reach every process; the training process alone
    # decides what they mean, and ends the others.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
