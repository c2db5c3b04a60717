"""What stands on the encoder: projection, prototypes and classifier (Ntelemis et al., 2021, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Sequential):
    """(N, D) features of a frozen backbone → (N, width): what there is of an encoder that learns.

    No gradient of the classifier passes to its input, and the projection is linear: without a layer between them and
    the backbone the classifier would see nothing of what the prototypes teach. BatchNorm makes features of any scale
    alike, and ReLU gives what an encoder's last layer gives.
    """

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__(nn.Linear(dimension, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        self.feature_dim = width


class Projection(nn.Sequential):
    """(…, feature_dim) → (…, project_dim) of length 1; two linear layers with nothing in between."""

    def __init__(self, feature_dim: int, project_dim: int) -> None:
        super().__init__(nn.Linear(feature_dim, feature_dim), nn.Linear(feature_dim, project_dim))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(super().forward(features), dim=-1)  # type: ignore[no-untyped-call]


class Prototypes(nn.Linear):
    """(…, project_dim) → (…, P) scores."""

    def __init__(self, project_dim: int, prototypes: int) -> None:
        super().__init__(project_dim, prototypes, bias=False)

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring every prototype to length 1, in place."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


class Classifier(nn.Sequential):
    """(N, feature_dim) → (N, K) logits; no gradient passes to the features."""

    def __init__(self, feature_dim: int, hidden: int, num_clusters: int) -> None:
        super().__init__(
            nn.Linear(feature_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, num_clusters),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = super().forward(features.detach())  # type: ignore[no-untyped-call]
        return logits
