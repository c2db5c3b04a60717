"""Optimisers by name, with the settings that the PICA authors' program gives them.

A component is an object with `build(groups, lr, weight_decay)`, which gives a `torch.optim.Optimizer`. If it declares a
`Settings` dataclass, that is the last argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from lib.config import registry
from lib.config.settings import Section, setting
from lib.machine import devices

__all__ = ["get", "names", "register"]

_registry = registry.Registry("optimizer")
register = _registry.register
get = _registry.get
names = _registry.names


@dataclass(frozen=True)
class OptimizerSettings(Section):
    title = "optimizer"
    optimizer: str = setting("sgd", "algorithm that updates the weights", component=_registry, lifetime="run")
    optim_weight_decay: float = setting(5e-4, "weight of the L2 penalty, which is added to the gradient", low=0)


@register("adam")
class Adam:
    """Adam (Kingma and Ba, 2015), with the weight decay added to the gradient; not AdamW."""

    @dataclass(frozen=True)
    class Settings(Section):
        title = "optimizer adam"
        optim_beta: tuple[float, float] = setting(
            (0.9, 0.999), "decay of the first and second moment of the gradient", low=0, high=1
        )
        optim_eps: float = setting(1e-8, "number that is added to the denominator of an update", low=0)
        optim_amsgrad: bool = setting(False, "divide by the largest second moment so far (AMSGrad)")

    @staticmethod
    def build(groups: Iterable[Any], lr: float, weight_decay: float, s: Adam.Settings) -> Optimizer:
        groups = list(groups)
        return torch.optim.Adam(
            groups, lr=lr, betas=s.optim_beta, eps=s.optim_eps, weight_decay=weight_decay, amsgrad=s.optim_amsgrad,
            fused=devices.fuses(groups),
        )  # fmt: skip


@register("sgd")
class SGD:
    """Stochastic gradient descent with momentum.

    Not fused: PyTorch's fused step fails on weights whose first gradient comes later, such as a second head's.
    """

    @dataclass(frozen=True)
    class Settings(Section):
        title = "optimizer sgd"
        optim_momentum: float = setting(0.9, "share of the last update that is added to the next one", low=0)
        optim_dampening: float = setting(0.0, "share of the gradient that is left out of the momentum", low=0)
        optim_nesterov: bool = setting(False, "use Nesterov's form of momentum")

    @staticmethod
    def build(groups: Iterable[Any], lr: float, weight_decay: float, s: SGD.Settings) -> Optimizer:
        return torch.optim.SGD(
            groups, lr=lr, momentum=s.optim_momentum, dampening=s.optim_dampening,
            weight_decay=weight_decay, nesterov=s.optim_nesterov,
        )  # fmt: skip


@register("rmsprop")
class RMSprop:
    """RMSprop: each update is divided by the root mean square of recent gradients."""

    @dataclass(frozen=True)
    class Settings(Section):
        title = "optimizer rmsprop"
        optim_alpha: float = setting(0.99, "decay of the mean of squared gradients", low=0, high=1)
        optim_eps: float = setting(1e-8, "number that is added to the denominator of an update", low=0)
        optim_momentum: float = setting(0.0, "share of the last update that is added to the next one", low=0)
        optim_centered: bool = setting(
            False, "divide by the standard deviation of the gradient instead of its root mean square"
        )

    @staticmethod
    def build(groups: Iterable[Any], lr: float, weight_decay: float, s: RMSprop.Settings) -> Optimizer:
        return torch.optim.RMSprop(
            groups, lr=lr, alpha=s.optim_alpha, eps=s.optim_eps, weight_decay=weight_decay,
            momentum=s.optim_momentum, centered=s.optim_centered,
        )  # fmt: skip
