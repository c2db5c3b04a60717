"""On a real GPU: it computes what a CPU computes, nothing waits for it, and runs stop, go on and move as on a CPU.

Skipped where there is none; tests/test_cuda_path.py says what can be said without one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, resolve
from runs import IMC

import main
from lib.checkpoints import checkpoint
from lib.errors import RunStopped
from lib.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

Cli = Callable[..., tuple[int, str, str]]
GPU = ("--gpus", 0)
WORDS: dict[str, tuple[object, ...]] = {"pica": QUICK, "imc_swav": (*IMC, "--max-epochs", 1)}
both = pytest.mark.parametrize("method", WORDS)


@pytest.fixture
def no_waits() -> Iterator[None]:
    """An operation that makes the program wait for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def trainer(method: str, *words: object) -> Trainer:
    settings = resolve(*WORDS[method], "--debug", "--display-freq", 1000, *words)
    return Trainer(main.build(settings))


def gradients(made: Trainer) -> torch.Tensor:
    found = [w.grad.flatten().cpu() for w in made.method.parameters() if w.grad is not None]
    return torch.cat(found)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@both
def test_views_losses_and_gradients_are_those_of_a_cpu(method: str) -> None:
    made = [trainer(method, *where) for where in ((), GPU)]
    batches = [next(trained.task.source.epoch(0)) for trained in made]
    for trained, batch in zip(made, batches, strict=True):
        trained._train_step(batch)
    ours, theirs = (torch.cat([view.flatten().cpu() for view in batch.views]) for batch in batches)
    assert (ours - theirs).abs().max() < 1e-3
    on_cpu, on_gpu = (trained._means.values() for trained in made)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3, abs=1e-3)
    assert relative(gradients(made[1]), gradients(made[0])) < 1e-2


@both
def test_nothing_waits_for_the_gpu_between_lines_of_progress(method: str, no_waits: None) -> None:
    made = trainer(method, *GPU)
    for batch in made.task.source.epoch(0):
        made._train_step(batch)
    torch.cuda.set_sync_debug_mode("error")
    for batch in made.task.source.epoch(1):
        made._train_step(batch)
    with pytest.raises(RuntimeError, match="synchronizing"):
        made._means.values()


@both
def test_a_fault_never_reaches_the_weights(method: str) -> None:
    made = trainer(method, *GPU)
    batches = list(made.task.source.epoch(0))
    made._train_step(batches[0])
    hook = made.method.after_backward

    def after_backward(step: int) -> None:
        hook(step)
        next(made.method.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    made.method.after_backward = after_backward  # type: ignore[method-assign]
    before = {name: weight.clone() for name, weight in made.method.named_parameters()}
    made._train_step(batches[1])
    for name, weight in made.method.named_parameters():  # the prototypes are normalised before each step
        assert torch.allclose(weight, before[name], rtol=0, atol=1e-6), name
    with pytest.raises(RunStopped, match="the gradient is not finite"):
        made._guard.check()


@both
def test_a_run_that_stopped_goes_on_and_its_checkpoint_serves_on_a_cpu(method: str, tmp_path: Path, cli: Cli) -> None:
    words = (*WORDS[method], *GPU, "--max-epochs", 3, "--eval-every", 1)
    sessions = tmp_path / "sessions"
    assert cli(*words, "--session", "straight")[0] == 0
    assert cli(*words, "--session", "parts", "--max-epochs", 1)[0] == 0
    latest = sessions / "parts" / "checkpoint" / "latest.ckpt"
    status, out, err = cli("--resume", latest, "--max-epochs", 3)
    assert status == 0 and "resumed after step" in out, err
    # Not the bits of a straight run, which a CPU gives.
    straight, parts = (
        checkpoint.load(sessions / name / "checkpoint" / "latest.ckpt") for name in ("straight", "parts")
    )
    assert all(straight[place] == parts[place] for place in ("epoch", "step", "position", "scored_step"))
    for name, where in (("cpu", ("--gpus", "")), ("gpu", GPU)):
        status, _, err = cli("--evaluate", latest, *where, "--session", name)
        assert status == 0, err
    found = [np.load(sessions / name / "predictions.npz") for name in ("cpu", "gpu")]
    key = next(name for name in found[0].files if found[0][name].ndim == 2)
    assert np.abs(found[0][key] - found[1][key]).max() < 1e-2


@both
@pytest.mark.parametrize(
    "words",
    [
        ("--compile",),
        ("--precision", "bf16"),
        ("--tf32", "--compile", "--precision", "bf16"),
        ("--channels-last", "false"),
        ("--tfm-backend", "pil", "--num-workers", 2),
        ("--optimizer", "sgd"),
        ("--optimizer", "rmsprop"),
        ("--net-freeze", ".*", "--feature-views", 2),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_every_way_to_compute_ends(method: str, words: tuple[Any, ...], cli: Cli) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of compilers
        status, out, err = cli(*WORDS[method], *GPU, *words)
    assert status == 0 and "ACC" in out, err


def test_a_gpu_that_is_not_there_is_refused(cli: Cli) -> None:
    status, _, err = cli(*QUICK, "--gpus", torch.cuda.device_count())
    assert status == 2 and "numbered from 0" in err
