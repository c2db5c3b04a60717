from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, fill
from torch import nn

from lib.checkpoints import checkpoint
from lib.networks.convnet import ConvNet
from lib.networks.resnet import ResNet34
from lib.networks.sobel import Sobel
from pica.authors import our_name
from pica.data import Batch
from pica.method import PICA, check_single, head_sizes

from lib.errors import UserError  # isort: skip


def recorded(idle_heads: str = "zeros") -> tuple[PICA, Any]:
    golden = np.load(GOLDEN / "pica_resnet34_cifar.npz", allow_pickle=False)
    keys = json.loads((GOLDEN / "pica_state_dict_keys.json").read_text())["cifar"]
    backbone = ResNet34(2, ResNet34.Settings(net_avgpool_size=int(golden["pool"])))
    network = nn.Sequential(Sobel(), backbone)
    network.feature_dim = backbone.feature_dim  # type: ignore[assignment]
    method = PICA(network, tuple(golden["heads"].tolist()), float(golden["lamda"]), idle_heads).double()
    own = method.state_dict()
    extra = {key: value for key, value in own.items() if key.endswith("_extra_state")}
    filled = {
        our_name(key): None if key.startswith("sobel") else fill(i, key, shape) for i, (key, shape) in enumerate(keys)
    }
    state = {name: own[name] if value is None else value for name, value in filled.items()}
    checkpoint.load_weights(method, state | extra, "the recorded network")
    return method, golden


def test_network_outputs_equal_the_authors() -> None:
    method, golden = recorded()
    method.eval()
    x = torch.from_numpy(golden["x"])
    with torch.no_grad():
        for head in range(2):
            np.testing.assert_allclose(method.assign(x, head), golden[f"out{head}"], rtol=1e-9)


@pytest.mark.parametrize(
    ("idle", "stop_after"),
    [("none", 2), *(pytest.param("zeros", stop_after, marks=pytest.mark.slow) for stop_after in (None, 1))],
)
def test_alternating_steps_equal_the_authors_also_across_a_stop(
    idle: str, stop_after: int | None, tmp_path: Path
) -> None:
    method, golden = recorded(idle)
    original = torch.from_numpy(golden["originals"])
    perturbed = torch.from_numpy(golden["perturbed"])
    optimizer = torch.optim.Adam(method.parameters(), lr=float(golden["lr"]))
    losses = []
    method.train()
    for step, head in enumerate((0, 1, 0, 1)):
        if step == stop_after:
            path = tmp_path / "stopped.ckpt"
            checkpoint.save({"config": {}, "method": method.state_dict(), "optimizer": optimizer.state_dict()}, path)
            stored = checkpoint.load(path)
            method, _ = recorded(idle)
            method.train()
            checkpoint.load_weights(method, stored["method"], "stopped")
            optimizer = torch.optim.Adam(method.parameters(), lr=float(golden["lr"]))
            optimizer.load_state_dict(stored["optimizer"])
        views = [original, *perturbed.unflatten(0, (-1, len(original)))]
        loss = method(Batch(torch.arange(len(original)), views, head=head))["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        method.after_backward(step)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, golden[f"losses_{idle}"], rtol=1e-7)
    method.eval()
    with torch.no_grad():
        for head in range(2):
            after = method.assign(torch.from_numpy(golden["x"]), head)
            np.testing.assert_allclose(after, golden[f"after{head}_{idle}"], rtol=1e-7)


class Flat(nn.Module):
    feature_dim = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_a_head_that_was_never_trained_is_left_alone() -> None:
    method = PICA(Flat(), (4, 2), idle_heads="zeros")
    batch = torch.randn(5, 1, 2, 2)
    method(Batch(torch.arange(5), [batch] * 3, head=1))["loss"].backward()
    method.after_backward(0)
    assert all(weight.grad is None for weight in method.heads[0].parameters())
    assert all(weight.grad is not None for weight in method.heads[1].parameters())


def test_head_sizes() -> None:
    assert head_sizes((70, 20), None) == (70, 20)
    assert head_sizes((70, 20), 20) == (70, 20)
    assert head_sizes(None, 12) == (84, 12)
    with pytest.raises(UserError, match="contradicts"):
        head_sizes((70, 20), 12)
    with pytest.raises(UserError, match="how many clusters"):
        head_sizes(None, None)


def test_a_single_row_of_features_leaves_batchnorm_nothing() -> None:
    with pytest.raises(
        UserError, match="a step with a single picture leaves BatchNorm nothing to normalise by; take another"
    ):
        check_single(nn.BatchNorm1d(4), (4,))


def test_idle_parameters_are_those_without_a_gradient() -> None:
    method = PICA(ConvNet(1, ConvNet.Settings(net_width=4)), (6, 3, 2)).train()
    for head in (0, 1, 2, 0):
        batch = Batch(torch.arange(5), list(torch.randn(2, 5, 1, 16, 16)), head=head)
        method.zero_grad(set_to_none=True)
        idle = set(method.idle_parameters(batch))
        method(batch)["loss"].backward()
        assert len(idle) == 4
        assert {weight for weight in method.parameters() if weight.grad is None} == idle
