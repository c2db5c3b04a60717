"""Checkpoints of the PICA authors' program: {'net', 'optimizer', 'acc', 'epoch'}.

Theirs are legacy pickles of Python 2.7 and torch 1.0.1; the same content saved by a modern torch is
read too. The optimiser in them is of no use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from lib.checkpoints import checkpoint
from lib.errors import UserError
from pica import legacy

NAMES = (
    (r"sobel\.0\.", "network.0.grey."),
    (r"sobel\.1\.", "network.0.edges."),
    (r"layer1\.", "network.1.stem."),
    (r"layer([2-5])\.", "network.1.stages.{stage}."),
    (r"heads\.(\d+)\.0\.", "heads.{head}."),
)


def our_name(key: str, sobel: bool = True) -> str:
    """The authors' name of a weight → ours.

    Raises:
        UserError: it is none of theirs.
    """
    for pattern, name in NAMES:
        found = re.match(pattern, key)
        if found:
            number = int(found[1]) if found.groups() else 0
            name = name.format(stage=number - 2, head=number) if found.groups() else name
            return (name if sobel else name.replace("network.1.", "network.")) + key[found.end() :]
    raise UserError(f"{key!r} is no weight of the PICA authors' network")


def convert(net: Mapping[str, Any]) -> dict[str, Any]:
    """Their state dict → our settings, as far as it tells them, and weights.

    Raises:
        UserError: a name or a shape that their networks do not have.
    """
    plain = {key.removeprefix("module."): value for key, value in net.items()}
    sobel = any(key.startswith("sobel.") for key in plain)
    heads = sorted(int(found[1]) for key in plain if (found := re.fullmatch(r"heads\.(\d+)\.0\.weight", key)))
    stem = plain.get("layer1.0.weight")
    if heads != list(range(len(heads))) or not heads or stem is None or stem.ndim != 4:
        raise UserError("the checkpoint lacks the heads or the first layer of the PICA authors' network")
    config: dict[str, Any] = {
        "method": "pica",
        "network": _network(plain),
        "net_heads": [len(plain[f"heads.{head}.0.weight"]) for head in heads],
        "num_clusters": len(plain[f"heads.{heads[-1]}.0.weight"]),
        "net_sobel": sobel,
        "net_stem": "small-pool-padded",
    }
    if not sobel:
        config["net_cin"] = stem.shape[1]
    return {"config": config, "method": {our_name(key, sobel): value for key, value in plain.items()}}


def _network(plain: Mapping[str, Any]) -> str:
    """Told by the number of blocks, and of convolutions in each."""
    blocks = [len({key.split(".")[1] for key in plain if key.startswith(f"layer{stage}.")}) for stage in range(2, 6)]
    kind = (*blocks, any(".conv3." in key for key in plain))
    known = {(2, 2, 2, 2, False): "resnet18", (3, 4, 6, 3, False): "resnet34", (3, 4, 6, 3, True): "resnet50"}
    if kind not in known:
        raise UserError(f"the checkpoint's network has {blocks} blocks, and no ResNet-18, -34 or -50 has")
    return known[kind]


class _Authors:
    """Checkpoints of the PICA authors' program."""

    def read(self, content: bytes, path: str) -> dict[str, Any] | None:
        try:
            state = legacy.load(content) if legacy.recognises(content) else checkpoint.load_archive(content)
        except legacy.Refused as error:
            raise UserError(f"{path} is no checkpoint of this program or of PICA's authors: {error}") from error
        net = state.get("net") if isinstance(state, dict) else None
        if not isinstance(net, dict) or "epoch" not in state:
            return None
        if not all(isinstance(key, str) and torch.is_tensor(value) for key, value in net.items()):
            raise UserError(f"{path} holds more than weights under `net`, as no checkpoint of PICA's authors does")
        try:
            return convert(net)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


checkpoint.register("pica authors", _Authors())
