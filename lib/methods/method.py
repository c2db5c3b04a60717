"""The base for methods, and the registry of methods; how a task is built from one is in `lib.methods.building`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lib import contracts, networks
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.registry import Registry
from lib.config.settings import Section, setting
from lib.contracts import Recipe, Source, Task, Views
from lib.datasets import DataSettings, Pictures
from lib.errors import UserError
from lib.machine import devices, precision, processes
from lib.machine.random_seeds import SeedSettings
from lib.methods import method_checks
from lib.methods.batches import ShuffledSource, ViewBatch
from lib.networks import batchnorm, freezing, small_map_convolution
from lib.networks.freezing import TuningSettings
from lib.transforms import TransformSettings

_registry = Registry("method", exclusive=True)
get = _registry.get
names = _registry.names


def register(name: str, component: Any = None) -> Any:
    """Add a method, a `ViewMethod` or an `Entry`, as a call `register(name, cls)` or as a decorator `@register(name)`.

    Its settings have the title "method NAME", unless they have another, and a checkpoint brings them.

    Raises:
        UserError: its `Settings` are no section of settings.
        ValueError: the name is taken already.
    """
    if component is None:
        return lambda decorated: register(name, decorated)
    settings = getattr(component, "Settings", None)
    if settings is not None:
        method_checks.check_settings(name, settings)
        settings.title = settings.title or f"method {name}"
        settings.lifetime = "network"
    return _registry.register(name, component)


def _numbers(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Each once; one alone is that number."""
    each = tuple(dict.fromkeys(value)) if isinstance(value, tuple) else (value,)
    return each if len(each) > 1 else each[0]


@dataclass(frozen=True)
class MethodSettings(Section):
    title = "method"
    lifetime = "network"
    method: str = setting("", "clustering method; pica where neither a file nor a flag names one", component=_registry)
    num_clusters: int | tuple[int, ...] | None = setting(
        None,
        "number of clusters; several numbers = one run for each; none = as the method's settings say", value="K",
        low=2, convert=_numbers,
    )  # fmt: skip
    group_crops: bool = setting(False, "accepted for earlier versions, and without effect", idle=True)
    sync_batchnorm: bool = setting(
        True,
        "compute BatchNorm over the images of all processes; false = each process over its own images, "
        "so the result depends on their number",
    )


def number_if_given(config: Config) -> int | None:
    """The number of clusters that a method is built with; None: it is left to the method.

    Raises:
        UserError: there are several (`lib.runs.run_list`).
    """
    number = config.of(MethodSettings).num_clusters
    if isinstance(number, tuple):
        raise UserError(f"num_clusters {' '.join(map(str, number))}: a method has one number of clusters; give one")
    return number


def number_of_clusters(config: Config) -> int:
    """The same for a method that has no number of its own.

    Raises:
        UserError: there is none, or there are several.
    """
    number = number_if_given(config)
    if number is None:
        raise UserError("how many clusters? Give --num-clusters K")
    return number


