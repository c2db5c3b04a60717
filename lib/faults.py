"""Numbers that are not finite: they never reach the weights, and they end the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lib.errors import RunStopped

RECENT = 8  # batches whose pictures are told after a fault


class Guard:
    """Takes the optimiser's step unless the loss or a gradient is not finite.

    Args:
        optimizer: whose steps are guarded.
        defers: a fused optimiser's step is skipped by the device itself, and a flag waits for `check()`, so
            that nothing waits for the device in between. Otherwise the step raises at once.
    """

    def __init__(self, optimizer: Optimizer, defers: bool) -> None:
        self._optimizer = optimizer
        self._deferred = defers and bool(optimizer.defaults.get("fused"))
        self._faults: dict[tuple[str, ...], Tensor] = {}  # of steps with these values: which was ever not finite
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self.recent: deque[Tensor] = deque(maxlen=RECENT)  # positions of the pictures of the last batches

    def keep(self, module: nn.Module) -> None:
        """Before the forward pass: remember the buffers, which a fault would reach by it, where the step raises."""
        if not self._deferred:
            self._buffers = [(value, value.clone()) for value in module.buffers()]

    def step(self, parts: Mapping[str, Tensor], index: Tensor) -> None:
        """Step, after the backward pass of `parts["loss"]`.

        Args:
            parts: the loss and its parts.
            index: positions of the batch's pictures.

        Raises:
            RunStopped: something is not finite, and nothing is deferred.
        """
        self.recent.append(index)
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        values = {**parts, "the gradient": norm}
        faults = torch.stack([~value.detach().isfinite() for value in values.values()])
        before = self._faults.get(tuple(values))  # some parts appear now and then
        self._faults[tuple(values)] = faults if before is None else before | faults
        if self._deferred:
            held: Any = self._optimizer
            held.found_inf = faults.any().float()
        else:
            self.check()
        self._optimizer.step()

    def check(self) -> None:
        """Raises RunStopped if anything was not finite since the run began; waits for the device."""
        broken = [name for names, faults in self._faults.items()
                  for name, fault in zip(names, faults.tolist(), strict=True) if fault]  # fmt: skip
        if broken:
            # The parts say more than their sum, and the sum more than its gradient.
            first = min(broken, key=lambda name: (name == "the gradient", name.endswith("loss")))
            for value, before in self._buffers:
                value.copy_(before)
            raise RunStopped(f"{first} is not finite")
