"""How a method computes: precision, layout, and which views share a pass."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, picture, resolve
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import main
from imc_swav.data import Batch as IMCBatch
from imc_swav.losses import sinkhorn
from imc_swav.method import IMCSwAV
from lib.checkpoints import checkpoint
from lib.contracts import Recipe
from lib.errors import UserError
from lib.machine import devices, precision
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.machine.random_seeds import SeedSettings
from lib.networks.convnet import ConvNet
from lib.networks.sobel import Sobel
from lib.transforms import view_operations
from lib.transforms.random_draws import draw
from pica.data import Batch as PICABatch
from pica.method import PICA

Cli = Callable[..., tuple[int, str, str]]


def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(3, ConvNet.Settings(net_width=4))


class Recorder(nn.Module):
    """Notes the batches that pass."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize("shares", [True, False])
def test_neighbouring_views_of_one_size_share_a_pass(shares: bool) -> None:
    method = PICA(Recorder(), (4,))  # type: ignore[arg-type]
    method.shares_passes = shares
    views = [torch.full((n, 3, side, side), float(i)) for i, (n, side) in enumerate(((4, 8), (12, 8), (4, 6), (4, 8)))]
    features = method.encode(views)
    assert [feature.shape for feature in features] == [(4, 3), (12, 3), (4, 3), (4, 3)]
    assert [float(feature.mean()) for feature in features] == [0, 1, 2, 3]
    assert isinstance(method.network, Recorder)
    in_turn = [(4, 3, 8, 8), (12, 3, 8, 8), (4, 3, 6, 6), (4, 3, 8, 8)]
    assert method.network.seen == ([(16, 3, 8, 8), (4, 3, 6, 6), (4, 3, 8, 8)] if shares else in_turn)


def batches() -> tuple[PICABatch, IMCBatch]:
    torch.manual_seed(1)
    index = torch.arange(16)
    views = [torch.randn(16, 3, side, side) for side in (12, 12, 8)]
    return PICABatch(index, views[:2], head=0), IMCBatch(index, views)


@pytest.mark.parametrize("build", [lambda: PICA(network(), (8, 4)), lambda: IMCSwAV(network(), 4, 16)])
def test_under_bf16_the_network_alone_computes_in_bfloat16(build: Callable[[], Any]) -> None:
    method = build()
    batch = batches()[isinstance(method, IMCSwAV)]
    seen: dict[str, torch.dtype] = {}

    def note(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_tensor(output):
            seen[name] = output.dtype

    for name, part in method.named_modules():
        if not list(part.children()) and not isinstance(part, nn.ReLU | nn.Identity):
            part.register_forward_hook(partial(note, name))
    method.precision = "bf16"
    parts = method(batch)
    assert parts["loss"].dtype == torch.float32 and math.isfinite(parts["loss"].item())
    own = {name for name in seen if name.startswith("network")}
    assert own and all(seen[name] == torch.bfloat16 for name in own)
    assert all(seen[name] == torch.float32 for name in seen.keys() - own - {"objective"})
    parts["loss"].backward()
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in method.parameters())
    assert method.predict(batches()[0].views[0]).dtype == torch.float32
    precise = build()
    assert abs(float(precise(batch)["loss"].detach()) - float(parts["loss"])) < 0.05 * abs(float(parts["loss"]))


def test_sobel_edges_keep_float32_under_bf16() -> None:
    images = torch.randn(2, 3, 8, 8)
    sobel = Sobel()
    with precision.lowered(images.device, "bf16"):
        edges = sobel(images)
    assert torch.equal(edges, sobel(images))


