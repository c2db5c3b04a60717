"""How time and memory grow: with the pictures, with IMC-SwAV's prototypes, and with the clusters.

Each number of pictures gets a process of its own, which trains one epoch of the light network on 16 px pieces of
photographs and scores them; its peak memory is the process's, less what it held before the pictures came.
The exponent is the slope of log time on log size: 1 is linear.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, fastest, photographs, publish, settings
from PIL import Image
from torch import Tensor

import main as program
from imc_swav.losses import sinkhorn
from lib import datasets
from lib.datasets import Splits
from lib.session import Session
from lib.training.trainer import Trainer
from pica.losses import PUILoss

SIDE = 16
BATCH = 250


class Pieces:
    """So many pieces of photographs; `root` is their number."""

    @staticmethod
    def splits(root: str) -> Splits:
        return Splits({"train": int(root)}, train=("train",), test=("train",))

    def __init__(self, root: str, split: str, transform: Any = None, download: bool = False) -> None:
        few = photographs(500, SIDE, SIDE)
        self.array = np.concatenate([few] * (int(root) // len(few)))
        self.targets = np.zeros(len(self.array), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.array[i]), 0


def train(pictures: int) -> None:
    """Train and score; print seconds and bytes."""
    datasets.register("pieces", Pieces)
    chosen = settings("--dataset", "pieces", "--data-root", pictures, "--net-heads", 10, "--network", "convnet",
                      "--net-width", 4, "--batch-size", BATCH, "--tfm-size", SIDE, "--tfm-resize", 18, "--tfm-scale", 0.2, 1,
                      "--tfm-colorjitter", 0.4, 0.4, 0.4, 0.4, "--max-epochs", 1, "--optimizer", "adam",
                      "--base-lr", 1e-3, "--debug", "--brief", "--seed", 0)  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task = program.build(chosen)
    began = time.perf_counter()
    with Session(chosen) as session, closing(task.views):
        Trainer(task).run(session)
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"seconds": seconds, "bytes": grown, "pictures": pictures * SIDE * SIDE * 3}))


def child(pictures: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(pictures)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def slope(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--child", type=int, help="number of pictures (used by this script)")
    options = parser.parse_args()
    if options.child:
        train(options.child)
        return
    rows = []
    data = {}
    counts = [1_000, 4_000, 16_000] if options.short else [1_000, 3_000, 10_000, 30_000, 100_000]
    found = [child(count) for count in counts]
    for count, one in zip(counts, found, strict=True):
        rows.append([f"{count:,} images, an epoch and its scores", f"{one['seconds']:.2f} s",
                     f"{one['bytes'] / 2**20:.0f} MiB, of which images {one['pictures'] / 2**20:.0f}"])  # fmt: skip
    # What starts once, such as imports of the scores, weighs on the smallest.
    exponent = slope(counts[1:], [one["seconds"] for one in found[1:]])
    rows.append(["exponent, without the smallest", f"{exponent:.2f}", ""])
    data["pictures"] = {"counts": counts, "found": found, "exponent": exponent}

    rounds = 5 if options.short else 20
    generator = torch.Generator().manual_seed(0)
    for name, sizes, make in (
        ("prototypes, Sinkhorn on 256 images", [100, 300, 1_000, 3_000, 10_000], _sinkhorn),
        ("clusters, PICA's loss and gradient on 256 + 768 images", [10, 30, 100, 300, 1_000], _pica),
    ):
        seconds = [fastest(make(size, generator), rounds) for size in sizes]
        rows += [[f"{size:,} {name}", f"{1000 * s:.2f} ms", ""] for size, s in zip(sizes, seconds, strict=True)]
        exponent = slope(sizes, seconds)
        rows.append(["exponent", f"{exponent:.2f}", ""])
        data[name.split(",")[0]] = {"sizes": sizes, "seconds": seconds, "exponent": exponent}
    publish("scale", "One process, its time and the growth of its memory.", ("what", "time", "memory"), rows, data)


def _sinkhorn(prototypes: int, generator: torch.Generator) -> Callable[[], Tensor]:
    scores = torch.rand(256, prototypes, generator=generator) * 2 - 1
    return lambda: sinkhorn(scores)


def _pica(clusters: int, generator: torch.Generator) -> Callable[[], Tensor]:
    p, q = (torch.randn(768, clusters, generator=generator, requires_grad=True) for _ in range(2))
    objective = PUILoss()
    return lambda: torch.autograd.grad(objective(p.softmax(1), q.softmax(1)), (p, q))[0]


if __name__ == "__main__":
    main()
