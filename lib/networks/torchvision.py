"""torchvision's classification networks, without their classifiers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from lib.errors import UserError
from lib.machine import processes
from lib.machine.devices import CPU
from lib.networks import Own, register_family
from lib.networks.headless import CLASSES, behead, finished

# The auxiliary classifiers help an old optimiser; the weights want their own scale of the pixels.
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True} for name in ("googlenet", "inception_v3")
}


class TorchvisionNetwork:
    """One of them, by torchvision's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = f"torchvision:{name}"
        self._weights = models.get_model_weights(name).DEFAULT

    @property
    def own(self) -> Own:
        """How the pictures looked that its weights are measured on."""
        seen = self._weights.transforms()
        return Own(seen.crop_size[0], seen.resize_size[0], tuple(seen.mean), tuple(seen.std))

    def __call__(self, in_channels: int) -> nn.Module:
        assert self.own.size is not None
        options = OPTIONS.get(self.name, {})
        if self.name.startswith("vit_"):  # it has a weight for each place, so it is made for one size
            options = {**options, "image_size": self.own.size}
        model = models.get_model(self.name, weights=None, num_classes=CLASSES, **options)
        behead(model, self.title)
        return finished(model, in_channels, self.own.size, self.title)

    def fetch(self) -> dict[str, Tensor]:
        """torchvision's own weights, from where it keeps them, or else from the net.

        Raises:
            UserError: they can be had from neither.
        """
        url = self._weights.url
        file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        processes.from_first(lambda: self._download(url, file))
        return {self.renamed(name): value for name, value in self._load(url, file).items()}

    def _download(self, url: str, file: Path) -> None:
        if not file.exists():
            self._load(url, file)

    def _load(self, url: str, file: Path) -> dict[str, Tensor]:
        try:
            found: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
                url, map_location=CPU, check_hash=True, weights_only=True
            )
        except OSError as error:  # URLError is one
            reason = getattr(error, "reason", None) or error.strerror or error
            raise UserError(
                f"the weights of {self.title} cannot be fetched ({reason}); "
                f"put {url} at {file}, or give it as --net-weights FILE"
            ) from error
        except Exception as error:  # torch names no common base for what a damaged file can raise
            raise UserError(f"{file} is damaged; remove it, and take {url} again") from error
        return found

    def renamed(self, name: str) -> str:
        """A name in torchvision's files as the network has it: those of DenseNet are older than its code."""
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name)


class Torchvision:
    """Any classification network of torchvision, such as torchvision:resnet50."""

    def names(self) -> Iterable[str]:
        known: list[str] = models.list_models(module=models)
        return known

    def get(self, name: str) -> TorchvisionNetwork | None:
        return TorchvisionNetwork(name) if name in self.names() else None


register_family("torchvision", Torchvision())
