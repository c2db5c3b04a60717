"""A training step at the authors' settings: plain float32 against the tuned settings.

Plain: PyTorch as it comes, one pass per view, the optimiser's loop over weights. Tuned: channels-last, a fused
optimiser, compiled, views of one size in one pass, and bfloat16 where the processor computes in it. Also
the operations per second, as a share of the best matrix product and of the best 3×3 convolution of the same
run, and the share of the tuned step that the network's convolutions take by themselves.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import ROOT, arguments, fastest, interleaved, publish, ratio, settings
from torch import Tensor, nn

from imc_swav.data import Batch as IMCBatch
from imc_swav.method import IMCSwAV, IMCSwAVSettings
from lib import networks
from lib.machine import devices, precision
from lib.methods.method import Method
from lib.runs.forecast import estimate
from lib.training.trainer import build_optimizer
from pica.data import Batch as PICABatch
from pica.method import PICA, build_network


def imc_swav(n: int, chosen: Any, device: str = "cpu") -> tuple[Method, Any]:
    """ResNet-18, 2×28 + 4×18 px, 1,000 prototypes."""
    method = IMCSwAV(networks.build(chosen, 3), 10, n, chosen.of(IMCSwAVSettings))
    views = [torch.randn(n, 3, side, side, device=device) for side in (28, 28, 18, 18, 18, 18)]
    return method, IMCBatch(torch.arange(n), views, np.ones(n, dtype=np.bool_))


def pica(n: int, chosen: Any, device: str = "cpu") -> tuple[Method, Any]:
    """Sobel and ResNet-34, n originals and 3n perturbed copies of 32 px, the head of 70."""
    original, perturbed = (torch.randn(*shape, 3, 32, 32, device=device) for shape in ((n,), (3, n)))
    return PICA(build_network(chosen), (70, 10)), PICABatch(0, torch.arange(n), original, perturbed)


METHODS = {"imc_swav": (imc_swav, "configs/imc_swav", 0.55), "pica": (pica, "configs", 0.62)}


def chosen_for(name: str, *words: object) -> Any:
    folder = ROOT / METHODS[name][1]
    return settings("--cfgs", folder / "base.yaml", folder / "cifar10.yaml", *words)


def stepper(name: str, n: int, plain: bool, *words: object) -> Callable[[], None]:
    """A function that takes one training step."""
    torch.manual_seed(0)
    chosen = chosen_for(name, *words)
    method, batch = METHODS[name][0](n, chosen)
    method.train()
    if plain:
        optimizer: Any = torch.optim.Adam(method.parameters(), lr=1e-4, foreach=False)
    else:
        method.place(chosen)
        optimizer = build_optimizer(method, chosen)

    def step() -> None:
        method.before_forward(0)
        optimizer.zero_grad(set_to_none=True)
        method(batch)["loss"].backward()
        optimizer.step()

    return step


def best_product() -> float:
    """Operations per second."""
    squares = [torch.randn(n, n) for n in (512, 1024, 2048)]
    return max(2 * len(square) ** 3 / fastest(partial(torch.mm, square, square), 5) for square in squares)


def best_convolution() -> float:
    """Operations per second, of a forward pass."""
    found = []
    for channels, side in ((64, 28), (128, 14), (256, 7)):
        images = torch.randn(64, channels, side, side).to(memory_format=torch.channels_last)
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        with torch.no_grad():
            found.append(2 * 64 * side**2 * channels**2 * 9 / fastest(partial(layer, images), 5))
    return max(found)


def convolutions(name: str, n: int, *words: object) -> float:
    """Seconds that the convolutions of one tuned step take by themselves, forward and backward."""
    chosen = chosen_for(name, *words, "--compile", "false")
    method, batch = METHODS[name][0](n, chosen)
    method.place(chosen).train()
    calls: dict[tuple[Any, ...], tuple[nn.Conv2d, int]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        key = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, inputs[0].shape,
               inputs[0].requires_grad, layer.weight.requires_grad)  # fmt: skip
        calls[key] = (layer, calls.get(key, (layer, 0))[1] + 1)

    hooks = [m.register_forward_pre_hook(note) for m in method.network.modules() if isinstance(m, nn.Conv2d)]
    method(batch)
    for hook in hooks:
        hook.remove()
    total = 0.0
    for (*_, shape, needs_gradient, _), (layer, count) in calls.items():
        images = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_(needs_gradient)
        gradient = torch.randn_like(layer(images))

        def both(layer: Any = layer, images: Tensor = images, gradient: Tensor = gradient) -> None:
            made = layer(images)
            if made.requires_grad:
                made.backward(gradient)

        total += count * fastest(both, 3)
    return total


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=256, help="pictures per step")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    options = parser.parse_args()
    n, rounds = (16, 3) if options.short else (options.batch, options.rounds)
    arithmetic = "bf16" if precision.computes_in_bf16(devices.CPU) else "fp32"
    words = ("--precision", arithmetic, "--channels-last", "true", "--compile", "true")
    product = best_product()
    convolution = best_convolution()
    rows = []
    data = []
    for name, (build, _, goal) in METHODS.items():
        method, batch = build(n, chosen_for(name), "meta")
        operations, _ = estimate(method.to("meta").train(), batch)
        steps = {"plain": stepper(name, n, True), "tuned": stepper(name, n, False, *words)}
        seconds = interleaved(steps, rounds)
        median = {how: statistics.median(values) for how, values in seconds.items()}
        rate = operations / median["tuned"]
        share = convolutions(name, n, *words) / median["tuned"]
        quotient = ratio(seconds["tuned"], seconds["plain"])
        rows.append([name, f"{median['plain']:.2f} s", f"{median['tuned']:.2f} s", f"{quotient:.2f}", f"{goal}",
                     f"{rate / 1e9:,.0f}", f"{rate / product:.0%}", f"{rate / convolution:.0%}", f"{share:.0%}"])  # fmt: skip
        data.append({"method": name, "batch": n, "seconds": seconds, "ratio": quotient, "operations": operations,
                     "convolutions": share})  # fmt: skip
    publish(
        "step",
        f"One training step on {n} pictures; tuned: `{' '.join(words)}`"
        f"{'' if arithmetic == 'bf16' else ' (this processor has no bfloat16)'}. Best matrix product "
        f"{product / 1e9:,.0f} GFLOP/s, best 3×3 convolution {convolution / 1e9:,.0f} GFLOP/s in the same run.",
        (
            "method",
            "plain",
            "tuned",
            "ratio",
            "aim",
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
