"""A backbone that is frozen as a whole: it is no part of the method, stands before it, and gives it features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lib.checkpoints import checkpoint, safetensors
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.errors import UserError
from lib.machine import devices, precision
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings

SHOWN = 12  # digits of a digest in messages


@dataclass(frozen=True)
class BackboneSettings(Section):
    title = "frozen backbone"
    save_backbone: bool = setting(
        False,
        "keep a copy of a frozen network in every checkpoint; otherwise a checkpoint has only its name and digest",
    )


class Features(nn.Identity):
    """In the place of a method's network where a frozen backbone stands before it: (N, feature_dim), as they come.

    A method may put a small network of its own in its place.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim


class Backbone(nn.Module):
    """(N, C, H, W) → (N, feature_dim) in float32; always in evaluation mode, and without gradients.

    Args:
        network: whose weights are all frozen.
        name: by which it is known.
        drawn: whether its weights are random.
        fetch: gives the network its weights where a checkpoint names it and has no copy; none: it has them.
    """

    def __init__(
        self, network: nn.Module, name: str, drawn: bool = False, fetch: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.name = name
        self.precision = "fp32"
        self.title = f"{name} with random weights, which know no pictures" if drawn else name
        self._fetch = fetch
        dimension: Any = network.feature_dim
        self.feature_dim: int = dimension
        self._digest: str | None = None
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # its BatchNorm is frozen too

    def forward(self, images: Tensor) -> Tensor:
        with precision.lowered(images.device, self.precision):
            features: Tensor = self.network(images)
        return features.float()

    def place(self, config: Config) -> Self:
        """To the device, in the layout and the precision that the settings ask for.

        Raises:
            UserError: no such device, or `--compile` lacks what it needs.
        """
        settings = config.of(DeviceSettings)
        chosen = config.of(PrecisionSettings)
        device = devices.device(settings)
        self.precision = chosen.precision
        if precision.channels_last(device, chosen):
            self.network.to(memory_format=torch.channels_last)
        if settings.compile and not config.of(Command).dry_run:
            devices.check_compiler(device)
            self.network.compile()
        return self.to(device)

    @property
    def digest(self) -> str:
        """SHA-256 over all weights and buffers."""
        if self._digest is None:
            self._digest = safetensors.digest(self.network.state_dict())
        return self._digest

    def adopt(self, stored: Mapping[str, Any]) -> None:
        """Be the backbone that a checkpoint's method was trained on: take the copy in it, or see that we are it.

        Raises:
            UserError: we are not, or our weights cannot be had.
        """
        if not {"network", "digest"} <= stored.keys():
            raise UserError(
                "the checkpoint does not tell its frozen backbone, so it was made without one, or is damaged"
            )
        if stored.get("weights") is not None:
            checkpoint.load_weights(self.network, stored["weights"], "the checkpoint's copy of its backbone")
        elif self._fetch is not None:
            self._fetch()
        self._digest = None
        if self.digest != stored["digest"]:
            raise UserError(
                f"the checkpoint was trained on features of {stored['network']} {str(stored['digest'])[:SHOWN]}, and this "
                f"is {self.name} {self.digest[:SHOWN]}; bring back its weights (random ones follow from --seed), or train "
                "with --save-backbone, which keeps a copy"
            )

    def stored(self, whole: bool) -> dict[str, Any]:
        """What `adopt` takes; with a copy of the weights if it is to be `whole`."""
        identity: dict[str, Any] = {"network": self.name, "digest": self.digest}
        return {**identity, "weights": dict(self.network.state_dict())} if whole else identity


def stored(encode: nn.Module, config: Config) -> dict[str, Any]:
    """What a checkpoint holds of that which stands before the method."""
    whole = config.of(BackboneSettings).save_backbone
    return {"backbone": encode.stored(whole)} if isinstance(encode, Backbone) else {}


def adopt(encode: nn.Module, state: Mapping[str, Any]) -> None:
    """See that what stands before the method is what a checkpoint's method was trained on; a copy in it is taken.

    Raises:
        UserError: it is not.
    """
    if isinstance(encode, Backbone):
        encode.adopt(state.get("backbone") or {})


def load(method: nn.Module, encode: nn.Module, state: Mapping[str, Any]) -> None:
    """Take the weights of a checkpoint, without what belongs to its run.

    Raises:
        UserError: they do not fit, or are of a method on another backbone.
    """
    adopt(encode, state)
    checkpoint.load_weights(method, checkpoint.weights_of(state), "the checkpoint")
