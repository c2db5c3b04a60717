"""Random views: whole batches at once against torchvision on Pillow pictures, on one core.

Views per second of IMC-SwAV's two large and four small crops and of PICA's original and three perturbed
copies, at 32, 64 and 96 px, on pieces of real photographs. Both end with normalised float tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.transforms as T
from common import arguments, interleaved, photographs, publish, ratio
from PIL import Image

from lib import runtime
from lib.method import Request
from lib.transforms.batched import BatchedViews
from lib.transforms.recipe import Recipe

MEANS, STDS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CROPS = {32: (28, 18), 64: (56, 36), 96: (76, 52)}  # IMC-SwAV's, large and small
RESIZE = {32: 40, 64: 80, 96: 112}  # PICA's


def recipes(method: str, side: int) -> list[Recipe]:
    if method == "imc_swav":
        jitter = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8, "grayscale": 0.25, "flip": 0.5}
        large, small = CROPS[side]
        return [Recipe(large, "resized", scale=(0.2, 1.0), **jitter)] * 2 + [
            Recipe(small, "resized", scale=(0.08, 0.4), **jitter)
        ] * 4
    perturbed = Recipe(side, "resized", scale=(0.2, 1.0), jitter=(0.4,) * 4, grayscale=0.2, flip=0.5)
    return [Recipe(side, "random", RESIZE[side]), perturbed, perturbed, perturbed]


def torchvisions(recipe: Recipe) -> Callable[[Any], Any]:
    """The same view by torchvision, as the authors' programs make it."""
    steps: list[Any] = []
    if recipe.crop == "random":
        steps += [T.Resize(recipe.resize), T.RandomCrop(recipe.size)]
    else:
        steps += [T.RandomResizedCrop(recipe.size, recipe.scale, recipe.ratio), T.RandomHorizontalFlip(recipe.flip)]
    if recipe.jitter:
        steps += [T.RandomApply([T.ColorJitter(*recipe.jitter)], recipe.jitter_probability)]
        steps += [T.RandomGrayscale(recipe.grayscale)]
    return T.Compose([*steps, T.ToTensor(), T.Normalize(MEANS, STDS)])


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    n, rounds = (64, 3) if options.short else (256, 7)
    rows, data = [], []
    for method in ("imc_swav", "pica"):
        for side in CROPS:
            pictures, wanted = photographs(n, side, side), recipes(method, side)
            held = BatchedViews([pictures], {}, Recipe(side, "center", side), MEANS, STDS, seed=0, device=runtime.CPU)
            request = Request(torch.arange(n), tuple(wanted))
            images, pipelines = [Image.fromarray(picture) for picture in pictures], [torchvisions(r) for r in wanted]

            def pil(images: Any = images, pipelines: Any = pipelines) -> object:
                return [torch.stack([pipeline(image) for image in images]) for pipeline in pipelines]

            def batched(held: Any = held, request: Any = request) -> object:
                return list(held.stream([request]))

            seconds = interleaved({"pil": pil, "batched": batched}, rounds)
            times = ratio(seconds["pil"], seconds["batched"])
            each = {name: n / sorted(values)[len(values) // 2] for name, values in seconds.items()}
            rows.append([method, f"{side} px", f"{each['pil']:,.0f}", f"{each['batched']:,.0f}", f"{times:.1f}"])
            data.append(
                {"method": method, "side": side, "pictures_per_second": each, "times": times, "seconds": seconds}
            )
    publish(
        "augment",
        "All views of a picture (IMC-SwAV: six, PICA: four), pictures per second on one core.",
        ("method", "pictures", "torchvision on Pillow", "batched", "times as fast"), rows, {"rows": data},
    )  # fmt: skip


if __name__ == "__main__":
    main()
