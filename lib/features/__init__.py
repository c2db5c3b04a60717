"""Features of a frozen backbone in the place of images, computed once and kept on disk; not the backbone itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lib.config.settings import Section, setting


@dataclass(frozen=True)
class FeatureSettings(Section):
    title = "features of a frozen backbone"
    feature_views: int = setting(
        4, "random views of each picture whose features are computed, beside those of the plain one", low=1, fixed=True
    )
    feature_seed: int = setting(
        0, "of these views' draws; not that of the run, so that runs of all seeds share their features", low=0,
        high=2**31 - 1, fixed=True,
    )  # fmt: skip
    views: Literal["random", "neighbours"] = setting(
        "random",
        "what stands for a picture in a step; random: its random views; neighbours: the plain views of its nearest "
        "neighbours among the training pictures, by the cosine of the features",
        fixed=True,
    )
    feature_neighbours: int | None = setting(
        20,
        "nearest neighbours, of which each step draws; none: half as many as a cluster has pictures, at most 20",
        low=1, fixed=True, adaptive=True,
    )  # fmt: skip

    @property
    def neighbours(self) -> int:
        """`feature_neighbours`, once it is known."""
        assert self.feature_neighbours is not None
        return self.feature_neighbours
