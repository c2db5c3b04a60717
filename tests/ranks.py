"""What several ranks compute, for comparison with one process: every rank calls each function, and returns the same."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from conftest import QUICK, resolve
from runs import IMC
from torch import Tensor, nn

import main
from imc_swav.data import Batch as IMCBatch
from imc_swav.losses import mutual_information_loss, swapped_prediction_loss
from imc_swav.method import IMCSwAV, IMCSwAVSettings
from lib.errors import Interrupted
from lib.machine import processes
from lib.networks import batchnorm
from lib.networks.convnet import ConvNet
from lib.training.averaged_gradients import AveragedGradients
from lib.training.running_means import Means
from lib.training.trainer import Trainer
from pica.data import Batch as PICABatch
from pica.losses import PUILoss
from pica.method import PICA

Values = dict[str, Tensor]
LAYOUTS = {1: [(8,)], 2: [(5, 3), (0, 8)], 4: [(2, 2, 2, 2), (3, 0, 4, 1)]}  # of 8 pictures over the ranks


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own(whole: Tensor, counts: tuple[int, ...]) -> Tensor:
    start = sum(counts[: processes.rank()])
    return whole[start : start + counts[processes.rank()]].clone()


def averaged(gradient: Tensor | None, counts: tuple[int, ...]) -> Tensor:
    """This rank's rows of a gradient, as `AveragedGradients` would average it, with the other ranks'."""
    assert gradient is not None
    return processes.gather(gradient / processes.world(), counts)


def pui(p: Tensor, q: Tensor) -> Tensor:
    return PUILoss()(p.softmax(1), q.softmax(1))


def swapped(a: Tensor, b: Tensor) -> Tensor:
    return swapped_prediction_loss([a, b], 2)


def information(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack(mutual_information_loss(a, b)).sum()


def losses(counts: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [pui, swapped, information]
    for function in functions:
        rows = own(noise(8, 2, 6), counts).requires_grad_()
        loss = function(*processes.gather_views(list(rows.unbind(1)), counts))
        loss.backward()
        yield function.__name__, loss.detach()
        yield f"{function.__name__}'s gradient", averaged(rows.grad, counts)


def norms(counts: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """A BatchNorm of maps that lie far from zero."""
    norm: Any = nn.BatchNorm2d(3).double()
    if processes.world() > 1:
        batchnorm.adapt(norm, synchronised=True)
    images = own(noise(8, 3, 2, 2) + 5, counts).requires_grad_()
    out = processes.gather(norm(images), counts)
    (out * noise(8, 3, 2, 2, seed=1)).sum().backward()
    yield from (("out", out.detach()), ("mean", norm.running_mean), ("variance", norm.running_var))
    yield "images' gradient", averaged(images.grad, counts)
    yield "weight's gradient", processes.gather(norm.weight.grad[None], (1,) * processes.world()).mean(0)


STEPS = {
    "pica": (*QUICK, "--batch-size", 61, "--data-nrepeat", 2),  # and 45 in the last
    "pica, fewer pictures than ranks": (*QUICK, "--batch-size", 3),
    "pica on a frozen network": (*QUICK, "--batch-size", 61, "--net-freeze", ".*", "--feature-views", 2),
    "imc_swav": (
        *IMC,
        "--batch-size",
        30,
        "--warmup-steps",
        0,
        "--frozen-prototype-steps",
        2,
    ),  # half of them are banked
    "imc_swav, fewer pictures than ranks": (*IMC, "--batch-size", 3, "--classifier-splits", "train+test"),
}


def steps() -> Iterator[tuple[str, Tensor]]:
    """Five steps in float64 through source and trainer: losses and weights. PICA's are the last of a head and the next."""
    for name, words in STEPS.items():
        settings = resolve(*words, "--debug", "--threads", 1)
        task = main.build(settings)
        task.method.double().train()
        trainer = Trainer(task)
        start = len(task.source) // 2 - 3 if "pica" in name else len(task.source) - 5
        for i, batch in enumerate(itertools.islice(task.source.epoch(0, start), 5)):
            trainer._means = Means()
            trainer._train_step(doubled(batch))
            yield f"{name}: loss {i}", torch.tensor(trainer._means.values()["loss"], dtype=torch.float64)
        for key, value in task.method.state_dict().items():
            if torch.is_tensor(value):
                yield f"{name}: {key}", value


def doubled(batch: Any) -> Any:
    return dataclasses.replace(batch, views=[view.double() for view in batch.views])


