"""Where a network's weights start, and which stay as they are, for ever or for the first epochs, or move more slowly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from lib.config.settings import Section, expanded, setting
from lib.errors import UserError


@dataclass(frozen=True)
class TuningSettings(Section):
    title = "tuning of a network"
    net_weights: str | None = setting(
        None,
        "trained weights to start from: a .safetensors or .pth file; default = those of the network's "
        "package, which may be downloaded; none = as the network is built",
        value="FILE|default",
        convert=expanded,
    )
    net_freeze_epochs: int | None = setting(
        None,
        "first epochs, in which the weights of --net-freeze stay as they are; none = all epochs",
        unit="epochs", low=1, lifetime="run",
    )  # fmt: skip
    net_lr_scale: float = setting(1.0, "factor on the learning rate of the network's weights", low=0, lifetime="run")


@dataclass(frozen=True)
class Frozen:
    """Which weights of a network stay as they are, and in how many epochs from the start; None: for ever."""

    names: frozenset[str]
    epochs: int | None


def freeze(network: nn.Module, patterns: Sequence[str], epochs: int | None, title: str) -> None:
    """Freeze the weights whose names begin with a match; with `epochs`, `begin` does it, so that optimisers know them.

    Args:
        network: is marked, as its attribute `frozen`.
        patterns: regular expressions.
        epochs: for how long; None: for ever.
        title: the network's, for the message.

    Raises:
        UserError: a pattern matches no weight.
    """
    names: set[str] = set()
    for pattern in patterns:
        matched = [name for name, _ in network.named_parameters() if re.match(pattern, name)]
        if not matched:
            first = ", ".join(name for name, _ in list(network.named_parameters())[:3])
            raise UserError(f"--net-freeze {pattern!r} matches no weight of {title}, which has {first}, …")
        names |= set(matched)
    marked: object = Frozen(frozenset(names), epochs)
    network.frozen = marked  # type: ignore[assignment]  # modules take any attribute
    if epochs is None:
        _set(network, names, frozen=True)


def begin(module: nn.Module, epoch: int) -> None:
    """Freeze and thaw what is frozen for some epochs, as it is in this one, the first being 0."""
    for part, mark in _marked(module):
        if mark.epochs is not None:
            _set(part, mark.names, frozen=epoch < mark.epochs)


def held(module: nn.Module) -> Iterator[nn.Module]:
    """The networks within that are wholly frozen at present."""
    for part, _ in _marked(module):
        if not any(weight.requires_grad for weight in part.parameters()):
            yield part


def _marked(module: nn.Module) -> list[tuple[nn.Module, Frozen]]:
    found = ((part, vars(part).get("frozen")) for part in module.modules())
    return [(part, mark) for part, mark in found if isinstance(mark, Frozen)]


def _set(network: nn.Module, names: set[str] | frozenset[str], frozen: bool) -> None:
    for name, weight in network.named_parameters():
        if name in names:
            weight.requires_grad_(not frozen)
