"""A method, which is a network with its objective, and the task that it builds from a configuration."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib import networks
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.registry import Registry
from lib.config.settings import Section, setting
from lib.contracts import Recipe, Source, Views
from lib.datasets import Pictures
from lib.errors import UserError
from lib.machine import devices, precision, processes
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.machine.random_seeds import SeedSettings
from lib.networks import batchnorm, freezing, small_map_convolution
from lib.networks.backbone import Backbone, Features
from lib.networks.freezing import TuningSettings
from lib.transforms import TransformSettings

_registry = Registry("method", exclusive=True)
register = _registry.register
get = _registry.get
names = _registry.names


def _numbers(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Each once; one alone is that number."""
    each = tuple(dict.fromkeys(value)) if isinstance(value, tuple) else (value,)
    return each if len(each) > 1 else each[0]


@dataclass(frozen=True)
class MethodSettings(Section):
    title = "method"
    bound = True
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


@dataclass(frozen=True)
class Split:
    """The pictures that one score is about."""

    index: NDArray[np.int64]  # (N,) positions among the run's pictures
    labels: NDArray[np.int64]  # (N,) −1 where unknown


class Method(nn.Module, ABC):
    """A network with its objective.

    `forward` takes a batch and gives {"loss": …} and its parts; where it assigns images to clusters on the way, also
    `cluster`, (n,), of the batch's images, or of those at `index`, (n,).
    """

    network: nn.Module
    """Images, or the features of a frozen backbone → (N, feature_dim). Of several processes each passes its own, while
    their BatchNorm is one; what is computed after `lib.machine.processes.gather` is the same in each."""

    full_name: str = ""
    """For people: its name, authors and year; empty: the name by which it is registered."""

    remedy: str = "a --base-lr below {base_lr:g}, fewer clusters (--num-clusters), or another --seed"
    """What a user can do where the clusters collapse or nothing is learnt."""

    frees_clusters: bool = False
    """Whether clusters that are empty in the first epochs often fill later."""

    pretrained_configs: tuple[str, ...] = ()
    """The files that train it on the features of a pretrained network, in the order of `--cfgs`."""

    light_configs: tuple[str, ...] = ()
    """The same for a light network that is trained from scratch on a CPU."""

    selection: str = "loss"
    """The part of the loss whose epoch mean, the lower the better, chooses best.ckpt."""

    num_clusters: int

    treatments: tuple[str, ...] = ("plain",)
    """BatchNorm statistics under which the method is scored (`lib.scoring.evaluation`); the first gives the result."""

    precision: str = "fp32"
    """Of the network (`lib.machine.precision.PrecisionSettings`)."""

    shares_passes: bool = False
    """Whether neighbouring views of one size pass a part together, which to rounding is as if they passed in turn."""

    remark: str = ""
    """What to know of the way in which it computes, if anything."""

    network_rate: float = 1.0
    """Factor of the learning rate for the network's weights."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """(N, feature_dim) → (N, K) cluster probabilities."""

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, K) cluster probabilities."""
        return self.classify(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, feature_dim); not below float32, whatever the network computes in."""
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
            forward: the pass of the part.
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
        settings = config.of(DeviceSettings)
        device = devices.device(settings)
        self.precision = config.of(PrecisionSettings).precision
        tuned = config.of(TuningSettings)
        self.network_rate = tuned.net_lr_scale
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
        if precision.channels_last(device, config.of(PrecisionSettings)):
            self.network.to(memory_format=torch.channels_last)
        if device == devices.CPU:
            small_map_convolution.adapt(self.network)
        if settings.compile and not config.of(Command).dry_run:
            devices.check_compiler(device)
            if processes.world() > 1 or not config.of(Command).trains:
                self.network.compile()  # else the whole step is compiled (`lib.training.compiled_step`)
        return self.to(device)

    def compiles(self, batch: Any) -> bool:
        """Whether `forward` of this batch is a function of its views alone, whose operations are the same in each step."""
        return True

    def words_for(self, *clusters: int) -> list[str]:
        """What a command line adds to the settings of this method's run for other numbers of clusters."""
        return ["--num-clusters", *map(str, clusters)]

    def uninformative(self) -> dict[str, float]:
        """For parts of the loss: the value at which a part says nothing, such as log K."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser gets: everything that is not frozen for ever; `lr_scale`: factor of a group's rate."""
        every = [p for p in self.parameters() if p.requires_grad]
        scaled = {id(p) for p in self.network.parameters()} if self.network_rate != 1 else set()
        groups: list[dict[str, Any]] = [{"params": [p for p in every if id(p) not in scaled]}]
        own = [p for p in every if id(p) in scaled]
        return [*groups, {"params": own, "lr_scale": self.network_rate}] if own else groups

    def train(self, mode: bool = True) -> Self:
        """As of every module; a network that is wholly frozen stays in evaluation mode, so that no statistic moves."""
        super().train(mode)
        for part in freezing.held(self):
            part.train(False)
        return self

    def start_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch."""

    def idle_parameters(self, batch: Any) -> Iterable[nn.Parameter]:
        """Those that get no gradient in the step with this batch, beside what is frozen; called before its forward.

        Several processes average the gradients of the others while the backward pass still runs.
        """
        return ()

    def before_forward(self, step: int) -> None:
        """Called before each training forward, with the number of finished steps."""

    def after_backward(self, step: int) -> None:
        """Called between the backward pass and the optimiser."""


@dataclass(frozen=True)
class Task:
    """What a method builds from a configuration."""

    method: Method
    source: Source
    views: Views
    pictures: Pictures
    perturbed: Recipe  # a random view, as the training takes it
    config: Config  # all settings, with those that were left to the pictures
    encode: nn.Module = field(default_factory=nn.Identity)  # a frozen backbone, which the views have passed

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """What is scored."""
        return {name: self._split(name) for name in self.pictures.scored}

    @property
    def trained_name(self) -> str:
        """The split that is trained on; of several heads, the last one's."""
        return self.pictures.train[-1]

    @cached_property
    def trained(self) -> Split:
        """The pictures of that split."""
        return self._split(self.trained_name)

    def empty(self, recipe: Recipe, count: int) -> Tensor:
        """A view of so many images, (count, …), as the method gets it, that has a shape and no content."""
        channels = self.config.of(networks.NetworkSettings).net_cin
        behind = isinstance(self.encode, Backbone)
        shape = (self.encode.feature_dim,) if behind else (channels, recipe.size, recipe.size)
        return torch.empty(count, *shape, device="meta")

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        return self.pictures.labels()

    def _split(self, name: str) -> Split:
        index = self.pictures.index(name)
        return Split(index, self._labels[index])


