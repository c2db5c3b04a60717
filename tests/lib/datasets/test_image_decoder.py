from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture
from PIL import Image, ImageDraw, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from lib.datasets import image_decoder, image_files, image_metadata
from lib.datasets.image_folder import ImageFolder
from lib.errors import RunStopped, UserError
from lib.transforms.image_reader import prepare

Cli = Callable[..., tuple[int, str, str]]

SIZE = (12, 10)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
BOMB = zlib.compress(bytes(80_000_000))  # larger than Pillow takes of a text


def saved(kind: str, **words: Any) -> bytes:
    content = io.BytesIO()
    NOISE.save(content, kind, **words)
    return content.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG file with chunks before and after its pixels."""
    whole = saved("PNG")
    start = whole.index(b"IDAT") - 4
    end = whole.index(b"IEND") - 4
    return whole[:start] + before + whole[start:end] + after + whole[end:]


def jpeg(marker: int, data: bytes) -> bytes:
    """A JPEG file with one more segment."""
    whole = saved("JPEG")
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + whole[2:]


def exif(*entries: tuple[int, int, int, int]) -> bytes:
    """An EXIF block of (tag, type, count, value)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """An uncompressed TIFF file with more tags."""
    count = 9 + len(entries)
    pixels = NOISE.tobytes()
    place = 8 + 2 + 12 * count + 4
    needed = [(256, 3, 1, 12), (257, 3, 1, 10), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, place),
              (277, 3, 1, 3), (278, 3, 1, 10), (279, 4, 1, len(pixels))]  # fmt: skip
    return exif(*sorted([*needed, *entries]))[6:] + pixels


def read(folder: Path, content: bytes, ending: str = "") -> Image.Image:
    """As a run does, header check included."""
    path = folder / f"image{ending}"
    path.write_bytes(content)
    image = image_files.read(path)
    image_decoder.check_header(path, image_decoder.MEGAPIXELS)
    return image


@pytest.mark.parametrize(
    ("content", "size", "problem"),
    [
        (saved("JPEG")[:300], 2**28, "behind its header is no image"),
        (saved("GIF")[:40], 2**28, "behind its header is no image"),
        (saved("WEBP")[:100], 2**31, "its format is read whole"),
    ],
)
def test_zeros_without_end_behind_a_header(content: bytes, size: int, problem: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content)
    os.truncate(tmp_path / "image", size)
    with pytest.raises(UserError, match=problem):
        image_files.read(tmp_path / "image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_a_large_file_is_read_as_a_small_one(kind: str, tmp_path: Path) -> None:
    small = read(tmp_path, saved(kind))
    os.truncate(tmp_path / "image", image_decoder.USUAL + 1)
    assert np.array_equal(np.asarray(image_files.read(tmp_path / "image")), np.asarray(small))


def test_a_large_file_is_not_brought_into_memory_for_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").write_bytes(png(PNG_METADATA["pHYs cut"]))
    image_files.read(tmp_path / "image")
    monkeypatch.setattr(image_metadata, "LARGEST", 100)
    with pytest.raises(UserError, match="Truncated pHYs"):
        image_files.read(tmp_path / "image")


TURNED = (0x0112, 3, 1, 6)
MODEL = (0x0110, 2, 4, 0x61616161)
PNG_METADATA = {
    "zTXt of 80 MB": chunk(b"zTXt", b"k\0\0" + BOMB),
    "iTXt of 80 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "tEXt larger than all may be": chunk(b"tEXt", b"k\0" + b"a" * 5000),
    "iCCP of 80 MB": chunk(b"iCCP", b"n\0\0" + BOMB),
    "iCCP of another compression": chunk(b"iCCP", b"n\0\5abc"),
    "iCCP cut": chunk(b"iCCP", b"n"),
    "gAMA cut": chunk(b"gAMA", b"a"),
    "sRGB cut": chunk(b"sRGB", b""),
    "pHYs cut": chunk(b"pHYs", b"ab"),
    "acTL cut": chunk(b"acTL", b"\0"),
    "fcTL cut": chunk(b"fcTL", b"\0\0"),
    "tEXt of a wrong sum": chunk(b"tEXt", b"k\0hello", crc=0),
    "EXIF no EXIF": chunk(b"eXIf", b"garbage"),
    "EXIF as broken text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  8\nzz")),
    "XMP broken": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="9"'),
}
OTHER_METADATA = {
    "JPEG, ICC cut": jpeg(0xE2, b"ICC_PROFILE\0"),
    "JPEG, JFIF cut": jpeg(0xE0, b"JFIF"),
    "JPEG, Adobe cut": jpeg(0xEE, b"Adobe"),
    "JPEG, MPF broken": jpeg(0xE2, b"MPF\0garbage"),
    "JPEG, EXIF no EXIF": saved("JPEG", exif=b"Exif\0\0garbage"),
    "WebP, EXIF no EXIF": saved("WEBP", exif=b"garbage"),
    "AVIF, EXIF no EXIF": saved("AVIF", exif=exif(MODEL)).replace(exif(MODEL)[6:10], b"AAAA"),
    "AVIF, EXIF without an end": saved("AVIF", exif=exif(MODEL)).replace(exif(MODEL)[6:14], b"II*\0" + b"\xff" * 4),
    "TIFF, XMP a number": tiff((700, 3, 1, 5)),
    "TIFF, resolution a text": tiff((282, 2, 4, 0x61616161), (283, 2, 4, 0x61616161), (296, 3, 1, 3)),
    "TIFF, EXIF outside": tiff((34665, 4, 1, 0xFFFFFFF)),
    "TIFF, orientation a text": tiff((0x0112, 2, 4, 0x61616161)),
    "TIFF, ICC outside": tiff((34675, 7, 1000, 0xFFFFFF)),
}


