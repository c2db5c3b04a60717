from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, resolve
from torch import nn

import main
from lib import checkpoint
from lib.errors import RunStopped
from lib.faults import RECENT, Guard
from lib.session import Session
from lib.trainer import Trainer


def broken_run(tmp_path: Path, break_it: Any, *words: object) -> tuple[Trainer, Path, RunStopped]:
    """Train with a hook that breaks something, until the run stops itself."""
    settings = resolve(*QUICK, "--session-root", tmp_path, "--session", "a", *words)
    made = Trainer(main.build(settings), settings)
    break_it(made)
    with Session(settings) as session, pytest.raises(RunStopped) as raised:
        made.run(session)
    return made, tmp_path / "a", raised.value


def spoil_gradient(made: Trainer, step: int) -> None:
    hook = made.method.after_backward

    def after_backward(now: int) -> None:
        hook(now)
        if now == step:
            next(made.method.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    made.method.after_backward = after_backward  # type: ignore[method-assign]


def spoil_part(made: Trainer, step: int) -> None:
    forward = made.method.forward

    def spoiled(batch: Any) -> dict[str, torch.Tensor]:
        parts = forward(batch)
        if made.step == step:
            parts = {**parts, "loss": parts["loss"] * float("nan"), "head0-70/balance": torch.tensor(float("nan"))}
        return parts

    made.method.forward = spoiled  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [(spoil_gradient, "the gradient is not finite"), (spoil_part, "head0-70/balance is not finite")],
)
def test_a_fault_never_reaches_the_weights(spoil: Any, culprit: str, tmp_path: Path) -> None:
    healthy_settings = resolve(*QUICK, "--max-steps", 2, "--debug")
    healthy = Trainer(main.build(healthy_settings), healthy_settings)
    with Session(healthy_settings) as session:
        healthy.run(session)
    made, path, error = broken_run(tmp_path, lambda made: spoil(made, 2))
    assert culprit in str(error) and "in step 3" in str(error) and "fault.json" in str(error)
    for name, value in healthy.method.state_dict().items():
        if torch.is_tensor(value) and "running" not in name and "num_batches" not in name:
            assert torch.equal(value, made.method.state_dict()[name]), name
    state = checkpoint.load(path / "checkpoint" / "fault.ckpt")
    assert state["step"] == 2 and not (path / "checkpoint" / "latest.ckpt").exists()
    told = json.loads((path / "fault.json").read_text())
    assert culprit in told["fault"] and [len(batch) for batch in told["recent"]] == [256, 256, 256]


def test_where_the_optimizer_is_fused_the_device_skips_the_step() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    guard = Guard(optimizer, defers=True)

    def step(factor: float, n: int, part: str = "part") -> None:
        loss = module(torch.ones(4, 3)).square().sum() * factor
        optimizer.zero_grad()
        loss.backward()
        guard.step({"loss": loss.detach(), part: loss.detach()}, torch.arange(n))

    step(1, 1)
    guard.check()
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()["state"]))
    step(float("nan"), 2)  # nothing is raised here
    after = module.state_dict(), optimizer.state_dict()["state"]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert all(torch.equal(v, after[1][i][n]) for i, held in before[1].items() for n, v in held.items())
    step(1, 3, "another part")  # nor where the parts change, as those of heads that take turns
    assert not torch.equal(module.weight, before[0]["weight"]), "a healthy step is taken"
    with pytest.raises(RunStopped, match="part is not finite"):
        guard.check()
    for n in range(20):
        guard.recent.append(torch.arange(n))
    assert len(guard.recent) == RECENT
