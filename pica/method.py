"""PICA: heads on one network, trained in turn by the partition uncertainty of two views."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib import networks
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.contracts import Recipe, Views
from lib.datasets import DataSettings, Pictures
from lib.errors import UserError
from lib.machine import processes
from lib.machine.random_seeds import SeedSettings
from lib.methods.idle_gradients import IdleGradients
from lib.methods.method import MethodSettings, ViewMethod, number_if_given, register
from lib.networks import NetworkSettings
from lib.networks.backbone import Features
from lib.networks.batchnorm import ViewBatchNorm
from lib.networks.sobel import Sobel
from lib.transforms import TransformSettings, original, perturbed, plain_recipe
from pica.data import Batch, PICASource
from pica.losses import LAMDA, PUILoss

OVERCLUSTERING = 7  # times the clusters: the paper's 70 for 10


@dataclass(frozen=True)
class PICASettings(Section):
    title = "method pica"
    lifetime = "network"
    net_heads: tuple[int, ...] | None = setting(
        None,
        "number of clusters of each head, the main head last; none = 7 times --num-clusters, and --num-clusters",
        value="K",
        low=2,
    )
    net_sobel: bool = setting(False, "replace the colours of an image by its Sobel edges")
    data_nrepeat: int = setting(1, "randomly transformed copies of each image in a step", low=1, high=1000)
    pica_lamda: float = setting(LAMDA, "weight of the loss term that balances the cluster sizes", low=0)
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


@register("pica")
class PICA(ViewMethod):
    """Huang, Gong, Zhu, CVPR 2020.

    Args:
        network: images, or a frozen backbone's features → (N, feature_dim).
        heads: clusters of each head; the last is the main one, and the others over-cluster.
        lamda: weight of the balance term.
        idle_heads: "zeros" or "none", see `PICASettings`.
        repeat: perturbed copies of each image in a step.
    """

    Settings = PICASettings
    title = "PICA: the most confident partition of the images, by several heads (Huang et al., CVPR 2020)."
    full_name = "PICA (Huang et al., CVPR 2020)"
    remedy = (
        "a --pica-lamda above {pica_lamda:g} (it keeps clusters equally large), a --base-lr below {base_lr:g}, or another "
        "--seed"
    )
    frees_clusters = True
    pretrained_configs = ("configs/base.yaml", "configs/pretrained.yaml")
    light_configs = ("configs/base.yaml", "configs/cpu/pica.yaml")

    def __init__(
        self,
        network: nn.Module,
        heads: tuple[int, ...],
        lamda: float = PICASettings.pica_lamda,
        idle_heads: str = PICASettings.pica_idle_heads,
        repeat: int = PICASettings.data_nrepeat,
    ) -> None:
        super().__init__(network, heads[-1])
        feature_dim: Any = network.feature_dim
        self.heads = nn.ModuleList(nn.Linear(feature_dim, size) for size in heads)
        self.objective = PUILoss(lamda)
        self.sizes = heads
        self.repeat = repeat
        self.selection = f"{self._name(len(heads) - 1)}/loss"
        self._idle = IdleGradients(list(self.heads), idle_heads)

    @classmethod
    def build_network(cls, config: Config) -> nn.Module:
        """The backbone, behind Sobel filters if the settings ask for them."""
        if not config.of(PICASettings).net_sobel:
            return super().build_network(config)
        backbone = networks.build(config, Sobel.out_channels)
        network = nn.Sequential(Sobel(), backbone)
        network.feature_dim = backbone.feature_dim
        return network

    @classmethod
    def from_config(cls, config: Config, network: nn.Module) -> Self:
        settings = config.of(PICASettings)
        if isinstance(network, Features):
            network = Standardised(network.feature_dim)
        heads = head_sizes(settings.net_heads, number_if_given(config))
        return cls(network, heads, settings.pica_lamda, settings.pica_idle_heads, settings.data_nrepeat)

    def views(self, transforms: TransformSettings) -> tuple[Recipe, ...]:
        # On features, the original is the plain view, which is computed anyway.
        first = plain_recipe(transforms) if isinstance(self.network, Standardised) else original(transforms)
        return (first, *[perturbed(transforms)] * self.repeat)

    def check(self, config: Config, pictures: Pictures) -> None:
        batch = config.of(DataSettings).batch
        sets = self._sets(pictures)
        smallest = min(len(index) % batch or batch for index in sets)
        processes.check_parts(smallest, config.of(MethodSettings).sync_batchnorm)
        if smallest == 1:
            side = config.of(TransformSettings).size
            shape = (config.of(NetworkSettings).net_cin, side, side)
            check_single(self.network, (self.network.feature_dim,) if isinstance(self.network, Standardised) else shape)

    def source(self, config: Config, pictures: Pictures, views: Views, recipes: tuple[Recipe, ...]) -> PICASource:
        batch = config.of(DataSettings).batch
        seed = config.of(SeedSettings).number
        return PICASource(views, self._sets(pictures), recipes, batch_size=batch, seed=seed)

    def _sets(self, pictures: Pictures) -> list[NDArray[np.int64]]:
        """For each head the positions of its images.

        Raises:
            UserError: there are more sets than heads.
        """
        train = pictures.train
        heads = len(self.heads)
        if len(train) > heads:
            raise UserError(f"train_splits names {len(train)} sets, and there are {heads} heads (net_heads)")
        return [pictures.index(train[min(head, len(train) - 1)]) for head in range(heads)]

    def _name(self, head: int) -> str:
        return f"head{head}-{self.sizes[head]}"

    def assign(self, images: Tensor, head: int) -> Tensor:
        """(N, C, H, W) → (N, K) assignments by one head."""
        return self._assigned(self.features(images), head)

    def _assigned(self, features: Tensor, head: int) -> Tensor:
        logits: Tensor = self.heads[head](features)
        return logits.softmax(dim=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        # In this order, which is that of BatchNorm's running statistics.
        first, *others = batch.views
        views = [first, torch.cat(others)]
        copies = len(others)
        n = len(first)
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
        self._idle.fill()

    def words_for(self, *clusters: int) -> list[str]:
        return [*super().words_for(*clusters), "--net-heads", "none"]

    def uninformative(self) -> dict[str, float]:
        return {f"{self._name(i)}/uncertainty": math.log(size) for i, size in enumerate(self.sizes)}

    def get_extra_state(self) -> dict[str, list[bool]]:
        return {"trained_heads": list(self._idle.trained)}

    def set_extra_state(self, state: dict[str, list[bool]]) -> None:
        self._idle.trained = list(state["trained_heads"])


class Standardised(ViewBatchNorm):
    """(N, D) features of a frozen backbone, each brought to mean 0 and deviation 1; nothing in it is trained.

    A head is a single linear layer: on features as they come, how fast it learns would hang on their scale.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension, affine=False)
        self.feature_dim = dimension


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
