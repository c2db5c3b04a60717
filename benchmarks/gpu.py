"""Training on a GPU, at the settings of the papers' CIFAR-10 rows: what each way to compute gains, and what a row costs.

Whole steps by the trainer itself, views included, on pieces of photographs of 32 px.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

from common import ROWS, arguments, endless, publish, row_trainer, row_without_data

from lib.errors import exit_status
from lib.machine import devices
from lib.runs.forecast import PEAKS, measure
from lib.training.trainer import TrainerSettings

BF16 = ("--precision", "bf16")
WAYS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "--tf32": ("--tf32",),
    "--precision bf16": BF16,
    "--precision bf16 --compile": (*BF16, "--compile"),
}


def work(method: str) -> tuple[int, int]:
    """(operations of a step, steps of the whole row)"""
    task = row_without_data(method)
    return measure(task)[0], len(task.source) * task.config.of(TrainerSettings).epochs


def seconds_per_step(method: str, folder: Path, count: int, warm: int, *words: str) -> tuple[float, float]:
    """(seconds of a step, seconds until the first ones were done)"""
    began = time.perf_counter()
    trainer = row_trainer(method, folder, 2048, "--gpus", 0, *words)
    batches = endless(trainer)

    def advance(number: int) -> None:
        for batch in itertools.islice(batches, number):
            trainer._train_step(batch)
        trainer._means.values()  # waits for the GPU

    advance(warm)
    ready = time.perf_counter()
    advance(count)
    return (time.perf_counter() - ready) / count, ready - began


def main() -> None:
    options = arguments(__doc__).parse_args()
    count, warm = (5, 6) if options.short else (40, 20)
    rows = []
    data = []
    peak, _ = PEAKS["an H100 SXM"]
    with tempfile.TemporaryDirectory() as made:
        for method in ROWS:
            operations, total = work(method)
            for way, words in WAYS.items():
                seconds, ready = seconds_per_step(method, Path(made), count, warm, *words)
                rate = operations / seconds
                hours = total * seconds / 3600
                rows.append([method, way, f"{seconds * 1e3:.1f} ms", f"{256 / seconds:,.0f}", f"{rate / 1e12:.0f}",
                             f"{rate / peak:.0%}" if not words else "–", f"{hours:.1f}", f"{ready:.0f} s"])  # fmt: skip
                print(*rows[-1], sep=", ", flush=True)
                data.append({"method": method, "way": way, "seconds": seconds, "operations": operations, "hours": hours,
                             "ready": ready})  # fmt: skip
    publish(
        "gpu",
        f"Training steps of 256 images on {devices.gpu_names()[0]}, at the settings of the CIFAR-10 rows.",
        (
            "method",
            "way",
            "step",
            "images/s",
            "TFLOP/s",
            "of the H100's float32 peak",
            "hours of the row",
            "until ready",
        ),
        rows,
        {"gpu": devices.gpu_names()[0], "rows": data},
    )


if __name__ == "__main__":
    sys.exit(exit_status(lambda _: main())([]))
