from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import resolve
from torch import nn

from lib import networks
from lib.errors import UserError
from lib.networks.resnet import ResNet18
from lib.networks.sobel import Sobel


@pytest.mark.parametrize("name", ["convnet", "resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 21, 45)])
def test_any_size_gives_one_feature_vector(name: str, shape: tuple[int, int, int]) -> None:
    network = networks.get(name)(shape[0]).eval()
    with torch.no_grad():
        assert network(torch.randn(2, *shape)).shape == (2, network.feature_dim)


@pytest.mark.parametrize(
    ("stem", "side"), [("small", 32), ("small-pool", 16), ("small-pool-padded", 17), ("imagenet", 8)]
)
def test_stems(stem: Any, side: int) -> None:
    network = ResNet18(3, ResNet18.Settings(net_stem=stem))
    assert network.stem(torch.randn(1, 3, 32, 32)).shape == (1, 64, side, side)


@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (64, 5), (96, 7)])
def test_the_papers_pooling_is_global_at_the_papers_sizes(size: int, kernel: int) -> None:
    torch.manual_seed(0)
    network = ResNet18(2).eval()
    images = torch.randn(1, 2, size, size)
    with torch.no_grad():
        whole = network(images)
        assert network.stages(network.stem(images)).shape[-1] == kernel
        network._pool = kernel
        torch.testing.assert_close(network(images), whole)


def test_sobel_filters_the_mean_of_the_channels() -> None:
    sobel = Sobel()
    ramp = torch.arange(6.0).repeat(6, 1)  # grows to the right by 1
    edges = sobel(torch.stack([ramp, 2 * ramp, 3 * ramp])[None])
    assert edges.shape == (1, 2, 6, 6)
    torch.testing.assert_close(edges[0, 0, 1:-1, 1:-1], torch.full((4, 4), -16.0))  # 2 · (1 + 2 + 1) · −2
    torch.testing.assert_close(edges[0, 1, 1:-1, 1:-1], torch.zeros(4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(sobel(ramp[None, None]), sobel(ramp.repeat(3, 1, 1)[None]))
    assert not any(weight.requires_grad for weight in sobel.parameters())


def test_initialisation_as_in_torch_1_0() -> None:
    torch.manual_seed(0)
    drawn = networks.build(resolve("--network", "resnet18", "--net-init", "torch1.0"), 3)
    today = networks.build(resolve("--network", "resnet18"), 3)
    weights = torch.cat([part.weight for part in drawn.modules() if isinstance(part, nn.BatchNorm2d)])
    assert 0 <= weights.min() < 0.01 and 0.99 < weights.max() <= 1 and abs(weights.mean() - 0.5) < 0.02
    assert all((part.weight == 1).all() for part in today.modules() if isinstance(part, nn.BatchNorm2d))


def test_freezing_matches_the_beginning_of_names() -> None:
    network = networks.build(resolve("--network", "convnet", "--net-freeze", r"layers\.[01]\.", "layers.3"), 3)
    frozen = [name for name, weight in network.named_parameters() if not weight.requires_grad]
    assert frozen == ["layers.0.weight", "layers.1.weight", "layers.1.bias", "layers.3.weight"]
    with pytest.raises(UserError, match="'stem' matches no weight of convnet"):
        networks.build(resolve("--network", "convnet", "--net-freeze", "stem"), 3)
