"""The runs that one command asks for: one, or a family of one for each number of clusters and each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lib.config import Config
from lib.method import MethodSettings
from lib.runtime import SeedSettings


@dataclass(frozen=True)
class Member:
    """One run of a family. None: the command gives one for all of them."""

    clusters: int | None
    seed: str | None

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(self._parts("clusters-{}", "seed-{}"))

    def __str__(self) -> str:
        return ", ".join(self._parts("{} clusters", "seed {}"))

    @property
    def words(self) -> Sequence[str]:
        """Its own part of a command line."""
        flags = " ".join(self._parts("--num-clusters {}", "--seeds none --seed {}"))
        return flags.split()

    def _parts(self, clusters: str, seed: str) -> list[str]:
        given = ((clusters, self.clusters), (seed, self.seed))
        return [text.format(value) for text, value in given if value is not None]


def asked(config: Config) -> str:
    """The flag that asks for several runs, or nothing."""
    numbers = config.of(MethodSettings).num_clusters
    if isinstance(numbers, tuple):
        return f"--num-clusters {' '.join(map(str, numbers))}"
    return "--seeds" if config.of(SeedSettings).seeds is not None else ""


def members(config: Config) -> list[Member]:
    """Each number of clusters with each seed."""
    numbers, seeds = config.of(MethodSettings).num_clusters, config.of(SeedSettings).seeds
    clusters = numbers if isinstance(numbers, tuple) else (None,)
    return [Member(number, seed) for number in clusters for seed in seeds or (None,)]


def numbered(config: Config) -> list[Config]:
    """The settings for each number of clusters."""
    numbers = config.of(MethodSettings).num_clusters
    return [config.replace(num_clusters=k) for k in numbers] if isinstance(numbers, tuple) else [config]
