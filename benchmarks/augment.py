"""Random views: whole batches at once against torchvision on Pillow pictures, on one core.

Views per second of IMC-SwAV's two large and four small crops and of PICA's original and three perturbed
copies, at 32, 64 and 96 px, on pieces of real photographs; and at 32 px on pieces of the shapes that a folder of
photographs holds. Both end with normalised float tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.transforms as T
from common import arguments, interleaved, photographs, publish, ratio
from PIL import Image

from lib.contracts import Recipe, Request
from lib.machine import devices
from lib.transforms.batched_views import BatchedViews
from lib.transforms.choose_backend import STEP
from lib.transforms.images_in_memory import Part, Pile, whole

MEANS = (0.4914, 0.4822, 0.4465)
STDS = (0.2023, 0.1994, 0.2010)
CROPS = {32: (28, 18), 64: (56, 36), 96: (76, 52)}  # IMC-SwAV's, large and small
RESIZE = {32: 40, 64: 80, 96: 112}  # PICA's
# Heights and widths for one working size: square, 4:3, 3:2 and 16:9, upright too.
SHAPES = ((40, 40), (40, 53), (53, 40), (40, 60), (60, 40), (40, 71), (71, 40))


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


def one_size(n: int, side: int) -> list[Part]:
    return [whole(photographs(n, side, side), 0)]


def mixed_sizes(n: int) -> list[Part]:
    """As many of each shape, in turn, padded as a run holds them."""
    piles = {shape: Pile((*(-(-side // STEP) * STEP for side in shape), 3)) for shape in SHAPES}
    pieces = {shape: iter(photographs(n, *shape)) for shape in SHAPES}
    for i in range(n):
        shape = SHAPES[i % len(SHAPES)]
        piles[shape].add(i, next(pieces[shape]))
    return [pile.part() for pile in piles.values()]


def images(parts: list[Part]) -> list[Image.Image]:
    found = {
        position: Image.fromarray(place[: size[0], : size[1]])
        for part in parts
        for position, place, size in zip(part.positions, part.array, part.sizes, strict=True)
    }
    return [found[position] for position in sorted(found)]


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    n, rounds = (64, 3) if options.short else (256, 7)
    sets = [(f"{side} px", side, one_size(n, side)) for side in CROPS]
    sets.append((f"40 px, {len(SHAPES)} sizes", 32, mixed_sizes(n)))
    rows = []
    data = []
    for method in ("imc_swav", "pica"):
        for name, side, parts in sets:
            wanted = recipes(method, side)
            test = Recipe(side, "center", side)
            held = BatchedViews(parts, {}, test, MEANS, STDS, seed=0, device=devices.CPU)
            request = Request(torch.arange(n), tuple(wanted))
            shown = images(parts)
            pipelines = [torchvisions(r) for r in wanted]

            def pil(shown: Any = shown, pipelines: Any = pipelines) -> object:
                return [torch.stack([pipeline(image) for image in shown]) for pipeline in pipelines]

            def batched(held: Any = held, request: Any = request) -> object:
                return list(held.stream([request]))

            seconds = interleaved({"pil": pil, "batched": batched}, rounds)
            times = ratio(seconds["pil"], seconds["batched"])
            each = {name: n / sorted(values)[len(values) // 2] for name, values in seconds.items()}
            rows.append([method, name, f"{each['pil']:,.0f}", f"{each['batched']:,.0f}", f"{times:.1f}"])
            data.append(
                {"method": method, "pictures": name, "pictures_per_second": each, "times": times, "seconds": seconds}
            )
    publish(
        "augment",
        "All views of an image (IMC-SwAV: six, PICA: four), images per second on one core.",
        ("method", "images", "torchvision on Pillow", "batched", "times as fast"), rows, {"rows": data},
    )  # fmt: skip


if __name__ == "__main__":
    main()
