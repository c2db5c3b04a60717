"""A view, stated once: what is done to a picture, whichever back end does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Crop, flip, colour jitter and grayscale, in this order; normalising follows.

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
    jitter_probability: float = 1.0
    grayscale: float = 0.0  # probability
    flip: float = 0.0  # probability
