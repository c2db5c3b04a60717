"""Weights of a network that another program trained, from its file. Nothing in the file is executed."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from lib.checkpoints.checkpoint import load_archive, load_weights
from lib.errors import UserError
from lib.machine.devices import CPU

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which programs put the weights
# What makes classes of features, and what helps it in training; of torchvision, timm and others.
CLASSIFIER = re.compile(r"_?fc\.|classifier\.|heads?\.|head_dist\.|last_linear\.|AuxLogits\.|aux\d\.")


def read(path: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of one that torch wrote, on the CPU.

    Raises:
        UserError: no such file, damaged, or it holds no weights.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"--net-weights {path}: there is no such file ({file.absolute()}); give where it is now")
    try:
        content = file.read_bytes()
        found = safetensors.load(content) if file.suffix == ".safetensors" else _pickled(content)
    except OSError as error:
        raise UserError(f"--net-weights {path}: cannot be read: {error.strerror or error}; check the file") from error
    except SafetensorError as error:
        raise UserError(f"--net-weights {path}: no .safetensors file, or damaged: {error}; use another copy") from error
    if found is None:
        raise UserError(
            f"--net-weights {path}: damaged, or more than tensors and plain values, of which nothing was executed; "
            "use another copy, or save the state dict alone"
        )
    return unwrapped(found, f"--net-weights {path}")


def _pickled(content: bytes) -> Any:
    """What torch saved, in its archive or in the older form; None if it is neither, or damaged."""
    if content.startswith(b"PK"):
        return load_archive(content)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location=CPU, weights_only=True)
    except Exception:  # torch names no common base for what a hostile file can raise
        return None


def unwrapped(content: Any, origin: str) -> dict[str, Tensor]:
    """The state dict in what a program saved, its names without the `module.` of a parallel one.

    Raises:
        UserError: there is none.
    """
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise UserError(
            f"{origin}: it holds no state dict, which is names and tensors; save the network's alone "
            "(a checkpoint of ours is for --evaluate, --predict and --resume)"
        )
    prefix = "module." if all(str(name).startswith("module.") for name in content) else ""
    return {str(name).removeprefix(prefix): value for name, value in content.items()}


def fit(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict strictly; a classifier's weights, which the network has no place for, may be there.

    Raises:
        UserError: names or shapes differ; the message says which.
    """
    own = network.state_dict()
    kept = {name: value for name, value in state.items() if name in own or not CLASSIFIER.match(name)}
    # Counted since PyTorch 0.4.1, and used by nothing that has a momentum.
    counts = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    load_weights(network, {**counts, **kept}, origin)
