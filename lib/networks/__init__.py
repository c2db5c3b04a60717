"""Networks by name: (N, C, H, W) → (N, feature_dim).

A network is a class that takes `(in_channels)`, or `(in_channels, settings)` if it declares a
`Settings` dataclass, and has `feature_dim`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lib.config import Config
from lib.errors import UserError
from lib.registry import Registry
from lib.settings import Section, setting

_registry = Registry("network")
register, get, names = _registry.register, _registry.get, _registry.names


def _patterns(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        try:
            re.compile(entry)
        except re.error as error:
            raise ValueError(f"{entry!r} is no regular expression: {error}") from error
    return entries


@dataclass(frozen=True)
class NetworkSettings(Section):
    title = "network"
    bound = True
    network: str = setting("resnet34", "which one", component=_registry)
    net_cin: Literal[1, 3] = setting(3, "channels of the pictures: 1 is grey, 3 is RGB")
    net_cout: int | None = setting(None, "in the PICA authors' files; without effect, as in their program", idle=True)
    net_init: Literal["default", "torch1.0", "he"] = setting(
        "default",
        "first weights; torch1.0: BatchNorm's weight from U(0, 1), as in the PICA authors' PyTorch; "
        "he: convolutions after He et al., fan out, as IMC-SwAV's",
    )
    net_freeze: tuple[str, ...] | None = setting(
        None,
        "regular expressions; weights whose name begins with a match stay as they are; all of them ('.*'): the method "
        "is trained on the network's features, which are computed once",
        convert=_patterns,
    )


def build(config: Config, in_channels: int) -> nn.Module:
    """The network that the settings name, initialised and frozen as they say.

    Raises:
        UserError: a pattern of `net_freeze` matches no weight.
    """
    settings = config.of(NetworkSettings)
    component = get(settings.network)
    network: nn.Module = component(in_channels, *config.extra(component))
    if settings.net_init == "torch1.0":
        draw_norm_weights(network)
    if settings.net_init == "he":
        draw_he_weights(network)
    for pattern in settings.net_freeze or ():
        matched = [weight for name, weight in network.named_parameters() if re.match(pattern, name)]
        if not matched:
            first = ", ".join(name for name, _ in list(network.named_parameters())[:3])
            raise UserError(f"--net-freeze {pattern!r} matches no weight of {settings.network}, which has {first}, …")
        for weight in matched:
            weight.requires_grad_(False)
    return network


def is_frozen(settings: NetworkSettings, network: nn.Module) -> bool:
    """Whether every weight of a network that `build` gave stays as it is, for the whole run."""
    return settings.net_freeze is not None and not any(weight.requires_grad for weight in network.parameters())


def draw_norm_weights(module: nn.Module) -> None:
    """BatchNorm's weight from U(0, 1), the default of PyTorch up to 1.1, under which PICA was made."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight)


def draw_he_weights(module: nn.Module) -> None:
    """Convolutions as He et al. (2015) draw them, by the fan out."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


from lib.networks import convnet, resnet  # noqa: E402, F401  (they register themselves)
