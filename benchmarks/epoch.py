"""An epoch end to end: whole batches of views against Pillow in loader processes, all else the same.

Pictures per second of training, by the trainer itself, on pieces of real photographs at 32 px (or on a folder of
pictures), for both methods with the light network.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from common import ROOT, arguments, photographs, publish, ratio, settings
from PIL import Image

import main as program
from lib.training.trainer import Trainer

CONFIGS = {"pica": ROOT / "configs", "imc_swav": ROOT / "configs/imc_swav"}


def epoch(method: str, folder: Path, backend: str, steps: int, width: int) -> float:
    """Seconds of so many steps, views included; reading the pictures and the scores are not."""
    files = [str(CONFIGS[method] / name) for name in ("base.yaml", "image_folder.yaml")]
    chosen = settings("--cfgs", *files, "--data-root", folder, "--num-clusters", 10, "--network", "convnet",
                      "--net-width", width, "--batch-size", 128, "--tfm-backend", backend, "--debug", "--seed", 0)  # fmt: skip
    task = program.build(chosen)
    with closing(task.views):
        trainer = Trainer(task)
        batches = task.source.epoch(0)
        trainer.method.train()
        first = next(batches)  # loader processes start
        trainer._train_step(first)
        began = time.perf_counter()
        for _ in range(steps):
            trainer._train_step(next(batches))
        return time.perf_counter() - began


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data-root", type=Path, help="a folder of pictures; none: pieces of photographs")
    options = parser.parse_args()
    n, steps, rounds = (1024, 4, 1) if options.short else (4096, 12, 5)
    rows = []
    data = []
    with tempfile.TemporaryDirectory() as made:
        folder = options.data_root or Path(made)
        if options.data_root is None:
            for i, picture in enumerate(photographs(n, 32, 32)):
                Image.fromarray(picture).save(folder / f"{i:05}.png")
        for method in CONFIGS:
            for width in (8, 32):
                found: dict[str, list[float]] = {"pil": [], "batched": []}
                for _ in range(rounds):
                    for backend, values in found.items():
                        values.append(epoch(method, folder, backend, steps, width))
                rates = {name: steps * 128 / statistics.median(values) for name, values in found.items()}
                times = ratio(found["pil"], found["batched"])
                rows.append(
                    [
                        method,
                        f"convnet, width {width}",
                        f"{rates['pil']:,.0f}",
                        f"{rates['batched']:,.0f}",
                        f"{times:.1f}",
                    ]
                )
                data.append(
                    {"method": method, "width": width, "pictures_per_second": rates, "times": times, "seconds": found}
                )
    publish(
        "epoch", "Training, images per second, views included.",
        ("method", "network", "pil", "batched", "times as fast"), rows, {"rows": data},
    )  # fmt: skip


if __name__ == "__main__":
    main()
