"""A backbone that is frozen as a whole: it is no part of the method, stands before it, and gives it features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lib.checkpoints import checkpoint, safetensors
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.errors import UserError
from lib.machine import devices, precision, processes
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.networks import NetworkSettings, engines

SHOWN = 12  # digits of a digest in messages


@dataclass(frozen=True)
class BackboneSettings(Section):
    title = "frozen backbone"
    save_backbone: bool = setting(
        False,
        "keep a copy of a frozen network in every checkpoint; otherwise a checkpoint has only its name and digest",
    )
    feature_engine: engines.Name = setting(
        "auto",
        "what computes a frozen network; eager = PyTorch, as the network is; folded = PyTorch with BatchNorm folded into "
        "convolutions, channels-last; onnxruntime = ONNX Runtime, float32 on a CPU; compiled = folded, by torch.compile; "
        "auto = compiled on a GPU, else onnxruntime if it is installed, else folded",
        lifetime="run",
        adaptive=True,
        earlier="eager",
    )


class Features(nn.Identity):
    """In the place of a method's network where a frozen backbone stands before it: (N, feature_dim), as they come.

    A method may put a small network of its own in its place.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim


class Backbone(nn.Module):
    """(N, C, H, W) → (N, feature_dim) in float32; always in evaluation mode, and without gradients.

    Args:
        network: whose weights are all frozen.
        name: by which it is known.
        drawn: whether its weights are random.
        fetch: gives the network its weights where a checkpoint names it and has no copy; none: it has them.
    """

    def __init__(
        self, network: nn.Module, name: str, drawn: bool = False, fetch: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.name = name
        self.precision = "fp32"
        self.title = f"{name} with random weights, which know no pictures" if drawn else name
        self.engine: str = "eager"
        self.remark = ""
        """What to know of the engine, if anything."""
        self._engine: engines.Engine | None = None  # built when it is first needed, as weights may be loaded until then
        self._config: Config | None = None
        self._fetch = fetch
        dimension: Any = network.feature_dim
        self.feature_dim: int = dimension
        self._digest: str | None = None
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # its BatchNorm is frozen too

    def forward(self, images: Tensor) -> Tensor:
        if self.engine == "eager" or self._config is None or images.device.type == "meta":
            return engines.eager(self.network, images, self.precision)
        return self._built(self._config)(images)

    def prepare(self, sizes: Iterable[int]) -> None:
        """Do what the engine does once, for images of these sides, px.

        Raises:
            UserError: the engine cannot compute this network.
        """
        if self.engine != "eager" and self._config is not None:
            channels = self._config.of(NetworkSettings).net_cin
            for size in sizes:
                self._built(self._config).prepare_or_say((channels, size, size))

    def _built(self, config: Config) -> engines.Engine:
        if self._engine is None:
            self._engine = engines.build(self.engine, self.network, config, self.digest)
        return self._engine

    def place(self, config: Config, sizes: Iterable[int] = ()) -> Self:
        """To the device, in the layout and the precision that the settings ask for, and by their engine.

        Args:
            config: all settings.
            sizes: px, sides of the images that will come.

        Raises:
            UserError: no such device, or `--compile` or the engine lacks what it needs.
        """
        settings = config.of(DeviceSettings)
        chosen = config.of(PrecisionSettings)
        device = devices.device(settings)
        is_dry = config.of(Command).dry_run
        self.precision = chosen.precision
        self.to(device)
        self._config = config
        self._engine = None
        self.engine = config.of(BackboneSettings).feature_engine
        if self.engine == "auto":
            self.engine = processes.from_first(lambda: self._fastest(config, sizes))
        elif not is_dry:
            engines.check(self.engine, config)
        if self.engine == "eager":
            if precision.channels_last(device, chosen):
                self.network.to(memory_format=torch.channels_last)
            if settings.compile and not is_dry:
                devices.check_compiler(device)
                self.network.compile()
        return self

    def _fastest(self, config: Config, sizes: Iterable[int]) -> str:
        """The engine that `auto` means for this network."""
        name = engines.suitable(config)
        if name != "onnxruntime" or config.of(Command).dry_run:
            return name
        engine = engines.OnnxRuntime(self.network, config, self.digest)
        channels = config.of(NetworkSettings).net_cin
        try:
            for size in sorted(set(sizes)):
                if not engine.is_kept((channels, size, size)):
                    engine.prepare((channels, size, size))
        except engines.UnfitError as error:
            self.remark = f"{error}; the engine folded takes its place (--feature-engine folded spares the attempt)"
            return "folded"
        self._engine = engine
        return name

    @property
    def digest(self) -> str:
        """SHA-256 over all weights and buffers."""
        if self._digest is None:
            self._digest = safetensors.digest(self.network.state_dict())
        return self._digest

    def adopt(self, stored: Mapping[str, Any]) -> None:
        """Be the backbone that a checkpoint's method was trained on: take the copy in it, or see that we are it.

        Raises:
            UserError: we are not, or our weights cannot be had.
        """
        if not {"network", "digest"} <= stored.keys():
            raise UserError(
                "the checkpoint does not tell its frozen backbone, so it was made without one, or is damaged"
            )
        if stored.get("weights") is not None:
            checkpoint.load_weights(self.network, stored["weights"], "the checkpoint's copy of its backbone")
        elif self._fetch is not None:
            self._fetch()
        self._digest = None
        self._engine = None
        if self.digest != stored["digest"]:
            raise UserError(
                f"the checkpoint was trained on features of {stored['network']} {str(stored['digest'])[:SHOWN]}, and this "
                f"is {self.name} {self.digest[:SHOWN]}; bring back its weights (random ones follow from --seed), or train "
                "with --save-backbone, which keeps a copy"
            )

    def stored(self, whole: bool) -> dict[str, Any]:
        """What `adopt` takes; with a copy of the weights if it is to be `whole`."""
        identity: dict[str, Any] = {"network": self.name, "digest": self.digest}
        return {**identity, "weights": dict(self.network.state_dict())} if whole else identity


def settled(encode: nn.Module, config: Config) -> Config:
    """The same with the engine of what stands before the method, and what is to be known of it."""
    if not isinstance(encode, Backbone):
        return config.replace(feature_engine="eager")
    config = config.replace(feature_engine=encode.engine)
    return config.noted(encode.remark) if encode.remark else config


def stored(encode: nn.Module, config: Config) -> dict[str, Any]:
    """What a checkpoint holds of that which stands before the method."""
    whole = config.of(BackboneSettings).save_backbone
    return {"backbone": encode.stored(whole)} if isinstance(encode, Backbone) else {}


def adopt(encode: nn.Module, state: Mapping[str, Any]) -> None:
    """See that what stands before the method is what a checkpoint's method was trained on; a copy in it is taken.

    Raises:
        UserError: it is not.
    """
    if isinstance(encode, Backbone):
        encode.adopt(state.get("backbone") or {})


def load(method: nn.Module, encode: nn.Module, state: Mapping[str, Any]) -> None:
    """Take the weights of a checkpoint, without what belongs to its run.

    Raises:
        UserError: they do not fit, or are of a method on another backbone.
    """
    adopt(encode, state)
    checkpoint.load_weights(method, checkpoint.weights_of(state), "the checkpoint")
