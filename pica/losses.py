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


def uncertainty_loss(p: Tensor, q: Tensor) -> Tensor:
    """Mean cross-entropy of the rows of the partition uncertainty index, row j's target being j.

    The logits are the cosines themselves, without a temperature (section 3).

    Args:
        p, q: (N, K) assignments of the same images in the original and the perturbed view.
    """
    index = partition_uncertainty(p, q)  # (K, K)
    return F.cross_entropy(index, torch.arange(len(index), device=index.device))


def balance_loss(p: Tensor) -> Tensor:
    """log K − H(m), m the mean assignment: ≥ 0, and 0 when all clusters are equally large.

    The authors' form is NaN when a cluster's mass is 0; here it and its gradient stay finite.

    Args:
        p: (N, K) assignments of the original view.
    """
    mass = p.mean(dim=0)
    mass = mass / mass.sum()
    # Clamped inside the logarithm alone: 0 · log 0 is 0, and its gradient is log(tiny), not −inf.
    return math.log(len(mass)) + (mass * mass.clamp_min(torch.finfo(mass.dtype).tiny).log()).sum()


class PUILoss(nn.Module):
    """`uncertainty_loss + lamda · balance_loss` (section 3).

    Args:
        lamda: weight of the balance term.
    """

    def __init__(self, lamda: float = 2.0) -> None:
        super().__init__()
        self.lamda = lamda

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        """(N, K) and (N, K) assignments of the original and the perturbed view → the loss."""
        return self.parts(p, q)["loss"]

    def parts(self, p: Tensor, q: Tensor) -> dict[str, Tensor]:
        """The same as `loss`, beside its two terms, `uncertainty` and `balance`."""
        uncertainty = uncertainty_loss(p, q)
        balance = balance_loss(p)
        return {"loss": uncertainty + self.lamda * balance, "uncertainty": uncertainty, "balance": balance}
