"""Gradients are averaged in buckets, while the backward pass runs, and idle weights hold none of them up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lib.machine import processes
from lib.methods.method import Method
from lib.training import averaged_gradients
from lib.training.averaged_gradients import AveragedGradients


class TwoHeads(Method):
    """Three layers and two heads; a batch is the number of the head that is trained."""

    def __init__(self, says_which_is_idle: bool) -> None:
        super().__init__()
        self.network = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
        self.heads = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
        self.says_which_is_idle = says_which_is_idle

    def forward(self, head: int) -> dict[str, Tensor]:
        return {"loss": self.heads[head](self.network(torch.eye(4))).sum()}

    def classify(self, features: Tensor) -> Tensor:
        return features

    def idle_parameters(self, batch: Any) -> Iterable[nn.Parameter]:
        return self.heads[1 - batch].parameters() if self.says_which_is_idle else ()


class Sent:
    """Stands for two ranks, of which the other's gradients are zero."""

    def __init__(self) -> None:
        self.passed = False  # whether the backward pass has met the last weight
        self.early: list[int] = []  # numbers of each sum that was sent before
        self.late: list[int] = []

    def wait(self) -> None:
        pass

    def all_reduce(self, flat: Tensor, async_op: bool) -> Sent:
        assert async_op
        (self.late if self.passed else self.early).append(flat.numel())
        return self


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    stand_in = Sent()
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes, "follow_first", lambda tensors: None)
    monkeypatch.setattr(dist, "all_reduce", stand_in.all_reduce)
    return stand_in


def step(method: Method, parallel: AveragedGradients, head: int, sent: Sent) -> None:
    """A step, of which `sent` notes what goes before the gradient of the first layer."""
    sent.passed = False
    first = next(method.network.parameters())
    handle = first.register_hook(lambda gradient: setattr(sent, "passed", True))
    method.zero_grad(set_to_none=True)
    parallel(head)["loss"].backward()
    handle.remove()


@pytest.mark.parametrize("bucket", [1, 2 * 64, 10**9])
@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("frozen", [False, True])
def test_each_gradient_becomes_the_mean_and_an_idle_one_stays_none(
    bucket: int, says: bool, frozen: bool, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaged_gradients, "BUCKET", bucket)
    method = TwoHeads(says)
    parallel = AveragedGradients(method)
    for head in (0, 1, 0):
        method.network[1].requires_grad_(not frozen)
        method.zero_grad(set_to_none=True)
        method(head)["loss"].backward()
        plain = [weight.grad for weight in method.parameters()]
        assert not sent.early and not sent.late, "only a pass through the wrapper is averaged"
        step(method, parallel, head, sent)
        for weight, gradient in zip(method.parameters(), plain, strict=True):
            assert (weight.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(weight.grad, gradient / 2)
        assert sum(sent.early + sent.late) == 16 * (3 if frozen else 4)
        sent.early, sent.late = [], []


def test_buckets_are_sent_while_the_pass_runs(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaged_gradients, "BUCKET", 2 * 64)
    method = TwoHeads(says_which_is_idle=True)
    step(method, AveragedGradients(method), 0, sent)
    assert (sent.early, sent.late) == ([32], [32])


def test_an_idle_weight_that_is_not_named_delays_the_sums_only(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaged_gradients, "BUCKET", 2 * 64)
    method = TwoHeads(says_which_is_idle=False)
    step(method, AveragedGradients(method), 0, sent)
    assert (sent.early, sent.late) == ([], [32, 32])


def test_data_types_do_not_share_a_bucket() -> None:
    kinds = [torch.float32, torch.float32, torch.float64, torch.float32]
    weights = [nn.Parameter(torch.zeros(2, dtype=kind)) for kind in kinds]
    assert [len(bucket) for bucket in averaged_gradients._in_buckets(weights)] == [2, 1, 1]


def test_a_gradient_keeps_its_layout(sent: Sent) -> None:
    method = TwoHeads(says_which_is_idle=True)
    method.network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[assignment]
    images = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    method.forward = lambda head: {"loss": method.network(images).square().sum()}  # type: ignore[method-assign]
    method.forward(0)["loss"].backward()
    plain = method.network.weight.grad.clone()
    method.zero_grad()
    AveragedGradients(method)(0)["loss"].backward()
    assert torch.equal(method.network.weight.grad, plain / 2)
    assert method.network.weight.grad.stride() == plain.stride()
