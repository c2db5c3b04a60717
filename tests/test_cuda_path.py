"""The CUDA path without a GPU: views, forward pass and loss on tensors that have a device and no content.

An operation on tensors of two devices fails, and so does one that would have to wait for a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

import imc_swav.data
import imc_swav.method
import pica.data
import pica.method
from lib.contracts import Recipe, Request
from lib.machine import devices
from lib.methods.method import Method
from lib.networks import batchnorm
from lib.networks.resnet import ResNet18, ResNet34
from lib.networks.sobel import Sobel
from lib.training.nonfinite_numbers import Guard
from lib.transforms.batched_views import BatchedViews
from lib.transforms.images_in_memory import whole

N = 8
CUDA = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "copies_in_background", lambda where: False)  # pinning needs a real GPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def views(recipe: Recipe) -> Tensor:
    shapes = ((0, 4, 32, 32), (4, 1, 32, 32), (5, N, 40, 48))  # two of one shape, and another
    parts = [whole(np.zeros((n, height, width, 3), dtype=np.uint8), start) for start, n, height, width in shapes]
    held = BatchedViews(parts, {}, recipe, (0.5,) * 3, (0.2,) * 3, seed=0, device=CUDA, channels_last=True)
    assert held.static
    with unset_fake_temporarily():  # what is drawn depends on the index
        drawn = held._draw(Request(torch.arange(N), (recipe,)))
    (made,) = held._sent(drawn)
    return made


RANDOM = Recipe(32, "resized", jitter=(0.4,) * 4, jitter_probability=0.8, grayscale=0.5, flip=0.5)


def pica_method() -> tuple[Method, Any]:
    with CUDA:
        backbone = ResNet34(2)
        network = nn.Sequential(Sobel(), backbone)
        network.feature_dim = backbone.feature_dim
        method = pica.method.PICA(network, (70, 10))
    drawn = [views(Recipe(32, "random", 40)), *(views(RANDOM) for _ in range(3))]
    return method, pica.data.Batch(torch.arange(N), drawn, head=0)


def imc_method(classified: int = N) -> tuple[Method, Any]:
    large = [views(Recipe(28, "resized", jitter=(0.4,) * 4)) for _ in range(2)]
    batch = imc_swav.data.Batch(torch.arange(N), [*large, *[views(Recipe(18, "center", 20))] * 4],
                                np.arange(N) < classified)  # fmt: skip
    with CUDA:
        return imc_swav.method.IMCSwAV(ResNet18(3), 10, N), batch


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("build", [pica_method, imc_method, lambda: imc_method(3)], ids=["pica", "imc", "imc-bank"])
def test_views_forward_pass_and_loss_stay_on_the_gpu(cuda: None, build: Any, shares: bool) -> None:
    method, batch = build()
    batchnorm.adapt(method)
    method.shares_passes = shares
    method.before_forward(0)
    parts = method(batch)
    assert parts["loss"].device.type == "cuda" and parts["loss"].dtype == torch.float32 and parts["loss"].requires_grad
    assert method.predict(views(Recipe(32, "center", 32))).device.type == "cuda"


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD])
def test_a_guarded_step_waits_for_nothing(cuda: None, kind: Any) -> None:
    method, batch = imc_method(3)
    guard = Guard(kind(method.parameters(), lr=0.1), defers=True)
    for step in range(2):
        guard.keep(method)
        method.before_forward(step)
        parts = method(batch)
        for weight in method.parameters():
            weight.grad = torch.zeros_like(weight)  # a backward pass needs a real GPU
        guard.step({"loss": parts["loss"]}, batch.index)
    assert guard.faulty.device.type == "cuda"
    with pytest.raises(DataDependentOutputException):
        guard.check()


def test_a_tensor_on_the_wrong_device_and_a_wait_are_noticed(cuda: None) -> None:
    method, batch = pica_method()
    batch = dataclasses.replace(batch, views=[torch.empty(N, 3, 32, 32), *batch.views[1:]])
    with pytest.raises(RuntimeError, match="device"):
        method(batch)
    with pytest.raises(DataDependentOutputException):
        float(torch.ones((), device=CUDA))
