"""Image files of every format that Pillow writes, damaged: `python broken_images.py FIRST STOP FOLDER` reads them.

FOLDER/number has the number of the file at hand, for where a decoder hangs (SIGALRM ends it) or crashes.
"""

from __future__ import annotations

import io
import random
import resource
import signal
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from lib.datasets import Pictures
from lib.datasets.image_files import PictureFiles
from lib.errors import UserError
from lib.transforms.image_reader import Reader

MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B", "I", "F")
PER_FILE = 20  # s
MEMORY = 6 * 2**30  # bytes of addresses; PyTorch reserves some
EXTREMES = (0, 1, 2, 3, 255, 4096, 13_000, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
TIFF = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", "group3", "group4", "tiff_ccitt",
        "lzma", "zstd", "webp", "tiff_thunderscan", "tiff_sgilog", "tiff_sgilog24", "tiff_raw_16")  # fmt: skip
VARIANTS: dict[str, Sequence[dict[str, Any]]] = {
    "TIFF": [{"compression": name} for name in TIFF] + [{"big_tiff": True}, {"tiled": True}],
    "JPEG": [{}, {"progressive": True}, {"keep_rgb": True}, {"restart_marker_blocks": 1}],
    "JPEG2000": [{}, {"no_jp2": True}, {"irreversible": True}, {"tile_size": (8, 8)}],
    "WEBP": [{}, {"lossless": True}],
    "DDS": [{}, *({"pixel_format": name} for name in ("DXT1", "DXT3", "DXT5", "BC2", "BC3", "BC5"))],
    "TGA": [{}, {"compression": "tga_rle"}],
    "ICO": [{}, {"bitmap_format": "bmp"}],
    "BLP": [{}, {"blp_version": "BLP1"}],
    "SGI": [{}, {"bpc": 2}],
}


@cache
def whole_files() -> list[tuple[str, bytes]]:
    """(ending, content) of files in every format, mode and compression that Pillow writes and reads."""
    Image.init()
    endings = {name: ending for ending, name in reversed(Image.registered_extensions().items())}
    found = []
    for name in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for image in map(_image, ("RGBA",) if name == "ICNS" else MODES):  # whose smallest file is a megabyte
            for words in (*VARIANTS.get(name, [{}]), *_with_metadata(name)):
                content = io.BytesIO()
                try:
                    image.save(content, name, **words)
                except Exception:  # the format has no such mode, or Pillow no encoder
                    continue
                found.append((endings.get(name, ".spider"), content.getvalue()))
    return found


def damaged(number: int) -> tuple[str, bytes]:
    """(ending, content) of the damaged file with a number, always the same."""
    chance = random.Random(number)
    files = whole_files()
    ending, content = chance.choice(files)
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        _damage(data, chance, chance.choice(files)[1])
    if chance.random() < 0.2:
        ending = chance.choice(files)[0]
    return ending, bytes(data)


def _damage(data: bytearray, chance: random.Random, other: bytes) -> None:
    if not data:
        return
    # Half of the damage goes where formats have their headers.
    place = chance.randrange(min(len(data), chance.choice((64, 400, len(data)))))
    length = chance.randrange(1, 64)
    match chance.randrange(8):
        case 0:
            for _ in range(chance.randrange(1, 9)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place:] = other[chance.randrange(len(other)) :]
        case 3:
            data[place : place + length] = bytes(len(data[place : place + length]))
        case 4:
            size = chance.choice((1, 2, 4))
            value = chance.choice(EXTREMES) % 256**size
            data[place : place + size] = value.to_bytes(size, chance.choice(("big", "little")))
        case 5:
            data[place:] = chance.randbytes(len(data) - place)
        case 6:
            data[place:place] = data[place : place + length]
        case 7:
            del data[place : place + length]


def _image(mode: str) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    if mode == "LAB":
        return Image.merge("LAB", noise.split())
    if mode.startswith("I;16"):
        deep = np.random.default_rng(0).integers(0, 65536, (20, 24), dtype=np.uint16)
        return Image.fromarray(deep.astype(">u2" if mode == "I;16B" else "<u2"))
    return noise.convert(mode)


def _with_metadata(name: str) -> list[dict[str, Any]]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00"}
    frames = {"save_all": True, "append_images": [_image("L"), _image("RGB")]}
    words: list[dict[str, Any]] = [{"exif": exif.tobytes(), "icc_profile": bytes(200), "xmp": b"<x/>"}, frames]
    if name == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("a", "b" * 50, zip=True)
        text.add_itxt("c", "d" * 50, zip=True)
        text.add(b"tEXt", b"e\0f", after_idat=True)
        words.append({"pnginfo": text})
    return words


def is_readable(number: int, folder: Path) -> bool:
    """Read the damaged file with a number as a run does; whether it is an image, and not a UserError of one line.

    Raises:
        Exception: there was another exception.
    """
    ending, content = damaged(number)
    path = folder / f"{number}{ending}"
    path.write_bytes(content)
    part = PictureFiles([str(path)], [-1])
    channels = 1 + number % 2 * 2
    try:
        image = Reader(Pictures({"all": part}), channels, 16).decode(0)
    except UserError as error:
        text = str(error)
        assert text.startswith(f"cannot read the picture {path}: ") and text.isprintable() and len(text) < 500, text
        return False
    finally:
        path.unlink()
    assert image.mode == ("L" if channels == 1 else "RGB") and min(image.size) == 16
    return True


def main(first: int, stop: int, folder: Path) -> None:
    """Read many, and print how many are readable."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # also where a decoder in C hangs
    readable = 0
    for number in range(first, stop):
        (folder / "number").write_text(str(number))
        signal.alarm(PER_FILE)
        readable += is_readable(number, folder)
    signal.alarm(0)
    print(readable)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
