"""One training step at the settings of the CIFAR-10 rows, its views included, against the same in plain float32.

Plain: PyTorch's Adam weight by weight and its own convolutions, the network in float32, one pass for each view. Tuned:
`--compile`, channels last, and bfloat16 where the processor computes in it. Beside the seconds are what the machine reaches
in the precision of the tuned step: its best matrix product and its best convolution.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ROWS, arguments, endless, fastest, interleaved, publish, ratio, row_trainer
from torch import Tensor, nn

from lib.machine import devices, precision
from lib.methods.batches import made
from lib.networks.small_map_convolution import SmallMapConv2d
from lib.runs.forecast import estimate

GOALS = {"imc_swav": 0.5, "pica": 0.62}


def stepper(trainer: Any) -> Callable[[], None]:
    """A function that takes one training step, from the bytes of the images to the updated weights."""
    batches = endless(trainer)
    return lambda: trainer._train_step(next(batches))


def plain(trainer: Any) -> Any:
    """The same trainer without what makes it fast."""
    trainer.method.shares_passes = False
    for part in trainer.method.network.modules():
        if isinstance(part, SmallMapConv2d):
            part.__class__ = nn.Conv2d
    for group in trainer.optimizer.param_groups:
        group.update(fused=False, foreach=False)
    return trainer


def best_product(dtype: torch.dtype) -> float:
    """Operations per second."""
    squares = [torch.randn(n, n).to(dtype) for n in (512, 1024, 2048)]
    return max(2 * len(square) ** 3 / fastest(partial(torch.mm, square, square), 5) for square in squares)


def best_convolution(dtype: torch.dtype) -> float:
    """Operations per second, of a forward pass."""
    rates = []
    for channels, side in ((64, 28), (128, 14), (256, 7)):
        images = torch.randn(64, channels, side, side).to(dtype, memory_format=torch.channels_last)
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layer = layer.to(dtype=dtype, memory_format=torch.channels_last)
        with torch.no_grad():
            rates.append(2 * 64 * side**2 * channels**2 * 9 / fastest(partial(layer, images), 5))
    return max(rates)


def convolutions(trainer: Any, dtype: torch.dtype) -> float:
    """Seconds that the convolutions of one step take by themselves, forward and backward, in that precision."""
    calls: dict[tuple[Any, ...], tuple[nn.Conv2d, int]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        key = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, inputs[0].shape,
               inputs[0].requires_grad)  # fmt: skip
        calls[key] = (layer, calls.get(key, (layer, 0))[1] + 1)

    hooks = [
        part.register_forward_pre_hook(note) for part in trainer.method.network.modules() if isinstance(part, nn.Conv2d)
    ]
    trainer.method(made(next(endless(trainer))))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for (*_, shape, needs_gradient), (layer, count) in calls.items():
        images = torch.randn(shape).to(dtype, memory_format=torch.channels_last).requires_grad_(needs_gradient)
        apart = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=False  # type: ignore[arg-type]
        )  # fmt: skip
        apart = apart.to(dtype=dtype, memory_format=torch.channels_last)
        gradient = torch.randn_like(apart(images))

        def forward_and_backward(layer: Any = apart, images: Tensor = images, gradient: Tensor = gradient) -> None:
            layer(images).backward(gradient)

        total += count * fastest(forward_and_backward, 3)
    return total


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=256, help="images per step")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--method", choices=ROWS, nargs="+", default=list(ROWS), help="which rows")
    options = parser.parse_args()
    n, rounds = (16, 3) if options.short else (options.batch, options.rounds)
    is_lowered = precision.computes_in_bf16(devices.CPU) is True
    dtype = torch.bfloat16 if is_lowered else torch.float32
    words = ("--precision", "bf16" if is_lowered else "fp32", "--channels-last", "true", "--compile", "true")
    product = best_product(dtype)
    convolution = best_convolution(dtype)
    rows = []
    data = []
    for name in options.method:
        with tempfile.TemporaryDirectory() as folder:
            build = partial(row_trainer, name, Path(folder), 2 * n, "--batch-size", n)
            tuned = build(*words)
            seconds = interleaved({"plain": stepper(plain(build())), "tuned": stepper(tuned)}, rounds)
            uncompiled = build(*words[:4])
            share = convolutions(uncompiled, dtype) / statistics.median(seconds["tuned"])
            blank = uncompiled.task.source.blank(uncompiled.task.empty)
            operations, _ = estimate(uncompiled.method.to("meta"), blank)
        median = {how: statistics.median(values) for how, values in seconds.items()}
        rate = operations / median["tuned"]
        quotient = ratio(seconds["tuned"], seconds["plain"])
        rows.append([name, f"{median['plain']:.2f} s", f"{median['tuned']:.2f} s", f"{quotient:.2f}", f"{GOALS[name]:.2f}",
                     f"{rate / 1e9:,.0f}", f"{rate / product:.0%}", f"{rate / convolution:.0%}", f"{share:.0%}"])  # fmt: skip
        print(*rows[-1], sep=", ", flush=True)
        data.append({"method": name, "batch": n, "seconds": seconds, "ratio": quotient, "operations": operations,
                     "convolutions": share})  # fmt: skip
    kind = "bfloat16" if is_lowered else "float32, as this processor has no bfloat16"
    publish(
        "step",
        f"One training step on {n} images, views included; tuned: `{' '.join(words)}`. In {kind}: best matrix product "
        f"{product / 1e9:,.0f} GFLOP/s, best 3×3 convolution {convolution / 1e9:,.0f} GFLOP/s, in the same run.",
        (
            "method",
            "plain",
            "tuned",
            "ratio (median of paired ratios)",
            "goal",
            "GFLOP/s",
            "of the product",
            "of the convolution",
            "convolutions' share",
        ),
        rows,
        {"product": product, "convolution": convolution, "tuned": words, "rows": data},
    )


if __name__ == "__main__":
    main()
