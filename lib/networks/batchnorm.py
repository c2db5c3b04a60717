"""BatchNorm's statistics: of each view, over all processes; and re-estimated for a score, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lib.machine import devices, processes
from lib.networks import freezing

BATCHES = 50  # at most, from which the statistics are estimated
EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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


class ViewBatchNorm(_BatchNorm):
    """BatchNorm in which each view of the images is a batch by itself, of one process or of all.

    PyTorch's own layers become it (`adapt`), and are equal to it as long as `sizes` is empty.
    """

    sizes: tuple[int, ...] = ()
    """Images of each view in the input, in the views' order; empty: it is one view."""

    synchronised: bool = False
    """Whether a view's batch is that of all ranks, some of which may have no image of it."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """
        Raises:
            ValueError: a view has a single value per channel.
        """
        normalise = super().forward
        if not self.training:
            return normalise(input)
        if self.synchronised:
            return self._over_ranks(input, self.sizes or (len(input),))
        if len(self.sizes) < 2:
            return normalise(input)
        views = torch.split(input, list(self.sizes))
        if self.momentum is None or self.num_batches_tracked is None:
            return torch.cat([normalise(view) for view in views])
        self.num_batches_tracked.add_(len(views))
        settings = (self.weight, self.bias, self.running_mean, self.running_var, True, self.momentum, self.eps)
        return torch.cat([torch.native_batch_norm(view, *settings)[0] for view in views])

    def _over_ranks(self, input: Tensor, sizes: Sequence[int]) -> Tensor:
        axes = [0, *range(2, input.dim())]
        values = input if input.dtype == torch.float64 else input.float()
        rows = []
        for view in torch.split(values, list(sizes)):
            count = view.numel() // self.num_features
            # The sum of nothing is zero, and stays in the graph: the backward pass meets the other ranks too.
            own = torch.var_mean(view, axes, correction=0) if count else (view.sum(axes), view.sum(axes))
            rows.append(torch.cat([*own, values.new_full((1,), count)]))
        every = processes.gather(torch.stack(rows)[None], (1,) * processes.world())  # (ranks, V, 2C + 1)
        variances, means, counts = torch.split(every, [self.num_features, self.num_features, 1], dim=2)
        totals = counts.detach().sum(dim=0)
        if not devices.defers(input.device) and (totals <= 1).any():  # a GPU is not waited for: NaN ends the run
            raise ValueError("a single value per channel has no variance")
        shares = counts.detach() / totals
        mean = (shares * means).sum(dim=0)  # (V, C)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        for statistics in zip(mean.detach(), variance.detach() * totals / (totals - 1), strict=True):
            self._follow(*statistics)
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        shift = (0 if self.bias is None else self.bias) - mean * scale
        return torch.addcmul(_of_images(shift, sizes, values), values, _of_images(scale, sizes, values)).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


def _of_images(views: Tensor, sizes: Sequence[int], images: Tensor) -> Tensor:
    """(V, C) of the views → (N, C, 1, …) of their images."""
    rows = [view.expand(count, -1) for view, count in zip(views, sizes, strict=True)]
    return torch.cat(rows).view([len(images), images.shape[1]] + [1] * (images.dim() - 2))


def adapt(module: nn.Module, synchronised: bool = False) -> None:
    """Make each of PyTorch's BatchNorm layers a `ViewBatchNorm`; weights and their names stay.

    Args:
        module: its parts are changed in place.
        synchronised: a view's batch is that of all ranks.
    """
    for part in module.modules():
        if type(part) in EXACT:
            part.__class__ = ViewBatchNorm
        if isinstance(part, ViewBatchNorm):
            part.synchronised = synchronised


def is_synchronised(module: nn.Module) -> bool:
    """Whether all that it has of buffers is the same on each rank, being statistics of all ranks."""
    parts = (part for part in module.modules() if list(part.buffers(recurse=False)))
    return all(isinstance(part, ViewBatchNorm) and part.synchronised for part in parts)


def mixes_views(module: nn.Module) -> str:
    """The part of it, if any, for which views in one pass would not be as views in turn.

    A random draw of a dropout would be another; a BatchNorm of another kind would make one batch of the views.
    """
    for part in module.modules():
        draws = isinstance(part, _DropoutNd) and part.p > 0
        if draws or type(part).__name__ in ("DropPath", "StochasticDepth", "RReLU"):
            return type(part).__name__
        if isinstance(part, _BatchNorm) and not isinstance(part, ViewBatchNorm):
            return type(part).__name__
    return ""


@contextmanager
def of_views(module: nn.Module, sizes: Sequence[int]) -> Iterator[None]:
    """Within the block, an input is several views: so many images of each, one view after the other."""
    norms = [part for part in module.modules() if isinstance(part, ViewBatchNorm)]
    for part in norms:
        part.sizes = tuple(sizes)
    try:
        yield
    finally:
        for part in norms:
            part.sizes = ()
