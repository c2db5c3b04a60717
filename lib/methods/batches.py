"""What a `Source` yields: batches of which each process prepares the views of its share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lib.contracts import Request, Views
from lib.machine import interrupts, processes
from lib.transforms.batched_views import DrawnViews


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What every batch knows, beside its `index`: (N,) positions of the pictures of all processes, on the CPU."""

    counts: tuple[int, ...] = ()  # of these, how many each process has the views of, in this order
    left_out: int = 0  # pictures that could not be read


@dataclass(frozen=True)
class ViewBatch(Shares):
    """N pictures; the views are of this process's n of them."""

    index: Tensor  # (N,) positions among the run's pictures
    views: Sequence[Tensor]  # for each recipe (n, C, H, W), or (n, D) features of a frozen backbone


def made(batch: Any) -> Any:
    """The batch with its views as tensors, where they were only drawn so far."""
    views = getattr(batch, "views", None)
    return replace(batch, views=views.make()) if isinstance(views, DrawnViews) else batch


def stream(views: Views, requests: Iterable[Request]) -> Iterator[ViewBatch]:
    """What becomes of each request, of which every process prepares the views of its share alone.

    Raises:
        UserError: as `Views.stream`.
    """
    sizes: deque[int] = deque()  # of the batches on their way; views may take requests in a thread of their own

    def own() -> Iterator[Request]:
        for request in requests:
            sizes.append(len(request.index))
            yield replace(request, index=torch.from_numpy(processes.share(request.index.numpy())))

    for prepared in views.stream(own()):
        size = sizes.popleft()
        index, counts = interrupts.exchange(prepared.index, size)
        yield ViewBatch(index, prepared.views, counts=counts, left_out=size - len(index))
