"""One image file → pixels. Whatever a decoder raises is the fault of its file, and ends in one line."""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging

from lib.datasets import image_formats, image_metadata
from lib.errors import RunStopped, UserError

T = TypeVar("T")

MEGAPIXELS = 178.95697  # where Pillow's own limit is
TEXT = 200  # characters of a decoder's message that are shown
USUAL = 2**24  # bytes of a file that a decoder may search to its end
STEPS = 2**20  # bytes that it may read one by one of a larger file
WHOLE = 2**30  # bytes of a file that it may bring into memory

_ROOM = 4 * int(MEGAPIXELS * 1e6)  # bytes of such an image
_OF_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Remarks on odd files would stand beside our one line: Pillow's, and what libtiff writes to stderr by itself.
warnings.filterwarnings("ignore", module=r"PIL\b")
logging.getLogger("PIL").addHandler(logging.NullHandler())
with suppress(OSError, AttributeError):  # a Pillow without it
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@contextmanager
def unreadable(image: str, advice: str = "") -> Iterator[None]:
    """Turn any exception from inside into a UserError of one line.

    Args:
        image: names the image.
        advice: follows the reason.

    Raises:
        UserError: "cannot read {image}: {reason}{advice}"; a UserError from inside stays as it is.
        RunStopped: the machine has no more memory or file handles, which is no fault of the image.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"cannot read {_printable(image)}: {_reason(error)}"
        if _is_of_machine(error):
            raise RunStopped(f"{problem}; the machine has no more memory or open files (ulimit -a)") from error
        raise UserError(f"{problem}{advice}") from error


def decode(file: str | os.PathLike[str], max_megapixels: float, side: int | None = None) -> Image.Image:
    """The pixels of a file, upright. Broken metadata do not matter.

    Args:
        file: the file.
        max_megapixels: that it may have.
        side: px, as for `reduced`.

    Raises:
        Exception: of any kind, as the decoder raises it; `unreadable` makes a UserError of it.
        ValueError: the image has more than `max_megapixels`, and was not decoded.
    """
    return _opened(file, max_megapixels, lambda image: upright(reduced(image, side)))


def check_header(file: str | os.PathLike[str], max_megapixels: float) -> None:
    """Raises what `decode` would, as far as the header of a file shows it."""
    _opened(file, max_megapixels, lambda image: None)


def reduced(image: Image.Image, side: int | None) -> Image.Image:
    """The same; a JPEG that is not loaded yet will be decoded at a scale at which its shorter side has `side` px or more.

    libjpeg leaves out frequencies for it, which is faster than to decode and to resize. None: at its own size.
    """
    if side is not None:
        image.draft(None, (side, side))  # the mode stays
    return image


def upright(image: Image.Image) -> Image.Image:
    """The image, loaded and turned by its EXIF tag; as it is where the tag cannot be read."""
    image.load()
    method = None
    with suppress(Exception):  # of metadata alone: the pixels are there
        method = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if method is None else image.transpose(method)


def _opened(file: str | os.PathLike[str], max_megapixels: float, use: Callable[[Image.Image], T]) -> T:
    if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for without end
        raise ValueError("it is no file")
    try:
        with _content(file) as content:
            return _used(_open(content, max_megapixels), max_megapixels, use)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(error).partition(',')[0]}; raise --max-megapixels") from error
    except Exception:
        with suppress(Exception):  # where it fails again, the first reason is the better one
            plain = image_metadata.open_without(file, lambda content: _open(content, max_megapixels))
            return _used(plain, max_megapixels, use)
        raise


class _Bounded(io.BufferedReader):
    """A file that no decoder searches byte by byte to its end, nor brings into memory whatever its size."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(file))
        self._size = os.path.getsize(file)
        self._steps = 0

    def read(self, size: int | None = -1) -> bytes:
        self._steps += size == 1
        if self._steps > STEPS:
            raise ValueError("behind its header is no image")
        if (size is None or size < 0) and self._size > WHOLE:
            raise ValueError(f"it has {self._size:,} bytes, and its format is read whole: at most {WHOLE:,}")
        return super().read(size)


def _content(file: str | os.PathLike[str]) -> AbstractContextManager[image_metadata.Source]:
    """What Pillow is given of a file: the name of a usual one, which it can map into memory."""
    is_large = os.path.isfile(file) and os.path.getsize(file) > USUAL
    return _Bounded(file) if is_large else nullcontext(file)


def _open(file: image_metadata.Source, max_megapixels: float) -> Image.Image:
    # Pillow has one limit for all threads of the process. So it is raised where it is too low, and never lowered.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, math.ceil(max_megapixels * 1e6 / 2))
    return Image.open(file, formats=image_formats.decodable())


def _used(image: Image.Image, max_megapixels: float, use: Callable[[Image.Image], T]) -> T:
    with image:
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            raise ValueError(
                f"it has {megapixels:g} megapixels, and the limit is {max_megapixels:g}; raise --max-megapixels"
            )
        return use(image)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is no image"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = _printable(" ".join(said[: 2 * TEXT].split()))
    if len(line) > TEXT:
        line = line[:TEXT] + "…"
    if isinstance(error, Image.DecompressionBombError):  # a program of the user's has opened it
        line += "; raise PIL.Image.MAX_IMAGE_PIXELS"
    kind = type(error).__name__
    if not line:
        return kind
    return line if isinstance(error, OSError | ValueError | SyntaxError) else f"{kind}: {line}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_of_machine(error: Exception) -> bool:
    if not isinstance(error, MemoryError):
        return isinstance(error, OSError) and error.errno in _OF_MACHINE
    try:
        np.empty(_ROOM, dtype=np.uint8)  # nothing is written there
    except MemoryError:
        return True
    return False  # there is room for a large image: a damaged file asked for more
