"""Where the classifier's pictures wait until there are enough of them (IMC-SwAV on STL-10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Banked:
    """n pictures: their positions, and of each of V views what the classifier learns from."""

    index: Tensor  # (n,)
    features: Tensor  # (V, n, feature_dim)
    scores: Tensor  # (V, n, P)


class Bank(nn.Module):
    """Holds fewer than `size` pictures, plus at most one batch of them.

    It saves itself with the method's state, so that a run can stop while it is half full.

    Args:
        size: pictures that make a batch for the classifier.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._held: list[Banked] = []

    def __len__(self) -> int:
        return sum(len(part.index) for part in self._held)

    def is_filled_by(self, count: int) -> bool:
        """Whether so many more pictures make a batch for the classifier."""
        return len(self) + count >= self.size

    def add(self, part: Banked) -> Banked | None:
        """Put pictures in; once there are at least `size`, all of them come out, and the bank is empty."""
        if len(part.index):
            self._held.append(part)
        return self._take() if self.is_filled_by(0) else None

    def empty(self) -> None:
        self._held = []

    def _take(self) -> Banked:
        held = self._held
        self._held = []
        device = held[-1].features.device  # a resumed bank lies on the CPU
        return Banked(
            torch.cat([part.index for part in held]),
            torch.cat([part.features.to(device) for part in held], dim=1),
            torch.cat([part.scores.to(device) for part in held], dim=1),
        )

    def get_extra_state(self) -> list[list[Tensor]]:
        return [[part.index, part.features, part.scores] for part in self._held]

    def set_extra_state(self, state: Any) -> None:
        self._held = [Banked(*part) for part in state]
