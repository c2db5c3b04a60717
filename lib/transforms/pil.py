"""The `pil` back end: torchvision on Pillow images, one picture at a time, in loader processes.

It takes pictures of any size and mode, and sets that do not fit into memory.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.datasets import Pictures
from lib.datasets.files import ADVICE, READ_ERRORS
from lib.errors import SIGNALS, UserError
from lib.method import Prepared, Request
from lib.runtime import copies_in_background
from lib.transforms.draws import Draws, draw, resized
from lib.transforms.recipe import Recipe

_JITTER = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
BACKGROUND = (255, 255, 255)  # shows through transparent pictures
OBLONG = 8  # a picture that is longer is cut to its middle: 1×5000 px would become 40×200,000


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Bring a picture of any mode to 8-bit grey (1 channel) or RGB (3 channels).

    Pictures of more than 8 bits are scaled, not clipped; transparency lies on white.
    """
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
        # Pillow holds 16-bit files in "I" as well; values above 65535 come from true 32-bit ones. Floats have no range.
        ranges = (1, 255, 65535) if image.mode == "F" else (65535,)
        top = next((top for top in ranges if deep.max(initial=0) <= top), deep.max(initial=0))
        image = Image.fromarray((deep.clip(0) / top * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    return image.convert("L" if channels == 1 else "RGB")


def load(pictures: Pictures, position: int, channels: int, working_size: int | None) -> Image.Image:
    """A picture as every recipe begins with it: 8-bit, and of the working size if there is one.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = pictures[position][0]
    except READ_ERRORS as error:  # of a user's own data set; those of the house tell which file it was
        raise UserError(f"cannot read picture {position} of the run: {error}{ADVICE}") from error
    if not isinstance(found, Image.Image):
        raise UserError(f"the data set gives {type(found).__name__}, where a Pillow image is wanted")
    return prepare(found, channels, working_size)


def prepare(image: Image.Image, channels: int, working_size: int | None) -> Image.Image:
    """A picture of any size and mode as every recipe begins with it."""
    image = to_channels(_bounded(image), channels)
    return image if working_size is None else _to_side(image, working_size)


def _bounded(image: Image.Image) -> Image.Image:
    """At most `OBLONG` times as long as wide, or as wide as long."""
    width, height = (min(side, OBLONG * other) for side, other in (image.size, image.size[::-1]))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def view(image: Image.Image, recipe: Recipe, draws: Draws, n: int) -> Image.Image:
    """The view of picture number n of the draws: 8-bit, `recipe.size` wide and high."""
    top, left, height, width = draws.box[n].tolist()
    if recipe.crop != "resized":
        image = _to_side(image, recipe.resize)
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


def _to_side(image: Image.Image, side: int) -> Image.Image:
    height, width = resized(np.array([[image.height, image.width]]), side)[0].tolist()
    return image.resize((width, height), Image.Resampling.BILINEAR)


class PILViews:
    """`Views` of a run's pictures.

    Args:
        pictures: the pictures.
        test: the recipe of `plain`.
        means, stds: one per channel, on the scale [0, 1].
        working_size: px, the shorter side of every picture before anything else; none: as it is.
        seed: of the draws.
        workers: loader processes; 0 prepares pictures in this process.
        skip: leave out pictures that cannot be read.
        device: where the views are handed over.
        why: not another back end.
    """

    kind = "pil"

    def __init__(
        self,
        pictures: Pictures,
        test: Recipe,
        means: tuple[float, ...],
        stds: tuple[float, ...],
        *,
        working_size: int | None,
        seed: int,
        workers: int,
        skip: bool,
        device: torch.device,
        why: str = "",
    ) -> None:
        self.skipped: dict[int, str] = {}
        self._why = why
        self._test, self._device = test, device
        self._means = torch.tensor(means, device=device)[:, None, None]
        self._stds = torch.tensor(stds, device=device)[:, None, None]
        self._plan = _Plan()
        self._loader: DataLoader[_Outcome | UserError] = DataLoader(
            _Prepare(pictures, len(means), working_size, seed, skip),
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
            if isinstance(outcome, UserError):
                raise outcome
            self.skipped.update(outcome.skipped)
            yield Prepared(outcome.index, [self._normalise(view) for view in outcome.views])

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, (self._test,)) for index in batches)

    def describe(self) -> str:
        because = f", because {self._why}" if self._why else ""
        return f"pil, {self._loader.num_workers or 'no'} loader processes{because}"

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


class _Prepare(Dataset[_Outcome | UserError]):
    def __init__(self, pictures: Pictures, channels: int, working_size: int | None, seed: int, skip: bool) -> None:
        self._pictures, self._channels, self._working_size = pictures, channels, working_size
        self._seed, self._skip = seed, skip

    def __getitem__(self, request: Request) -> _Outcome | UserError:
        # An exception would come out of a loader process with that process's traceback as its text.
        try:
            return self._prepare(request)
        except UserError as error:
            return error

    def _load_all(self, index: Tensor) -> tuple[dict[int, Image.Image], dict[int, str]]:
        images, skipped = {}, {}
        for position in index.tolist():
            try:
                images[position] = load(self._pictures, position, self._channels, self._working_size)
            except UserError as error:
                if not self._skip:
                    raise
                skipped[position] = str(error).removesuffix(ADVICE)
        return images, skipped

    def _prepare(self, request: Request) -> _Outcome:
        loaded, skipped = self._load_all(request.index)
        if not loaded:
            shapes = [(0, self._channels, recipe.size, recipe.size) for recipe in request.recipes]
            return _Outcome(request.index[:0], [torch.empty(s, dtype=torch.uint8) for s in shapes], skipped)
        positions, images = np.array(list(loaded), dtype=np.int64), list(loaded.values())
        sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64)
        views = []
        for copy, recipe in enumerate(request.recipes):
            draws = draw(recipe, sizes, self._seed, request.epoch, positions, copy)
            stack = np.stack([np.asarray(view(image, recipe, draws, n)) for n, image in enumerate(images)])
            views.append(torch.from_numpy(stack.reshape(*stack.shape[:3], -1)).permute(0, 3, 1, 2).contiguous())
        return _Outcome(torch.from_numpy(positions), views, skipped)


def _ignore_signals(worker: int) -> None:
    # Ctrl-C, and a SIGTERM to the process group, reach every process; the training process alone
    # decides what they mean, and ends the others.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
