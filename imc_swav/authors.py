"""Checkpoints of the IMC-SwAV authors' program: {'model', 'hyperparams', 'epoch'}.

Every tensor of the encoder is there twice, under two names of the same layer. The running statistics
of BatchNorm in them are those of test images (see docs/fidelity.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from lib.checkpoints import checkpoint
from lib.errors import UserError

NAMES = (
    (r"encoder\.module\.model\.(?:covn1|layer_list\.0)\.", "network.stem."),
    (r"encoder\.module\.model\.(?:layer|layer_list\.)([1-4])\.", "network.stages.{stage}."),
    (r"project\.project\.", "projection."),
    (r"prototypes\.prototypes\.", "prototypes."),
    (r"auxhead\.aux_head\.", "classifier."),
)
NETWORKS = ("resnet18", "resnet34", "resnet50")


def our_name(key: str) -> str:
    """The authors' name of a weight → ours.

    Raises:
        UserError: it is none of theirs.
    """
    for pattern, name in NAMES:
        found = re.match(pattern, key)
        if found:
            return name.format(stage=int(found[1]) - 1 if found.groups() else 0) + key[found.end() :]
    raise UserError(f"{key!r} is no weight of the IMC-SwAV authors' model")


def convert(model: Mapping[str, Any], hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """Their state dict and settings → ours.

    Of the two names of a layer the later one counts, as when their program loads it.

    Raises:
        UserError: a name that their models do not have, or a setting that is missing.
    """
    network = hyperparams.get("model_type", "resnet18")
    if network not in NETWORKS:
        raise UserError(f"the checkpoint's model_type {network!r} is none of {', '.join(NETWORKS)}")
    weights = {our_name(key): value for key, value in model.items()}
    try:
        shapes = {
            name: weights[name].shape for name in ("classifier.6.weight", "prototypes.weight", "classifier.0.weight")
        }
        stem = weights["network.stem.0.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise UserError(f"the checkpoint lacks {error}") from error
    config = {
        "method": "imc_swav",
        "network": network,
        "net_cin": stem,
        "num_clusters": shapes["classifier.6.weight"][0],
        "prototypes": shapes["prototypes.weight"][0],
        "project_dim": shapes["prototypes.weight"][1],
        "classifier_dim": shapes["classifier.0.weight"][0],
        **{name: float(hyperparams[name]) for name in ("tau", "eps") if name in hyperparams},
    }
    return {"config": config, "method": weights}


class _Authors:
    """Checkpoints of the IMC-SwAV authors' program."""

    def read(self, content: bytes, path: str) -> dict[str, Any] | None:
        state = checkpoint.load_archive(content)
        if not isinstance(state, dict) or not all(isinstance(state.get(n), dict) for n in ("model", "hyperparams")):
            return None
        if not all(isinstance(key, str) and torch.is_tensor(value) for key, value in state["model"].items()):
            raise UserError(
                f"{path} holds more than weights under `model`, as no checkpoint of IMC-SwAV's authors does"
            )
        try:
            return convert(state["model"], state["hyperparams"])
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {error}") from error


checkpoint.register("imc_swav authors", _Authors())
