"""Views that share a pass of the network are as views that pass in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import resolve
from runs import IMC
from torch import Tensor, nn

import main
from lib.networks import batchnorm
from lib.networks.batchnorm import ViewBatchNorm
from lib.networks.resnet import ResNet18
from lib.training.trainer import Trainer
from pica.method import PICA

VIEWS = {
    "equal": [(4, 12), (4, 12), (4, 8), (4, 8), (4, 8)],
    "unequal": [(3, 8), (9, 8)],  # PICA's original and three copies
    "a size returns": [(4, 12), (4, 8), (4, 12)],
    "one": [(5, 8)],
}


def passed(views: list[Tensor], together: bool, change: Callable[[nn.Module], Any] = lambda network: None) -> Any:
    """Features, gradients and buffers of a network after one forward and backward pass in training mode."""
    torch.manual_seed(0)
    method = PICA(ResNet18(3).double(), (4,)).train()
    change(method.network)
    if together:
        batchnorm.adapt(method)
        assert not batchnorm.mixes_views(method.network)
        method.shares_passes = True
    features = method.encode(views)
    weights = [
        torch.randn(feature.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for feature in features
    ]
    sum((feature.square() * weight).sum() for feature, weight in zip(features, weights, strict=True)).backward()
    return features, [weight.grad for weight in method.network.parameters()], dict(method.network.named_buffers())


def no_momentum(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None


def one_frozen(network: nn.Module) -> None:
    first = next(part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    first.train(False)


@pytest.mark.parametrize("change", [lambda network: None, no_momentum, one_frozen], ids=["", "no momentum", "frozen"])
@pytest.mark.parametrize("shapes", VIEWS)
def test_one_pass_equals_passes_in_turn(shapes: str, change: Callable[[nn.Module], Any]) -> None:
    views = [torch.randn(n, 3, side, side, dtype=torch.float64) for n, side in VIEWS[shapes]]
    torch.testing.assert_close(passed(views, True, change), passed(views, False, change), rtol=1e-10, atol=1e-10)


class Mixed(nn.Sequential):
    feature_dim = 4


@pytest.mark.parametrize("part", [nn.Dropout(0.1), nn.SyncBatchNorm(4), type("DropPath", (nn.Module,), {})()])
def test_what_would_mix_views_is_named(part: nn.Module) -> None:
    network = Mixed(nn.BatchNorm2d(4), nn.Dropout(0.0), part)
    batchnorm.adapt(network)
    assert batchnorm.mixes_views(network) == type(part).__name__
    assert not batchnorm.mixes_views(network[:2])


def test_a_layer_of_another_kind_stays_what_it_is() -> None:
    class Own(nn.BatchNorm2d):
        pass

    network = Mixed(Own(4), nn.BatchNorm1d(4))
    batchnorm.adapt(network)
    assert type(network[0]) is Own and type(network[1]) is ViewBatchNorm
    assert list(network.state_dict()) == list(Mixed(nn.BatchNorm2d(4), nn.BatchNorm1d(4)).state_dict())


@pytest.mark.parametrize(("precision", "expected"), [("fp32", [256, 256, 256]), ("bf16", [2 * 256, 256])])
def test_views_share_a_pass_where_that_is_faster(
    precision: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = main.build(resolve(*IMC, "--debug", "--precision", precision))
    passes = []
    forward = task.method.features
    monkeypatch.setattr(task.method, "features", lambda images: passes.append(len(images)) or forward(images))
    task.method.train()
    batch = next(task.source.epoch(0))
    task.method(batch)
    assert passes == expected  # two large crops, then a small one


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_passes_that_cannot_be_shared_are_told_where_they_would_be(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchnorm, "mixes_views", lambda module: "Dropout")
    settings = resolve(*IMC, "--debug", "--precision", precision)
    task = main.build(settings)
    assert not task.method.shares_passes
    notes = [note for note in Trainer(task)._notes if "a Dropout" in note]
    assert len(notes) == (precision == "bf16")
