"""Where and how a run computes: the device, the random seeds, and the signals that end it.

The only file that names a kind of device.
"""

from __future__ import annotations

import random
import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib.errors import SIGNALS, Interrupted, UserError
from lib.settings import Section, setting


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
class DeviceSettings(Section):
    title = "device"
    local = True
    gpus: str = setting("", "the GPU to use, such as 0; empty: the CPU")


@dataclass(frozen=True)
class SeedSettings(Section):
    title = "seed"
    seed: int | None = setting(
        None, "of every random draw; none: drawn, and recorded", low=0, high=2**31 - 1, fixed=True
    )
    seeds: tuple[str, ...] | None = setting(None, "one run for each of these, such as 0-4", convert=seeds)


CPU = torch.device("cpu")


def device(gpus: str) -> torch.device:
    """The device that `--gpus` names.

    Raises:
        UserError: no such GPU, or several.
    """
    if not gpus:
        return CPU
    if not gpus.isdecimal():
        raise UserError(f"--gpus {gpus}: give the number of one GPU, such as 0, or leave it empty for the CPU")
    if not torch.cuda.is_available():
        reason = "no CUDA device was found" if torch.version.cuda else "this PyTorch is built without CUDA"
        raise UserError(f"--gpus {gpus}: {reason}; leave --gpus empty to run on the CPU")
    if int(gpus) >= torch.cuda.device_count():
        raise UserError(f"--gpus {gpus}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return torch.device("cuda", int(gpus))


def copies_in_background(where: torch.device) -> bool:
    """Whether pinned memory lets a copy to the device go on beside its work."""
    return where.type == "cuda"


def fuses(groups: Sequence[Any]) -> bool | None:
    """Whether an optimiser of these parameter groups does its step in one kernel, which can also skip it."""
    return True if groups and all(weight.is_cuda for group in groups for weight in group["params"]) else None


def describe(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"CPU, {torch.get_num_threads()} threads"


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


class Interrupts:
    """While entered, SIGINT and SIGTERM wait for the next `check()`; a second one does not wait."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: list[Any] = []

    def __enter__(self) -> Interrupts:
        self._before = [signal.signal(number, self._note) for number in SIGNALS]
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, before)

    def _note(self, number: int, frame: object) -> None:
        if self._received is not None:
            raise Interrupted(number, midway=True)
        self._received = number

    def check(self) -> None:
        """Go on, unless a signal came.

        Raises:
            Interrupted: one did.
        """
        if self._received is not None:
            raise Interrupted(self._received)
