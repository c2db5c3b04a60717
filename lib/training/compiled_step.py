"""A step's forward pass, views included, as one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.contracts import Method
from lib.methods.batches import made
from lib.transforms.batched_views import DrawnViews

COMPILERS = ("torch._dynamo", "torch._inductor")  # whose errors say that something cannot be compiled
KINDS = 256  # of batches, such as PICA's heads, each of which is compiled once


class CompiledStep:
    """Calls a method; compiled where the batch is full, and as it is otherwise.

    Args:
        method: one whose forward pass cannot be compiled as a whole has its network compiled.
        batch_size: images of a full batch.
        device: of the method; on a GPU the function is replayed as a CUDA graph.
        warn: told why, where the method cannot be compiled.
    """

    def __init__(self, method: Method, batch_size: int, device: torch.device, warn: Callable[[str], object]) -> None:
        self._method = method
        self._batch_size = batch_size
        self._warn = warn
        self._replays = device.type == "cuda"
        self._is_whole = True
        mode = "reduce-overhead" if self._replays else "default"
        self._compiled = torch.compile(_forward, fullgraph=True, dynamic=False, mode=mode)

    def describe(self) -> str:
        replayed = ", replayed as a CUDA graph" if self._replays else ""
        return (
            f"views, network and loss compiled as one function{replayed}; a batch that is not full, or waits in a bank, "
            "takes the same step uncompiled"
        )

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        is_full = len(batch.index) == self._batch_size and not batch.left_out
        if not self._is_whole or not is_full or not self._method.compiles(batch):
            return _forward(self._method, batch)
        views = getattr(batch, "views", None)
        if isinstance(views, DrawnViews) and not views.is_static:
            batch = made(batch)
        if self._replays:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            with torch._dynamo.config.patch(recompile_limit=KINDS):
                return self._compiled(self._method, batch)
        except Exception as error:
            if not type(error).__module__.startswith(COMPILERS):
                raise
            self._is_whole = False
            why = str(error).strip().partition("\n")[0].rstrip(".")
            self._warn(f"--compile: the step cannot be compiled as a whole ({why}); only its network is compiled")
            self._method.network.compile()
            return _forward(self._method, batch)


def _forward(method: Method, batch: Any) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = method(made(batch))
    return parts
