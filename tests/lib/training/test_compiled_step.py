"""`--compile`: the step as one function, against the same step uncompiled."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import common
from lib.machine import devices
from lib.methods.batches import ViewBatch, made
from lib.methods.method import Method
from lib.training.compiled_step import CompiledStep
from lib.training.running_means import Means
from lib.transforms.batched_views import DrawnViews

SMALL = ("--network", "convnet", "--net-width", 8, "--threads", 1)
WORDS = {
    "imc_swav": (*SMALL, "--prototypes", 30, "--classifier-dim", 16, "--frozen-prototype-steps", 3),
    "pica": (*SMALL, "--net-heads", 20, 10),
}
both = pytest.mark.parametrize("method", WORDS)


def trainer(method: str, folder: Path, *words: object) -> Any:
    """64 images in batches of 32; the views are those of a GPU, whether or not the step is compiled."""
    trained = common.row_trainer(method, folder, 64, "--batch-size", 32, *WORDS[method], *words)
    trained.task.views.static = True
    return trained


def gradient(method: Method) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in method.parameters() if weight.grad is not None])


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def trace_only(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Graphs are traced and then run by PyTorch's own operations, which takes no compiler; all that were traced."""
    original = torch.compile
    graphs: list[nn.Module] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def tracing(function: Any, **options: Any) -> Any:
        return original(function, fullgraph=options["fullgraph"], dynamic=options["dynamic"], backend=backend)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", tracing)
    monkeypatch.setattr(devices, "check_compiler", lambda where: None)
    return graphs


@both
def test_a_step_is_one_graph_equal_to_itself_untraced(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, and run by PyTorch's own operations: no break, the same bits."""
    graphs = trace_only(monkeypatch)
    plain = trainer(method, tmp_path)
    compiled = trainer(method, tmp_path, "--compile", "true")
    for one, other in itertools.islice(zip(common.endless(plain), common.endless(compiled), strict=True), 5):
        assert isinstance(other.views, DrawnViews) and other.views.is_static
        for trained, batch in ((plain, one), (compiled, other)):
            trained._train_step(batch)
        assert plain._means.values() == compiled._means.values()
        assert torch.equal(gradient(plain.method), gradient(compiled.method))
    assert len(graphs) == (2 if method == "pica" else 1), "one for each head"


def test_what_is_no_full_batch_takes_the_step_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = trace_only(monkeypatch)
    trained = trainer("imc_swav", tmp_path, "--compile", "true")
    batch = next(common.endless(trained))
    waits = dataclasses.replace(batch, classified=np.arange(32) < 20)
    for other in (waits, dataclasses.replace(batch, left_out=1), dataclasses.replace(batch, index=batch.index[:31])):
        trained.method.bank.empty()
        trained._compiled(other)
        assert not graphs
    trained.method.bank.empty()
    trained._compiled(batch)
    assert len(graphs) == 1


class Unsteady(Method):
    """Looks at a number of its batch, which no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(4, 3)

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        loss = self.network(batch.views[0]).square().mean()
        return {"loss": loss if loss.item() > 0 else -loss}

    def classify(self, features: Tensor) -> Tensor:
        return features.softmax(dim=1)


def test_a_method_that_is_no_function_has_its_network_compiled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = trace_only(monkeypatch)
    method = Unsteady()
    compiled: list[bool] = []
    monkeypatch.setattr(method.network, "compile", lambda: compiled.append(True))
    told: list[str] = []
    step = CompiledStep(method, 5, devices.CPU, told.append)
    batch = ViewBatch(torch.arange(5), [torch.randn(5, 4)])
    for _ in range(2):
        assert step(batch)["loss"] == method(batch)["loss"]
    assert compiled == [True] and not graphs
    (line,) = told
    assert line.startswith("--compile: the step cannot be compiled as a whole (") and "\n" not in line


def test_a_fault_within_a_step_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    step = CompiledStep(Unsteady(), 5, devices.CPU, pytest.fail)
    monkeypatch.setattr(step, "_compiled", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        step(ViewBatch(torch.arange(5), [torch.randn(5, 4)]))


def smooth(method: nn.Module) -> None:
    """Without kinks, at which a last bit decides about a whole gradient."""
    for part in method.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(part, name, nn.AvgPool2d(child.kernel_size, child.stride))


@pytest.mark.slow
@both
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_compiled_step_computes_what_the_plain_one_does(
    method: str, dtype: torch.dtype, bound: float, tmp_path: Path
) -> None:
    """In float32 from the bytes of the images on; float64 is given the same views."""
    torch.compiler.reset()
    plain = trainer(method, tmp_path)
    compiled = trainer(method, tmp_path, "--compile", "true")
    batches = zip(common.endless(plain), common.endless(compiled), strict=True)
    for one, other in itertools.islice(batches, 0, 4, 2 if method == "pica" else 3):  # PICA's heads take two steps each
        if dtype == torch.float64:
            one = other = dataclasses.replace(one, views=[view.double() for view in made(one).views])
        for trained in (plain, compiled):
            smooth(trained.method)
            trained.method.to(dtype).zero_grad()
            trained.method.before_forward(0)
        losses = [trained._forward(batch)["loss"] for trained, batch in ((plain, one), (compiled, other))]
        for loss in losses:
            loss.backward()
        assert difference(losses[1].detach(), losses[0].detach()) < bound
        assert difference(gradient(compiled.method), gradient(plain.method)) < bound


@pytest.mark.slow
@both
def test_twenty_compiled_steps_learn_what_plain_ones_do(method: str, tmp_path: Path) -> None:
    """And each kind of batch is compiled once."""
    torch.compiler.reset()
    compile_times = torch._dynamo.utils.counters
    plain = trainer(method, tmp_path)
    compiled = trainer(method, tmp_path, "--compile", "true")
    compile_times.clear()
    for one, other in itertools.islice(zip(common.endless(plain), common.endless(compiled), strict=True), 20):
        for trained, batch in ((plain, one), (compiled, other)):
            trained._means = Means()
            trained._train_step(batch)
        losses = [trained._means.values()["loss"] for trained in (plain, compiled)]
        assert abs(losses[1] - losses[0]) < 1e-3 * abs(losses[0])
    assert compile_times["stats"]["unique_graphs"] == (2 if method == "pica" else 1)
