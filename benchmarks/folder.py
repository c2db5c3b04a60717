"""A large folder of photographs: time until the first training step, and memory, at the first start and at the second.

The first start decodes every picture and keeps it at the working size; the second reads what is kept. Each is a
process of its own. The pictures are 500 photographs of 1024×768 px under many names, in nested folders.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, arguments, photographs, publish
from PIL import Image

DISTINCT = 500
WIDTH = 1024
HEIGHT = 768
FOLDER = 500  # pictures in each
WORDS = ["--cfgs", "configs/base.yaml", "configs/image_folder.yaml", "--network", "convnet", "--net-width", "8",
         "--num-clusters", "10", "--max-steps", "1", "--seed", "0"]  # fmt: skip
START = """
import json, os, resource, sys, time
began, words = float(sys.argv[1]), sys.argv[2:]
import main
from lib.config import command_line, config
from lib.session import Session
from lib.training.trainer import Trainer
imported = time.time() - began
settings = config.resolve(main.DEFAULTS | command_line.collect(words, main.SECTIONS), main.SECTIONS)
task = main.build(settings)
trainer = Trainer(task)
trainer.method.train()
trainer._begin_epoch()
with Session(task.config, silent=True) as trainer.session:
    trainer._train_step(next(iter(task.source.epoch(0))))
told = time.time() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": told, "imports": imported, "bytes": peak, "views": task.views.describe()}))
"""


def make(root: Path, count: int) -> int:
    """Write so many pictures; returns the bytes of one."""
    originals = root / "originals"
    sizes = []
    random = np.random.default_rng(0)
    originals.mkdir()
    for i, piece in enumerate(photographs(DISTINCT, HEIGHT // 5, WIDTH // 5)):
        content = io.BytesIO()
        large = np.asarray(Image.fromarray(piece).resize((WIDTH, HEIGHT)))
        grain = random.normal(0, 4, large.shape)  # without it an enlarged piece is a small file
        Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
        (originals / f"{i}.jpg").write_bytes(content.getvalue())
        sizes.append(len(content.getvalue()))
    for i in range(count):
        folder = root / "pictures" / f"{i // FOLDER // 20:03}" / f"{i // FOLDER % 20:02}"
        if i % FOLDER == 0:
            folder.mkdir(parents=True)
        os.link(originals / f"{i % DISTINCT}.jpg", folder / f"{i % FOLDER:04}.jpg")
    return sum(sizes) // len(sizes)


def start(root: Path) -> dict[str, float]:
    words = [*WORDS, "--data-root", str(root / "pictures"), "--cache", str(root / "cache")]
    done = subprocess.run(
        [sys.executable, "-c", START, repr(time.time()), *words], cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    options = arguments(__doc__).parse_args()
    count = 2_000 if options.short else 100_000
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        each = make(root, count)
        first = start(root)
        second = start(root)
        kept = sum(path.stat().st_size for path in root.glob("cache/*/*"))
    times = first["seconds"] / second["seconds"]
    rows = [
        [f"{name} start on {count:,} images, until the first step", f"{one['seconds']:.1f} s",
         f"{one['bytes'] / 2**20:,.0f} MiB"]
        for name, one in (("first", first), ("second", second))
    ]  # fmt: skip
    rows.append(["their ratio", f"{times:.1f}", ""])
    rows.append(["– of each, import of PyTorch and the project", f"{second['imports']:.1f} s", ""])
    rows.append(["kept on disk", "", f"{kept / 2**20:,.0f} MiB"])
    about = f"JPEG files of {WIDTH}×{HEIGHT} px, about {each / 1024:.0f} KiB each; peak resident memory of the process."
    publish("folder", about, ("what", "time", "memory"), rows, {"first": first, "second": second, "ratio": times,
            "pictures": count, "kept": kept})  # fmt: skip


if __name__ == "__main__":
    main()
