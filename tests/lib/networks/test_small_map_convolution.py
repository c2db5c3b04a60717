from __future__ import annotations

import copy

import pytest
import torch
from conftest import QUICK, resolve
from torch import nn

import main
from lib.machine import devices
from lib.networks.resnet import ResNet18
from lib.networks.small_map_convolution import SMALL, WIDE, SmallMapConv2d, adapt


@pytest.mark.parametrize(("height", "width"), [(3, 3), (4, 4), (1, 1), (2, 8), (7, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_pytorchs(height: int, width: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(WIDE, 10, 3, padding=1, bias=False)).double().to(memory_format=layout)
    theirs = copy.deepcopy(ours)
    adapt(ours)
    images = torch.randn(8, WIDE, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    found = []
    for layer in (ours, theirs):
        inputs = images.clone().requires_grad_()
        made = layer(inputs)
        own = layer is ours and height * width <= SMALL
        assert made.grad_fn is not None and made.grad_fn.name().startswith("_Convolve" if own else "Convolution")
        (made * torch.linspace(-1, 1, made.numel(), dtype=torch.float64).view_as(made)).sum().backward()
        found.append((made.detach(), inputs.grad, layer[0].weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_only_what_qualifies_is_adapted() -> None:
    network = ResNet18(3)
    names = list(network.state_dict())
    adapt(network)
    adapted = [part for part in network.modules() if isinstance(part, SmallMapConv2d)]
    assert [part.in_channels for part in adapted] == [256] * 3 + [512] * 3, "neither strided ones nor shortcuts"
    assert list(network.state_dict()) == names
    for words in ({"padding": 0}, {"bias": True}, {"groups": 2}, {"padding_mode": "reflect"}, {"dilation": 2}):
        odd = nn.Sequential(nn.Conv2d(WIDE, WIDE, 3, **{"padding": 1, "bias": False, **words}))
        adapt(odd)
        assert not isinstance(odd[0], SmallMapConv2d), words


def test_a_run_on_a_cpu_uses_it_and_one_on_a_gpu_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--network", "resnet18", "--net-stem", "small", "--debug")
    assert any(isinstance(part, SmallMapConv2d) for part in main.build(resolve(*QUICK, *words)).method.modules())
    monkeypatch.setattr(devices, "device", lambda gpus: torch.device("meta"))
    assert not any(isinstance(part, SmallMapConv2d) for part in main.build(resolve(*QUICK, *words)).method.modules())


def test_it_bears_autocast_frozen_weights_and_evaluation() -> None:
    network = ResNet18(3, ResNet18.Settings(net_stem="small"))
    adapt(network)
    images = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        network(images).float().sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in network.parameters())
    network.zero_grad()
    network.requires_grad_(False)
    network(images.requires_grad_()).sum().backward()
    assert images.grad is not None and all(weight.grad is None for weight in network.parameters())
    assert network.train(False)(images).shape == (4, 512)
