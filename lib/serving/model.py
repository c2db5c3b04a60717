"""A trained model for use from Python: images in, clusters out. `main.load` gives one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lib.checkpoints import checkpoint
from lib.config import config
from lib.config.config import Config, Raw
from lib.config.settings import Section
from lib.contracts import Method
from lib.datasets import image_decoder
from lib.errors import UserError
from lib.machine import devices, precision
from lib.machine.devices import DeviceSettings
from lib.methods import building, weights
from lib.networks import NetworkSettings, engines
from lib.networks.backbone import Backbone
from lib.scoring import evaluation
from lib.transforms import TransformSettings, normalisation, pillow_views, plain_recipe
from lib.transforms.image_reader import prepare
from lib.transforms.random_draws import draw

__all__ = ["Model"]


class Model:
    """A trained model, and what is done to an image before it; made by `main.load`.

    `method.features(encode(prepare(images)))` are the features, (N, feature_dim). Several threads may use one model.

    Args:
        settings: those of the checkpoint.
        stored: the checkpoint.

    Raises:
        UserError: the weights do not fit the settings, or there is no such device.
    """

    def __init__(self, settings: Config, stored: Mapping[str, Any]) -> None:
        transforms = settings.of(TransformSettings)
        self._channels = settings.of(NetworkSettings).net_cin
        self._working_size = transforms.tfm_working_size
        self._decode_side = None if transforms.tfm_decode_side == "full" else transforms.decode_side
        self._recipe = plain_recipe(transforms)
        self._device = devices.device(settings.of(DeviceSettings))
        self._normalisation = [
            torch.tensor(values, device=self._device)[:, None, None]
            for values in normalisation(transforms, self._channels)
        ]
        with torch.random.fork_rng(devices=[]):
            built, encode = building.assemble(settings)
        weights.load(built, encode, stored)
        self.method: Method = built.place(settings).train(False)
        self.encode: nn.Module = encode.place(settings, [self._recipe.size]) if isinstance(encode, Backbone) else encode
        self.warning = evaluation.adopt(self.method, stored)
        """What to know of its predictions, in a sentence; empty where there is nothing to know."""

    def prepare(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Resize, crop and normalise images as the network takes them: (N, C, S, S) in float32, on its device.

        Args:
            images: Pillow images of any size and mode (turned upright by their EXIF tag; a JPEG that is not loaded yet is
                decoded at the scale of the training), or an (N, C, H, W) 8-bit
                tensor of 1 or 3 channels.

        Raises:
            UserError: an image cannot be read; its number is named.
            ValueError: a tensor of another type or shape.
            TypeError: neither a list of images nor a tensor.
        """
        _check(images)
        return self._prepare(images, 0)

    def _prepare(self, images: Sequence[Image.Image] | Tensor, first: int) -> Tensor:
        """As `prepare` does; `first` is the number of the first image, for messages."""
        shown = []
        for number, image in enumerate(_images(images), first):
            with image_decoder.unreadable(f"image {number}"):
                whole = image_decoder.upright(image_decoder.reduced(image, self._decode_side))
                shown.append(prepare(whole, self._channels, self._working_size))
        sizes = np.array([(image.height, image.width) for image in shown], dtype=np.int64).reshape(-1, 2)
        draws = draw(self._recipe, sizes, 0, 0, np.arange(len(shown)), 0)  # the middle: nothing in it is random
        side = self._recipe.size
        views = [pillow_views.view(image, self._recipe, draws, n) for n, image in enumerate(shown)]
        stack = (
            np.stack([np.asarray(view).reshape(side, side, -1) for view in views])
            if views
            else np.empty((0, side, side, self._channels))
        )
        means, stds = self._normalisation
        bytes_ = torch.from_numpy(stack).to(self._device).permute(0, 3, 1, 2)
        return (bytes_.float() / 255 - means) / stds

    def predict(
        self,
        images: Sequence[Image.Image] | Tensor,
        batch_size: int = evaluation.EvaluationSettings.eval_batch_size,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Put images into clusters.

        Args:
            images: as for `prepare`; none at all is allowed.
            batch_size: images at a time, which bounds the memory.

        Returns:
            (N,) clusters from 0 to K − 1, and (N, K) probabilities, whose rows sum to 1.

        Raises:
            UserError: an image cannot be read, and its number is named; or the weights are of a run that diverged.
            ValueError: a tensor of another type or shape.
            TypeError: neither a list of images nor a tensor.
        """
        _check(images)
        found = [np.empty((0, self.method.num_clusters), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                prepared = self._prepare(images[start : start + batch_size], start)
                found.append(self.method.predict(self.encode(prepared)).float().cpu().numpy())
        probability = np.concatenate(found)
        if not np.isfinite(probability).all():
            raise UserError(
                "the model gives numbers that are not finite: its training diverged; take an earlier checkpoint"
            )
        return probability.argmax(axis=1).astype(np.int64), probability


def load(path: str, defaults: Mapping[str, Raw], sections: Sequence[type[Section]]) -> Model:
    """The model of a checkpoint, on the CPU.

    Args:
        path: of a checkpoint, or of weights in a form that `--evaluate` takes.
        defaults: settings that the file may not name.
        sections: the settings that every run has.

    Raises:
        UserError: no such file, or it cannot be read.
    """
    stored = checkpoint.load(path)
    known, remark = precision.for_scoring(config.for_other_images(stored["config"], sections), devices.CPU)
    known, engine_remark = engines.for_scoring(known, devices.CPU)
    model = Model(config.resolve(defaults, sections, known), stored)
    model.warning = "; ".join(filter(None, (remark, engine_remark, model.warning)))
    return model


def _check(images: Any) -> None:
    """Raises TypeError or ValueError where these are neither a list of Pillow images nor an 8-bit (N, C, H, W) tensor."""
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"(N, C, H, W) of bytes with 1 or 3 channels is wanted, not {tuple(images.shape)} {images.dtype}"
            )
        return
    wanted = "give a list of Pillow images, or an 8-bit (N, C, H, W) tensor"
    if isinstance(images, Image.Image):
        raise TypeError(f"a list of images is wanted, not a single one: [image]; {wanted}")
    if isinstance(images, np.ndarray):
        raise TypeError(f"a NumPy array is no tensor: torch.from_numpy(array) makes one; {wanted}")
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError(f"a path is no list of images: [Image.open(path)]; {wanted}")
    if not isinstance(images, Sequence):
        raise TypeError(f"{wanted}, not {type(images).__name__}")
    for image in images:
        if not isinstance(image, Image.Image):
            is_path = isinstance(image, str | os.PathLike)
            remedy = "[Image.open(path) for path in paths] opens paths; " if is_path else ""
            raise TypeError(f"{remedy}{wanted}, not a list with {type(image).__name__}")


def _images(images: Sequence[Image.Image] | Tensor) -> Sequence[Image.Image]:
    if not isinstance(images, Tensor):
        return images
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array) for array in arrays]
