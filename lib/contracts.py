"""What the parts promise each other: recipes and requests of views, what makes them, and a method's order of batches.

`Views` turn indices into images on the device; a `Source` is a method's order of batches. The third contract, the
`Method`, is in `lib.methods.method`. The trainer never opens a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """A view, stated once, whichever back end makes it: crop, flip, colour jitter and grayscale, in this order; normalising follows.

    The crops:
        center:  shorter side to `resize`, then the square of side `size` in the middle
        random:  the same, the square anywhere
        resized: a rectangle of a random area (`scale`, share of the picture's) and shape (`ratio`,
                 width / height), straight from the raw picture, resized to `size`
    """

    size: int  # px, side of the result
    crop: Literal["center", "random", "resized"]
    resize: int = 0  # px, not used by "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] | None = None  # brightness, contrast, saturation, hue
    jitter_probability: float = 1.0  # that the colours change at all
    grayscale: float = 0.0  # probability
    flip: float = 0.0  # probability


@dataclass(frozen=True)
class Request:
    """The pictures of one batch: one view for each recipe.

    A view's random draw depends on (seed, epoch, picture, position among the recipes) alone. A
    source that visits a picture several times an epoch counts each visit as an epoch of its own.
    """

    index: Tensor  # (N,) positions among the run's pictures, each once
    recipes: tuple[Recipe, ...]
    epoch: int = 0
    drawn_as: Tensor | None = None  # (N,) numbers that stand for the pictures in the draws; none: their positions

    def numbers(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) what stands in the draws for these of the pictures."""
        if self.drawn_as is None:
            return index
        found = dict(zip(self.index.tolist(), self.drawn_as.tolist(), strict=True))
        return np.array([found[position] for position in index.tolist()], dtype=np.int64)


@dataclass(frozen=True)
class Prepared:
    """What became of a request."""

    index: Tensor  # (N,) those of the pictures that could be read
    views: Sequence[Tensor]  # for each recipe (N, C, H, W), or (N, feature_dim) behind a frozen backbone


class Views(Protocol):
    """What makes the views of images on the device, by whichever back end; use `close` when done."""

    @property
    def skipped(self) -> dict[int, str]:
        """Positions of pictures that were left out so far, and why (`on_bad_image skip`)."""

    kind: str
    """Which back end."""

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        """The views of each request.

        Raises:
            UserError: a picture cannot be read; with `on_bad_image skip` it is left out, if need be all of a request.
        """

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        """One view, under the test transform, for each (N,) of positions."""

    def prepared(self) -> Self:
        """Do at once what takes long and is done once, and would otherwise be done when it is first needed.

        Raises:
            UserError: a picture cannot be read, or what is kept cannot be written.
        """

    def describe(self) -> str:
        """What makes the views, in a line."""

    def close(self) -> None:
        """End whatever prepares pictures in the background."""


class Batch(Protocol):
    """What the trainer knows of a batch; everything else is between a source and its method."""

    @property
    def index(self) -> Tensor:
        """(N,) positions of the pictures of all processes, on the CPU."""

    @property
    def left_out(self) -> int:
        """Pictures of the batch that could not be read."""


class Source(Protocol):
    """A method's order of batches: which images and views are a step."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def epoch(self, index: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on; their order depends on (seed, index) alone."""

    def blank(self, empty: Callable[[Recipe, int], Tensor]) -> Any:
        """A batch of full size without content, for estimates; `lib.methods.method.Task.empty` makes its views."""

    def describe(self) -> list[str]:
        """What an epoch consists of, a line each."""
