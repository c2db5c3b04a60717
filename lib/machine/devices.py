"""Where and how a run computes: the device, the random seeds, and the signals that end it.

The only file that names a kind of device.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import random
import re
import secrets
import shlex
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from lib.config.settings import Section, setting
from lib.errors import Interrupted, UserError, has_launcher, heeded_signals

T = TypeVar("T")
PATIENCE = 15.0  # s, of several ranks with a batch after a signal; launchers kill after 30


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
    gpus: str = setting("", "the GPUs to use, such as 0 or 0,1, a process for each; empty: the CPU")
    processes: int | None = setting(
        None,
        "processes that train together on this machine; none: one for each of gpus, or one on a CPU",
        low=1,
        high=1024,
    )
    threads: int | None = setting(
        None, "that compute on a CPU; none: OMP_NUM_THREADS, or one for each core that may be used", low=1, high=1024
    )
    jobs: int | None = setting(
        None,
        "of several runs, those side by side; none: one for each of gpus, or on a CPU as many as `threads` fits into the cores",
        low=1, high=1024,
    )  # fmt: skip
    compile: bool = setting(False, "compile the network (torch.compile); the first steps take minutes")


@dataclass(frozen=True)
class PrecisionSettings(Section):
    title = "precision"
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "of the network; bf16: autocast to bfloat16, while heads, losses and statistics stay in float32"
    )
    channels_last: bool | None = setting(
        None,
        "keep the channels of a pixel together; faster, but PyTorch's BatchNorm on a CPU is then exact to 3 digits alone; "
        "none: on a GPU",
    )
    tf32: bool = setting(False, "on a GPU, round the inputs of float32 convolutions and products to TF32")


@dataclass(frozen=True)
class SeedSettings(Section):
    title = "seed"
    seed: int | None = setting(
        None, "of every random draw; none: drawn, and recorded", low=0, high=2**31 - 1, fixed=True
    )
    seeds: tuple[str, ...] | None = setting(None, "one run for each of these, such as 0-4", convert=seeds)


SECTIONS = (SeedSettings, PrecisionSettings, DeviceSettings)
CPU = torch.device("cpu")
MOST_WORKERS = 8  # more of them wait for the disk, not for cores


def gpu_numbers(gpus: str) -> tuple[int, ...]:
    """What `--gpus` names.

    Raises:
        UserError: no numbers, one twice, or of a GPU that is not there.
    """
    entries = [entry.strip() for entry in gpus.split(",")] if gpus.strip() else []
    if not all(entry.isdecimal() for entry in entries) or len(set(entries)) < len(entries):
        raise UserError(f"--gpus {gpus}: give numbers of GPUs, such as 0 or 0,1, or leave it empty for the CPU")
    if entries and not torch.cuda.is_available():
        reason = "no CUDA device was found" if torch.version.cuda else "this PyTorch is built without CUDA"
        raise UserError(f"--gpus {gpus}: {reason}; leave --gpus empty to run on the CPU")
    if entries and max(map(int, entries)) >= torch.cuda.device_count():
        raise UserError(f"--gpus {gpus}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return tuple(map(int, entries))


def environment_number(name: str, low: int = 0, high: int = 2**31 - 1) -> int | None:
    """A whole number from the environment; None where the variable is unset or empty.

    Raises:
        UserError: it is no whole number, or out of bounds.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    number = int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else None
    if number is None or not low <= number <= high:
        raise UserError(
            f"the environment variable {name} is {text[:80]!r}, not a whole number from {low} to {high}; unset or correct it"
        )
    return number


def local_rank() -> int:
    """The number of this process among those of the run on this machine."""
    return environment_number("LOCAL_RANK") or 0


def local_world() -> int:
    """The processes of the run on this machine."""
    return environment_number("LOCAL_WORLD_SIZE", low=1) or 1


def device(settings: DeviceSettings) -> torch.device:
    """The device of this process.

    Raises:
        UserError: no such GPU, or not one for each process of this machine.
    """
    numbers = gpu_numbers(settings.gpus)
    beside = local_world()
    if settings.processes not in (None, beside) and beside > 1:
        raise UserError(f"--processes {settings.processes}, and {beside} were started on this machine; leave it out")
    if not numbers:
        return CPU
    if (beside > 1 and len(numbers) != beside) or local_rank() >= len(numbers):
        beside = max(beside, local_rank() + 1)
        raise UserError(f"--gpus {settings.gpus}, and {beside} processes were started on this machine; name as many")
    return torch.device("cuda", numbers[local_rank()])


def collectives(where: torch.device) -> str:
    """The back end by which processes exchange tensors; what lies on the CPU goes by gloo beside nccl."""
    if where.type != "cuda":
        return "gloo"
    torch.cuda.set_device(where)
    return "cpu:gloo,cuda:nccl"