@pytest.mark.parametrize("kind", PNG_METADATA)
def test_broken_metadata_of_a_png_do_not_matter(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 4000)
    for content in (png(before=PNG_METADATA[kind]), png(after=PNG_METADATA[kind])):
        assert np.array_equal(read(tmp_path, content, ".png"), NOISE)
        cut = content.index(b"IDAT") + 100
        with pytest.raises(UserError, match=r"image\.png: "):
            read(tmp_path, content[:cut], ".png")


@pytest.mark.parametrize("kind", OTHER_METADATA)
def test_broken_metadata_of_other_formats_do_not_matter(kind: str, tmp_path: Path) -> None:
    content = OTHER_METADATA[kind]
    name = kind.partition(",")[0].upper()
    plain = tiff() if name == "TIFF" else saved(name)
    assert np.array_equal(read(tmp_path, content), Image.open(io.BytesIO(plain)))
    with pytest.raises(UserError):
        read(tmp_path, content[:-300])


def test_an_orientation_beside_broken_metadata_is_respected(tmp_path: Path) -> None:
    outside = (0x8769, 2, 4, 0x61616161)
    upright = np.asarray(NOISE.transpose(Image.Transpose.ROTATE_270))
    for content in (
        png(before=chunk(b"eXIf", exif(TURNED, outside)[6:])),
        png(before=chunk(b"eXIf", exif(TURNED)[6:]) + chunk(b"gAMA", b"")),
        tiff(TURNED, outside),
        tiff(TURNED, (700, 3, 1, 5)),
    ):
        assert np.array_equal(read(tmp_path, content), upright)
    for content in (saved("JPEG", exif=exif(TURNED, outside)), saved("WEBP", exif=exif(TURNED, outside))):
        assert read(tmp_path, content).size == SIZE[::-1]
    content = saved("JPEG", exif=exif(TURNED))
    assert read(tmp_path, content[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + content[2:]).size == SIZE[::-1]


def test_a_compressed_tiff_file_with_broken_metadata(tmp_path: Path) -> None:
    tags = ImageFileDirectory_v2()
    tags[0x0112] = 6
    content = saved("TIFF", compression="tiff_lzw", tiffinfo=tags)
    entry = content.index(struct.pack("<HHI", 262, 3, 1))
    assert read(tmp_path, content).size == SIZE[::-1]
    # In the place of a tag that has its default value: XMP that is a number.
    planar = content.index(struct.pack("<HHI", 284, 3, 1))
    assert planar > entry
    broken = content[:planar] + struct.pack("<HHII", 700, 3, 1, 5) + content[planar + 12 :]
    assert np.array_equal(read(tmp_path, broken), read(tmp_path, content))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        *((kind(), kind.__name__) for kind in (TypeError, AttributeError, RuntimeError, AssertionError, EOFError,
           NotImplementedError, OverflowError, ZeroDivisionError, RecursionError, MemoryError, StopIteration)),
        (KeyError(5), "KeyError: 5"),
        (IndexError("list index"), "IndexError: list index"),
        (struct.error("unpack"), "error: unpack"),
        (zlib.error("inflate"), "error: inflate"),
        (ValueError("of two\n\tlines"), "of two lines"),
        (OSError("\x1b[31mred\x07\u202e"), r"\x1b[31mred\x07\u202e"),
        (SyntaxError("a" * 5000), "a" * image_decoder.TEXT + "…"),
        (UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"), "'ascii' codec can't decode byte 0xff in position 0: no"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), "No such file"),
    ],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_one_line(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError) as raised:
        image_files.read(Path("a\nb.png"))
    assert str(raised.value) == f"cannot read the picture a\\nb.png: {reason}{image_files.ADVICE}"
    (folder := ImageFolder.__new__(ImageFolder)).files = ["b.png"]
    with pytest.raises(UserError) as raised:
        folder.check([0])
    assert str(raised.value) == f"cannot read the picture b.png: {reason}{image_files.ADVICE}"


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_fault_of_the_machine_is_none_of_the_image(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoder, "_ROOM", 2**62)
    with pytest.raises(RunStopped, match="cannot read it: .*; the machine has no more"), image_decoder.unreadable("it"):
        raise error


def test_large_images_are_refused_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    content = saved("PNG")
    bomb = content.replace(struct.pack(">II", *SIZE), struct.pack(">II", 2**31 - 1, 2**31 - 1))
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    for number, (data, limit) in enumerate([(bomb, 5000), (bomb, 1e-4), (content, 1e-4), (content, 1.1e-4)]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{number}\.png: .* raise --max-megapixels"):
            image_files.read(path, limit)
    assert image_files.read(path, 1.2e-4).size == SIZE


def test_the_limit_of_size_is_a_setting_of_a_run(tmp_path: Path, cli: Cli) -> None:
    for i in range(12):
        picture(tmp_path / "pictures" / f"{i:02}.png", size=(10, 10), seed=i)
    picture(tmp_path / "pictures" / "large.png", size=(11, 10))
    words = ("--dataset", "image_folder", "--data-root", tmp_path / "pictures")
    small = (*words, "--max-megapixels", 1e-4)
    train = ("--num-clusters", 2, "--network", "convnet", "--net-width", 4, "--tfm-size", 8, "--tfm-resize", 10,
             "--tfm-working-size", 10, "--batch-size", 4, "--max-epochs", 1, "--num-workers", 0, "--disk-cache", 0)  # fmt: skip
    status, _, err = cli(*small, *train)
    assert status == 2 and "large.png: it has 0.00011 megapixels" in err and err.count("\n") == 1, err
    status, _, err = cli(*small, *train, "--on-bad-image", "skip", "--session", "a")
    assert status == 0 and "large.png: it has 0.00011 megapixels" in err, err
    latest = tmp_path / "sessions" / "a" / "checkpoint" / "latest.ckpt"
    status, _, err = cli("--predict", latest, *words, "--on-bad-image", "error")
    assert status == 2 and "raise --max-megapixels" in err, err
    status, _, err = cli("--predict", latest, *words, "--on-bad-image", "error", "--max-megapixels", 1)
    assert status == 0, err


def test_no_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "executed"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    eps = saved("EPS")

    def field(tag: tuple[int, int], data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, *tag, len(data)) + data

    header = [((3, 60), b"\1\0"), ((3, 20), struct.pack(">I", 12)), ((3, 30), struct.pack(">I", 10)), ((3, 120), b"\5")]
    iptc = b"".join(field(tag, data) for tag, data in header) + field((8, 10), eps)
    for content, ending in ((eps, ".eps"), (eps, ".png"), (iptc, ".iim"), (iptc, ".jpg")):
        with pytest.raises(UserError, match="no image"):
            read(tmp_path, content, ending)
    assert not mark.exists()


def test_images_of_odd_modes() -> None:
    for channels in (1, 3):
        for mode in (
            "LAB",
            "HSV",
            "YCbCr",
            "CMYK",
            "La",
            "RGBa",
            "PA",
            "RGBX",
            "I;16",
            "I;16B",
            "I;16L",
            "I",
            "F",
            "1",
        ):
            found = prepare(Image.new(mode, (9, 7)), channels, 8)
            assert found.mode == ("L" if channels == 1 else "RGB") and min(found.size) == 8
    none = np.frombuffer(struct.pack("<If4f", 0x7F800001, np.nan, np.inf, -np.inf, 0.5, 1), np.float32).reshape(2, 3)
    assert np.asarray(prepare(Image.fromarray(none.copy()), 1, None)).tolist() == [[0, 0, 0], [0, 128, 255]]
    clear = Image.new("P", (4, 4))
    clear.putpalette([10, 20, 30, 0], "RGBA")
    assert np.asarray(prepare(clear, 3, None)).min() == 255, "transparent, so white"
    with pytest.raises(ValueError, match="no pixels: its size is 0×5"):
        prepare(Image.new("RGB", (0, 5)), 3, 8)


@pytest.mark.parametrize(("kind", "words"), [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_the_first_of_several_frames_is_the_image(kind: str, words: dict[str, Any], tmp_path: Path) -> None:
    first, second = (Image.new("RGB", SIZE, colour) for colour in ("red", "blue"))
    ImageDraw.Draw(first).rectangle((2, 2, 5, 5), fill="lime")
    first.save(tmp_path / "a", kind, save_all=True, append_images=[second], **words)
    assert np.array_equal(image_files.read(tmp_path / "a").convert("RGB"), first)


def test_a_pipe_that_took_the_place_of_an_image_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="it is no file"):
        image_decoder.decode(tmp_path / "a.png", 1)
