"""The objectives of IMC-SwAV: Ntelemis, Jin, Thomas, Information Maximization Clustering via Multi-View
Self-Labelling, 2021; and of SwAV, on which it builds: Caron et al., NeurIPS 2020.

N images, V views, P prototypes, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mutual_information_loss", "mutual_information_losses", "sinkhorn", "swapped_prediction_loss"]

TAU = 0.1  # temperature of the predictions
EPS = 0.05  # entropy weight of the assignments
ITERATIONS = 3  # of the Sinkhorn algorithm
ENTROPY_WEIGHT = 4.0  # of H(Y) against H(Y|U)
LOGIT_BOUND = 5.0
LOGIT_WEIGHT = 0.01  # beyond the bound a logit is held back


@torch.no_grad()
def sinkhorn(scores: Tensor, eps: float = EPS, iterations: int = ITERATIONS) -> Tensor:
    """Assign images to prototypes softly, so that all prototypes are used alike (Caron et al., 2020, section 3.1).

    exp(scores / eps) is scaled in turn so that every prototype gets 1/P of the mass and every image 1/N. It is computed
    with logarithms throughout. So it is finite as long as scores / eps is, and a constant added to all scores changes
    nothing.

    Args:
        scores: (N, P) cosines of images and prototypes, or (…, N, P), of which each (N, P) is assigned separately.
        eps: weight of the entropy; a smaller one gives harder assignments.
        iterations: number of scalings of prototypes and images.

    Returns:
        As `scores`; rows sum to 1; in float32 or better, without gradient.
    """
    # Autocast leaves these operations in float32: none of them is a matrix product.
    log_q = (scores if scores.dtype == torch.float64 else scores.float()) / eps
    for _ in range(iterations):
        log_q.sub_(log_q.logsumexp(dim=-2, keepdim=True))
        log_q.sub_(log_q.logsumexp(dim=-1, keepdim=True))
    return log_q.exp_()


def swapped_prediction_loss(
    scores: Tensor | Sequence[Tensor], n_large: int, tau: float = TAU, eps: float = EPS, iterations: int = ITERATIONS
) -> Tensor:
    """Predict the assignments of each large view from every other view (Caron et al., 2020, section 3.2).

    The mean of −Σ q_i log softmax(u_v / tau) over the batch, over large views i, and over views v ≠ i. The assignments
    q_i come from `sinkhorn` and pass no gradient.

    Args:
        scores: (V, N, P), or V of (N, P), cosines of images and prototypes; the large views come first.
        n_large: number of large views.
        tau: temperature of the predictions.
        eps, iterations: of `sinkhorn`.

    Returns:
        () the loss, in nats.
    """
    stacked = scores if isinstance(scores, Tensor) else torch.stack(list(scores))
    views, images, _ = stacked.shape
    q = sinkhorn(stacked[:n_large], eps, iterations)
    log_p = (stacked / tau).log_softmax(dim=2)
    others = log_p.sum(dim=0) - log_p[:n_large]  # for each large view, the sum over v ≠ i
    return -(q * others).sum() / (n_large * (views - 1) * images)


def mutual_information_loss(class_logits: Tensor, prototype_logits: Tensor) -> tuple[Tensor, Tensor]:
    """How little the clusters tell of the prototypes, and a penalty on large logits (Ntelemis et al., 2021, section 3.3).

    J = p_yᵀ p_u, normalised to sum 1, is the joint distribution of cluster Y and prototype U.

    Args:
        class_logits: (N, K), of the classifier.
        prototype_logits: (N, P), cosines already divided by tau; no gradient reaches them.

    Returns:
        () H(Y|U) − 4 H(Y), in nats, and () 0.01 times the mean over images of Σ relu(|y| − 5).
    """
    mi, excess = mutual_information_losses(class_logits[None], prototype_logits[None])
    return mi[0, 0], excess[0]


def mutual_information_losses(class_logits: Tensor, prototype_logits: Tensor) -> tuple[Tensor, Tensor]:
    """`mutual_information_loss` of every view of the classifier with every view of the prototypes.

    Args:
        class_logits: (V, N, K), of the classifier, in V views.
        prototype_logits: (W, N, P), cosines already divided by tau, in W views.

    Returns:
        (V, W) information terms and (V,) penalties.
    """
    p_y = class_logits.softmax(dim=2)
    p_u = prototype_logits.detach().softmax(dim=2)
    joint = torch.einsum("vnk,wnp->vwkp", p_y, p_u)
    joint = joint / joint.sum(dim=(2, 3), keepdim=True)
    conditional = -(joint * (_log(joint) - _log(joint.sum(dim=2, keepdim=True)))).sum(dim=(2, 3))
    marginal = joint.sum(dim=3)
    entropy = -(marginal * _log(marginal)).sum(dim=2)
    excess = (class_logits.abs() - LOGIT_BOUND).relu().sum(dim=2).mean(dim=1)
    return conditional - ENTROPY_WEIGHT * entropy, LOGIT_WEIGHT * excess


def _log(p: Tensor) -> Tensor:
    """0 · log 0 is 0, and its gradient is finite."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()
