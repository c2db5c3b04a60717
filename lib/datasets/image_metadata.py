"""Image files without their metadata: broken ones keep Pillow from sound pixels."""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from PIL import Image
from PIL.TiffImagePlugin import (
    ICCPROFILE,
    IPTC_NAA_CHUNK,
    RESOLUTION_UNIT,
    X_RESOLUTION,
    XMP,
    Y_RESOLUTION,
    TiffImageFile,
)

Source = str | os.PathLike[str] | IO[bytes]

LARGEST = 2**26  # bytes of a file that is brought into memory

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_EXIF = b"Exif\0\0"
_AVIF_EXIF = re.compile(rb"(infe.{8,10})Exif", re.DOTALL)  # the entry of the EXIF block among the items of the file
_APP0 = 0xE0
_APP1 = 0xE1
_APP14 = 0xEE
_APP15 = 0xEF
_COMMENT = 0xFE
_START_OF_SCAN = 0xDA


def open_without(file: str | os.PathLike[str], open_image: Callable[[Source], Image.Image]) -> Image.Image:
    """Open a PNG, JPEG, TIFF or AVIF file again, without metadata that no pixel needs.

    Args:
        file: the file.
        open_image: opens the content of a file.

    Raises:
        Exception: as the decoder does.
        ValueError: it has another format, or more than `LARGEST` bytes.
    """
    if os.path.getsize(file) > LARGEST:
        raise ValueError("too large to be read whole")
    with open(file, "rb") as content:
        start = content.read(12)
    if start.startswith(_PNG):
        return open_image(io.BytesIO(b"".join(_png(Path(file).read_bytes()))))
    if start.startswith(_JPEG):
        return open_image(io.BytesIO(b"".join(_jpeg(Path(file).read_bytes()))))
    if start[:2] in (b"II", b"MM"):
        return _Tiff(file)
    if start[4:8] == b"ftyp":
        return open_image(io.BytesIO(_AVIF_EXIF.sub(rb"\1none", Path(file).read_bytes())))
    raise ValueError("a format without metadata")


def _png(content: bytes) -> Iterator[bytes]:
    """The chunks that are critical, transparency, and a whole EXIF block."""
    yield _PNG
    place = len(_PNG)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        kind = content[place + 4 : place + 8]
        is_critical = kind[:1].isupper()
        is_exif = kind == b"eXIf" and zlib.crc32(content[place + 4 : end - 4]).to_bytes(4) == content[end - 4 : end]
        if is_critical or is_exif or kind == b"tRNS":
            yield content[place:end]
        place = end


def _jpeg(content: bytes) -> Iterator[bytes]:
    """Everything but comments and application segments; of these, those that colours or EXIF need."""
    yield _JPEG
    place = len(_JPEG)
    while content[place : place + 1] == b"\xff" and content[place + 1] != _START_OF_SCAN:
        marker = content[place + 1]
        if marker == 0xFF:  # it fills up
            place += 1
            continue
        end = place + 2 + max(2, int.from_bytes(content[place + 2 : place + 4]))
        segment = content[place:end]
        is_metadata = _APP0 <= marker <= _APP15 or marker == _COMMENT
        is_needed = (
            (marker == _APP0 and len(segment) >= 18)
            or (marker == _APP14 and len(segment) >= 16)
            or (marker == _APP1 and segment[4:].startswith(_EXIF))
        )
        if is_needed or not is_metadata:
            yield segment
        place = end
    yield content[place:]


class _Tiff(TiffImageFile):
    def _setup(self) -> None:
        for tag in (X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, ICCPROFILE, XMP, IPTC_NAA_CHUNK):
            if tag in self.tag_v2:
                del self.tag_v2[tag]
        super()._setup()

    def load_end(self) -> None:
        """Pillow's turns the image, and rewrites its metadata for it; only the tag is read here."""
        with suppress(Exception):
            self.getexif()
