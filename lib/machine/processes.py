"""Several processes that train as one: which they are, what each does of a batch, and what they exchange.

The batch of all processes (ranks) is the unit. Each computes the network on its part of it; `gather` puts
the parts together in rank order, and every rank computes the same loss of the whole. In one process
nothing here does anything.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lib.errors import ENDS_WITH_PARENT, Echo, RunStopped, UserError, warn
from lib.machine import devices
from lib.machine.devices import DeviceSettings

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)  # with ranks that are still to start
WORK = timedelta(minutes=30)  # with a rank that scores or reads pictures while the others wait
POLL = 0.02  # s
SILENCE = 5.0  # s, after which a rank says that it waits for the others to start
ALONE = "unset WORLD_SIZE and RANK to run alone, or start all ranks, such as by torchrun"
START = "start"  # of the ranks: the name under which they leave each other words
LOST = ("gloo", "nccl", "NCCL", "Connection closed by peer", "Connection reset by peer")


def started() -> bool:
    """Whether a launcher such as torchrun started this process, as one of several.

    Raises:
        UserError: the launcher's variables contradict each other, or one is missing.
    """
    world = devices.environment_number("WORLD_SIZE", low=1) or 1
    local_world = devices.environment_number("LOCAL_WORLD_SIZE", low=1, high=world) or world
    for name, size in (("RANK", world), ("LOCAL_RANK", local_world)):
        number = devices.environment_number(name)
        if number is not None and number >= size:
            raise UserError(f"the environment variable {name} is {number}, and there are {size} processes; {ALONE}")
    if world == 1:
        return False
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name, "").strip()]
    if missing:
        raise UserError(f"the environment has WORLD_SIZE {world}, and no {', '.join(missing)}; {ALONE}")
    devices.environment_number("MASTER_PORT", low=1, high=65535)
    return True


@contextmanager
def joined(settings: DeviceSettings) -> Iterator[None]:
    """The ranks find each other; of those that fail, the first alone says why.

    Raises:
        UserError: this rank has no device.
        RunStopped: the others are not found, or one is gone.
        Echo: another rank has failed before this one.
    """
    if not started():
        yield
        return
    where = devices.device(settings)
    try:
        store, own, size = _met()
        store.set_timeout(WORK)
        dist.init_process_group(devices.collectives(where), store=store, rank=own, world_size=size, timeout=WORK)
    except dist.DistError as error:  # such as a wrong MASTER_ADDR
        why = str(error).splitlines()[0].rstrip(".")
        raise RunStopped(
            f"rank {os.environ['RANK']} did not find the others: {why}; start all again, with --resume auto, or unset "
            "WORLD_SIZE and RANK to run alone"
        ) from error
    try:
        yield
    except BaseException as error:
        lost = type(error) is RuntimeError and any(word in str(error) for word in LOST)
        if not _speaks(store, str(own)):
            raise Echo(error) from None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, once it has said why
        if lost or isinstance(error, dist.DistError):
            raise RunStopped(f"rank {own} lost another rank; --resume auto goes on from the last checkpoint") from error
        raise
    _leave()


def _leave() -> None:
    """End the group.

    An exchange that is still referred to, such as by a cycle of objects, keeps a thread of gloo; one that outlives the
    group aborts the process when the interpreter ends.
    """
    gc.collect()
    dist.destroy_process_group()


def _met() -> tuple[Store, int, int]:
    """What the ranks leave each other, this rank and their number, once all have started."""

    def meet() -> tuple[Store, int, int]:
        found, own, size = next(rendezvous("env://", timeout=PATIENCE))
        return _of_this_start(found, own, size), own, size

    # Beside this thread, which heeds signals meanwhile.
    with ThreadPoolExecutor(1) as pool:
        meeting = pool.submit(meet)
        wait([meeting], timeout=SILENCE)
        if not meeting.done() and ENDS_WITH_PARENT not in os.environ:  # our own launcher starts all ranks, or none
            place = f"{os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}"
            minutes = f"{PATIENCE.total_seconds() / 60:g} minutes"
            warn(f"rank {os.environ['RANK']} waits up to {minutes} for the others, at {place}; {ALONE}")
        return meeting.result()


def _of_this_start(store: Store, own: int, size: int) -> Store:
    """What the ranks leave each other, apart from what earlier ones have left.

    torchrun starts ranks again with the same store, in which addresses of the dead would be found (PyTorch's
    issue 135712). Its own count of starts may differ between machines, so rank 0 names this one, as an answer
    to a word that each rank makes up.
    """
    if own:
        word = uuid4().hex
        store.set(f"asks/{own}", word)
        name = store.get(word).decode()  # waits for it
        store.set(f"{name}/{own}", "heard")
    else:
        name = uuid4().hex
        store.set(START, name)
        silent = set(range(1, size))
        end = time.monotonic() + PATIENCE.total_seconds()
        while silent:
            if time.monotonic() > end:
                raise dist.DistStoreError(f"no word of {sorted(silent)} in {PATIENCE}")
            for other in silent:
                store.set(store.get(f"asks/{other}").decode(), name)  # the word may be of a dead rank still
            silent = {other for other in silent if not store.check([f"{name}/{other}"])}
            time.sleep(POLL)
    return PrefixStore(name, store)


def none_spoke(store: Store) -> bool:
    """For the launcher, whose ranks have ended: whether none of them said why, so that it has to."""
    return not store.check([START]) or _speaks(PrefixStore(store.get(START).decode(), store), "launcher")


def _speaks(store: Store, own: str) -> bool:
    """Whether no other rank has failed before."""
    try:
        return bool(store.compare_set("failed", "", own) == own.encode())
    except RuntimeError:  # its holder is gone
        return True


def world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this is the rank that writes."""
    return rank() == 0


