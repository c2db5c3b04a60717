"""What `--dry-run` prints: sizes, steps, parameters, operations and memory, without training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib.config.config import Config
from lib.datasets import DataSettings
from lib.datasets.folder_tree import counted
from lib.features.views import EncodedViews
from lib.machine import devices
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.methods.method import MethodSettings, Task
from lib.networks import NetworkSettings
from lib.networks.backbone import Backbone
from lib.runs import launcher
from lib.training.trainer import TrainerSettings, build_optimizer
from lib.transforms import TransformSettings, normalisation

# (FLOP/s outside of tensor cores, from NVIDIA's data sheets; the share of them that a run reaches). An H100's is the
# lower of the two that benchmarks/gpu.py found at 32 px, an A100's is an assumption.
PEAKS = {"an A100": (19.5e12, 0.4), "an H100 SXM": (67e12, 0.2)}


def forecast(task: Task) -> str:
    """A line for each thing that one wants to know before a run."""
    method = task.method
    source = task.source
    config = task.config
    data = config.of(DataSettings)
    epochs = config.of(TrainerSettings).epochs
    limit = config.of(TrainerSettings).max_steps
    steps = min(len(source) * epochs, limit if limit is not None else len(source) * epochs)
    trained = sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    fixed = sum(weight.numel() for part in (method, task.encode) for weight in part.parameters()) - trained
    operations, activations, state = measure(task, config)
    state += sum(held.numel() * held.element_size() for held in task.encode.state_dict().values())
    processes = launcher.number_of_processes(config.of(DeviceSettings))
    several = f"{processes} processes, each on " if processes > 1 else ""
    expected = "expected: " if task.pictures.expected else ""
    absent = "; not there, so its published sizes are expected" if expected else ""
    total = operations * steps
    rows = [
        ("data", f"{data.dataset} in {data.data_root}{absent}"),
        *(("data", line) for line in task.pictures.describe()),
        *(("train", f"{expected}{line}") for line in source.describe()),
        *(("score", f"{expected}{name}: {counted(len(split.index), 'picture', 'pictures')}") for name, split in task.splits.items()),
        ("values", _values(config)),
        ("method", f"{config.of(MethodSettings).method}, {method.num_clusters} clusters"),
        ("network", f"{config.of(NetworkSettings).network} with heads: {trained:,} trained weights, {fixed:,} fixed ones"),
        *(("features", line) for line in _features(task, config)),
        ("steps", f"{len(source):,} per epoch, {steps:,} in {epochs} epochs or less"),
        ("work", f"{operations / 1e9:,.1f} GFLOP per step, {total / 1e15:,.3f} PFLOP in all"),
        *(("time", f"{_duration(total / (share * peak))} on {name}, at {share:.0%} of its peak of {peak / 1e12:g} TFLOP/s "
          "in float32") for name, (peak, share) in PEAKS.items()),
        ("memory", f"about {_size(state)} for weights, gradients and optimizer, {_size(activations / processes)} for activations"
         f"{' if they were float32' if config.of(PrecisionSettings).precision != 'fp32' else ''}"),
        ("device", f"{several}{devices.describe(devices.device(config.of(DeviceSettings)))}"),
    ]  # fmt: skip
    return "\n".join(f"{name:<9}{text}" for name, text in rows)


def _features(task: Task, config: Config) -> list[str]:
    """What the features of a frozen backbone cost, if there is one."""
    if not isinstance(task.encode, Backbone) or not isinstance(task.views, EncodedViews):
        return []
    recipes = task.views.recipes
    count = len(task.pictures)
    network = copy.deepcopy(task.encode).to("meta")
    channels = config.of(NetworkSettings).net_cin
    total = 0
    for recipe in recipes:
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, channels, recipe.size, recipe.size, device="meta"))
        total += count * counter.get_total_flops()
    peaks = " or ".join(f"{_duration(total / (share * peak))} on {name}" for name, (peak, share) in PEAKS.items())
    size = _size(4 * count * len(recipes) * task.encode.feature_dim)
    return [
        f"once, unless they are kept already: {count:,} pictures in {len(recipes)} view{'s' * (len(recipes) > 1)}, "
        f"{total / 1e15:,.3f} PFLOP, {peaks}",
        f"{size} in memory or on disk",
    ]


def _values(config: Config) -> str:
    """How pictures are normalised."""
    means, stds = normalisation(config.of(TransformSettings), config.of(NetworkSettings).net_cin)
    measured = f"less {' '.join(map(str, means))}, divided by {' '.join(map(str, stds))}"
    return "to be measured on the pictures" if config.undecided() else measured


def _duration(seconds: float) -> str:
    return f"about {seconds / 3600:,.1f} hours" if seconds >= 360 else f"about {max(seconds / 60, 0.1):,.1f} minutes"


def measure(task: Task, config: Config) -> tuple[int, int, int]:
    """(operations per step, bytes of activations, bytes of weights, gradients and optimiser).

    By a step on tensors that have a shape and no content.
    """
    method = copy.deepcopy(task.method).to("meta").train()
    optimizer = build_optimizer(method, config)
    operations, activations = estimate(method, task.source.blank(task.empty))
    optimizer.step()
    weights = [weight for weight in method.parameters()]
    held = [entry for state in optimizer.state.values() for entry in state.values() if isinstance(entry, torch.Tensor)]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return operations, activations, sum(t.numel() * t.element_size() for t in [*weights, *gradients, *held])


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
