"""In which arithmetic and layout a network computes: float32, TF32 or bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lib.config.settings import Section, setting


@dataclass(frozen=True)
class PrecisionSettings(Section):
    title = "precision"
    precision: Literal["fp32", "bf16", "auto"] = setting(
        "fp32",
        "arithmetic of the network; fp32 = float32; bf16 = bfloat16, but float32 for heads, losses and "
        "statistics; auto = bf16 where the processor computes in it, else fp32",
        adaptive=True,
    )
    channels_last: bool | None = setting(
        None,
        "keep the channels of a pixel together in memory, which is faster; on a CPU BatchNorm is then "
        "exact to 3 digits only; none = on a GPU only",
    )
    tf32: bool = setting(False, "on a GPU, round the inputs of float32 convolutions and products to TF32")


def lowered(where: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of a network: nothing changes under fp32, and under bf16 the products take bfloat16.

    On the `meta` device, which has no such products, estimates count float32.
    """
    if precision == "fp32" or where.type == "meta":
        return nullcontext()
    return torch.autocast(where.type, torch.bfloat16)


def full(where: torch.device) -> AbstractContextManager[Any]:
    """Within `lowered`, float32 again."""
    return torch.autocast(where.type, enabled=False) if lowers(where) else nullcontext()


def raised(values: Tensor) -> Tensor:
    """The values in float32, if they are in bfloat16."""
    return values.float() if values.dtype == torch.bfloat16 else values


def unrounded(values: Tensor) -> Tensor:
    """The values in a type whose products are exact to float32: float64 where TF32 would round float32 ones."""
    return values.double() if rounds(values.device) else values


def rounds(where: torch.device) -> bool:
    """Whether products of float32 are rounded to TF32 there (`--tf32`)."""
    return where.type == "cuda" and torch.backends.cuda.matmul.allow_tf32


def lowers(where: torch.device) -> bool:
    """Whether `lowered` is in force there."""
    return where.type in ("cpu", "cuda") and torch.is_autocast_enabled(where.type)


def channels_last(where: torch.device, settings: PrecisionSettings) -> bool:
    """Whether a network is laid out so: as asked for, else on a GPU."""
    return where.type == "cuda" if settings.channels_last is None else settings.channels_last


def computes_in_bf16(where: torch.device) -> bool | None:
    """Whether the processor has instructions for bfloat16; without them it is emulated, many times slower.

    None where the system does not tell.
    """
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def for_scoring(settings: Mapping[str, Any], where: torch.device) -> tuple[dict[str, Any], str]:
    """A checkpoint's settings to score it on a device, and what to tell of them; empty: nothing."""
    if settings.get("precision") != "bf16" or computes_in_bf16(where) is not False:
        return dict(settings), ""
    remark = (
        "the checkpoint was trained with --precision bf16; this processor has no bfloat16 arithmetic, so the network "
        "computes in float32"
    )
    return {**settings, "precision": "fp32"}, remark


def remarks(where: torch.device, precision: str) -> list[str]:
    """What a user may not know of the choice."""
    if precision == "bf16" and computes_in_bf16(where) is False:
        return ["--precision bf16: this processor has no bfloat16 arithmetic and emulates it; fp32 is much faster"]
    return []
