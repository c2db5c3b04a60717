from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lib.networks.convnet import ConvNet
from lib.networks.convolution import SmallMapConv2d, adapt
from lib.networks.resnet import ResNet18


@pytest.mark.parametrize(("height", "width"), [(3, 3), (5, 4), (1, 1), (2, 12), (7, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_pytorchs(height: int, width: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1, bias=False)).double().to(memory_format=layout)
    theirs = copy.deepcopy(ours)
    adapt(ours)
    images = torch.randn(8, 6, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    found = []
    for layer in (ours, theirs):
        inputs = images.clone().requires_grad_()
        made = layer(inputs)
        (made * torch.linspace(-1, 1, made.numel(), dtype=torch.float64).view_as(made)).sum().backward()
        found.append((made.detach(), inputs.grad, layer[0].weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_only_what_qualifies_is_adapted() -> None:
    network = ResNet18(3)
    names = list(network.state_dict())
    adapt(network)
    adapted = [part for part in network.modules() if isinstance(part, SmallMapConv2d)]
    assert len(adapted) == 1 + 16 - 3, "all but the strided ones and the shortcuts"
    assert list(network.state_dict()) == names
    odd = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    )
    adapt(odd)
    assert not any(isinstance(part, SmallMapConv2d) for part in odd)


def test_it_bears_autocast_frozen_weights_and_evaluation() -> None:
    network = ConvNet(3, ConvNet.Settings(net_width=4))
    adapt(network)
    images = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        network(images).float().sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in network.parameters())
    network.zero_grad()
    network.requires_grad_(False)
    network(images.requires_grad_()).sum().backward()
    assert images.grad is not None and all(weight.grad is None for weight in network.parameters())
    assert network.train(False)(images).shape == (4, 16)
