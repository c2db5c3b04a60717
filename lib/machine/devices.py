"""Where a run computes: the device, its processes, cores and threads.

The only file that names a kind of device.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.errors import UserError
from lib.machine.precision import PrecisionSettings, channels_last
from lib.machine.random_seeds import SeedSettings, seed_everything, seed_of


@dataclass(frozen=True)
class DeviceSettings(Section):
    title = "device"
    lifetime = "machine"
    gpus: str = setting(
        "", "numbers of the GPUs, such as 0 or 0,1, with one process each; '' = none, so the CPU computes", value="N,N"
    )
    processes: int | None = setting(
        None,
        "processes that train one run together on this machine; none = one for each GPU, or one on a CPU",
        low=1,
        high=1024,
    )
    threads: int | None = setting(
        None,
        "threads that compute on a CPU; none = OMP_NUM_THREADS, or one for each core that may be used",
        low=1,
        high=1024,
    )
    jobs: int | None = setting(
        None,
        "runs side by side, of several seeds or numbers of clusters; none = one for each GPU, or as many "
        "as --threads fits into the cores of a CPU",
        low=1,
        high=1024,
    )
    compile: bool = setting(
        False,
        "compile views, network and loss as one function (torch.compile), on a GPU with CUDA graphs; the first steps then "
        "take minutes",
    )


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


@dataclass(frozen=True)
class Placement:
    """Where, in which arithmetic and in which layout this process computes."""

    device: torch.device
    precision: str
    channels_last: bool
    compiles: bool  # by torch.compile
    is_dry: bool  # only sizes are wanted: nothing is compiled or exported


def placement(config: Config) -> Placement:
    """What the settings ask for.

    Raises:
        UserError: no such GPU, or not one for each process of this machine.
    """
    settings = config.of(DeviceSettings)
    arithmetic = config.of(PrecisionSettings)
    where = device(settings)
    return Placement(
        where,
        arithmetic.precision,
        channels_last(where, arithmetic),
        settings.compile,
        config.of(Command).dry_run,
    )


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
    torch.backends.cudnn.benchmark = True  # a step's shapes stay, so the fastest convolutions are looked for once


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
    count = torch.get_num_threads()
    return f"CPU, {count} {'thread' if count == 1 else 'threads'}"


def processor() -> str:
    """Its name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def gpu_names() -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
