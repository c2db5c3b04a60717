"""The runs that one command asks for: one, or a family of one for each number of clusters and each seed."""

from __future__ import annotations

from lib.config.config import Config
from lib.machine.random_seeds import SeedSettings
from lib.methods.method import MethodSettings
from lib.scoring.summary_over_seeds import Member


def asked(config: Config) -> str:
    """The flag that asks for several runs, or nothing."""
    numbers = config.of(MethodSettings).num_clusters
    if isinstance(numbers, tuple):
        return f"--num-clusters {' '.join(map(str, numbers))}"
    return "--seeds" if config.of(SeedSettings).seeds is not None else ""


def members(config: Config) -> list[Member]:
    """Each number of clusters with each seed."""
    numbers = config.of(MethodSettings).num_clusters
    seeds = config.of(SeedSettings).seeds
    clusters = numbers if isinstance(numbers, tuple) else (None,)
    return [Member(number, seed) for number in clusters for seed in seeds or (None,)]


def numbered(config: Config) -> list[Config]:
    """The settings for each number of clusters."""
    numbers = config.of(MethodSettings).num_clusters
    return [config.replace(num_clusters=k) for k in numbers] if isinstance(numbers, tuple) else [config]
