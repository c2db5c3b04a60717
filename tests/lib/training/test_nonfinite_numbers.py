from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK, resolve
from runs import IMC, same
from torch import Tensor, nn

import main
from lib.checkpoints import checkpoint
from lib.errors import SIGNALS, RunStopped
from lib.session import Session
from lib.training import nonfinite_numbers
from lib.training.nonfinite_numbers import RECENT, Fault, Guard
from lib.training.trainer import Trainer

WORDS = {
    "pica": (*QUICK, "--pica-idle-heads", "zeros"),
    "pica, another optimizer": (*QUICK, "--optimizer", "rmsprop", "--optim-momentum", 0.5),
    # Half of the images fill a bank, the prototypes are normalised before each step, and the rate warms up.
    "imc_swav": (*IMC, "--max-epochs", 1),
}


@pytest.fixture(params=[False, True], ids=["at once", "deferred"])
def defers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether looking at a number counts as waiting for the device."""
    monkeypatch.setattr("lib.machine.devices.defers", lambda where: request.param)
    return bool(request.param)


def broken_run(tmp_path: Path, break_it: Any, *words: object) -> tuple[Path, RunStopped]:
    """Train with a hook that breaks something, until the run stops itself."""
    settings = resolve(*words, "--session-root", tmp_path, "--session", "a")
    made = Trainer(main.build(settings))
    break_it(made)
    with Session(settings) as session, pytest.raises(RunStopped) as raised:
        made.run(session)
    return tmp_path / "a", raised.value


def state_after(steps: int, *words: object) -> dict[str, Any]:
    settings = resolve(*words, "--max-steps", steps, "--debug")
    made = Trainer(main.build(settings))
    with Session(settings) as session:
        made.run(session)
    return made.state_dict()


def spoil_gradient(made: Trainer, step: int) -> None:
    hook = made.method.after_backward

    def after_backward(now: int) -> None:
        hook(now)
        if now == step:
            next(made.method.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    made.method.after_backward = after_backward  # type: ignore[method-assign]


def spoil_part(made: Trainer, step: int) -> None:
    forward = made.method.forward

    def spoiled(batch: Any) -> dict[str, Tensor]:
        parts = forward(batch)
        if made.step == step:
            parts = {**parts, "loss": parts["loss"] * float("nan"), "head0-70/balance": torch.tensor(float("nan"))}
        return parts

    made.method.forward = spoiled  # type: ignore[method-assign]


def spoil_buffer(made: Trainer, step: int) -> None:
    """As by an overflow of BatchNorm's variance, after which its output, and so the loss, is finite."""
    hook = made.method.after_backward

    def after_backward(now: int) -> None:
        hook(now)
        if now == step:
            next(value for value in made.method.buffers() if value.is_floating_point()).fill_(float("inf"))

    made.method.after_backward = after_backward  # type: ignore[method-assign]


def spoil_weight(made: Trainer, step: int, value: float = float("inf")) -> None:
    take = made.optimizer.step

    def overflowing() -> None:
        take()
        if made.step == step:
            next(made.method.parameters()).data.fill_(value)

    made.optimizer.step = overflowing  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
