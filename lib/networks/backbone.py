"""A backbone that is frozen as a whole: it is no part of the method, stands before it, and gives it features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lib.checkpoints import checkpoint, safetensors
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.datasets.disk_cache import Cache, open_cache
from lib.errors import UserError
from lib.machine import devices, processes
from lib.machine.devices import Placement
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
        f"auto = compiled on a GPU; else onnxruntime for more than {engines.FEW:,} views, if it is installed; else folded",
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
        self._build: Callable[[], engines.Engine] | None = None
        self._engine: engines.Engine | None = None  # built when it is first needed, as weights may be loaded until then
        self._fetch = fetch
        dimension: Any = network.feature_dim
        self.feature_dim: int = dimension
        self._digest: str | None = None
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # its BatchNorm is frozen too

    def forward(self, images: Tensor) -> Tensor:
        engine = None if images.device.type == "meta" else self._built()
        return engines.eager(self.network, images, self.precision) if engine is None else engine(images)

    def prepare(self, sizes: Iterable[int]) -> None:
        """Do what the engine does once, for images of these sides, px.

        Raises:
            UserError: the engine cannot compute this network.
        """
        if (engine := self._built()) is not None:
            for size in sizes:
                engine.prepare_or_say((self._channels, size, size))

    def _built(self) -> engines.Engine | None:
        """The engine; None: the network itself."""
        if self._engine is None and self._build is not None:
            self._engine = self._build()
        return self._engine

    def place(self, config: Config, sizes: Iterable[int] = (), count: int | None = None) -> Self:
        """To the device, in the layout and the precision that the settings ask for, and by their engine.

        Args:
            config: all settings.
            sizes: px, sides of the images that will come.
            count: of these images, one for each view; none: many.

        Raises:
            UserError: no such device, or `--compile` or the engine lacks what it needs.
        """
        placement = devices.placement(config)
        cache = open_cache(config)
        self.precision = placement.precision
        self._channels = config.of(NetworkSettings).net_cin
        self.to(placement.device)
        self._engine = None
        self.engine = config.of(BackboneSettings).feature_engine
        if self.engine == "auto":
            self.engine = processes.from_first(lambda: self._fastest(placement, cache, sizes, count))
        elif not placement.is_dry:
            engines.check(self.engine, placement)
        if self.engine != "eager":
            self._build = lambda: engines.build(self.engine, self.network, placement, cache, self.digest)
            return self
        self._build = None
        if placement.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if placement.compiles and not placement.is_dry:
            devices.check_compiler(placement.device)
            self.network.compile()
        return self

    def _fastest(self, placement: Placement, cache: Cache, sizes: Iterable[int], count: int | None) -> str:
        """The engine that `auto` means for this network."""
        name = engines.suitable(placement, count)
        if name != "onnxruntime" or placement.is_dry:
            return name
        engine = engines.OnnxRuntime(self.network, placement, cache, self.digest)
        try:
            for size in sorted(set(sizes)):
                if not engine.is_kept((self._channels, size, size)):
                    engine.prepare((self._channels, size, size))
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


def stored(encode: nn.Module, settings: BackboneSettings) -> dict[str, Any]:
    """What a checkpoint holds of that which stands before the method."""
    return {"backbone": encode.stored(settings.save_backbone)} if isinstance(encode, Backbone) else {}


def adopt(encode: nn.Module, state: Mapping[str, Any]) -> None:
    """See that what stands before the method is what a checkpoint's method was trained on; a copy in it is taken.

    Raises:
        UserError: it is not.
    """
    if isinstance(encode, Backbone):
        encode.adopt(state.get("backbone") or {})
