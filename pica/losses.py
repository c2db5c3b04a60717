"""The objective of PICA: Huang, Gong, Zhu, Deep Semantic Clustering by Partition Confidence
Maximisation, CVPR 2020.

N images, K clusters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.scoring.metrics import partition_uncertainty

__all__ = ["PUILoss", "balance_loss", "uncertainty_loss"]

LAMDA = 2.0  # weight of the balance term in the paper


def uncertainty_loss(p: Tensor, q: Tensor) -> Tensor:
    """How far the clusters of two views are from orthogonal: the cross-entropy of the partition uncertainty index.

    Row j of the index, (K, K) cosines, is read as logits without a temperature, and its target is j. The mean over the
    rows is log K where all cosines are equal, and log(1 + (K − 1) / e) where the index is the identity (Huang et al.,
    2020, section 3).

    Args:
        p, q: (N, K) probabilities of the same images in the original and the perturbed view.

    Returns:
        () the loss, in nats.
    """
    index = partition_uncertainty(p, q)  # (K, K)
    return F.cross_entropy(index, torch.arange(len(index), device=index.device))


def balance_loss(p: Tensor) -> Tensor:
    """How uneven the clusters are: log K − H(m), where m is the mean assignment (Huang et al., 2020, section 3).

    It is 0 when all clusters are equally large, and positive otherwise. The authors' form is NaN when a cluster's mass
    is 0; here the value and its gradient stay finite.

    Args:
        p: (N, K) probabilities in the original view.

    Returns:
        () the loss, in nats.
    """
    mass = p.mean(dim=0)
    mass = mass / mass.sum()
    # Clamped inside the logarithm alone: 0 · log 0 is 0, and its gradient is log(tiny), not −inf.
    return math.log(len(mass)) + (mass * mass.clamp_min(torch.finfo(mass.dtype).tiny).log()).sum()


class PUILoss(nn.Module):
    """PICA's objective: `uncertainty_loss + lamda · balance_loss` (Huang et al., 2020, section 3).

    It takes probabilities, not logits: each row sums to 1. Gradients flow through both views.

    Args:
        lamda: weight of the balance term, 2 in the paper.
    """

    def __init__(self, lamda: float = LAMDA) -> None:
        super().__init__()
        self.lamda = lamda

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        """The loss, (), of two (N, K) probabilities, not logits: `p` in the original view, `q` in the perturbed one."""
        return self.parts(p, q)["loss"]

    def parts(self, p: Tensor, q: Tensor) -> dict[str, Tensor]:
        """The loss and its terms, each (): `{"loss", "uncertainty", "balance"}`; `p` and `q`: (N, K), as for `forward`."""
        uncertainty = uncertainty_loss(p, q)
        balance = balance_loss(p)
        return {"loss": uncertainty + self.lamda * balance, "uncertainty": uncertainty, "balance": balance}
