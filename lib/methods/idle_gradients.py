"""The gradient of parts of a method that a step does not train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class IdleGradients:
    """After each backward pass: zeros for parts that had a gradient before in the run and have none in this step.

    An optimiser's momentum goes on to move a weight whose gradient is zero, and leaves one that has none. PyTorch before
    2.0 kept zeros, so the programs of the papers did.

    Args:
        parts: each is trained as a whole, or not at all.
        kind: "zeros"; or "none", which leaves them without a gradient.
    """

    def __init__(self, parts: Sequence[nn.Module], kind: str) -> None:
        self._parts = parts
        self._kind = kind
        self.trained = [False] * len(parts)  # whether each has had a gradient; part of a method's state

    def fill(self) -> None:
        """Called between the backward pass and the optimiser."""
        for number, part in enumerate(self._parts):
            if any(weight.grad is not None for weight in part.parameters()):
                self.trained[number] = True
            elif self.trained[number] and self._kind == "zeros":
                for weight in part.parameters():
                    weight.grad = torch.zeros_like(weight)