def share(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """This rank's part of a batch: as many as the others' or one less, and perhaps none."""
    size = len(index)
    return index[rank() * size // world() : (rank() + 1) * size // world()]


def check_parts(size: int, synchronised: bool) -> None:
    """See that each rank's part of a batch is one for its BatchNorm.

    Args:
        size: pictures of the smallest batch.
        synchronised: BatchNorm's batch is the whole one.

    Raises:
        UserError: some rank would have less than two pictures.
    """
    if world() > 1 and not synchronised and size < 2 * world():
        raise UserError(
            f"--sync-batchnorm false: a batch of {size} pictures leaves some of {world()} processes fewer than the two "
            "that a BatchNorm of its own needs; leave it true, or take another --batch-size"
        )


def largest_share(size: int) -> int:
    """How many of a batch of `size` pictures a rank has at most."""
    return -(-size // world())


def exchange(index: Tensor, room: int, number: int = 0) -> tuple[Tensor, tuple[int, ...], int]:
    """What the ranks have of a batch, in one collective.

    Args:
        index: (n,) this rank's positions, on the CPU.
        room: a bound of n, the same on all ranks.
        number: what else the ranks tell each other.

    Returns:
        (N,) all ranks' positions, in rank order; the n of each rank; the largest number.
    """
    if world() == 1:
        return index, (len(index),), number
    row = torch.zeros(2 + room, dtype=torch.int64)
    row[:2] = torch.tensor([number, len(index)])
    row[2 : 2 + len(index)] = index
    rows = [torch.empty_like(row) for _ in range(world())]
    dist.all_gather(rows, row)
    counts = tuple(int(row[1]) for row in rows)
    whole = torch.cat([row[2 : 2 + count] for row, count in zip(rows, counts, strict=True)])
    return whole, counts, max(int(row[0]) for row in rows)


def gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """All ranks' rows, in rank order; gradients pass.

    The backward pass sums over the ranks. Each has the whole loss, and `lib.training.averaged_gradients` takes
    the mean of their gradients, so what the weights get is the gradient of one process.

    Args:
        rows: (n, …) this rank's.
        counts: the n of each rank.

    Returns:
        (N, …)
    """
    return rows if world() == 1 else _Gather.apply(rows, tuple(counts))


def gather_views(views: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """`gather` of several views of the same images at once: V of (n, …) → V of (N, …)."""
    return list(views) if world() == 1 else list(gather_stacked(torch.stack(list(views)), counts))


def gather_stacked(views: Tensor, counts: Sequence[int]) -> Tensor:
    """The same of views in one tensor: (V, n, …) → (V, N, …)."""
    return views if world() == 1 else gather(views.transpose(0, 1), counts).transpose(0, 1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        # Back ends want equal shapes: shorter parts are filled up, and cut again.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None


def largest(number: int) -> int:
    """Of all ranks' numbers."""
    if world() == 1:
        return number
    held = torch.tensor([number])
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def merged(entries: dict[int, str]) -> dict[int, str]:
    """All ranks' entries."""
    if world() == 1:
        return entries
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, entries)
    return {key: value for part in parts for key, value in part.items()}


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank; the others wait for it. Its UserError is every rank's."""
    if world() == 1:
        return make()
    box: list[Any] = [None]
    if leads():
        try:
            box = [(make(), None)]
        except UserError as error:
            box = [(None, error)]
    dist.broadcast_object_list(box, device=devices.CPU)
    made, mistake = box[0]
    if mistake is not None:
        raise mistake
    return made  # type: ignore[no-any-return]


@contextmanager
def one_first() -> Iterator[None]:
    """One rank of each machine alone, then its others: for what writes files that all read."""
    first = devices.local_rank() == 0
    if world() > 1 and not first:
        largest(0)
    yield
    if world() > 1 and first:
        largest(0)


@torch.no_grad()
def follow_first(tensors: Iterable[Tensor]) -> None:
    """Give the tensors the values of rank 0, such as buffers: without synchronised BatchNorm each rank has its own."""
    if world() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in alike])
        dist.broadcast(flat, 0)
        put_back(flat, alike)


def put_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Give the tensors the values of `flat`, one after the other."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(own.shape) for part, own in zip(parts, tensors, strict=True)])
