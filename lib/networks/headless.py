"""A classification network of another package, made to give features."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lib.errors import UserError

__all__ = ["finished"]

CLASSES = 997  # of the classifier that is looked for; no layer of a known network has as many outputs by chance


def behead(model: nn.Module, title: str) -> None:
    """Replace the layer that gives `CLASSES` outputs, and a dropout in front of it, by nothing.

    Raises:
        UserError: there is no such layer.
    """
    places = [
        name
        for name, part in model.named_modules()
        if CLASSES in (_outputs(part, "features"), _outputs(part, "channels"))
    ]
    if not places:
        raise UserError(
            f"the network {title} has no linear or convolutional layer that gives its classes; take another"
        )
    parent, _, leaf = places[-1].rpartition(".")
    siblings = [name for name, _ in model.get_submodule(parent).named_children()]
    before = siblings[max(0, siblings.index(leaf) - 1)]
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    if isinstance(model.get_submodule(parent).get_submodule(before), nn.Dropout):
        setattr(model.get_submodule(parent), before, nn.Identity())


def _outputs(part: nn.Module, kind: str) -> Any:
    return getattr(part, f"out_{kind}", None) if isinstance(part, nn.Linear | nn.Conv2d) else None


def finished(model: nn.Module, in_channels: int, size: int, title: str) -> nn.Module:
    """Make a network without classifier ready: find its `feature_dim`, and repeat grey images on its three channels.

    Args:
        model: (N, 3, H, W) → (N, feature_dim), without its classifier; it is changed in place.
        in_channels: of the images, 1 or 3.
        size: px, a side of images that it takes.
        title: its name in messages.

    Returns:
        The model, with the attribute `feature_dim`.

    Raises:
        UserError: another number of channels, or it gives something else than a row of features.
    """
    if in_channels not in (1, 3):
        raise UserError(
            f"the network {title} takes pictures of 3 channels, or 1, not {in_channels}; give --net-sobel false"
        )
    if in_channels == 1:
        model.register_forward_pre_hook(_repeat_grey)
    features = shadow_features(model, in_channels, size)
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise UserError(f"the network {title} gives no row of features for each picture; take another")
    width: Any = features.shape[1]
    model.feature_dim = width
    return model


def shadow_features(network: nn.Module, in_channels: int, size: int) -> Any:
    """What the network makes of two pictures, as tensors that have a shape and no content: it costs next to nothing.

    Raises:
        Exception: what the network raises where it takes no pictures of this size.
    """
    held = [*network.parameters(), *network.buffers()]
    memo: dict[int, Any] = {id(value): value.detach().to("meta") for value in held}
    shadow = copy.deepcopy(network, memo).train(False)
    with torch.no_grad():
        return shadow(torch.empty(2, in_channels, size, size, device="meta"))


def _repeat_grey(module: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (images[0].expand(-1, 3, -1, -1),)