def test_tf32_rounds_neither_edges_nor_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TF32 is in force, their products are taken in float64."""
    seen: list[torch.dtype] = []

    def noted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def note(first: Tensor, *others: Any, **named: Any) -> Tensor:
            seen.append(first.dtype)
            return function(first, *others, **named)

        return note

    monkeypatch.setattr(torch, "bmm", noted(torch.bmm))
    monkeypatch.setattr(nn.functional, "conv2d", noted(nn.functional.conv2d))
    images = torch.rand(2, 3, 8, 8)
    recipe = Recipe(6, "resized")
    drawn = draw(recipe, np.full((2, 2), 8), 0, 0, np.arange(2), 0)
    plan = view_operations.plan(recipe, drawn, np.full((2, 2), 8), devices.CPU)
    made = {}
    for rounds in (False, True):
        monkeypatch.setattr(precision, "rounds", lambda where, rounds=rounds: rounds)
        made[rounds] = (Sobel()(images), view_operations.view([images.permute(0, 2, 1, 3)], plan))
    assert seen == [torch.float32] * 4 + [torch.float64] * 4
    for one, other in zip(made[False], made[True], strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("asked", [True, False])
def test_tf32_rounds_on_gpus_where_it_is_asked_for(asked: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = asked
        assert precision.rounds(torch.device("cuda")) is asked
        assert not precision.rounds(devices.CPU)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_weights_are_cast_once_a_step() -> None:
    """However many passes there are: one region of autocast holds them all."""
    method = IMCSwAV(network(), 4, 16)
    method.precision = "bf16"
    weight = next(method.network.parameters())
    casts: list[Tensor] = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].shape == weight.shape:
                casts.append(args[0])
            return func(*args, **(kwargs or {}))

    with Casts():
        method(batches()[1])
    assert len(casts) == 1


def test_sinkhorn_under_autocast_is_that_of_float32() -> None:
    scores = torch.randn(32, 50)
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn(scores)
    assert found.dtype == torch.float32 and torch.equal(found, sinkhorn(scores))


@pytest.mark.parametrize(("words", "expected"), [((), False), (("--channels-last", "true"), True)])
def test_the_layout_is_as_asked_for_and_contiguous_on_a_cpu(words: tuple[str, ...], expected: bool) -> None:
    method = main.build(resolve(*QUICK, *words)).method
    weights = [weight for weight in method.network.parameters() if weight.dim() == 4][1:]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) == expected for weight in weights)


def test_a_layout_may_change_when_a_run_goes_on(cli: Cli, tmp_path: Path) -> None:
    """The optimiser's moments are laid out like the weights; a fused step would mix them up."""
    found = []
    for name, words in (("same", ()), ("other", ("--channels-last", "true"))):
        cli(*QUICK, "--session", name, "--max-steps", 5)
        last = tmp_path / "sessions" / name / "checkpoint/latest.ckpt"
        status, _, err = cli("--resume", last, "--max-steps", 8, *words)
        assert status == 0 and ("channels_last" in err) == bool(words)
        found.append(checkpoint.load(last)["method"])
    for name, value in found[0].items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, found[1][name], rtol=1e-2, atol=1e-4)


def test_going_on_with_another_back_end_is_said(cli: Cli, tmp_path: Path) -> None:
    last = tmp_path / "sessions/a/checkpoint/latest.ckpt"
    cli(*QUICK, "--session", "a", "--max-steps", 2, "--tfm-backend", "pil")
    status, out, err = cli("--resume", last, "--max-steps", 3)
    assert status == 0 and "views    pil" in out and "views: " not in err, "the setting is kept"
    status, out, err = cli("--resume", last, "--max-steps", 4, "--tfm-backend", "batched")
    assert status == 0 and "views: pil before, batched now" in err


def test_values_are_sent_to_a_gpu_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Values:
        def pin_memory(self) -> Values:
            calls.append("pinned")
            return self

        def to(self, where: torch.device, **how: bool) -> None:
            calls.append((where.type, how))

    devices.send(Values(), torch.device("cuda"))  # type: ignore[arg-type]
    assert calls == ["pinned", ("cuda", {"non_blocking": True})]


@pytest.mark.parametrize("words", [("--precision", "bf16", "fp32"), ("--tf32", "true", "false")])
def test_a_run_goes_on_as_it_computed_before(cli: Cli, tmp_path: Path, words: tuple[str, str, str]) -> None:
    flag, value, other = words
    status, _, err = cli(*QUICK, flag, value, "--session", "one", "--max-steps", 2)
    assert status == 0, err
    name = flag[2:].replace("-", "_")
    assert f"{name}: {value}" in (tmp_path / "sessions/one/config.yaml").read_text()
    last = tmp_path / "sessions/one/checkpoint/latest.ckpt"
    status, out, err = cli(*QUICK, "--resume", last, "--max-steps", 3)
    assert (
        status == 0
        and f"{name}: " not in out + err
        and checkpoint.load(last)["config"][name] in (value, value == "true")
    )
    status, out, err = cli(*QUICK, "--resume", last, "--max-steps", 4, flag, other)
    assert status == 0 and name in err, "what differs is shown"


def test_group_crops_of_earlier_versions_is_accepted(cli: Cli, tmp_path: Path) -> None:
    told = "group_crops: accepted, and without effect"
    status, _, err = cli(*QUICK, "--group-crops", "--session", "one", "--max-steps", 2)
    assert status == 0 and err.count(told) == 1
    last = tmp_path / "sessions/one/checkpoint/latest.ckpt"
    stored = checkpoint.load(last)
    assert "group_crops" not in stored["config"]
    checkpoint.save({**stored, "config": {**stored["config"], "group_crops": True}}, last)
    status, _, err = cli("--resume", last, "--max-steps", 3)
    assert status == 0 and told in err


def test_bf16_without_the_arithmetic_is_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "computes_in_bf16", lambda where: False)
    (remark,) = precision.remarks(devices.CPU, "bf16")
    assert "bfloat16" in remark and precision.remarks(devices.CPU, "fp32") == []
    monkeypatch.setattr(precision, "computes_in_bf16", lambda where: True)
    assert precision.remarks(devices.CPU, "bf16") == []


