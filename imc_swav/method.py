"""IMC-SwAV: prototypes learned by swapped prediction, and a classifier that keeps what they tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from imc_swav.bank import Bank, Banked
from imc_swav.data import Batch, IMCSource, recipes
from imc_swav.heads import Classifier, Layer, Projection, Prototypes
from imc_swav.losses import mutual_information_losses, swapped_prediction_loss
from lib import datasets, networks
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.features import FeatureSettings
from lib.features.views import open_views
from lib.machine import devices, processes
from lib.machine.random_seeds import SeedSettings
from lib.methods.method import Entry, Method, MethodSettings, Task, assemble, number_of_clusters, register
from lib.networks.backbone import Features
from lib.transforms import LARGEST_SIDE, TransformSettings, plain_recipe
from lib.transforms.channel_statistics import measured


@dataclass(frozen=True)
class IMCSwAVSettings(Section):
    title = "method imc_swav"
    bound = True
    nmb_crops: tuple[int, ...] = setting(
        (2, 4), "number of crops of each size, the largest size first", low=0, high=100
    )
    size_crops: tuple[int, ...] | None = setting(
        (28, 18),
        "sides of the crops, one for each number of --nmb-crops; none = --tfm-size",
        unit="pixels",
        low=4,
        high=LARGEST_SIDE,
    )
    min_scale_crops: tuple[float, ...] = setting(
        (0.2, 0.08),
        "smallest area of a crop as a share of the image, one for each number of --nmb-crops",
        low=1e-6,
        high=1,
    )
    max_scale_crops: tuple[float, ...] = setting(
        (1.0, 0.4),
        "largest area of a crop as a share of the image, one for each number of --nmb-crops",
        low=1e-6,
        high=1,
    )
    prototypes: int = setting(
        1000, "number of prototypes, the vectors to which the views of an image are assigned", low=2
    )
    project_dim: int = setting(128, "dimensions of the projected features that are compared with the prototypes", low=1)
    classifier_dim: int = setting(1024, "width of the two hidden layers of the classifier", low=1)
    feature_layer: int = setting(512, "width of the layer that is trained on the features of a frozen network", low=1)
    tau: float = setting(0.1, "temperature of the predicted probabilities", low=1e-4)
    eps: float = setting(
        0.05, "entropy weight of the Sinkhorn assignments; a smaller one gives harder assignments", low=1e-4
    )
    sinkhorn_iterations: int = setting(3, "iterations of the Sinkhorn algorithm", low=1)
    frozen_prototype_steps: int = setting(
        500, "first steps of the run, in which the prototypes do not move", unit="steps", low=0
    )
    classifier_splits: str | None = setting(
        None,
        "splits from which the classifier learns, such as train; none = all training images",
        value="SPLITS",
        about_data=True,
    )
    idle_classifier: Literal["zeros", "none"] = setting(
        "zeros",
        "gradient of the classifier in a step without a loss for it; zeros = the optimizer's momentum "
        "still moves it, as in the authors' program; none = it stays as it is",
    )
    batchnorm_scores: tuple[Literal["train_bn", "plain", "test_bn"], ...] = setting(
        ("train_bn", "plain", "test_bn"),
        "BatchNorm statistics for scoring, of which the first give the result; train_bn = of training "
        "images; plain = as trained; test_bn = of the scored images, as in the paper's table",
    )


class IMCSwAV(Method):
    """Ntelemis, Jin, Thomas, 2021.

    Args:
        network: the encoder, images → (N, feature_dim).
        num_clusters: K.
        batch_size: pictures that make a batch for the classifier.
        settings: everything else.
    """

    full_name = "IMC-SwAV (Ntelemis et al., 2021)"
    remedy = "a --batch-size above {batch_size}, a --base-lr below {base_lr:g}, or another --seed"
    frees_clusters = True
    pretrained_configs = ("configs/imc_swav/base.yaml", "configs/imc_swav/pretrained.yaml")
    light_configs = ("configs/imc_swav/base.yaml", "configs/cpu/imc_swav.yaml")
    selection = "loss"

    def __init__(
        self, network: nn.Module, num_clusters: int, batch_size: int, settings: IMCSwAVSettings = IMCSwAVSettings()
    ) -> None:
        super().__init__()
        feature_dim: Any = network.feature_dim
        self.network = network
        self.projection = Projection(feature_dim, settings.project_dim)
        self.prototypes = Prototypes(settings.project_dim, settings.prototypes)
        self.classifier = Classifier(feature_dim, settings.classifier_dim, num_clusters)
        self.bank = Bank(batch_size)
        self.settings = settings
        self.num_clusters = num_clusters
        self.treatments = settings.batchnorm_scores
        self._classifier_trained = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        s = self.settings
        own = torch.stack(self.encode(batch.views))  # (V, n, feature_dim)
        scores = processes.gather_stacked(self.prototypes(self.projection(own)), batch.counts)  # (V, N, P)
        features = processes.gather_stacked(own.detach(), batch.counts)
        swapped = swapped_prediction_loss(scores, s.nmb_crops[0], s.tau, s.eps, s.sinkhorn_iterations)
        learned = self._classified(batch, features, scores)
        if learned is None:
            nothing = swapped.new_zeros(())
            return {"loss": swapped, "swapped": swapped.detach(), "mi": nothing, "logits": nothing}
        logits = torch.stack(self.pass_views(self.classifier, learned.features.unbind(), self.classifier))
        mi, excess = (term.mean() for term in mutual_information_losses(logits, learned.scores / s.tau))
        parts = {
            "loss": swapped + mi + excess,
            "swapped": swapped.detach(), "mi": mi.detach(), "logits": excess.detach(),
            "cluster": logits[0].detach().argmax(dim=1),
        }  # fmt: skip
        return parts if learned.index is batch.index else {**parts, "index": learned.index}

    def _classified(self, batch: Batch, features: Tensor, scores: Tensor) -> Banked | None:
        """What the classifier learns from in this step, if anything."""
        held = (features, scores.detach())
        if self._skips_bank(batch):
            return Banked(batch.index, *held)
        chosen = torch.from_numpy(np.flatnonzero(batch.mask))
        on_device = devices.send(chosen, held[0].device)
        return self.bank.add(Banked(batch.index[chosen], *(part[:, on_device] for part in held)))

    def _skips_bank(self, batch: Batch) -> bool:
        return (batch.classified is None or bool(batch.classified.all())) and not len(self.bank)

    def compiles(self, batch: Batch) -> bool:
        return batch.classified is None and self._skips_bank(batch)

    def idle_parameters(self, batch: Batch) -> Iterable[nn.Parameter]:
        learns = self._skips_bank(batch) or self.bank.is_filled_by(int(batch.mask.sum()))
        return () if learns else self.classifier.parameters()

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features)
        return logits.softmax(dim=1)

    def start_epoch(self, epoch: int) -> None:
        self.bank.empty()

    def before_forward(self, step: int) -> None:
        self.prototypes.normalise()

    def after_backward(self, step: int) -> None:
        if step < self.settings.frozen_prototype_steps:
            self.prototypes.weight.grad = None  # not zero: neither decay nor momentum moves them
        if any(weight.grad is not None for weight in self.classifier.parameters()):
            self._classifier_trained = True
        elif self._classifier_trained and self.settings.idle_classifier == "zeros":
            for weight in self.classifier.parameters():
                weight.grad = torch.zeros_like(weight)

    def get_extra_state(self) -> dict[str, bool]:
        return {"classifier_trained": self._classifier_trained}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self._classifier_trained = state["classifier_trained"]


def build_method(config: Config, network: nn.Module) -> IMCSwAV:
    clusters = number_of_clusters(config)
    settings = config.of(IMCSwAVSettings)
    if isinstance(network, Features):
        network = Layer(network.feature_dim, settings.feature_layer)
    return IMCSwAV(network, clusters, config.of(datasets.DataSettings).batch, settings)


def build(config: Config, pictures: datasets.Pictures) -> Task:
    """Everything that a run needs, from its settings and pictures.

    Raises:
        UserError: from the data set, or settings that do not go together.
    """
    settings = config.of(IMCSwAVSettings)
    data = config.of(datasets.DataSettings)
    transforms = config.of(TransformSettings)
    sizes = settings.size_crops or (transforms.size,) * len(settings.nmb_crops)
    crops = recipes(transforms, settings.nmb_crops, sizes, settings.min_scale_crops, settings.max_scale_crops)
    chosen = pictures.index(pictures.train[-1])
    classified = np.ones(len(pictures), dtype=np.bool_)
    if settings.classifier_splits is not None:
        classified = np.isin(np.arange(len(pictures)), pictures.index(settings.classifier_splits))
    method, encode = assemble(config, pictures)
    networks.check_sizes(nn.Sequential(encode, method.network), config, *sizes)
    config = measured(config, pictures)
    plain = plain_recipe(transforms)
    seed = config.of(SeedSettings).seed or 0
    views = open_views(config, pictures, encode, plain, crops)
    first = plain if config.of(FeatureSettings).views == "neighbours" else crops[0]  # beside them the picture itself
    source = IMCSource(views, chosen, classified, (first, *crops[1:]), batch_size=data.batch, seed=seed)
    if config.of(Command).trains:
        source.check()
        processes.check_parts(data.batch, config.of(MethodSettings).sync_batchnorm)
    return Task(method.place(config), source, views, pictures, crops[0], config, encode)


register(
    "imc_swav",
    Entry(
        build,
        build_method,
        IMCSwAVSettings,
        "IMC-SwAV: the views of an image predict each other, and information is maximised (Ntelemis et al., 2021).",
    ),
)
