"""Checkpoints: written in one piece or not at all, and read without executing anything.

A file is torch's zip archive followed by `MAGIC` and the SHA-256 of all before it: torch verifies no
sum, and would load a flipped bit in a weight without a word. Files of other programs are read by
formats that register here; these hold weights alone, and nothing to go on from.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from lib.config.registry import Registry
from lib.errors import UserError, advice
from lib.machine.devices import CPU

FORMAT = 1
MAGIC = b"\nsha256:"
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class MisfitError(UserError):
    """Weights are not those of a module.

    Args:
        origin: where the weights are from.
        difference: what does not fit, in words.
        names: of the weights and buffers that do not fit.
    """

    def __init__(self, origin: str, difference: str, names: Sequence[str]) -> None:
        super().__init__(
            f"{origin} does not fit this network: {difference}; check --network and its settings, or take another file"
        )
        self.origin = origin
        self.difference = difference
        self.names = names


class Format(Protocol):
    """A foreign kind of file."""

    def read(self, content: bytes, path: str) -> dict[str, Any] | None:
        """The settings that the file tells, as `config`, and the weights under our names, as `method`.

        None where it is of another kind; nothing in it is executed.

        Raises:
            UserError: it is of this kind, and damaged or incomplete.
        """


_registry = Registry("checkpoint format")
register = _registry.register
get = _registry.get
names = _registry.names


def check_writable(path: Path) -> None:
    """See that `write_atomically` can write there; nothing is left of the attempt.

    Raises:
        UserError: the folder cannot be written, or `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    temporary = _beside(path)
    try:
        with open(temporary, "xb"):
            temporary.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice(error)}") from error


def write_atomically(path: Path, *content: bytes | memoryview) -> None:
    """Replace `path` by `content`, part after part; at every moment it holds the old content or the new.

    Raises:
        UserError: the disk is full, or the folder cannot be written; the old content is intact.
    """
    temporary = None
    try:
        # `tempfile` would give rights to its owner alone.
        with open(_beside(path), "xb") as file:
            temporary = Path(file.name)
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror or error}"
        raise UserError(f"{problem}; {advice(error)}; what was there before is intact") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def save(content: Mapping[str, Any], *paths: Path) -> None:
    """Write a checkpoint of tensors and plain Python values to each of the paths.

    Raises:
        UserError: the disk is full, or the folder cannot be written; an earlier checkpoint is intact.
    """
    write(serialize(content), *paths)


def serialize(content: Mapping[str, Any]) -> memoryview:
    """A checkpoint of tensors and plain Python values, without its checksum."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    return buffer.getbuffer()


def write(body: memoryview, *paths: Path) -> None:
    """Write what `serialize` gave, and its checksum, to each of the paths in turn.

    Raises:
        UserError: the disk is full, or the folder cannot be written; an earlier checkpoint is intact.
    """
    digest = hashlib.sha256(body).digest()
    for path in paths:
        write_atomically(path, body, MAGIC, digest)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, on the CPU. Nothing in the file is executed.

    Raises:
        UserError: no such file, damaged, cut short, or no checkpoint of this program.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe might never end
        raise UserError(f"cannot read the checkpoint {path}: it is no file; check the path")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        hint = "check the path" if error.errno in _NO_SUCH_FILE else advice(error)
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}; {hint}") from error
    body = content[: -len(MAGIC) - 32]
    magic = content[-len(MAGIC) - 32 : -32]
    digest = content[-32:]
    if magic != MAGIC:
        for kind in map(get, names()):
            found = kind.read(content, str(path))
            if found is not None:
                return dict(found)
        raise UserError(
            f"{path} is no checkpoint of this program, nor of another that it knows, or was cut short; "
            "nothing in it was executed"
        )
    if hashlib.sha256(body).digest() != digest:
        raise UserError(f"{path} is damaged: its content does not match its checksum; use another copy")
    try:
        state = torch.load(io.BytesIO(body), map_location=CPU, weights_only=True)
        found = state["format"] if isinstance(state, dict) and "format" in state else None
    except Exception as error:  # torch names no common base for what a hostile file can raise
        raise UserError(
            f"{path} is no checkpoint of this program: it holds more than tensors and plain values"
        ) from error
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, and this program reads format {FORMAT}; use the program that wrote it"
        )
    if not all(isinstance(state.get(part), dict) for part in ("config", "method")):
        raise UserError(f"{path} is no checkpoint of this program: it has no configuration or no weights")
    return dict(state)


_SCALAR: Any = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
    np.dtype,
    np.dtypes.Float64DType,
]


def load_archive(content: bytes) -> Any:
    """What another program saved by a modern torch: tensors, plain values, NumPy's float64; None if it is no such, or damaged."""
    if not content.startswith(b"PK"):
        return None
    try:
        if zipfile.ZipFile(io.BytesIO(content)).testzip() is not None:  # torch verifies no sum
            return None
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(io.BytesIO(content), map_location=CPU, weights_only=True)
    except Exception:  # torch names no common base for what a hostile file can raise
        return None


def weights_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The weights alone, without what belongs to the run that they come from."""
    return {name: value for name, value in stored["method"].items() if not name.endswith("_extra_state")}


def load_weights(module: nn.Module, state: Mapping[str, Any], origin: str) -> None:
    """Load a state dict, strictly. What a foreign file cannot hold, the `_extra_state`, may be missing.

    Raises:
        MisfitError: names, shapes or types differ; the message says which.
        UserError: a number is not finite, or a module rejects its extra state.
    """
    own = module.state_dict()
    state = {**{name: value for name, value in own.items() if name.endswith("_extra_state")}, **state}
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(getattr(state[name], 'shape', ()))} there and {tuple(own[name].shape)} here"
        for name in own.keys() & state.keys()
        if isinstance(own[name], torch.Tensor)
        and not (isinstance(state[name], torch.Tensor) and state[name].shape == own[name].shape)
    ]
    shapes += [
        f"{name} is {value.dtype} there and {own[name].dtype} here"
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
        and isinstance(own.get(name), torch.Tensor)
        and value.is_floating_point() != own[name].is_floating_point()
    ]
    if missing or unexpected or shapes:
        names = [*missing, *unexpected, *(line.partition(" ")[0] for line in shapes)]
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape or type", sorted(shapes))]
        text = "; ".join(f"{len(lines)} {what} ({', '.join(lines[:3])}, …)" for what, lines in parts if lines)
        raise MisfitError(origin, text, names)
    broken = [name for name, value in state.items() if isinstance(value, torch.Tensor) and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{origin} has numbers that are not finite, in {broken[0]}; use an earlier one, or another copy"
        )
    try:
        module.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{origin} does not fit this network: {error!r}") from error
