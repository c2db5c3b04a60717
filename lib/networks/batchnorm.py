"""BatchNorm's statistics: of all processes' pictures; and re-estimated for a score, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.machine import devices, processes
from lib.networks import freezing

BATCHES = 50  # at most, from which the statistics are estimated


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Every buffer, and the momentum of every BatchNorm, is put back when the block ends."""
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    momenta = [(part, part.momentum) for part in _norms(module)]
    try:
        yield
    finally:
        for name, value in module.named_buffers():
            value.copy_(buffers[name])
        for part, momentum in momenta:
            part.momentum = momentum


def reestimate(module: nn.Module, predict: Iterable[Tensor], afresh: bool) -> None:
    """Run batches through BatchNorm in training mode, so that its running statistics follow them.

    Args:
        module: whose parts are otherwise in evaluation mode, and stay so.
        predict: yields once for each batch that went through the module.
        afresh: forget the trained statistics, and take the plain average over the batches; otherwise go
            on from them with the momentum that they were trained with.
    """
    norms = _norms(module)
    for part in norms:
        part.train()
        if afresh:
            part.reset_running_stats()
            part.momentum = None  # a cumulative average
    for _ in predict:
        pass
    for part in norms:
        part.train(False)


def finite(module: nn.Module) -> bool:
    """Whether every running statistic is a finite number."""
    norms = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return all(bool(value.isfinite().all()) for part in norms for value in part.buffers(recurse=False))


def _norms(module: nn.Module) -> list[_BatchNorm]:
    """Those whose statistics follow the pictures."""
    held = {part for frozen in freezing.held(module) for part in frozen.modules()}
    every = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return [part for part in every if part.track_running_stats and part not in held]


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the pictures of all ranks, some of which may have none; PyTorch's own refuses CPU tensors.

    Raises:
        ValueError: in all there is a single value per channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        values = input if input.dtype == torch.float64 else input.float()
        count = values.numel() // self.num_features
        # The sum of nothing is zero, and stays in the graph: the backward pass meets the other ranks too.
        own = torch.var_mean(values, axes, correction=0) if count else (values.sum(axes), values.sum(axes))
        row = torch.cat([*own, values.new_tensor([count])])
        every = processes.gather(row[None], (1,) * processes.world())
        variances, means, counts = torch.split(every, [self.num_features, self.num_features, 1], dim=1)
        total = counts.detach().sum()
        if total <= 1:
            raise ValueError("a single value per channel has no variance")
        shares = counts.detach() / total
        mean = (shares * means).sum(dim=0)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        self._follow(mean.detach(), variance.detach() * total / (total - 1))
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        shift = (0 if self.bias is None else self.bias) - mean * scale
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


def synchronise(network: nn.Module, where: torch.device) -> nn.Module:
    """The network with BatchNorms whose batch is that of all ranks; weights and their names stay."""
    if where != devices.CPU:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call, no-any-return]
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.__class__ = SyncBatchNorm
    return network
