"""PICA: heads on one network, trained in turn by the partition uncertainty of two views."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lib import datasets, networks
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.errors import UserError
from lib.features.views import open_views
from lib.machine import processes
from lib.machine.random_seeds import SeedSettings
from lib.methods.method import Entry, Method, MethodSettings, Task, assemble, number_if_given, register
from lib.networks.backbone import Backbone, Features
from lib.networks.batchnorm import ViewBatchNorm
from lib.networks.sobel import Sobel
from lib.transforms import TransformSettings, plain_recipe
from lib.transforms.channel_statistics import measured
from pica.data import Batch, PICASource, recipes
from pica.losses import PUILoss

OVERCLUSTERING = 7  # times the clusters: the paper's 70 for 10


@dataclass(frozen=True)
class PICASettings(Section):
    title = "method pica"
    bound = True
    net_heads: tuple[int, ...] | None = setting(
        None,
        "number of clusters of each head, the main head last; none = 7 times --num-clusters, and --num-clusters",
        value="K",
        low=2,
    )
    net_sobel: bool = setting(False, "replace the colours of an image by its Sobel edges")
    data_nrepeat: int = setting(1, "randomly transformed copies of each image in a step", low=1, high=1000)
    pica_lamda: float = setting(2.0, "weight of the loss term that balances the cluster sizes", low=0)
    pica_idle_heads: Literal["zeros", "none"] = setting(
        "zeros",
        "gradient of the heads that a step does not train; zeros = the optimizer's momentum still moves "
        "them, as in the authors' program; none = they stay as they are",
    )


def head_sizes(net_heads: tuple[int, ...] | None, num_clusters: int | None) -> tuple[int, ...]:
    """Reconcile the two settings that give the number of clusters.

    Raises:
        UserError: neither is given, or they contradict each other.
    """
    if net_heads is None:
        if num_clusters is None:
            raise UserError("how many clusters? Give --num-clusters K, or --net-heads with K last")
        return (OVERCLUSTERING * num_clusters, num_clusters)
    if num_clusters not in (None, net_heads[-1]):
        raise UserError(f"--num-clusters {num_clusters} contradicts net_heads, whose last is {net_heads[-1]}; give one")
    return net_heads


class PICA(Method):
    """Huang, Gong, Zhu, CVPR 2020.

    Args:
        network: images, or a frozen backbone's features → (N, feature_dim).
        heads: clusters of each head; the last is the main one, and the others over-cluster.
        lamda: weight of the balance term.
        idle_heads: "zeros" or "none", see `PICASettings`.
    """

    full_name = "PICA (Huang et al., CVPR 2020)"
    remedy = (
        "a --pica-lamda above {pica_lamda:g} (it keeps clusters equally large), a --base-lr below {base_lr:g}, or another "
        "--seed"
    )
    frees_clusters = True
    pretrained_configs = ("configs/base.yaml", "configs/pretrained.yaml")
    light_configs = ("configs/base.yaml", "configs/cpu/pica.yaml")

    def __init__(
        self, network: nn.Module, heads: tuple[int, ...], lamda: float = 2.0, idle_heads: str = "zeros"
    ) -> None:
        super().__init__()
        self.network = network
        feature_dim: Any = network.feature_dim
        self.heads = nn.ModuleList(nn.Linear(feature_dim, size) for size in heads)
        self.objective = PUILoss(lamda)
        self.sizes = heads
        self.idle_heads = idle_heads
        self.num_clusters = heads[-1]
        self.selection = f"{self._name(len(heads) - 1)}/loss"
        self._trained = [False] * len(heads)

    def _name(self, head: int) -> str:
        return f"head{head}-{self.sizes[head]}"

    def assign(self, images: Tensor, head: int) -> Tensor:
        """(N, C, H, W) → (N, K) assignments by one head."""
        return self._assigned(self.features(images), head)

    def _assigned(self, features: Tensor, head: int) -> Tensor:
        logits: Tensor = self.heads[head](features)
        return logits.softmax(dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # In this order, which is that of BatchNorm's running statistics.
        original, *perturbed = batch.views
        views = [original, torch.cat(perturbed)]
        copies = len(perturbed)
        n = len(original)
        p, q = (self._assigned(features, batch.head) for features in self.encode(views))
        p, *every = processes.gather_views([p, *q.view(copies, n, self.sizes[batch.head])], batch.counts)
        p = p.repeat(copies, 1)
        q = torch.cat(every)
        name = self._name(batch.head)
        parts = self.objective.parts(p, q)
        return {"loss": parts["loss"], **{f"{name}/{part}": value.detach() for part, value in parts.items()}}

    def classify(self, features: Tensor) -> Tensor:
        return self._assigned(features, len(self.heads) - 1)

    def idle_parameters(self, batch: Batch) -> Iterable[nn.Parameter]:
        idle = [head for i, head in enumerate(self.heads) if i != batch.head]
        return (weight for head in idle for weight in head.parameters())

    def after_backward(self, step: int) -> None:
        for i, head in enumerate(self.heads):
            idle = all(weight.grad is None for weight in head.parameters())
            if not idle:
                self._trained[i] = True
            elif self._trained[i] and self.idle_heads == "zeros":
                for weight in head.parameters():
                    weight.grad = torch.zeros_like(weight)

    def words_for(self, *clusters: int) -> list[str]:
        return [*super().words_for(*clusters), "--net-heads", "none"]

    def uninformative(self) -> dict[str, float]:
        return {f"{self._name(i)}/uncertainty": math.log(size) for i, size in enumerate(self.sizes)}

    def get_extra_state(self) -> dict[str, list[bool]]:
        return {"trained_heads": list(self._trained)}

    def set_extra_state(self, state: dict[str, list[bool]]) -> None:
        self._trained = list(state["trained_heads"])


def build_network(config: Config) -> nn.Module:
    """The backbone, behind Sobel filters if the settings ask for them."""
    channels = config.of(networks.NetworkSettings).net_cin
    if not config.of(PICASettings).net_sobel:
        return networks.build(config, channels)
    backbone = networks.build(config, Sobel.out_channels)
    network = nn.Sequential(Sobel(), backbone)
    network.feature_dim = backbone.feature_dim
    return network


def _heads(config: Config) -> tuple[int, ...]:
    return head_sizes(config.of(PICASettings).net_heads, number_if_given(config))


class Standardised(ViewBatchNorm):
    """(N, D) features of a frozen backbone, each brought to mean 0 and deviation 1; nothing in it is trained.

    A head is a single linear layer: on features as they come, how fast it learns would hang on their scale.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, affine=False)
        self.feature_dim = dimension