def cores() -> int:
    """Cores that this process may use, by its affinity and by its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or one without a quota
        pass
    return allowed


def workers(asked: int | None, where: torch.device) -> int:
    """Loader processes: as asked for, else one per core beside a GPU; a CPU's cores have the network to compute."""
    if asked is None:
        suits = own_cores() if where.type == "cuda" else min(max(own_cores() // 4, 1), own_cores() - 1)
        return min(suits, MOST_WORKERS)
    return min(asked, cores())


def own_cores() -> int:
    """Cores for each process of the run on this machine."""
    return max(1, cores() // local_world())


def threads(settings: DeviceSettings) -> int | None:
    """As many as are asked for, by the setting or by OMP_NUM_THREADS."""
    if settings.threads is not None or "," in os.environ.get("OMP_NUM_THREADS", ""):  # OpenMP's list, one a level
        return settings.threads
    return environment_number("OMP_NUM_THREADS", low=1)


def configure(seed: SeedSettings, precision: PrecisionSettings, settings: DeviceSettings) -> None:
    """Set seeds, threads and TF32 for the whole process."""
    seed_everything(seed_of(seed))
    asked = threads(settings)
    if settings.threads is not None or asked is None:
        torch.set_num_threads(asked or own_cores())
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision.tf32


def lowered(where: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of a network: nothing changes under fp32, and under bf16 the products take bfloat16.

    On the `meta` device, which has no such products, estimates count float32.
    """
    if precision == "fp32" or where.type == "meta":
        return nullcontext()
    return torch.autocast(where.type, torch.bfloat16)


def lowers(where: torch.device) -> bool:
    """Whether `lowered` is in force there."""
    return where.type in ("cpu", "cuda") and torch.is_autocast_enabled(where.type)


def channels_last(where: torch.device, settings: PrecisionSettings) -> bool:
    """Whether a network is laid out so: as asked for, else on a GPU."""
    return where.type == "cuda" if settings.channels_last is None else settings.channels_last


def computes_in_bf16(where: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16; without them it is emulated, many times slower."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return True  # not known
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def remarks(where: torch.device, precision: str) -> list[str]:
    """What a user may not know of the choice."""
    if precision == "bf16" and not computes_in_bf16(where):
        return ["--precision bf16: this processor has no bfloat16 arithmetic and emulates it; fp32 is much faster"]
    return []


def check_compiler(where: torch.device) -> None:
    """See that `--compile` finds what it needs.

    Raises:
        UserError: there is no C++ compiler, or on a GPU no Triton.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(shlex.split(compiler)[-1]) is None:
        raise UserError(
            f"--compile needs a C++ compiler, and there is no {compiler}; install one, or leave --compile out"
        )
    if where.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("--compile needs Triton on a GPU; pip install triton, or leave --compile out")


def copies_in_background(where: torch.device) -> bool:
    """Whether pinned memory lets a copy to the device go on beside its work."""
    return where.type == "cuda"


def send(values: Tensor, where: torch.device) -> Tensor:
    """Values on the device; a copy to a GPU is not waited for."""
    return values.pin_memory().to(where, non_blocking=True) if copies_in_background(where) else values.to(where)


def fuses(groups: Sequence[Any]) -> bool | None:
    """Whether an optimiser of these parameter groups does its step in one kernel, which can also skip it."""
    kinds = {weight.device.type for group in groups for weight in group["params"]}
    return True if kinds in ({"cuda"}, {"cpu"}) else None


def defers(where: torch.device) -> bool:
    """Whether looking at a number means to wait for the device."""
    return where.type == "cuda"


def describe(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"CPU, {torch.get_num_threads()} threads"


def processor() -> str:
    """Its name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def gpu_names() -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


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
    """While entered, signals that end the run wait for the next `check()`; a second one does not wait.

    A second SIGHUP changes nothing: a closed terminal and its shell send one each. Nor does a second SIGTERM in a
    process that has a launcher: each thread of a launcher that is killed sends one.

    Args:
        agree: on the largest of the ranks' numbers, so that all stop at the same step.
        alone: this process is the only rank.
    """

    def __init__(self, agree: Callable[[int], int], alone: bool = True) -> None:
        self._agree = agree
        self._alone = alone
        self._received: int | None = None
        self._fetching = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._note) for number in heeded_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: object) -> None:
        if self._received is not None:
            if number == signal.SIGHUP or (number == signal.SIGTERM and has_launcher()):
                return
            raise Interrupted(number, midway=True)
        self._received = number
        self._leave_fetch()
        if not self._alone:
            signal.signal(signal.SIGALRM, self._give_up_fetch)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)

    def _leave_fetch(self) -> None:
        if self._fetching and self._alone and self._received is not None:
            raise Interrupted(self._received)

    def _give_up_fetch(self, number: int, frame: object) -> None:
        # One of several ranks cannot save the state, which the others may have left behind.
        if self._fetching and self._received is not None:
            raise Interrupted(self._received, midway=True)

    def check(self) -> None:
        """Go on, unless a signal came.

        Raises:
            Interrupted: one did.
        """
        number = self._agree(self._received or 0)
        if number:
            raise Interrupted(number)

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with a `check()` after each.

        A batch may never come, as from a file system that hangs. No step is half done while one is fetched, so a
        signal ends the wait at once. With several ranks it does so after `PATIENCE`, as all have to stop at one step.

        Raises:
            Interrupted: a signal came.
        """
        iterator = iter(batches)
        while True:
            try:
                self._fetching = True
                self._leave_fetch()
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._fetching = False
            yield batch
            self.check()