@pytest.mark.parametrize("after", [0, 5], ids=lambda steps: f"after {steps} steps")
def test_a_fault_leaves_what_a_run_that_stopped_before_it_has(
    words: tuple[object, ...], after: int, defers: bool, tmp_path: Path
) -> None:
    healthy = state_after(after, *words)
    path, error = broken_run(tmp_path, lambda made: spoil_part(made, after), *words)
    assert f"head0-70/balance is not finite in step {after + 1};" in str(error) and "fault.json" in str(error)
    state = checkpoint.load(path / "checkpoint" / "fault.ckpt")
    for part in ("method", "optimizer", "step", "position", "epoch", "assigned"):
        assert same(state[part], healthy[part]), part
    assert same(state["means"]["sums"], healthy["means"]["sums"])
    assert not (path / "checkpoint" / "latest.ckpt").exists()
    told = json.loads((path / "fault.json").read_text())
    assert told["step"] == after and len(told["recent"]) == after + 1


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (spoil_gradient, "the gradient is not finite"),
        (spoil_part, "head0-70/balance is not finite"),
        (spoil_buffer, "a buffer is not finite"),
        (spoil_weight, "a weight is not finite or larger than 65,504"),
        (partial(spoil_weight, value=-1e5), "a weight is not finite or larger than 65,504"),
    ],
)
def test_the_first_cause_is_named(spoil: Any, culprit: str, defers: bool, tmp_path: Path) -> None:
    healthy = state_after(2, *QUICK)
    path, error = broken_run(tmp_path, lambda made: spoil(made, 2), *QUICK)
    assert f"{culprit} in step 3" in str(error)
    state = checkpoint.load(path / "checkpoint" / "fault.ckpt")
    assert same(state["method"], healthy["method"]) and same(state["optimizer"], healthy["optimizer"])


@pytest.mark.parametrize("saves", ["signal", "line", "save"])
def test_nothing_is_saved_after_a_fault(saves: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.machine.devices.defers", lambda where: True)
    words = {"line": ("--display-freq", 4), "save": ("--save-every-steps", 4)}.get(saves, ())

    def break_it(made: Trainer) -> None:
        spoil_part(made, 1)
        take = made._train_step

        def interrupted(batch: Any) -> None:
            take(batch)
            if saves == "signal" and made.step == 4:
                made._interrupts._note(SIGNALS[0], None)

        made._train_step = interrupted  # type: ignore[method-assign]

    path, error = broken_run(tmp_path, break_it, *QUICK, *words)
    assert "in step 2" in str(error)
    assert [file.name for file in (path / "checkpoint").iterdir()] == ["fault.ckpt"]


class Queue(nn.Module):
    """Buffers that a forward pass replaces or overwrites; one of them is a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.norm(self.linear(values))
        self.replaced = self.replaced + found.detach().mean(dim=0)
        self.hidden += 1
        return found


@pytest.mark.parametrize("kind", ["fused", "sgd"])
def test_from_a_fault_on_the_device_takes_every_step_back(kind: str) -> None:
    torch.manual_seed(0)
    module = Queue()
    optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    if kind == "sgd":
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    guard = Guard(optimizer, defers=True)

    def step(factor: float, n: int, part: str = "part") -> None:
        guard.keep(module, n)
        loss = module(torch.randn(4, 3)).square().sum() * factor
        optimizer.zero_grad()
        loss.backward()
        guard.step({"loss": loss.detach(), part: loss.detach()}, torch.arange(n))

    def state() -> list[Tensor]:
        held = [value for entries in optimizer.state.values() for value in entries.values() if torch.is_tensor(value)]
        fixed = [value for value in module.buffers() if value is not module.replaced]
        return [value.clone() for value in (*module.parameters(), *fixed, *held)]

    for n in range(1, RECENT + 2):
        step(1, n)
    guard.check()
    before = state()
    replaced = module.replaced.clone()
    step(float("nan"), RECENT + 2)  # nothing is raised here
    assert same(state(), before)
    step(1, RECENT + 3, "another part")  # nor where the parts change, as those of heads that take turns
    assert same(state(), before), "a healthy step after a fault is not taken"
    with pytest.raises(Fault, match="part is not finite") as raised:
        guard.check()
    assert same(state(), before) and torch.equal(module.replaced, replaced)
    assert raised.value.place == RECENT + 2
    assert [len(index) for index in raised.value.recent] == list(range(3, RECENT + 3))


def test_a_fault_is_noticed_after_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite_numbers, "LAG", 3)
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    guard = Guard(optimizer, defers=True)
    with pytest.raises(Fault):
        for step in range(4):
            guard.keep(module, step)
            guard.step({"loss": torch.tensor(float("nan") if step else 0.0)}, torch.arange(1))
    assert step == 2