def labelled_on_one(counts: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """The classifier's two pictures of each batch are the first; a bank of four is full in every second step."""
    torch.manual_seed(0)
    made = IMCSwAVSettings(nmb_crops=(2,), prototypes=5, project_dim=3, classifier_dim=8)
    method = IMCSwAV(ConvNet(1, ConvNet.Settings(net_width=4)), 3, 4, made).double().train()
    if processes.world() > 1:
        batchnorm.adapt(method.network, synchronised=True)
    parallel = AveragedGradients(method)
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    for i in range(5):
        views = [own(noise(8, 1, 16, 16, seed=10 * i + v), counts) for v in range(2)]
        parts = parallel(IMCBatch(torch.arange(8), views, np.arange(8) < 2, counts=counts))
        optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        method.after_backward(i)
        optimizer.step()
        yield f"loss {i}", parts["loss"].detach()
        yield f"mi {i}", parts["mi"].detach()
    yield from ((key, value) for key, value in method.state_dict().items() if torch.is_tensor(value))


def heads_in_turn(counts: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Two heads with momentum; a part of the network is frozen in the first two steps."""
    for idle_heads in ("zeros", "none"):
        torch.manual_seed(0)
        method = PICA(ConvNet(1, ConvNet.Settings(net_width=4)), (6, 3), idle_heads=idle_heads).double().train()
        if processes.world() > 1:
            batchnorm.adapt(method.network, synchronised=True)
        parallel = AveragedGradients(method)
        optimizer = torch.optim.SGD(method.parameters(), lr=1e-2, momentum=0.9)
        first = next(method.network.parameters())
        for i, head in enumerate((0, 0, 1, 0, 1, 1)):
            first.requires_grad_(i >= 2)
            views = [own(noise(8, 1, 16, 16, seed=10 * i + v), counts) for v in range(2)]
            parts = parallel(PICABatch(torch.arange(8), views, head=head, counts=counts))
            optimizer.zero_grad(set_to_none=True)
            parts["loss"].backward()
            for name, weight in method.named_parameters():
                yield f"{idle_heads}: whether {name} is idle in step {i}", torch.tensor(weight.grad is None)
            method.after_backward(i)
            optimizer.step()
            yield f"{idle_heads}: loss {i}", parts["loss"].detach()
        for key, value in method.state_dict().items():
            if torch.is_tensor(value):
                yield f"{idle_heads}: {key}", value


def everything() -> dict[str, dict[str, Tensor]]:
    """Function → name, with the number of the layout → value."""
    found = {"steps": dict(steps())}
    for function in (losses, norms, labelled_on_one, heads_in_turn):
        layouts = enumerate(LAYOUTS[processes.world()])
        found[function.__name__] = {f"{i}/{name}": value for i, counts in layouts for name, value in function(counts)}
    return found


def work(rank: int, world: int, folder: Path) -> None:
    join(rank, world, folder)
    torch.save(everything(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def join(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)


COLLECTIVES = ("all_gather", "all_reduce", "broadcast", "all_gather_object", "broadcast_object_list")


def count_collectives(rank: int, world: int, folder: Path) -> None:
    """Of one step of each method, with its batch; `gather` and its backward pass are counted apart."""
    join(rank, world, folder)
    found = {}
    for method, words in {"pica": QUICK, "imc_swav": IMC}.items():
        for synchronised in ("true", "false"):
            settings = resolve(*words, "--sync-batchnorm", synchronised, "--debug", "--threads", 1)
            task = main.build(settings)
            task.method.train()
            trainer = Trainer(task)
            with ExitStack() as stack:
                calls = {name: stack.enter_context(counted(dist, name)) for name in COLLECTIVES}
                gather = processes._Gather
                calls |= {name: stack.enter_context(counted(gather, name)) for name in ("forward", "backward")}
                numbers: list[Counter[str]] = []
                for batch in trainer._interrupts.watch(itertools.islice(task.source.epoch(0), 3)):
                    trainer._train_step(batch)
                    numbers.append(Counter({name: call.call_count for name, call in calls.items()}))
            found[method, synchronised] = dict(numbers[2] - numbers[1])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def counted(owner: Any, name: str) -> Any:
    return mock.patch.object(owner, name, wraps=getattr(owner, name))


def interrupt_one(rank: int, world: int, folder: Path) -> None:
    """A signal comes to the last rank alone, in its third step."""
    join(rank, world, folder)
    settings = resolve(*QUICK, "--debug", "--threads", 1)
    task = main.build(settings)
    task.method.train()
    trainer = Trainer(task)
    number = 0
    with trainer._interrupts:
        try:
            for batch in trainer._interrupts.watch(task.source.epoch(0)):
                trainer._train_step(batch)
                if trainer.step == 3 and rank == world - 1:
                    signal.raise_signal(signal.SIGINT)
        except Interrupted as interrupted:
            number = interrupted.number
    torch.save((trainer.step, trainer.position, number), folder / f"{rank}.pt")
    dist.destroy_process_group()


class Holder:
    """Refers to itself, so that only the garbage collector frees it, and an exchange with it."""

    def __init__(self, work: dist.Work) -> None:
        self.work = work
        self.itself = self


def leave_with_a_cycle(rank: int, world: int, folder: Path) -> None:
    """End a group while a cycle of objects refers to an exchange."""

    def threads() -> list[str]:
        return sorted((thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir())

    gc.disable()
    before = threads()
    join(rank, world, folder)
    work = dist.all_reduce(torch.ones(3), async_op=True)
    assert work is not None
    work.wait()
    holder = weakref.ref(Holder(work))
    del work
    during = threads()
    assert holder() is not None
    processes._leave()
    torch.save((holder() is None, before, during, threads()), folder / f"{rank}.pt")
