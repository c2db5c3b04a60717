"""Features of a frozen backbone in the place of images, computed once and kept on disk; not the backbone itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lib.config.settings import Section, setting


@dataclass(frozen=True)
class FeatureSettings(Section):
    title = "features of a frozen backbone"
    feature_views: int = setting(
        4, "random views of each image whose features are computed, beside the image itself", low=1, fixed=True
    )
    feature_seed: int = setting(
        0, "seed of these random views; apart from --seed, so that several seeds share the features", low=0,
        high=2**31 - 1, fixed=True,
    )  # fmt: skip
    views: Literal["random", "neighbours"] = setting(
        "random",
        "what a step shows of an image; random = random views of it; neighbours = its nearest neighbours "
        "among the training images, by cosine similarity of the features",
        fixed=True,
    )
    feature_neighbours: int | None = setting(
        20,
        "nearest neighbours from which a step draws; none = half as many as a cluster has images, at most 20",
        low=1,
        fixed=True,
        adaptive=True,
    )

    @property
    def neighbours(self) -> int:
        """`feature_neighbours`, once it is known."""
        assert self.feature_neighbours is not None
        return self.feature_neighbours
