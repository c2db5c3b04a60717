"""What `--dry-run` prints: the time and memory of a run, its sizes and steps, without training."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib.config.config import Config
from lib.config.text_columns import beside, command_lines
from lib.contracts import Recipe, Task
from lib.datasets import DataSettings
from lib.datasets.folder_tree import counted
from lib.features.views import EncodedViews
from lib.machine import devices, processes
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.machine.random_seeds import SeedSettings
from lib.methods.method import MethodSettings
from lib.networks import NetworkSettings
from lib.networks.backbone import Backbone
from lib.runs import launcher
from lib.training.trainer import TrainerSettings, build_optimizer
from lib.transforms import TransformSettings, normalisation

# (FLOP/s outside of tensor cores, from NVIDIA's data sheets; the share of them that a run reaches). An H100's is the
# lower of the two that benchmarks/gpu.py found at 32 px, an A100's is an assumption.
PEAKS = {"an A100": (19.5e12, 0.4), "an H100 SXM": (67e12, 0.2)}

# An H100 SXM in bfloat16: both speeds are NVIDIA's; the share and the passes are assumptions, so the time is a prediction.
BF16_PEAK = 989e12  # FLOP/s, dense
BF16_SHARE = 0.36
BF16_BANDWIDTH = 3.35e12  # bytes/s
LEAST_STEP = 1e-3  # s; below it the time to start operations counts, which is not in the prediction
BF16_PASSES = 6  # over the activations, which are half as large as in float32

# Of the speed of a large matrix product. A CPU's is the lower of the two in docs/speed.md, a GPU's is an assumption.
SHARE_OF_PRODUCT = {"cpu": 0.82, "cuda": 0.36}
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
SHORT_STEP = 1.5  # s by the matrix product, up to which a step is timed
TIMED_STEPS = 8
TIMED_BYTES = 4 * 2**30  # of activations, up to which a step is timed
COLUMN = 9


def forecast(task: Task) -> str:
    """What one wants to know before a run: a row for each, wrapped to the terminal."""
    method = task.method
    source = task.source
    config = task.config
    data = config.of(DataSettings)
    epochs = config.of(TrainerSettings).epochs
    limit = config.of(TrainerSettings).max_steps
    steps = min(len(source) * epochs, limit if limit is not None else len(source) * epochs)
    trained = sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    fixed = sum(weight.numel() for part in (method, task.encode) for weight in part.parameters()) - trained
    operations, activations, state = measure(task)
    state += sum(held.numel() * held.element_size() for held in task.encode.state_dict().values())
    device = devices.device(config.of(DeviceSettings))
    count = launcher.number_of_processes(config.of(DeviceSettings))
    several = f"{count} processes, each on " if count > 1 else ""
    expected = "expected: " if task.pictures.expected else ""
    absent = "; not there, so its published sizes are expected" if expected else ""
    in_float32 = " if they were float32" if config.of(PrecisionSettings).precision != "fp32" else ""
    seeds = config.of(SeedSettings).seeds
    rows = [
        *([("runs", f"{len(seeds)}, one for each seed; what follows is one of them")] if seeds else []),
        ("method", f"{config.of(MethodSettings).method}, {method.num_clusters} clusters"),
        ("data", f"{data.dataset} in {data.data_root}{absent}"),
        *(("data", line) for line in task.pictures.describe()),
        *(("train", f"{expected}{line}") for line in source.describe()),
        *(("score", f"{expected}{name}: {counted(len(part.index), 'image', 'images')}") for name, part in task.splits.items()),
        ("pixels", _normalisation(config)),
        ("network", f"{config.of(NetworkSettings).network} with heads: {trained:,} trained weights, {fixed:,} frozen"),
        ("steps", f"{len(source):,} per epoch, {steps:,} in {epochs} epochs at most"),
        ("device", f"{several}{devices.describe(device)}"),
        ("time", _here(task, operations, activations, steps, count)),
        ("memory", f"about {_size(state)} for weights, gradients and optimizer, {_size(activations / count)} for "
         f"activations{in_float32}"),
        ("work", f"{operations / 1e9:,.1f} GFLOP per step, {operations * steps / 1e15:,.3f} PFLOP in all"),
        *(("features", line) for line in _features(task)),
        *(("GPU", line) for line in _on_gpus(operations, activations, steps)),
    ]  # fmt: skip
    return "\n".join(line for name, text in rows for line in beside(name.ljust(COLUMN - 1), text, COLUMN))


def starting_command(argv: Sequence[str]) -> str:
    """The command that starts what a dry run showed, as lines that can be pasted."""
    words: list[str] = []
    value_follows = False
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if name == "--dry-run":
            value_follows = "=" not in word
        elif not (value_follows and word.lower() == "true"):
            words.append(word)
            value_follows = False
    return "\n".join(["to start it:", *command_lines(["python", "main.py", *words])])


def predicted(operations: int, activations: int, steps: int) -> str:
    """The time of a run on an H100 in bfloat16, by its operations and the bytes that it moves.

    Args:
        operations: of a step.
        activations: bytes that a step keeps, in float32.
        steps: of the run.
    """
    seconds = _h100_step(operations, activations)
    return (
        f"predicted on an H100 in bfloat16: {seconds * 1e3:,.1f} ms a step, {seconds * steps / 60:,.1f} minutes for the "
        "run (predicted, not measured)"
    )


def _h100_step(operations: int, activations: int) -> float:
    """Seconds of a step on an H100 in bfloat16, as far as they can be counted."""
    return operations / (BF16_SHARE * BF16_PEAK) + BF16_PASSES * activations / 2 / BF16_BANDWIDTH


def _on_gpus(operations: int, activations: int, steps: int) -> list[str]:
    """The time of the training on GPUs that are not here."""
    if _h100_step(operations, activations) < LEAST_STEP:
        return ["no prediction: so small a step takes a GPU longer to start than to compute"]
    counted = [
        f"{_duration(operations * steps / (share * peak))} on {name}, at {share:.0%} of its peak of {peak / 1e12:g} "
        "TFLOP/s in float32"
        for name, (peak, share) in PEAKS.items()
    ]
    return [*counted, predicted(operations, activations, steps)]


def _here(task: Task, operations: int, activations: int, steps: int, count: int) -> str:
    """The time of the training on the device that would be used."""
    device = devices.device(task.config.of(DeviceSettings))
    bf16 = task.config.of(PrecisionSettings).precision == "bf16"
    rate = SHARE_OF_PRODUCT[device.type] * _product_rate(device, torch.bfloat16 if bf16 else torch.float32)
    seconds = operations / rate
    alone = device == devices.CPU and count == 1 and processes.world() == 1
    how = f", by the {operations / 1e9:,.1f} GFLOP of a step and a matrix product that was timed here"
    if device != devices.CPU:
        seconds /= count
    elif alone and seconds <= SHORT_STEP and activations <= TIMED_BYTES:
        seconds = _timed_step(task)
        how = f": {steps:,} steps of {seconds * 1e3:,.1f} ms, as one that was timed here"
    return f"{_duration(seconds * steps)} to train{how}; reading, transforming and scoring images takes more"


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    side = PRODUCT_SIDE[device.type]
    factor = torch.rand(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(TIMED_STEPS):
        began = time.perf_counter()
        float((factor @ factor)[0, 0])  # waits for the device
        times.append(time.perf_counter() - began)
    return float(2 * side**3 / min(times))


def _timed_step(task: Task) -> float:
    """Seconds of a training step on images of noise; the task stays as it is."""
    method = copy.deepcopy(task.method).train()
    optimizer = build_optimizer(method, task.config)

    def noise(recipe: Recipe, count: int) -> Tensor:
        return torch.rand_like(empty(task, recipe, count), device=devices.CPU)

    batch = task.source.blank(noise)
    times = []
    for number in range(TIMED_STEPS + 1):
        began = time.perf_counter()
        method.before_forward(number)
        loss = method(batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        method.after_backward(number)
        optimizer.step()
        times.append(time.perf_counter() - began)
        if sum(times[1:]) > SHORT_STEP:
            break
    return min(times[1:])  # the first one allocates


def _features(task: Task) -> list[str]:
    """What the features of a frozen backbone cost, if there is one."""
    if not isinstance(task.encode, Backbone) or not isinstance(task.views, EncodedViews):
        return []
    recipes = task.views.recipes
    count = len(task.pictures)
    network = copy.deepcopy(task.encode).to("meta")
    channels = task.config.of(NetworkSettings).net_cin
    total = 0
    for recipe in recipes:
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, channels, recipe.size, recipe.size, device="meta"))
        total += count * counter.get_total_flops()
    peaks = " or ".join(f"{_duration(total / (share * peak))} on {name}" for name, (peak, share) in PEAKS.items())
    size = _size(4 * count * len(recipes) * task.encode.feature_dim)
    return [
        f"once, unless they are kept already: {count:,} images in {len(recipes)} view{'s' * (len(recipes) > 1)}, "
        f"{total / 1e15:,.3f} PFLOP, {peaks}",
        f"{size} in memory or on disk",
    ]


def _normalisation(config: Config) -> str:
    """How images are normalised."""
    means, stds = normalisation(config.of(TransformSettings), config.of(NetworkSettings).net_cin)
    measured = f"minus {' '.join(map(str, means))}, divided by {' '.join(map(str, stds))}"
    return "to be measured on the images" if config.undecided() else measured


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(round(seconds), 1)} second{'s' if round(seconds) > 1 else ''}"
    return f"about {seconds / 60:,.1f} minutes" if seconds < 5400 else f"about {seconds / 3600:,.1f} hours"


def measure(task: Task) -> tuple[int, int, int]:
    """(operations per step, bytes of activations, bytes of weights, gradients and optimiser).

    By a step on tensors that have a shape and no content.
    """
    method = copy.deepcopy(task.method).to("meta").train()
    optimizer = build_optimizer(method, task.config)
    operations, activations = estimate(method, task.source.blank(partial(empty, task)))
    optimizer.step()
    weights = [weight for weight in method.parameters()]
    held = [entry for state in optimizer.state.values() for entry in state.values() if isinstance(entry, torch.Tensor)]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return operations, activations, sum(t.numel() * t.element_size() for t in [*weights, *gradients, *held])


def empty(task: Task, recipe: Recipe, count: int) -> Tensor:
    """A view of so many images, as the method gets it, that has a shape and no content."""
    channels = task.config.of(NetworkSettings).net_cin
    is_frozen = isinstance(task.encode, Backbone)
    shape = (task.encode.feature_dim,) if is_frozen else (channels, recipe.size, recipe.size)
    return torch.empty(count, *shape, device="meta")


def estimate(step: nn.Module, batch: Any) -> tuple[int, int]:
    """Operations, and bytes kept for the backward pass, of one training step.

    Runs on empty tensors that have a shape and no content, so it costs neither time nor memory.

    Args:
        step: a module on the `meta` device whose forward gives {"loss": …}.
        batch: its input, on the same device.

    Returns:
        (floating-point operations forward and backward, bytes of activations)
    """
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        loss = step(batch)["loss"]
        weights = sum(p.numel() * p.element_size() for p in step.parameters())
        bytes_kept = sum(kept.values()) - weights
        loss.backward()
    return counter.get_total_flops(), max(bytes_kept, 0)


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
