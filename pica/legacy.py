"""Reads torch's file format of before 2020 without executing anything that is in it.

Such a file is a row of pickles (a magic number, a protocol number, a description of the machine, the
object, the keys of its storages), followed by the storages: 8 bytes of length, then the numbers. The
object's pickle may name nothing but what `_ALLOWED` lists, and each of these is a stand-in of ours.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C  # torch's
PROTOCOL = 1001
_ERRORS = (
    pickle.UnpicklingError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, OverflowError,
    ImportError, RecursionError, MemoryError, struct.error, RuntimeError,
)  # fmt: skip


class Refused(Exception):
    """The file is not what it should be."""


@dataclass(frozen=True, slots=True)
class _Kind:
    dtype: Any


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: Any
    size: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor whose numbers come later in the file."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """A stand-in that a pickle can call, and not change."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Dtype:
    """Takes the state that NumPy gives its data types, and forgets it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def _scalar(dtype: object, raw: object) -> float:
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(data, bytes) or len(data) != 8:
        raise Refused("it holds a NumPy number that is no float64")
    return float(struct.unpack("<d", data)[0])


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Refused(f"it names the encoding {encoding!r}")
    return text.encode("latin1")


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> _Tensor:
    numbers: list[Any] = [offset, *shape, *stride]
    if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
        raise Refused("it holds a tensor that is none")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    count: int = math.prod(shape)
    if count > storage.size or (count and last >= storage.size):
        raise Refused("it holds a tensor that is larger than its numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Call(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("numpy.core.multiarray", "scalar"): _Call(_scalar),
    ("numpy._core.multiarray", "scalar"): _Call(_scalar),
    ("numpy", "dtype"): _Call(lambda *_: _Dtype()),
    ("_codecs", "encode"): _Call(_encode),
    ("torch", "FloatStorage"): _Kind(np.float32),
    ("torch", "DoubleStorage"): _Kind(np.float64),
    ("torch", "LongStorage"): _Kind(np.int64),
}


# The one written in Python: the other reserves as much memory as a number in the file asks for.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise Refused(f"it names {module}.{name}, which no checkpoint needs; nothing in it was executed")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, size, part = pid  # the fourth is where it lay, the last a part of a storage
        if not isinstance(kind, _Kind) or type(size) is not int or part is not None:
            raise Refused("it holds numbers of a kind that no checkpoint has")
        return self.storages.setdefault(str(key), _Storage(str(key), kind.dtype, size))


def recognises(content: bytes) -> bool:
    """Whether the file begins as torch's old files do."""
    try:
        return bool(_Unpickler(io.BytesIO(content[:64])).load() == MAGIC)
    except (*_ERRORS, Refused):
        return False


def load(content: bytes) -> dict[str, Any]:
    """The mapping in the file; tensors in it, or in a mapping directly inside, are on the CPU.

    Raises:
        Refused: it names anything that is not allowed, or is damaged or cut short.
    """
    file = io.BytesIO(content)
    try:
        if (_Unpickler(file).load(), _Unpickler(file).load()) != (MAGIC, PROTOCOL):
            raise Refused("its header is not that of torch's old files")
        if not _Unpickler(file).load()["little_endian"]:
            raise Refused("it is from a machine of another byte order")
        reader = _Unpickler(file)
        found = reader.load()
        keys = _Unpickler(file).load()
        numbers = {str(key): _numbers(file, reader.storages[str(key)]) for key in keys}
        return {name: _filled(value, numbers) for name, value in found.items()}
    except _ERRORS as error:
        raise Refused(f"it is damaged or was cut short ({type(error).__name__})") from error


def _numbers(file: io.BytesIO, storage: _Storage) -> Tensor:
    (size,) = struct.unpack("<q", file.read(8))
    raw = file.read(storage.size * np.dtype(storage.dtype).itemsize)
    if size != storage.size:
        raise Refused("a length in it contradicts another")
    return torch.from_numpy(np.frombuffer(raw, storage.dtype, size).copy())


def _filled(value: Any, numbers: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: numbers[held.storage.key].as_strided(held.shape, held.stride, held.offset).clone()
        if isinstance(held, _Tensor) else held
        for key, held in value.items()
    }  # fmt: skip