class ViewMethod(contracts.Method):
    """A method whose loss compares views of the same images.

    Its author writes a dataclass `Settings`, where there are any, the head in `__init__`, `views`, `loss` and `classify`.
    The class comes under a name by `register`; its docstring's first line is shown by `--list`.

    Args:
        network: images, or the features of a frozen backbone → (N, feature_dim).
        num_clusters: K.
        settings: of the class's `Settings`; a class without any is built with two arguments.
    """

    perturbed_view: int = -1
    """Which of the views, by its place, shows in the figures without labels how a random view changes the clusters."""

    shares_passes: bool = False
    """Whether neighbouring views of one size pass a part together, which to rounding is as if they passed in turn."""

    network_rate: float = 1.0
    """Factor of the learning rate for the network's weights."""

    settings: Any
    """Of the class's `Settings`; None: it has none."""

    def __init__(self, network: nn.Module | None = None, num_clusters: int = 0, settings: Any = None) -> None:
        super().__init__()
        if network is not None:  # else the author's `__init__` sets what follows
            self.network = network
            self.num_clusters = num_clusters
        self.settings = settings

    # What an author writes

    def views(self, transforms: TransformSettings) -> Sequence[Recipe]:
        """The views of each image in a step: `lib.transforms.original`, `perturbed` and `neighbour` make recipes.

        Raises:
            UserError: settings that do not go together; or the author has not written it.
        """
        raise UserError(f"the method {type(self).__name__} has no `views`; write it, as docs/extend.md shows")

    def loss(self, features: list[Tensor]) -> Tensor | dict[str, Tensor]:
        """The loss, or {"loss": …} with its parts, which are recorded beside it.

        Args:
            features: of each view (N, feature_dim), of the whole batch, from all processes, in the order of
                `batch.index` in `forward`.

        Raises:
            UserError: the author has written neither this nor `forward`.
        """
        raise UserError(f"the method {type(self).__name__} has no `loss`; write it, as docs/extend.md shows")

    # What an author may write where a method is special

    @classmethod
    def build_network(cls, config: Config) -> nn.Module:
        """Images → (N, feature_dim): the network that the settings name."""
        return networks.build(config, config.of(networks.NetworkSettings).net_cin)

    @classmethod
    def from_config(cls, config: Config, network: nn.Module) -> Self:
        """The method on that network, or on `lib.networks.backbone.Features`; not yet placed.

        Raises:
            UserError: settings that do not go together.
        """
        return cls(network, number_of_clusters(config), *config.extra(cls))

    def check(self, config: Config, pictures: Pictures) -> None:
        """See that the images can be trained on, before any is decoded.

        Raises:
            UserError: they make no batch.
        """
        index = pictures.index(pictures.train[-1])
        size = min(config.of(DataSettings).batch, len(index))
        if size < 2:
            raise UserError("a batch of one image leaves BatchNorm nothing to normalise by; give a larger --batch-size")
        processes.check_parts(size, config.of(MethodSettings).sync_batchnorm)

    def source(self, config: Config, pictures: Pictures, views: Views, recipes: tuple[Recipe, ...]) -> Source:
        """The order of batches: the training images in a fresh random order in each epoch."""
        index = pictures.index(pictures.train[-1])
        size = min(config.of(DataSettings).batch, len(index))
        return ShuffledSource(views, index, recipes, batch_size=size, seed=config.of(SeedSettings).number)

    def forward(self, batch: ViewBatch) -> dict[str, Tensor]:
        """The `loss` of the batch's views, as a dict; overridden where the loss must know the images, from `batch.index` (N,)."""
        loss = self.loss(processes.gather_views(self.encode(batch.views), batch.counts))
        return loss if isinstance(loss, dict) else {"loss": loss}

    # What every method gets

    def features(self, images: Tensor) -> Tensor:
        with precision.lowered(images.device, self.precision):
            return precision.raised(self.network(images))

    def encode(self, views: Sequence[Tensor]) -> list[Tensor]:
        """(N, feature_dim) of each view, each a BatchNorm batch by itself; neighbouring views of one size share a pass."""
        with precision.lowered(views[0].device, self.precision):  # once, so that weights are cast once
            return self.pass_views(self.network, views, self.features)

    def pass_views(
        self, module: nn.Module, views: Sequence[Tensor], forward: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """What a part of the method makes of each view, as if the views passed in turn.

        Args:
            module: the part.
            views: V of (n, …); n may differ.
            forward: the pass of the part: (n, …) of images → (n, …).
        """
        if not self.shares_passes:
            return [forward(view) for view in views]
        results: list[Tensor] = []
        for _, neighbours in itertools.groupby(views, key=lambda view: view.shape[1:]):
            run = list(neighbours)
            sizes = [len(view) for view in run]
            with batchnorm.of_views(module, sizes):
                results += torch.split(forward(torch.cat(run) if len(run) > 1 else run[0]), sizes)
        return results

    def place(self, config: Config) -> Self:
        """To the device, in the layout and the precision that the settings ask for.

        Raises:
            UserError: no such device, or `--compile` lacks what it needs.
        """
        placement = devices.placement(config)
        device = placement.device
        self.precision = placement.precision
        self.network_rate = config.of(TuningSettings).net_lr_scale
        self.remedy = self.remedy.format_map(config.as_dict())
        batchnorm.adapt(self)
        if processes.world() > 1 and config.of(MethodSettings).sync_batchnorm:
            batchnorm.adapt(self.network, synchronised=True)  # the heads see what is gathered
        # In float32 a CPU is faster in turn: the maps of one view are more likely to stay in its caches.
        is_faster = device != devices.CPU or self.precision == "bf16"
        mixes = batchnorm.mixes_views(self.network)
        self.shares_passes = is_faster and not mixes
        if is_faster and mixes:
            self.remark = f"the network has a {mixes}, so views of one size pass it in turn, which is slower"
        if placement.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if device == devices.CPU:
            small_map_convolution.adapt(self.network)
        if placement.compiles and not placement.is_dry:
            devices.check_compiler(device)
            if processes.world() > 1 or not config.of(Command).trains:
                self.network.compile()  # else the whole step is compiled (`lib.training.compiled_step`)
        return self.to(device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        every = [p for p in self.parameters() if p.requires_grad]
        scaled = {id(p) for p in self.network.parameters()} if self.network_rate != 1 else set()
        groups: list[dict[str, Any]] = [{"params": [p for p in every if id(p) not in scaled]}]
        slower = [p for p in every if id(p) in scaled]
        return [*groups, {"params": slower, "lr_scale": self.network_rate}] if slower else groups

    def train(self, mode: bool = True) -> Self:
        """As of every module; a network that is wholly frozen stays in evaluation mode, so that no statistic moves."""
        super().train(mode)
        for part in freezing.held(self):
            part.train(False)
        return self


@dataclass(frozen=True)
class Entry:
    """What is registered in the place of a `ViewMethod` by an author who builds the task himself."""

    build: Callable[[Config, Pictures], Task]
    model: Callable[[Config, nn.Module], ViewMethod]  # on the network, or on `lib.networks.backbone.Features`
    Settings: type[Section]
    title: str = ""  # for --list
    network: Callable[[Config], nn.Module] = ViewMethod.build_network  # images → (N, feature_dim)

    def build_network(self, config: Config) -> nn.Module:
        """Images → (N, feature_dim)."""
        return self.network(config)

    def from_config(self, config: Config, network: nn.Module) -> ViewMethod:
        """The method on that network, not yet placed."""
        return self.model(config, network)


def __getattr__(name: str) -> Any:
    """The names that files of users take from here."""
    if name == "assemble":
        from lib.methods.building import assemble

        return assemble
    moved = {"Method": ViewMethod, "Split": contracts.Split}
    if name not in moved:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return moved[name]
