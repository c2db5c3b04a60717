"""Weights of a network that another program trained, from its file. Nothing in the file is executed."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from lib.checkpoint import load_weights
from lib.errors import UserError
from lib.runtime import CPU

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
    damaged = UserError(
        f"--net-weights {path}: damaged, or more than tensors and plain values, of which nothing was executed; "
        "use another copy, or save the state dict alone"
    )
    try:
        if file.suffix == ".safetensors":
            return unwrapped(safetensors.load_file(file), f"--net-weights {path}")
        if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip() is not None:  # which torch does not check
            raise damaged
        with warnings.catch_warnings(action="ignore"):
            content: Any = torch.load(file, map_location=CPU, weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--net-weights {path}: cannot be read: {error.strerror or error}; check the file") from error
    except SafetensorError as error:
        raise UserError(f"--net-weights {path}: no .safetensors file, or damaged: {error}; use another copy") from error
    except Exception as error:  # torch names no common base for what a hostile file can raise
        raise damaged from error
    return unwrapped(content, f"--net-weights {path}")


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
