"""BatchNorm's statistics, re-estimated for a score and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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


def _norms(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
