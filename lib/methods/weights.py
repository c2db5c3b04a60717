"""The weights of a checkpoint for a method, and for the frozen network that stands before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lib.checkpoints import checkpoint
from lib.errors import UserError
from lib.networks import backbone


def load(method: nn.Module, encode: nn.Module, state: Mapping[str, Any]) -> None:
    """Take the weights of a checkpoint, without what belongs to its run.

    Raises:
        UserError: they do not fit, or are of a method on another backbone.
    """
    backbone.adopt(encode, state)
    load_state(method, checkpoint.weights_of(state), "the checkpoint")


def load_state(method: nn.Module, weights: Mapping[str, Any], origin: str) -> None:
    """Load the weights and buffers of a method.

    Args:
        method: takes them.
        weights: its state dict.
        origin: where they are from, for messages.

    Raises:
        UserError: they do not fit; the message tells whether the network's do not, or only the method's own.
    """
    try:
        checkpoint.load_weights(method, weights, origin)
    except checkpoint.MisfitError as misfit:
        if any(name.startswith("network.") for name in misfit.names):
            raise
        title = type(method).__name__
        raise UserError(
            f"{origin} does not fit the method {title}: {misfit.difference}; none of them is the network's. Either the code "
            f"of {title} has changed, or a size depends on the training images: keep such state in `get_extra_state`, as "
            "docs/extend.md shows"
        ) from misfit
