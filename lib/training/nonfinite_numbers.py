"""Numbers that are not finite: the step that meets one is taken back, and the run ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lib.errors import RunStopped
from lib.scoring.evaluation import HUGE

RECENT = 8  # batches whose images are told after a fault
LAG = 32  # steps after which a fault is noticed at the latest
GRADIENT = "the gradient"
WEIGHTS = "a weight"
BUFFERS = "a buffer"
MOMENTS = "the optimizer's state"
CONSEQUENCES = (GRADIENT, WEIGHTS, BUFFERS, MOMENTS)
LIMITS = {WEIGHTS: HUGE, BUFFERS: torch.inf, MOMENTS: torch.inf}

Flat = dict[torch.dtype, Tensor]  # of several tensors, the (n,) values of each data type


class Fault(RunStopped):
    """A step met a number that is not finite, or a huge weight; weights, buffers and optimiser are as before that step.

    Args:
        part: what is not finite.
        place: what `Guard.keep` was given for that step.
        recent: positions of the images of the last batches, the faulty one last.
    """

    def __init__(self, part: str, place: Any, recent: Sequence[Tensor]) -> None:
        super().__init__(f"{part} is not finite" + (f" or larger than {HUGE:,}" if part == WEIGHTS else ""))
        self.place = place
        self.recent = recent


@dataclass(frozen=True)
class _Before:
    """What there was before a step, without the values of tensors on the device.

    Everything is kept by reference or by a shallow copy, which costs the host little and the device nothing. So what
    `get_extra_state` of a module gives must not change afterwards.
    """

    place: Any
    extra: list[tuple[nn.Module, Any]]  # of the modules that save more than tensors
    buffers: list[tuple[nn.Module, str, Tensor]]  # a forward pass may replace a buffer
    moments: dict[Tensor, dict[str, Any]]  # the optimiser's state of each weight
    groups: list[dict[str, Any]]

    def restore(self, optimizer: Optimizer) -> None:
        for module, state in self.extra:
            module.set_extra_state(state)
        for module, name, value in self.buffers:
            setattr(module, name, value)
        optimizer.state.clear()
        optimizer.state.update(self.moments)
        for group, values in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(values)


@dataclass(frozen=True)
class _Step:
    """A step that was taken, and what of it is not finite."""

    before: _Before
    index: Tensor
    names: tuple[str, ...]
    faults: Tensor  # (names,) on the device


class Guard:
    """Takes the optimiser's step, and takes it back if the loss, a gradient or the outcome is not finite.

    Args:
        optimizer: whose steps are guarded.
        defers: looking at a number means to wait for the device. Then the device takes a faulty step back by itself,
            and all steps after it, until `check()` looks; otherwise the step raises at once.
    """

    def __init__(self, optimizer: Optimizer, defers: bool) -> None:
        self._optimizer = optimizer
        self._defers = defers
        self._device = optimizer.param_groups[0]["params"][0].device
        self._before: _Before | None = None
        self._tensors: dict[str, list[Tensor]] = {}
        self._values: dict[str, Flat] = {}  # of these tensors before the step
        self._memory: dict[tuple[str, str], Flat] = {}  # of the values before and after a step
        self._steps: list[_Step] = []  # since the last look
        self._limits = torch.empty(0)  # of what `_broken` looks at
        self._recent: list[Tensor] = []  # images of the batches before them
        self.faulty = torch.zeros((), dtype=torch.bool, device=self._device)
        """Whether any step so far was faulty; on the device."""

    @torch.no_grad()
    def keep(self, module: nn.Module, place: Any = None) -> None:
        """Before anything of a step moves: remember what it is taken back to if it is faulty.

        Args:
            module: whose weights and buffers are guarded.
            place: what the caller wants back with a fault of this step.
        """
        modules = list(module.modules())
        groups = self._optimizer.param_groups
        self._before = _Before(
            place,
            [(part, part.get_extra_state()) for part in modules if _has_extra_state(part)],
            [(part, name, value) for part in modules for name, value in part.named_buffers(recurse=False)],
            {weight: self._copied(state) for weight, state in self._optimizer.state.items()},
            [{name: value for name, value in group.items() if name != "params"} for group in groups],
        )
        held = [value for state in self._before.moments.values() for value in state.values()]
        self._tensors = {
            WEIGHTS: list(module.parameters()),
            BUFFERS: [value for _, _, value in self._before.buffers],
            MOMENTS: [value for value in held if torch.is_tensor(value) and value.device == self._device],
        }
        self._values = self._flat("before")

    def _flat(self, moment: str) -> dict[str, Flat]:
        """The values of the tensors, before or after the step; few operations, however many tensors.

        They go into the same memory in each step: new memory is slow to come by on a CPU.
        """
        flat = {}
        for name, tensors in self._tensors.items():
            memory = self._memory.setdefault((name, moment), {})
            flat[name] = {kind: _joined(tensors, kind, memory) for kind in dict.fromkeys(t.dtype for t in tensors)}
        return flat

    def _copied(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The same tensors, but for those that are not on the device, such as a count of steps: copies."""
        return {
            name: value.clone() if torch.is_tensor(value) and value.device != self._device else value
            for name, value in state.items()
        }

    @torch.no_grad()
    def step(self, parts: Mapping[str, Tensor], index: Tensor) -> None:
        """Step, after the backward pass of `parts["loss"]`.

        Args:
            parts: the loss and its parts.
            index: positions of the batch's images.

        Raises:
            Fault: something is not finite, and it was time to look.
        """
        assert self._before is not None, "keep() comes first"
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        self._optimizer.step()
        after = self._flat("after")
        single = {**parts, GRADIENT: norm}
        names, broken = self._broken(after)
        faults = torch.cat([~torch.stack(list(single.values())).isfinite(), broken])
        self._steps.append(_Step(self._before, index, (*single, *names), faults))
        self.faulty = self.faulty | self._steps[-1].faults.any()
        if self._defers or self.faulty:
            for name, values in after.items():
                _put(self._tensors[name], self._values[name], values, self.faulty)
        self._before = None
        self._values = {}
        if not self._defers or len(self._steps) == LAG:
            self.check()

    def _broken(self, after: Mapping[str, Flat]) -> tuple[list[str], Tensor]:
        """Of which tensors all numbers were below their limit and no longer are, a mask being perhaps infinite all along.

        Returns:
            n names, some of them perhaps twice, and (n,) on the device.
        """
        found = [
            (name, self._values[name][kind], values)
            for name, flat in after.items()
            for kind, values in flat.items()
            if kind.is_floating_point and len(values)
        ]
        names = [name for name, _, _ in found]
        # The largest and the smallest number tell of all, NaN too, ten times as fast as to look at each.
        extremes = [number for _, *both in found for values in both for number in values.aminmax()]
        if self._limits.shape != (len(names), 1, 1):
            self._limits = torch.tensor([LIMITS[name] for name in names], device=self._device).view(-1, 1, 1)
        below = (torch.stack(extremes).view(-1, 2, 2).abs() < self._limits).all(dim=2)
        return names, below[:, 0] & ~below[:, 1]

    def check(self) -> None:
        """See that all steps so far were finite; waits for the device.

        Raises:
            Fault: one was not, and everything is as before it.
        """
        if not self._steps:
            return
        steps = self._steps
        self._steps = []
        found = torch.stack([step.faults.any() for step in steps]).tolist()
        count = found.index(True) + 1 if True in found else len(steps)
        self._recent = [*self._recent, *(step.index for step in steps[:count])][-RECENT:]
        if True in found:
            first = steps[count - 1]
            first.before.restore(self._optimizer)
            broken = [name for name, fault in zip(first.names, first.faults.tolist(), strict=True) if fault]
            # The parts say more than their sum, the sum more than its gradient, and that more than what follows.
            part = min(broken, key=lambda name: (name in CONSEQUENCES, name.endswith("loss")))
            raise Fault(part, first.before.place, self._recent)


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _joined(tensors: Sequence[Tensor], kind: torch.dtype, memory: Flat) -> Tensor:
    """(n,) values of those of a data type, one tensor after the other, in the memory that is there if its size fits."""
    parts = [tensor.flatten() for tensor in tensors if tensor.dtype == kind]
    size = sum(map(len, parts))
    if kind not in memory or len(memory[kind]) != size:
        memory[kind] = torch.empty(size, dtype=kind, device=parts[0].device)
    return torch.cat(parts, out=memory[kind])


def _put(tensors: Sequence[Tensor], before: Flat, after: Flat, back: Tensor) -> None:
    """Give the tensors their values of before where `back` holds, and else those of after."""
    for kind, values in after.items():
        own = [tensor for tensor in tensors if tensor.dtype == kind]
        parts = torch.split(torch.where(back, before[kind], values), [tensor.numel() for tensor in own])
        torch._foreach_copy_(own, [part.view(tensor.shape) for part, tensor in zip(parts, own, strict=True)])
