"""Running means of an epoch."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Means:
    """Running means of the parts of the loss, kept on the device: reading them is what waits."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self._pictures = 0
        self._seconds = 0.0

    def add(self, parts: dict[str, Tensor], pictures: int, seconds: float) -> None:
        for name, value in parts.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value.detach().double(), count + 1)
        self._pictures += pictures
        self._seconds += seconds

    def copy(self) -> Means:
        """The means so far."""
        other = Means()
        other._sums = dict(self._sums)
        other._pictures = self._pictures
        other._seconds = self._seconds
        return other

    def wait(self, seconds: float) -> None:
        """Count time in which the device caught up with its work."""
        self._seconds += seconds

    def values(self) -> dict[str, float]:
        """Waits for the device."""
        return {name: float(total) / count for name, (total, count) in self._sums.items()}

    def seconds(self) -> float:
        """Time of the steps."""
        return self._seconds

    def rate(self) -> float:
        """Pictures per second."""
        return self._pictures / max(self._seconds, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        sums = {name: [float(total), count] for name, (total, count) in self._sums.items()}
        return {"sums": sums, "pictures": self._pictures, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {str(name): (float(total), int(count)) for name, (total, count) in state["sums"].items()}
        self._pictures = int(state["pictures"])
        self._seconds = float(state["seconds"])