def build_method(config: Config, network: nn.Module) -> PICA:
    settings = config.of(PICASettings)
    if isinstance(network, Features):
        network = Standardised(network.feature_dim)
    return PICA(network, _heads(config), settings.pica_lamda, settings.pica_idle_heads)


def check_single(network: nn.Module, shape: tuple[int, ...]) -> None:
    """See that the network can be trained on a batch of one picture, as the last of an epoch may be.

    Raises:
        UserError: BatchNorm is left with a single value per channel.
    """
    try:
        copy.deepcopy(network).to("meta").train()(torch.empty(1, *shape, device="meta"))
    except ValueError as error:
        raise UserError(
            f"a step with a single picture{f' of {shape[-1]} px' if len(shape) > 1 else ''} leaves BatchNorm nothing to normalise "
            f"by; take another batch_size{', or a larger tfm_size' * (len(shape) > 1)}"
        ) from error


def build(config: Config, pictures: datasets.Pictures) -> Task:
    """Everything that a run needs, from its settings and pictures.

    Raises:
        UserError: from the data set, or settings that do not go together.
    """
    settings = config.of(PICASettings)
    data = config.of(datasets.DataSettings)
    transforms = config.of(TransformSettings)
    channels = config.of(networks.NetworkSettings).net_cin
    heads = _heads(config)
    original, perturbed = recipes(transforms)
    train = pictures.train
    if len(train) > len(heads):
        raise UserError(f"train_splits names {len(train)} sets, and there are {len(heads)} heads (net_heads)")
    method, encode = assemble(config, pictures)
    features = encode.feature_dim if isinstance(encode, Backbone) else None
    if features is not None:
        original = plain_recipe(transforms)  # a view of its own, which is computed anyway
    trains = config.of(Command).trains
    sets = [pictures.index(train[min(head, len(train) - 1)]) for head in range(len(heads))]
    if trains:
        smallest = min(len(chosen) % data.batch or data.batch for chosen in sets)
        processes.check_parts(smallest, config.of(MethodSettings).sync_batchnorm)
    if trains and any(len(chosen) % data.batch == 1 or data.batch == 1 for chosen in sets):
        check_single(method.network, (channels, transforms.size, transforms.size) if features is None else (features,))
    config = measured(config, pictures)
    views = open_views(config, pictures, encode, plain_recipe(transforms), (perturbed,) * settings.data_nrepeat)
    source = PICASource(
        views, sets, original, perturbed, repeat=settings.data_nrepeat, batch_size=data.batch,
        seed=config.of(SeedSettings).seed or 0,
    )  # fmt: skip
    return Task(method.place(config), source, views, pictures, perturbed, config, encode)


register(
    "pica",
    Entry(
        build,
        build_method,
        PICASettings,
        "PICA: the most confident partition of the images, by several heads (Huang et al., CVPR 2020).",
        build_network,
    ),
)
