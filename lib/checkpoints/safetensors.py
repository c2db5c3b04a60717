"""Weights to hand on, as a .safetensors file with the settings as metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from lib.checkpoints.checkpoint import register, write_atomically
from lib.errors import UserError
from lib.machine.devices import CPU

STATISTICS = "statistics/"
BACKBONE = "backbone/"  # begin the names of these
PROGRAM = "deep-image-clustering 1"


def export(
    path: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    statistics: Mapping[str, Any],
    backbone: Mapping[str, Any] | None = None,
) -> None:
    """Write the tensors of a state dict, the BatchNorm statistics for predictions, and the settings.

    Args:
        path: of the file.
        config: of the run.
        state: dict of the method.
        statistics: its buffers, as the predictions were made with.
        backbone: what tells a frozen one, with or without its `weights`.

    Raises:
        UserError: the file cannot be written.
    """
    known = dict(backbone or {})
    copied = {BACKBONE + name: value for name, value in (known.pop("weights", None) or {}).items()}
    named = {**state, **{STATISTICS + name: value for name, value in statistics.items()}, **copied}
    tensors = {name: value.detach().cpu().contiguous() for name, value in named.items() if torch.is_tensor(value)}
    metadata = {"program": PROGRAM, "config": json.dumps(dict(config)), "sha256": digest(tensors)}
    if known:
        metadata["backbone"] = json.dumps(known)
    write_atomically(path, safetensors.save(tensors, metadata))


class _Safetensors:
    """Weights exported by this program."""

    def read(self, content: bytes, path: str) -> dict[str, Any] | None:
        # 8 bytes of length, then JSON.
        if content[8:9] != b"{" or int.from_bytes(content[:8], "little") > len(content):
            return None
        try:
            tensors = safetensors.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            metadata = header.get("__metadata__") or {}
            config = json.loads(metadata["config"]) if metadata.get("program") == PROGRAM else None
            backbone = json.loads(metadata["backbone"]) if "backbone" in metadata else None
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is no .safetensors file, or is damaged: {error}; use another copy") from error
        if not isinstance(config, dict):
            raise UserError(
                f"{path} was not exported by this program, so its settings are not known; use --evaluate on ours"
            )
        if metadata.get("sha256") != digest(tensors):
            raise UserError(f"{path} is damaged: its content does not match its checksum; use another copy")
        statistics, copied = (
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in (STATISTICS, BACKBONE)
        )
        weights = {name: value for name, value in tensors.items() if not name.startswith((STATISTICS, BACKBONE))}
        found = {"config": config, "method": weights, "statistics": statistics}
        return found if backbone is None else {**found, "backbone": {**backbone, "weights": copied or None}}


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and content, whatever the device and the order in memory."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to(CPU)
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


register("safetensors", _Safetensors())
