"""Features of a frozen backbone in the place of images, kept on disk; and nearest neighbours; not the backbone itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lib.config.settings import Section, setting


@dataclass(frozen=True)
class FeatureSettings(Section):
    title = "features of a frozen backbone"
    lifetime = "run"
    feature_views: int = setting(
        4, "random views of each image whose features are computed, beside the image itself", low=1
    )
    feature_seed: int = setting(
        0, "seed of these random views; apart from --seed, so that several seeds share the features", low=0,
        high=2**31 - 1,
    )  # fmt: skip
    views: Literal["random", "neighbours"] = setting(
        "random",
        "what a step shows of an image; random = random views of it; neighbours = in all views but the first, one of its "
        "nearest neighbours among the training images",
    )
    feature_neighbours: int | None = setting(
        20,
        "nearest neighbours from which a step draws; none = half as many as a cluster has images, at most 20",
        low=1,
        adaptive=True,
    )

    neighbours_by: Literal["features", "pixels"] = setting(
        "features",
        "what is compared to find nearest neighbours, by cosine similarity; features = those of the network "
        "as the run starts; pixels = the images, at most 32 pixels wide",
    )

    @property
    def neighbours(self) -> int:
        """`feature_neighbours`, once it is known."""
        assert self.feature_neighbours is not None
        return self.feature_neighbours
