"""A model to hand on as an .onnx file: 8-bit pictures in, clusters and probabilities out, without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.checkpoints.checkpoint import write_atomically
from lib.config.config import Config
from lib.contracts import Method
from lib.errors import UserError
from lib.methods import building, weights
from lib.methods.method import MethodSettings
from lib.networks import NetworkSettings, backbone, onnx_graphs
from lib.networks.backbone import Backbone
from lib.transforms import TransformSettings, image_reader, normalisation, plain_recipe


class _Graph(nn.Module):
    """(N, C, S, S) of bytes → (N,) clusters and (N, K) probabilities."""

    means: Tensor
    stds: Tensor

    def __init__(self, method: Method, encode: nn.Module, transforms: TransformSettings, channels: int) -> None:
        super().__init__()
        self.method = method
        self.encode = encode
        means, stds = (torch.tensor(values)[:, None, None] for values in normalisation(transforms, channels))
        self.register_buffer("means", means)
        self.register_buffer("stds", stds)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        probability = self.method.predict(self.encode((images.float() / 255 - self.means) / self.stds))
        return probability.argmax(dim=1), probability


def check_installed(path: str) -> None:
    """Raises UserError where a package is missing that `export` needs."""
    missing = onnx_graphs.missing_packages(*onnx_graphs.EXPORT_NEEDS)
    if missing:
        raise UserError(f"--export {path} needs packages that are not installed; pip install {' '.join(missing)}")


def export(
    path: Path, config: Config, state: Mapping[str, Any], statistics: Mapping[str, Tensor], encode: nn.Module
) -> None:
    """Write the method as a graph in float32, under the BatchNorm statistics of the run's predictions.

    `images`: (N, C, S, S) uint8, any N → `cluster`: (N,) int64, `probability`: (N, K) float32. What is to be done to a
    picture before is among the metadata: `preprocessing` for people, `preprocessing_json` for programs.

    Args:
        path: of the file.
        config: of the run.
        state: dict of the method.
        statistics: its buffers, as the predictions were made with.
        encode: what stands before it; the graph begins with it.

    Raises:
        UserError: the exporter cannot express this network, or the file cannot be written; nothing is left of it.
    """
    transforms = config.of(TransformSettings)
    channels = config.of(NetworkSettings).net_cin
    # Built anew: neither compiled nor synchronised nor lowered to bfloat16, and on the CPU.
    with torch.random.fork_rng(devices=[]):
        built, before = building.assemble(config)
    if isinstance(encode, Backbone):
        backbone.adopt(before, {"backbone": encode.stored(whole=True)})
    weights.load_state(built, {name: statistics.get(name, value) for name, value in state.items()}, "the run")
    side = transforms.size
    example = torch.zeros(2, channels, side, side, dtype=torch.uint8)  # of one picture would be taken for a constant
    try:
        program = onnx_graphs.exported(
            _Graph(built, before, transforms, channels).train(False), example, ["images"], ["cluster", "probability"]
        )
    except onnx_graphs.NotExportableError as error:
        raise UserError(
            f"--export {path}: this network cannot be written as ONNX ({error}); take .safetensors"
        ) from error
    steps = _steps(transforms, channels)
    program.model.metadata_props.update(
        {
            "preprocessing": _sentence(steps),
            "preprocessing_json": json.dumps(steps),
            "method": config.of(MethodSettings).method,
        }
    )
    write_atomically(path, onnx_graphs.serialized(program))


def _steps(transforms: TransformSettings, channels: int) -> dict[str, Any]:
    """What `lib.transforms.pillow_views` does to a picture for the test view, in this order."""
    recipe = plain_recipe(transforms)
    return {
        "orientation": "exif",
        "oblong": image_reader.OBLONG,
        "deep": "value / 65535 * 255",
        "background": list(image_reader.BACKGROUND),
        "channels": channels,
        "working_size": transforms.tfm_working_size,
        "resize": recipe.resize,
        "filter": "bilinear",
        "crop": recipe.size,
    }


def _sentence(steps: Mapping[str, Any]) -> str:
    sides = [f"{side} px" for side in (steps["working_size"], steps["resize"]) if side is not None]
    crop = steps["crop"]
    background = tuple(steps["background"])
    return (
        f"Turn the picture upright by its EXIF tag. If it is more than {steps['oblong']} times as long as wide (or as wide "
        f"as long), cut it to its middle of that shape. Scale 16-bit values by 255 / 65535 and round. Lay transparency on "
        f"{background}. Convert to {'8-bit grey' if steps['channels'] == 1 else '8-bit RGB'}. Resize so that the shorter "
        f"side is {', and then again so that it is '.join(sides)} (other side rounded down; Pillow's {steps['filter']} "
        f"filter, which smooths when it shrinks). Cut out the middle {crop}×{crop} px. The bytes, "
        f"({steps['channels']}, {crop}, {crop}), are the input; the graph normalises them."
    )
