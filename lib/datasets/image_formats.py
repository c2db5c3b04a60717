"""Which files are images: those of the formats that Pillow decodes, by itself or by a plug-in that is installed."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import lru_cache

from PIL import Image
from PIL.ImageFile import StubImageFile

PACKAGES = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
    ".avif": "pillow-avif-plugin",
    ".jxl": "pillow-jxl-plugin",
}
"""Ending → the package that decodes it, where Pillow does not."""
_MODULES = {".heic": "pillow_heif", ".avif": "pillow_avif", ".jxl": "pillow_jxl"}
# Pillow hands EPS to Ghostscript, which executes the file. An IPTC file holds an image of any format, so also EPS.
# MPEG is recognised and not decoded.
_EXCLUDED = {"EPS", "IPTC", "MPEG"}


@lru_cache(maxsize=1)
def decodable() -> tuple[str, ...]:
    """Pillow's names of the formats that can be decoded here, as `Image.open(formats=…)` takes them.

    The first call imports the plug-ins.
    """
    known = Image.registered_extensions()
    for ending, module in _MODULES.items():
        if ending not in known:
            with suppress(Exception):  # absent, or built for another Pillow
                plugin = importlib.import_module(module)
                getattr(plugin, "register_heif_opener", lambda: None)()  # the other two register on import
    return tuple(name for name in Image.ID if name not in _EXCLUDED and not _is_stub(Image.OPEN[name][0]))


@lru_cache(maxsize=1)
def endings() -> frozenset[str]:
    """The endings of the decodable formats, in lower case, with the dot."""
    formats = decodable()
    known = Image.registered_extensions()
    # Pillow opens MPO, which is several JPEG images in a file, as JPEG.
    return frozenset(ending for ending, name in known.items() if name in (*formats, "MPO"))


def _is_stub(opener: object) -> bool:
    return isinstance(opener, type) and issubclass(opener, StubImageFile)
