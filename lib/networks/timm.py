"""The networks of the package timm, without their classifiers."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lib.errors import UserError
from lib.machine import processes
from lib.networks import Own, register_family
from lib.networks.headless import finished


class TimmNetwork:
    """One of them, by timm's name, with or without a tag: `resnet50`, `resnet50.a1_in1k`."""

    def __init__(self, package: Any, name: str) -> None:
        self._timm = package
        self.name = name
        self.title = f"timm:{name}"
        self._seen: dict[str, Any] = package.get_pretrained_cfg(name).to_dict()

    @property
    def own(self) -> Own:
        """How the pictures looked that its weights are measured on."""
        seen = self._seen
        size = int(seen["input_size"][-1])
        return Own(size, int(size / (seen.get("crop_pct") or 1)), tuple(seen["mean"]), tuple(seen["std"]))

    def __call__(self, in_channels: int) -> nn.Module:
        assert self.own.size is not None
        model = self._timm.create_model(self.name, num_classes=0)
        return finished(model, in_channels, self.own.size, self.title)

    def fetch(self) -> dict[str, Tensor]:
        """timm's own weights, from where it keeps them, or else from the net.

        Raises:
            UserError: they can be had from neither.
        """
        processes.from_first(lambda: self._fetch() and None)
        return self._fetch()

    def _fetch(self) -> dict[str, Tensor]:
        try:
            found: dict[str, Tensor] = self._timm.create_model(self.name, pretrained=True, num_classes=0).state_dict()
        except Exception as error:  # of whatever package it takes for the download
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"the weights of {self.title} cannot be fetched ({reason}); "
                f"get {self._place()}, and give it as --net-weights FILE"
            ) from error
        return found

    def _place(self) -> str:
        if self._seen.get("hf_hub_id"):
            return f"https://huggingface.co/{self._seen['hf_hub_id']}/resolve/main/model.safetensors"
        return str(self._seen.get("url") or "weights of it, of which timm knows no address,")


class Timm:
    """Any network of the package timm, if it is installed, such as timm:convnext_nano."""

    def names(self) -> Iterable[str]:
        try:
            return [str(name) for name in importlib.import_module("timm").list_models()]
        except ImportError:
            return []

    def get(self, name: str) -> TimmNetwork | None:
        try:
            timm = importlib.import_module("timm")
        except ImportError as error:
            raise UserError(f"the network timm:{name} is of the package timm: pip install timm ({error})") from error
        plain, dot, tag = name.partition(".")
        known = timm.is_model(plain) and (
            not dot or tag in {full.partition(".")[2] for full in timm.list_pretrained(plain + ".*")}
        )
        return TimmNetwork(timm, name) if known else None


register_family("timm", Timm())
