"""Two processes of one thread against one process of two: steps per second, and the share of communication.

Both train on the same batches of random pictures, on ResNet-18. The share is what two processes lose against two that
do not speak with each other, each on half of the batch; it includes the waiting for the slower one.

Then what a step exchanges at the authors' settings, counted from shapes, and what that means for 8 and 64 GPUs. The
speeds of these GPUs and their network are assumptions, named in the table.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, ROWS, arguments, publish, row_settings, row_without_data
from torch.nn.modules.batchnorm import _BatchNorm

import main as program
from imc_swav.data import Batch as IMCBatch
from lib.machine import processes
from lib.machine.devices import DeviceSettings
from lib.runs.forecast import PEAKS, estimate
from lib.training.averaged_gradients import BUCKET
from lib.training.trainer import Trainer
from pica.data import Batch as PICABatch

WAYS = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1), "two that do not speak": (2, 1)}
PEAK, SHARE = PEAKS["an H100 SXM"]
NETWORK = {8: 450e9, 64: 50e9}  # bytes/s of each GPU: NVLink within a machine, InfiniBand between them
LATENCY = 20e-6  # s, of each exchange


def child(name: str, n: int, steps: int, apart: bool, threads: int) -> None:
    """Train; print seconds per step. Random pictures: what counts is their number."""
    chosen = row_settings(
        name, "--dataset", "digits", "--net-cin", 3, "--train-splits", "train", "--test-splits", "test",
        "--network", "resnet18", "--batch-size", 128, "--threads", threads,
    )  # fmt: skip
    if apart:
        os.environ["WORLD_SIZE"] = "1"
    with processes.joined(chosen.of(DeviceSettings)):
        task = program.build(chosen)
        trainer = Trainer(task)
        task.method.train()
        n = n // 2 if apart else n
        counts = tuple(len(part) for part in np.array_split(np.arange(n), processes.world()))
        own = counts[processes.rank()]
        seconds = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            trainer._train_step(batch(name, n, own, counts))
            seconds.append(time.perf_counter() - began)
    print(f"seconds {statistics.median(seconds[1:])}")


def batch(name: str, n: int, own: int, counts: tuple[int, ...]) -> Any:
    index = torch.arange(n)
    if name == "pica":
        return PICABatch(index, list(torch.randn(4, own, 3, 32, 32)), head=0, counts=counts)
    views = [torch.randn(own, 3, side, side) for side in (28, 28, 18, 18, 18, 18)]
    return IMCBatch(index, views, counts=counts)


def measure(name: str, way: str, n: int, steps: int) -> float:
    """Seconds per step."""
    processes, threads = WAYS[way]
    apart = "not" in way
    with tempfile.TemporaryDirectory() as folder:
        port = 20_000 + os.getpid() % 20_000
        common = {**os.environ, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost",
                  "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}  # fmt: skip
        command = [sys.executable, __file__, "--child", name, str(n), str(steps), str(int(apart)), str(threads)]
        started = []
        for rank in range(processes):
            with open(Path(folder) / str(rank), "w") as out:
                env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(subprocess.Popen(command, stdout=out, env=env, cwd=ROOT))
        if any(process.wait() for process in started):
            sys.exit("a process failed")
        last = [(Path(folder) / str(rank)).read_text().splitlines()[-1] for rank in range(processes)]
    return max(float(line.split()[1]) for line in last)


def exchanged(name: str, gpus: int, n: int) -> tuple[float, float, float, float]:
    """Of one step on n pictures: (bytes of gradients, of gathered rows, number of exchanges, operations)."""
    task = row_without_data(name)
    method = task.method.to("meta").train()
    blank = task.source.blank(task.empty)
    operations, _ = estimate(method, blank)
    gradients = 4 * sum(weight.numel() for weight in method.parameters())
    norms = [part for part in method.network.modules() if isinstance(part, _BatchNorm)]
    passes = 2 if name == "pica" else len(blank.views)
    per_picture = 4 * (
        4 * method.sizes[0] if name == "pica" else passes * (method.network.feature_dim + method.settings.prototypes)
    )
    statistics_ = 4 * passes * sum(2 * part.num_features + 1 for part in norms) * gpus
    count = 2 * passes * len(norms) + math.ceil(gradients / BUCKET) + 3
    return gradients, per_picture * n + statistics_, count, operations / len(blank.index) * n


def expected(name: str, gpus: int, each: int) -> tuple[float, float]:
    """(seconds of arithmetic, seconds of exchanges that nothing hides) of a step on `each` pictures per GPU."""
    gradients, rows, count, operations = exchanged(name, gpus, each * gpus)
    ring = (gpus - 1) / gpus
    # Rows are gathered once and their gradients summed once; a sum goes around twice.
    traffic = ring * (2 * gradients + 3 * rows) / NETWORK[gpus]
    return operations / gpus / (SHARE * PEAK), traffic + count * LATENCY


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--child", nargs=5)
    options = parser.parse_args()
    if options.child:
        name, *numbers = options.child
        n, steps, apart, threads = map(int, numbers)
        child(name, n, steps, bool(apart), threads)
        return
    n, steps, rounds = (16, 2, 1) if options.short else (32, 4, 3)
    rows = []
    data = {}
    for name in ROWS:
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                seconds[way].append(measure(name, way, n, steps))
        one, two, apart = (statistics.median(values) for values in seconds.values())
        rows.append([f"{name}, ResNet-18, {n} pictures", f"{1 / one:.3f} steps/s in one process", f"{1 / two:.3f} in two",
                     f"{one / two:.2f} times as fast, {max(0.0, 1 - apart / two):.0%} of the time for exchanges"])  # fmt: skip
        data[name] = seconds
    for name in ROWS:
        for gpus in NETWORK:
            for each in (256 // gpus, 256):
                gradients, gathered, count, _ = exchanged(name, gpus, each * gpus)
                work, talk = expected(name, gpus, each)
                rows.append([
                    f"{name}, authors' setting, {gpus} GPUs, {each} pictures each (expected)",
                    f"{gradients / 1e6:.0f} MB of gradients, {gathered / 1e6:.1f} MB gathered, {count} exchanges",
                    f"{1000 * work:.1f} ms of arithmetic",
                    f"{1000 * talk:.1f} ms of exchanges: {talk / (work + talk):.0%}",
                ])  # fmt: skip
    publish(
        "scale_processes",
        f"Measured on this machine; expected for GPUs at {SHARE:.0%} of {PEAK / 1e12:g} TFLOP/s that exchange "
        f"{NETWORK[8] / 1e9:g} GB/s (8) or {NETWORK[64] / 1e9:g} GB/s (64), {LATENCY * 1e6:g} µs each time, nothing overlapping.",
        ("what", "one", "several", "so"),
        rows,
        {"seconds": data},
    )


if __name__ == "__main__":
    main()