def plain_network(config: Config) -> nn.Module:
    """The network that the settings name, on the pictures as they are."""
    return networks.build(config, config.of(networks.NetworkSettings).net_cin)


@dataclass(frozen=True)
class Entry:
    """What a method registers: how to build its task; of the method alone the two parts, not yet placed; its settings."""

    build: Callable[[Config, Pictures], Task]
    model: Callable[[Config, nn.Module], Method]  # on the network, or on `lib.networks.backbone.Features`
    Settings: type[Section]
    title: str = ""  # for --list
    network: Callable[[Config], nn.Module] = plain_network  # images → (N, feature_dim)


def assemble(config: Config, pictures: Pictures | None = None) -> tuple[Method, nn.Module]:
    """The method, and what stands before it: a backbone that is frozen as a whole, or nothing; neither is placed.

    Args:
        config: all settings.
        pictures: of the run, where there is one; it is seen to that method and pictures fit each other.

    Raises:
        UserError: settings that do not go together.
    """
    method, encode = _parts(config)
    if pictures is not None:
        networks.check_sizes(nn.Sequential(encode, method.network), config, config.of(TransformSettings).size)
        if config.of(Command).trains:
            pictures.check_clusters(method.num_clusters)
    return method, encode


def _parts(config: Config) -> tuple[Method, nn.Module]:
    entry: Entry = get(config.of(MethodSettings).method)
    settings = config.of(networks.NetworkSettings)
    if settings.net_freeze is not None:
        # What a checkpoint does not hold is drawn again, whatever was drawn before.
        torch.default_generator.manual_seed(config.of(SeedSettings).seed or 0)
    network = entry.network(config)
    if not networks.is_frozen(settings, network):
        return entry.model(config, network), nn.Identity()
    tuned = config.of(TuningSettings)
    if tuned.net_lr_scale != 1:
        raise UserError("--net-lr-scale: the network is frozen as a whole, and learns at no rate; leave it out")
    fetches = config.weights_given and tuned.net_weights is not None
    fetch = partial(networks.load_weights, network, config) if fetches else None
    drawn = tuned.net_weights is None and not networks.own(settings.network).trained
    backbone = Backbone(network, settings.network, drawn, fetch)
    return entry.model(config, Features(backbone.feature_dim)), backbone