def on(answer: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that computes in bfloat16, or not, or does not tell."""
    monkeypatch.setattr(precision, "computes_in_bf16", lambda where: answer)


@pytest.mark.parametrize(("answer", "expected"), [(True, "bf16"), (False, "fp32"), (None, "fp32")])
def test_auto_is_decided_recorded_and_kept(
    answer: bool | None, expected: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*QUICK, "--precision", "auto")
    fresh = (*words, "--resume", "auto", "--max-steps", 1, "--session", "a")
    on(answer, monkeypatch)
    assert cli(*fresh)[0] == 0
    session = tmp_path / "sessions" / "a"
    last = session / "checkpoint" / "latest.ckpt"
    assert checkpoint.load(last)["config"]["precision"] == expected
    assert f"precision: {expected}\n" in (session / "config.yaml").read_text()
    on(not answer, monkeypatch)
    for again in (fresh, (*words, "--resume", last, "--max-steps", 2)):
        status, out, err = cli(*again)
        assert status == 0 and "resumed after step 1" in out and "precision: " not in err, err
        assert checkpoint.load(last)["config"]["precision"] == expected


def test_what_a_system_does_not_tell_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    assert precision.computes_in_bf16(devices.CPU) is None


def test_a_precision_that_does_not_exist_is_an_error(cli: Cli) -> None:
    status, _, err = cli(*QUICK, "--precision", "automatic")
    assert status == 2 and err.startswith("error: ") and "--precision" in err and err.count("\n") == 1


def test_a_run_in_bf16_is_scored_in_float32_where_there_is_no_bf16(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(True, monkeypatch)
    assert cli(*QUICK, "--precision", "bf16", "--session", "a")[0] == 0
    last = tmp_path / "sessions/a/checkpoint/latest.ckpt"
    pictures = tmp_path / "pictures"
    for number in range(3):
        picture(pictures / f"{number}.png", seed=number)

    def scored(name: str, *words: object) -> tuple[str, str]:
        status, _, err = cli(*words, "--session", name)
        assert status == 0, err
        return err, (tmp_path / "sessions" / name / "config.yaml").read_text()

    remark = "bf16; this processor has no bfloat16 arithmetic, so the network computes in float32"
    err, written = scored("there", "--evaluate", last)
    assert remark not in err and "precision: bf16\n" in written
    assert remark not in main.load(str(last)).warning
    on(False, monkeypatch)
    for number, words in enumerate((("--evaluate", last), ("--predict", last, "--data-root", pictures))):
        err, written = scored(f"elsewhere{number}", *words)
        assert remark in err and "precision: fp32\n" in written
    err, written = scored("asked", "--evaluate", last, "--precision", "bf16")
    assert remark not in err and "precision: bf16\n" in written
    model = main.load(str(last))
    assert remark in model.warning and model.method.precision == "fp32"


def test_the_settings_of_the_papers_stay_in_float32() -> None:
    assert [path for path in (ROOT / "configs").rglob("base.yaml") if "precision:" in path.read_text()] == []


def test_compiling_without_a_compiler_is_an_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, _, err = cli(*QUICK, "--compile", "true", "--debug")
    assert status == 2 and "no no-such-compiler" in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_learns_what_a_plain_one_does(cli: Cli, tmp_path: Path) -> None:
    for name in ("false", "true"):
        status, _, err = cli(*QUICK, "--compile", name, "--session", name, "--max-epochs", 2)
        assert status == 0, err
    plain, compiled = (
        checkpoint.load(tmp_path / "sessions" / name / "checkpoint/latest.ckpt")["method"] for name in ("false", "true")
    )
    assert plain.keys() == compiled.keys(), "the names of the weights do not tell of the compiler"
    for name, value in plain.items():
        if torch.is_tensor(value) and value.is_floating_point():
            assert (value - compiled[name]).norm() <= 0.02 * value.norm() + 1e-3, name


def test_threads_and_workers_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        devices.configure(SeedSettings(seed=1), PrecisionSettings(), DeviceSettings(threads=3))
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(devices, "cores", lambda: 2)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        devices.configure(SeedSettings(seed=1), PrecisionSettings(), DeviceSettings())
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        devices.configure(SeedSettings(seed=1), PrecisionSettings(), DeviceSettings())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    gpu = torch.device("cuda")
    for cores, beside_cpu, beside_gpu in ((1, 0, 1), (2, 1, 2), (16, 4, 8), (64, 8, 8)):
        monkeypatch.setattr(devices, "cores", lambda cores=cores: cores)
        assert devices.workers(None, devices.CPU) == beside_cpu and devices.workers(None, gpu) == beside_gpu
        assert devices.workers(100, gpu) == cores and devices.workers(0, gpu) == 0


def test_cores_are_those_that_this_process_may_use() -> None:
    assert 1 <= devices.cores() <= len(os.sched_getaffinity(0))


def test_a_gpu_that_is_not_there_is_an_error(cli: Cli) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    status, _, err = cli(*QUICK, "--gpus", "0", "--tfm-backend", "batched", "--debug")
    assert status == 2 and "--gpus 0" in err
    with pytest.raises(UserError):
        devices.device(DeviceSettings("0"))


@pytest.mark.slow
def test_a_dry_run_estimates_bf16_too(cli: Cli) -> None:
    status, out, err = cli(*QUICK, "--precision", "bf16", "--dry-run")
    assert (
        status == 0 and "GFLOP per step" in out and "for activations if they were float32" in " ".join(out.split())
    ), err
