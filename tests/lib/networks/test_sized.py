"""Networks that are not told the size of the images."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import QUICK
from torch import nn

from lib import networks
from lib.errors import UserError

Cli = Callable[..., tuple[int, str, str]]


def lazy(in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU())


def test_lazy_layers_and_feature_dim_are_filled_in() -> None:
    network = networks.sized(lazy(3), 3, 8)
    assert network.feature_dim == 6 and network(torch.zeros(5, 3, 8, 8)).shape == (5, 6) and network.training
    norm: Any = networks.sized(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), 1, 5)[1]
    assert norm.num_batches_tracked == 0, "no statistic has moved"
    with pytest.raises(UserError, match="takes no images of 1 channels and 5 px"):
        networks.sized(nn.Conv2d(3, 4, 3), 1, 5)
    with pytest.raises(UserError, match=r"gives \(2, 4, 3, 3\) for two images, not a row of features"):
        networks.sized(nn.Conv2d(1, 4, 3), 1, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lazy, r"the network mine has a LazyLinear \(1\), which waits for an image"),
        (lambda in_channels: nn.Flatten(), "the network mine has no whole number `feature_dim`"),
    ],
)
def test_an_unfinished_network_ends_in_one_line(
    build: Callable[[int], nn.Module], message: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks._registry._components, "mine", build)
    status, _, err = cli(*QUICK, "--network", "mine", "--net-init", "default", "--debug")
    assert status == 2 and err.count("\n") == 1 and re.search(message, err), err
    monkeypatch.setitem(
        networks._registry._components, "mine", lambda in_channels: networks.sized(build(in_channels), in_channels, 8)
    )
    assert cli(*QUICK, "--network", "mine", "--net-init", "default", "--debug", "--max-steps", 1)[0] == 0
