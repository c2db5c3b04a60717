"""What is done to an image before a network sees it, by two back ends; not which views a method asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from lib.config.settings import Section, setting
from lib.contracts import NeighbourRecipe, Recipe
from lib.errors import UserError

REDUCING = 2  # times the side that is needed: a JPEG that is decoded at a reduced scale keeps as much
LARGEST_SIDE = 4096  # px, of a view; one of that side is 192 MiB in float32


@dataclass(frozen=True)
class TransformSettings(Section):
    title = "transforms"
    lifetime = "network"
    transform: Literal["default"] = setting("default", "family of random transforms")
    tfm_working_size: int | None = setting(
        None,
        "shorter side to which every image is resized before anything else; none = its own size",
        unit="pixels",
        low=4,
        high=LARGEST_SIDE,
        side=True,
    )
    tfm_decode_side: Literal["full", "auto"] | int = setting(
        "full",
        "shorter side down to which a JPEG file may be decoded at a half, a quarter or an eighth of its size, which is "
        "faster; full = at its own size; auto = as all views of the run need",
        unit="pixels",
        low=1,
        high=2**16,
        adaptive=True,
        earlier="full",
    )
    tfm_size: int | None = setting(
        224,
        "side of the image that the network sees; none = as the network proposes",
        unit="pixels",
        low=4,
        high=LARGEST_SIDE,
        adaptive=True,
        side=True,
    )
    tfm_resize: int | None = setting(
        256,
        "shorter side before a crop without a random scale; none = as the network proposes, in "
        "proportion to --tfm-size",
        unit="pixels",
        low=4,
        high=LARGEST_SIDE,
        adaptive=True,
        side=True,
    )
    tfm_scale: tuple[float, float] | None = setting(
        None,
        "smallest and largest area of a random crop, as shares of the image; none = no random scale",
        low=1e-6,
        high=1,
    )
    tfm_ratio: tuple[float, float] = setting(
        Recipe.ratio, "smallest and largest ratio of width to height of a random crop", low=1e-3
    )
    tfm_colorjitter: tuple[float, float, float, float] | None = setting(
        None,
        "strength of the random changes of brightness, contrast, saturation and hue (hue ≤ 0.5); none = no changes",
        low=0,
    )
    tfm_colorjitter_probability: float = setting(
        Recipe.jitter_probability, "probability that the colours of an image change", low=0, high=1
    )
    tfm_random_grayscale: float = setting(Recipe.grayscale, "probability that an image becomes grey", low=0, high=1)
    tfm_random_hflip: float = setting(Recipe.flip, "probability that an image is mirrored", low=0, high=1)
    tfm_means: tuple[float, ...] | None = setting(
        None,
        "mean of each channel on the scale from 0 to 1, which is subtracted; none = as the network "
        "proposes, or else measured on the training images",
        adaptive=True,
    )
    tfm_stds: tuple[float, ...] | None = setting(
        None,
        "standard deviation of each channel, by which it is divided; none = as the network proposes, or "
        "else measured on the training images",
        low=1e-6,
        adaptive=True,
    )

    def __post_init__(self) -> None:
        if self.tfm_size is not None and self.tfm_resize is not None and self.tfm_resize < self.tfm_size:
            raise UserError(f"tfm_resize {self.tfm_resize} is below tfm_size {self.tfm_size}, which is cut out of it")
        for name, bounds in (("tfm_scale", self.tfm_scale), ("tfm_ratio", self.tfm_ratio)):
            if bounds is not None and bounds[0] > bounds[1]:
                raise UserError(f"{name} {bounds[0]:g} {bounds[1]:g}: the smaller bound comes first")
        if self.tfm_colorjitter is not None and self.tfm_colorjitter[3] > 0.5:
            raise UserError(f"tfm_colorjitter: the hue's {self.tfm_colorjitter[3]:g} is above .5, a half turn")

    @property
    def decode_side(self) -> int:
        """`tfm_decode_side`, once it is known to be a number."""
        assert isinstance(self.tfm_decode_side, int)
        return self.tfm_decode_side

    @property
    def size(self) -> int:
        """`tfm_size`, once it is known."""
        assert self.tfm_size is not None
        return self.tfm_size

    @property
    def resize(self) -> int:
        """`tfm_resize`, once it is known."""
        assert self.tfm_resize is not None
        return self.tfm_resize


@dataclass(frozen=True)
class ViewSettings(Section):
    title = "views"
    tfm_backend: Literal["auto", "batched", "pil"] = setting(
        "auto",
        "what transforms the images; batched = whole batches on the device, if the images fit into "
        "--memory-budget; pil = Pillow, one image at a time, in loader processes; auto = batched if "
        "possible",
    )


@dataclass(frozen=True)
class LoaderSettings(Section):
    title = "loading"
    lifetime = "machine"
    memory_budget: float = setting(4.0, "memory of the device that images may take", unit="GiB", low=0)
    num_workers: int | None = setting(
        None,
        "loader processes of --tfm-backend pil, at most one per core; 0 = the training process loads; "
        "none = one per core beside a GPU, one per four cores on a CPU, at most 8",
        low=0,
    )


def plain_recipe(s: TransformSettings) -> Recipe:
    """The test view: the middle of the picture."""
    return Recipe(s.size, "center", s.resize)


def original(s: TransformSettings) -> Recipe:
    """A random square of the picture, and nothing else."""
    return Recipe(s.size, "random", s.resize)


def perturbed(s: TransformSettings) -> Recipe:
    """A random crop with random colours, as the `tfm_…` settings have them."""
    recipe = replace(
        original(s), jitter=s.tfm_colorjitter, jitter_probability=s.tfm_colorjitter_probability,
        grayscale=s.tfm_random_grayscale, flip=s.tfm_random_hflip,
    )  # fmt: skip
    return recipe if s.tfm_scale is None else replace(recipe, crop="resized", scale=s.tfm_scale, ratio=s.tfm_ratio)


def neighbour(recipe: Recipe) -> NeighbourRecipe:
    """The same view of one of the image's `--feature-neighbours` nearest neighbours, drawn anew in each epoch."""
    return NeighbourRecipe(**vars(recipe))


def needed_side(s: TransformSettings, recipes: Iterable[Recipe]) -> int:
    """The shorter side, px, that an image must have for these views to lose nothing by it.

    What is brought to a side is wanted `REDUCING` times as large, since reducing a JPEG filters it less well than the
    resize that follows. The smallest random crop is wanted as large as the view.
    """
    if s.tfm_working_size is not None:
        return REDUCING * s.tfm_working_size
    return max(_needed(recipe) for recipe in recipes)


def _needed(recipe: Recipe) -> int:
    if recipe.crop != "resized":
        return REDUCING * recipe.resize
    smallest = math.sqrt(recipe.scale[0] * min(recipe.ratio[0], 1 / recipe.ratio[1]))  # of the image's shorter side
    return math.ceil(recipe.size / smallest)


def normalisation(s: TransformSettings, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and deviations, one per channel; 0 and 1 where none were given or measured.

    Raises:
        UserError: their number is not that of the channels.
    """
    means = s.tfm_means or (0.0,) * channels
    stds = s.tfm_stds or (1.0,) * channels
    for name, values in (("tfm_means", means), ("tfm_stds", stds)):
        if len(values) != channels:
            raise UserError(f"{name} has {len(values)} values, and the pictures {channels} channels (net_cin)")
    return means, stds
