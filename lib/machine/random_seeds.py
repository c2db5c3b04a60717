"""The seed of every random draw, and the generators of Python, NumPy and PyTorch."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.config.settings import Section, setting


def seeds(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Expand `0-4` into 0, 1, 2, 3, 4, each once.

    Raises:
        ValueError: an entry is neither a number nor a range.
    """
    found: list[str] = []
    for entry in entries:
        first, dash, last = entry.partition("-")
        if not first.isdecimal() or (dash and (not last.isdecimal() or int(last) < int(first))):
            raise ValueError(f"{entry!r} is neither a seed nor a range such as 0-4")
        if int(last or first) - int(first) >= 10_000:
            raise ValueError(f"{entry!r} holds more than 10,000 seeds")
        found += [str(seed) for seed in range(int(first), int(last or first) + 1)]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class SeedSettings(Section):
    title = "seed"
    seed: int | None = setting(
        None,
        "seed of every random draw; none = a random seed, which is recorded",
        low=0,
        high=2**31 - 1,
        lifetime="run",
    )
    seeds: tuple[str, ...] | None = setting(
        None, "one run for each of these seeds, such as 0-4", value="SEEDS", convert=seeds
    )

    @property
    def number(self) -> int:
        """The seed; 0 where none is set, as in a dry run."""
        return self.seed or 0


def seed_of(settings: SeedSettings) -> int:
    """The seed as set, or a fresh one."""
    return secrets.randbelow(2**31) if settings.seed is None else settings.seed


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of the generators of Python, NumPy and torch, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "gpus": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back into a state of `random_state`; those of GPUs that are not there are left out."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for number, held in enumerate(state["gpus"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(held, number)
