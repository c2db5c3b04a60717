"""How many steps and evaluations a run has, as its settings say; a schedule may end it sooner."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunLength:
    """The whole of a run.

    Args:
        steps_per_epoch: of the source.
        epochs: at most.
        max_steps: at most; None: no bound.
        eval_every: epochs between two evaluations; 0: only at the end.
    """

    steps_per_epoch: int
    epochs: int
    max_steps: int | None
    eval_every: int

    @property
    def steps(self) -> int:
        """All steps."""
        whole = self.steps_per_epoch * self.epochs
        return whole if self.max_steps is None else min(whole, self.max_steps)

    @property
    def evaluations_per_epoch(self) -> float:
        return 1 / self.eval_every if self.eval_every else 0.0

    def steps_after(self, step: int) -> int:
        """Steps that are left after so many."""
        return max(0, self.steps - step)

    def evaluations_after(self, step: int) -> int:
        """Evaluations that are left after so many steps; the end has one in any case."""
        if not self.steps_after(step):
            return 0
        ends = self.eval_every * self.steps_per_epoch
        if not ends:
            return 1
        regular = self.steps // ends - step // ends
        return regular + (self.steps % ends > 0)
