"""Gradients that several processes average while the backward pass still runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lib.contracts import Method
from lib.machine import processes
from lib.networks import batchnorm

BUCKET = 25_000_000  # bytes of gradients, at least, of each collective but the last


@dataclass
class _Bucket:
    """Weights whose gradients go together."""

    weights: list[nn.Parameter]
    missing: int  # of these, how many have no gradient yet


@dataclass(frozen=True)
class _Sum:
    """Gradients on their way."""

    weights: list[nn.Parameter]
    flat: Tensor  # their gradients, one after the other
    work: dist.Work


class AveragedGradients:
    """Calls a method; in the backward pass each of its weights gets the mean of all processes' gradients.

    A weight without a gradient keeps none. All processes compute the same loss, so it is the same weights on each. In
    one process nothing is done.

    The weights are put together in buckets, from the last to the first, as the backward pass meets them. Every process
    sends the buckets in this order. A bucket waits for each of its weights but those of `Method.idle_parameters`, and
    for the bucket before it. Where a gradient is missing that was waited for, what is left is sent when the pass ends.

    Args:
        method: its weights and buffers become those of rank 0.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._weights = [weight for weight in reversed(list(method.parameters())) if weight.requires_grad]
        self._broadcasts = not batchnorm.is_synchronised(method.network)
        self._buckets: deque[_Bucket] = deque()  # to be sent, in this order
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._arrived: set[nn.Parameter] = set()  # with a gradient that is not yet sent
        self._sums: list[_Sum] = []
        self._waits = False  # for a backward pass
        if processes.world() > 1:
            processes.follow_first([*method.parameters(), *method.buffers()])
            for weight in self._weights:
                weight.register_post_accumulate_grad_hook(self._arrive)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any) -> dict[str, Any]:
        """The method's loss and its parts; the next backward pass is taken for that of this loss."""
        if processes.world() > 1:
            if self._broadcasts:
                processes.follow_first(self._method.buffers())
            self._prepare(batch)
        parts: dict[str, Any] = self._method(batch)
        return parts

    def _prepare(self, batch: Any) -> None:
        idle = set(self._method.idle_parameters(batch))
        trained = [weight for weight in self._weights if weight.requires_grad and weight not in idle]
        self._buckets = deque(_Bucket(weights, len(weights)) for weights in _in_buckets(trained))
        self._bucket_of = {weight: bucket for bucket in self._buckets for weight in bucket.weights}
        self._arrived = set()
        self._sums = []
        self._waits = True

    def _arrive(self, weight: nn.Parameter) -> None:
        if not self._waits:
            return
        if not self._arrived and not self._sums:
            # The engine calls it when the pass is through.
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._arrived.add(weight)
        bucket = self._bucket_of.get(weight)
        if bucket is not None:
            bucket.missing -= 1
        while self._buckets and not self._buckets[0].missing:
            self._send(self._buckets.popleft().weights)

    @torch.no_grad()
    def _send(self, weights: list[nn.Parameter]) -> None:
        flat = torch.cat([_gradient(weight).flatten() for weight in weights]).div_(processes.world())
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sums.append(_Sum(weights, flat, work))
        self._arrived.difference_update(weights)

    @torch.no_grad()
    def _finish(self) -> None:
        for weights in _in_buckets(weight for weight in self._weights if weight in self._arrived):
            self._send(weights)
        for total in self._sums:
            total.work.wait()
            processes.put_back(total.flat, [_gradient(weight) for weight in total.weights])
        self._buckets = deque()
        self._bucket_of = {}
        self._sums = []
        self._waits = False


def _in_buckets(weights: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The weights in their order, those of one data type together until they make a bucket."""
    bucket: list[nn.Parameter] = []
    size = 0
    for weight in weights:
        if bucket and (size >= BUCKET or weight.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
            size = 0
        bucket.append(weight)
        size += weight.numel() * weight.element_size()
    if bucket:
        yield bucket


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad
