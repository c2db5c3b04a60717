"""IMC-SwAV: prototypes learned by swapped prediction, and a classifier that keeps what they tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imc_swav.bank import Bank, Banked
from imc_swav.data import Batch, IMCSource, recipes
from imc_swav.heads import Classifier, Layer, Projection, Prototypes
from imc_swav.losses import EPS, ITERATIONS, TAU, mutual_information_losses, swapped_prediction_loss
from lib.config.config import Config
from lib.config.settings import Section, setting
from lib.contracts import Recipe, Views
from lib.datasets import DataSettings, Pictures
from lib.errors import UserError
from lib.machine import devices, processes
from lib.machine.random_seeds import SeedSettings
from lib.methods.idle_gradients import IdleGradients
from lib.methods.method import MethodSettings, ViewMethod, number_of_clusters, register
from lib.networks.backbone import Features
from lib.transforms import LARGEST_SIDE, TransformSettings


@dataclass(frozen=True)
class IMCSwAVSettings(Section):
    title = "method imc_swav"
    lifetime = "network"
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
    tau: float = setting(TAU, "temperature of the predicted probabilities", low=1e-4)
    eps: float = setting(
        EPS, "entropy weight of the Sinkhorn assignments; a smaller one gives harder assignments", low=1e-4
    )
    sinkhorn_iterations: int = setting(ITERATIONS, "iterations of the Sinkhorn algorithm", low=1)
    frozen_prototype_steps: int = setting(
        500, "first steps of the run, in which the prototypes do not move", unit="steps", low=0
    )
    classifier_splits: str | None = setting(
        None,
        "splits from which the classifier learns, such as train; none = all training images",
        value="SPLITS",
        lifetime="images",
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


@register("imc_swav")
class IMCSwAV(ViewMethod):
    """Ntelemis, Jin, Thomas, 2021.

    Args:
        network: the encoder, images → (N, feature_dim).
        num_clusters: K.
        batch_size: pictures that make a batch for the classifier.
        settings: everything else.
    """

    Settings = IMCSwAVSettings
    title = "IMC-SwAV: the views of an image predict each other, and information is maximised (Ntelemis et al., 2021)."
    full_name = "IMC-SwAV (Ntelemis et al., 2021)"
    remedy = "a --batch-size above {batch_size}, a --base-lr below {base_lr:g}, or another --seed"
    frees_clusters = True
    pretrained_configs = ("configs/imc_swav/base.yaml", "configs/imc_swav/pretrained.yaml")
    light_configs = ("configs/imc_swav/base.yaml", "configs/cpu/imc_swav.yaml")
    perturbed_view = 0

    def __init__(
        self, network: nn.Module, num_clusters: int, batch_size: int, settings: IMCSwAVSettings = IMCSwAVSettings()
    ) -> None:
        super().__init__(network, num_clusters, settings)
        feature_dim: Any = network.feature_dim
        self.projection = Projection(feature_dim, settings.project_dim)
        self.prototypes = Prototypes(settings.project_dim, settings.prototypes)
        self.classifier = Classifier(feature_dim, settings.classifier_dim, num_clusters)
        self.bank = Bank(batch_size)
        self.treatments = settings.batchnorm_scores
        self._idle = IdleGradients([self.classifier], settings.idle_classifier)

    @classmethod
    def from_config(cls, config: Config, network: nn.Module) -> Self:
        clusters = number_of_clusters(config)
        settings = config.of(IMCSwAVSettings)
        if isinstance(network, Features):
            network = Layer(network.feature_dim, settings.feature_layer)
        return cls(network, clusters, config.of(DataSettings).batch, settings)

    def views(self, transforms: TransformSettings) -> tuple[Recipe, ...]:
        s = self.settings
        sizes = s.size_crops or (transforms.size,) * len(s.nmb_crops)
        return recipes(transforms, s.nmb_crops, sizes, s.min_scale_crops, s.max_scale_crops)

    def check(self, config: Config, pictures: Pictures) -> None:
        index = pictures.index(pictures.train[-1])
        size = config.of(DataSettings).batch
        if size < 2:
            raise UserError(
                "a batch of one picture leaves BatchNorm nothing to normalise by; give a larger --batch-size"
            )
        if len(index) < size:
            raise UserError(
                f"{len(index)} training pictures do not fill a batch of {size}, and an incomplete one is dropped; "
                "give a smaller --batch-size"
            )
        learned = int(_classified(config, pictures)[index].sum())
        if learned < size:
            raise UserError(
                f"the classifier would learn from {learned} of the training pictures, and waits for a batch of {size}; "
                "give other --classifier-splits, or a smaller --batch-size"
            )
        processes.check_parts(size, config.of(MethodSettings).sync_batchnorm)

    def source(self, config: Config, pictures: Pictures, views: Views, recipes: tuple[Recipe, ...]) -> IMCSource:
        index = pictures.index(pictures.train[-1])
        size = config.of(DataSettings).batch
        seed = config.of(SeedSettings).number
        return IMCSource(views, index, recipes, _classified(config, pictures), batch_size=size, seed=seed)

    def forward(self, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
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
        self._idle.fill()

    def get_extra_state(self) -> dict[str, bool]:
        return {"classifier_trained": self._idle.trained[0]}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self._idle.trained = [state["classifier_trained"]]


def _classified(config: Config, pictures: Pictures) -> NDArray[np.bool_]:
    """(all images,) whether the classifier learns from each."""
    splits = config.of(IMCSwAVSettings).classifier_splits
    if splits is None:
        return np.ones(len(pictures), dtype=np.bool_)
    return np.isin(np.arange(len(pictures)), pictures.index(splits))
