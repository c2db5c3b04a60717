"""A classification network of another package, made to give features."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lib.errors import UserError

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
    """The model without its classifier, with `feature_dim`; grey pictures are repeated on its three channels.

    Args:
        model: (N, 3, H, W) → (N, feature_dim).
        in_channels: of the pictures, 1 or 3.
        size: px, a side that it takes.
        title: for messages.

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


def sized(network: nn.Module, in_channels: int, size: int) -> nn.Module:
    """The network with what it leaves open: the sizes of lazy layers, and `feature_dim`.

    Two blank images pass it in evaluation mode. Use it at the end of a function that is registered as a network.

    Args:
        network: (N, in_channels, size, size) → (N, feature_dim).
        in_channels: of the images.
        size: px, the side of the images that it will see.

    Raises:
        UserError: it takes no such images, or gives something else than a row of features for each.
    """
    was_training = network.training
    place = next((value.device for value in network.parameters()), None)
    try:
        with torch.no_grad():
            features = network.train(False)(torch.zeros(2, in_channels, size, size, device=place))
    except Exception as error:  # whatever a network raises
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"the network {type(network).__name__} takes no images of {in_channels} channels and {size} px ({reason}); "
            "give `sized` the channels and the side that it takes"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(features, Tensor) or features.dim() != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"the network {type(network).__name__} gives {shape} for two images, not a row of features for each; "
            "end it in an average over the map and nn.Flatten()"
        )
    width: Any = features.shape[1]
    network.feature_dim = width
    return network


def check_complete(network: nn.Module, title: str) -> None:
    """See that a registered network is whole.

    Raises:
        UserError: a layer does not know its size yet, or there is no `feature_dim`.
    """
    for name, part in network.named_modules():
        if any(isinstance(value, UninitializedParameter) for value in part.parameters(recurse=False)):
            raise UserError(
                f"the network {title} has a {type(part).__name__} ({name}), which waits for an image to learn its size; "
                "give it its size, or return lib.networks.sized(network, in_channels, size)"
            )
    if not isinstance(getattr(network, "feature_dim", None), int):
        raise UserError(
            f"the network {title} has no whole number `feature_dim`, the length of its features; set it, or return "
            "lib.networks.sized(network, in_channels, size)"
        )


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
