"""Networks by name, (N, C, H, W) → (N, feature_dim), their weights and what is frozen; not the heads behind them.

A network is a class that takes `(in_channels)`, or `(in_channels, settings)` if it declares a
`Settings` dataclass, and has `feature_dim`. It may have `own`, an `Own`, and `fetch()`, which gives the
state dict that `--net-weights default` loads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.registry import Registry
from lib.config.settings import Section, setting
from lib.errors import UserError
from lib.networks import freezing, weight_files
from lib.networks.freezing import TuningSettings
from lib.networks.headless import check_complete, shadow_features, sized

__all__ = ["NetworkSettings", "Own", "get", "names", "register", "register_family", "sized"]

_registry = Registry("network")
register = _registry.register
get = _registry.get
names = _registry.names
register_family = _registry.register_family


@dataclass(frozen=True)
class Own:
    """What a network says of the images that it takes; settings of transforms given as `none` take it."""

    size: int | None = None
    """Side of the image in pixels."""

    resize: int | None = None
    """Shorter side in pixels of the image from which it is cut; `size` where none is given."""

    means: tuple[float, ...] | None = None
    """Mean of each channel, on the scale from 0 to 1."""

    stds: tuple[float, ...] | None = None
    """Standard deviation of each channel, on the scale from 0 to 1."""

    trained: bool = False
    """Whether the network comes with trained weights, so that none are drawn."""


DEFAULT = "default"  # the network's own weights


def _patterns(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        try:
            re.compile(entry)
        except re.error as error:
            raise ValueError(f"{entry!r} is no regular expression: {error}") from error
    return entries


@dataclass(frozen=True)
class NetworkSettings(Section):
    """The settings of the group "network"; `--help all` explains each."""

    title = "network"
    lifetime = "network"
    network: str = setting("resnet34", "encoder, which turns an image into features", component=_registry)
    net_cin: Literal[1, 3] = setting(3, "channels of the images; 1 = grey; 3 = RGB")
    net_cout: int | None = setting(
        None, "accepted for the files of PICA's authors, and without effect, as in their program", idle=True
    )
    net_init: Literal["default", "torch1.0", "he"] = setting(
        "default",
        "first weights, unless they are trained already; default = those of today's PyTorch; torch1.0 = "
        "BatchNorm's weights from 0 to 1, as in the program of PICA's authors; he = convolutions by He "
        "et al., fan out, as in IMC-SwAV",
    )
    net_freeze: tuple[str, ...] | None = setting(
        None,
        "regular expressions; weights whose names begin with a match stay as they are (see "
        "--net-freeze-epochs); '.*' = the whole network, whose features are then computed once",
        value="REGEX",
        convert=_patterns,
    )


def build(config: Config, in_channels: int) -> nn.Module:
    """The network that the settings name, initialised and frozen as they say.

    Raises:
        UserError: a pattern of `net_freeze` matches no weight, or the weights of `net_weights` do not fit.
    """
    settings = config.of(NetworkSettings)
    tuned = config.of(TuningSettings)
    component = get(settings.network)
    network: nn.Module = component(in_channels, *config.extra(component))
    check_complete(network, settings.network)
    trained = own(settings.network).trained
    if settings.net_init == "torch1.0" and not trained:
        draw_norm_weights(network)
    if settings.net_init == "he" and not trained:
        draw_he_weights(network)
    if settings.net_freeze:
        freezing.freeze(network, settings.net_freeze, tuned.net_freeze_epochs, settings.network)
    elif tuned.net_freeze_epochs is not None:
        raise UserError("net_freeze_epochs is given, and nothing to freeze; say what: --net-freeze '.*' is the whole")
    if tuned.net_weights is not None and not config.weights_given:
        load_weights(network, settings.network, tuned.net_weights, downloads=not config.of(Command).dry_run)
    return network


def load_weights(network: nn.Module, name: str, source: str, downloads: bool = True) -> None:
    """Load trained weights.

    Args:
        network: takes them.
        name: of the network.
        source: a file, or `DEFAULT`.
        downloads: weights of the network's package may be downloaded; otherwise those are not loaded.

    Raises:
        UserError: there is no such file, it does not fit, or the network's own cannot be had.
    """
    component = get(name)
    if source != DEFAULT:
        weight_files.fit(network, weight_files.read(source), f"--net-weights {source}")
    elif hasattr(component, "fetch"):
        if downloads:
            weight_files.fit(network, component.fetch(), f"what {name} has as its own weights")
    elif not own(name).trained:
        raise UserError(f"--net-weights default: the network {name} has none of its own; give a file")


def own(name: str) -> Own:
    """What the network of that name says of the pictures that it takes."""
    found: Own = getattr(get(name), "own", Own())
    return found


def check_sizes(network: nn.Module, settings: NetworkSettings, *sizes: int) -> None:
    """See that a network of another package takes pictures of these sizes, px; ours take any.

    Raises:
        UserError: it does not; the message names its own size.
    """
    declared = own(settings.network).size
    for size in dict.fromkeys(sizes) if declared is not None else ():
        try:
            shadow_features(network, settings.net_cin, size)
        except Exception as error:  # whatever a network raises
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(
                f"the network {settings.network} takes no pictures of {size} px ({reason}); its own size is "
                f"{declared}: --tfm-size {declared}, and crops of that size"
            ) from error


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


from lib.networks import convnet, resnet, timm, torchvision  # noqa: E402, F401  (they register themselves)
