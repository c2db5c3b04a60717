"""How fast a frozen network gives features, by each engine, and a folder of images by the whole program.

The first table gives images per second of the network alone, and the share of the processor's best matrix product that
this is. The second one starts from files: `before` is the former path, in which all images are decoded first, at their
own size, and then pass the network as it is. Weights are random: they do not matter for the speed.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments, fastest, interleaved, photographs, publish, ratio, settings
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import examples.efficientnet_lite0  # noqa: F401  (it registers itself)
from lib import networks
from lib.networks.backbone import Backbone
from lib.transforms import choose_backend

NETWORKS = {
    "efficientnet_lite0": (112, 224),
    "torchvision:resnet50": (112, 224),
    "torchvision:vit_b_16": (224,),
}  # name → px, sides of the images
SHORT = {"efficientnet_lite0": (112,), "torchvision:resnet50": (112,)}
SIDE = 1024  # of the matrix product


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(networks.get(name)(3), name)


def config_of(engine: str, *words: object) -> Any:
    return settings("--num-clusters", 10, "--debug", "--feature-engine", engine, *words)


def product_rate() -> float:
    """FLOP/s of a large matrix product in float32."""
    factor = torch.rand(SIDE, SIDE)
    return 2 * SIDE**3 / fastest(lambda: factor @ factor, 5)


def work(network: nn.Module, size: int) -> int:
    """Operations of an image."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta")(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops()


def passes(name: str, size: int, images: int, wanted: list[str]) -> dict[str, Callable[[], Tensor]]:
    """A pass of the same images through the network, by each of the engines."""
    batch = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    found: dict[str, Callable[[], Tensor]] = {}
    for engine in wanted:
        placed = backbone(name).place(config_of(engine), [size])
        with torch.no_grad():
            placed.prepare([size])
        found[engine] = torch.no_grad()(partial(placed, batch))
    return found


def by_engine(short: bool, wanted: list[str]) -> tuple[list[list[str]], list[dict[str, Any]]]:
    peak = product_rate()
    rows = []
    data = []
    for name, sizes in (SHORT if short else NETWORKS).items():
        for size in sizes:
            images = 16 if short else 64
            operations = work(backbone(name).network, size)
            seconds = interleaved(passes(name, size, images, wanted), 2 if short else 5)
            for engine, times in seconds.items():
                speed = images / min(times)
                faster = ratio(seconds["eager"], times)
                share = speed * operations / peak
                rows.append([name, f"{size} px", engine, f"{speed:,.0f}", f"{faster:.1f}", f"{share:.0%}"])
                data.append({"network": name, "size": size, "engine": engine, "seconds": times, "share": share})
    return rows, data


def fill(folder: Path, kind: str, count: int) -> None:
    """Images of 32 px as PNG, or photographs of 1024×768 px as JPEG."""
    folder.mkdir()
    if kind == "PNG 32 px":
        for i, image in enumerate(photographs(count, 32, 32)):
            Image.fromarray(image).save(folder / f"{i:05}.png")
        return
    for i, image in enumerate(photographs(min(count, 50), 100, 130)):
        whole = Image.fromarray(image).resize((1024, 768), Image.Resampling.BICUBIC)
        for number in range(i, count, 50):
            whole.save(folder / f"{number:05}.jpg", quality=90)


def features(folder: Path, *words: object) -> None:
    """From files to features, with nothing kept."""
    import main as program

    root = ROOT / "configs/imc_swav"
    config = settings(
        "--cfgs", root / "base.yaml", root / "pretrained.yaml", "--data-root", folder, "--debug", "--seed", 0,
        "--network", "efficientnet_lite0", "--net-weights", "none", "--tfm-size", 112, "--num-clusters", 10, *words,
    )  # fmt: skip
    program.build(config).views.prepared()


def former(folder: Path, *words: object) -> None:
    """The same by the path of before: no image passes before all are decoded."""
    now = choose_backend.open_views
    try:
        choose_backend.open_views = lambda *given, once=False: now(*given)
        features(folder, *words)
    finally:
        choose_backend.open_views = now


def from_files(short: bool, wanted: list[str]) -> tuple[list[list[str]], list[dict[str, Any]]]:
    before = ("--feature-engine", "eager", "--tfm-decode-side", "full")
    rows = []
    data = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind, count in (("PNG 32 px", 256 if short else 2000), ("JPEG 1024×768 px", 64 if short else 500)):
            folder = Path(scratch) / kind.partition(" ")[0]
            fill(folder, kind, count)
            for views, more in (("plain view", ()), ("three views", ("--views", "random", "--feature-views", 2))):
                whole = {"before": partial(former, folder, *before, *more)}
                whole |= {engine: partial(features, folder, "--feature-engine", engine, *more) for engine in wanted}
                seconds = interleaved(whole, 1 if short else 3)
                for engine, times in seconds.items():
                    faster = ratio(seconds["before"], times)
                    rows.append([kind, views, engine, f"{count / min(times):,.0f}", f"{faster:.1f}"])
                    data.append({"images": kind, "views": views, "engine": engine, "count": count, "seconds": times})
    return rows, data


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--engines", nargs="+", default=["eager", "folded", "onnxruntime"], help="those that are compared"
    )
    parser.add_argument("--only", choices=("networks", "files"), help="one of the two tables")
    options = parser.parse_args()
    rows: list[list[str]] = []
    data: dict[str, Any] = {}
    if options.only != "files":
        found, data["networks"] = by_engine(options.short, ["eager", *(e for e in options.engines if e != "eager")])
        rows += found
    if options.only != "networks":
        found, data["files"] = from_files(options.short, options.engines)
        rows += [[*row, ""] for row in found]
    about = (
        "Images per second, and how many times that of `eager`, or of the former path from files; "
        f"{'AVX-512' if 'avx512f' in Path('/proc/cpuinfo').read_text() else 'AVX2'}."
    )
    columns = ("network or files", "images or views", "engine", "images/s", "times as fast", "of the matrix product")
    publish("features", about, columns, rows, data)


if __name__ == "__main__":
    main()
