"""Time until something happens: `main.py --help`, and the first training step on digits with what it is spent on."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from common import ROOT, arguments, interleaved, publish, ratio

STAGES = """
import json, sys, time
began = float(sys.argv[1]); told = {}
def tell(name):
    told[name] = time.time() - began
tell("Python")
import torch, torchvision
tell("import of PyTorch and torchvision")
import main
from lib.config import command_line, config
from lib.session import Session
from lib.training.trainer import Trainer
tell("import of the project")
words = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--debug", "--seed", "0"]
settings = config.resolve(main.DEFAULTS | command_line.collect(words, main.SECTIONS), main.SECTIONS)
tell("settings")
task = main.build(settings)
tell("images (import of scikit-learn) and network")
trainer = Trainer(task)
trainer.method.train()
batch = next(iter(task.source.epoch(0)))
tell("optimiser, first batch")
with Session(settings) as trainer.session:
    trainer._train_step(batch)
tell("first step")
print(json.dumps(told))
"""


def command(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def stages() -> dict[str, float]:
    """Seconds that each stage takes, from the start of the process."""
    done = subprocess.run(
        [sys.executable, "-c", STAGES, repr(time.time())], cwd=ROOT, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    ends = list(told.values())
    return {name: end - start for name, end, start in zip(told, ends, [0.0, *ends], strict=False)}


def main() -> None:
    options = arguments(__doc__).parse_args()
    rounds = 3 if options.short else 7
    seconds = interleaved(
        {
            "python -c 'import torch, torchvision'": lambda: command("-c", "import torch, torchvision"),
            "python main.py --help": lambda: command("main.py", "--help"),
        },
        rounds,
    )
    imports, shown = seconds.values()
    times = ratio(shown, imports)
    runs = [stages() for _ in range(rounds)]
    spent = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    rows = [[name, f"{statistics.median(values):.2f} s"] for name, values in seconds.items()]
    rows.append(["their ratio", f"{times:.2f}"])
    rows.append(["first training step on digits, from the start of the process", f"{sum(spent.values()):.2f} s"])
    rows += [[f"– {name}", f"{value:.2f} s"] for name, value in spent.items()]
    publish(
        "startup",
        "Medians.",
        ("what", "time"),
        rows,
        {"seconds": seconds, "ratio": times, "stages": spent, "runs": runs},
    )


if __name__ == "__main__":
    main()
