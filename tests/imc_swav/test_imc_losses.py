from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from scipy.special import logsumexp

from imc_swav import mutual_information_loss, sinkhorn, swapped_prediction_loss
from imc_swav.losses import mutual_information_losses


def by_scipy(scores: np.ndarray, eps: float, iterations: int) -> np.ndarray:
    """An independent iteration on dual potentials, in float64: log q = (s − f_p − g_n) / eps."""
    kernel = scores.T.astype(np.float64) / eps  # (P, N)
    p, n = kernel.shape
    f = np.zeros(p)
    g = np.zeros(n)
    for _ in range(iterations):
        f = logsumexp(kernel - g[None, :], axis=1) + np.log(p)
        g = logsumexp(kernel - f[:, None], axis=0) + np.log(n)
    return np.exp(kernel - f[:, None] - g[None, :]).T * n


@pytest.mark.parametrize("case", range(3))
def test_sinkhorn_equals_the_authors(case: int) -> None:
    golden = np.load(GOLDEN / "imc_sinkhorn.npz", allow_pickle=False)
    found = sinkhorn(torch.from_numpy(golden[f"case{case}_scores"]), float(golden["eps"]), int(golden["iterations"]))
    np.testing.assert_allclose(found, golden[f"case{case}_q"], rtol=1e-9)


@pytest.mark.parametrize("shape", [(16, 5), (7, 30), (1, 4), (64, 64)])
def test_sinkhorn_equals_an_independent_iteration(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).normal(size=shape)
    found = sinkhorn(torch.from_numpy(scores), 0.05, 3)
    np.testing.assert_allclose(found, by_scipy(scores, 0.05, 3), rtol=1e-9)
    np.testing.assert_allclose(found.sum(dim=1), 1, rtol=1e-12)
    shifted = sinkhorn(torch.from_numpy(scores) + 3.0, 0.05, 3)
    np.testing.assert_allclose(shifted, found, rtol=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (3, 50), (50, 3)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("autocast", [False, True])
def test_sinkhorn_is_finite(shape: tuple[int, int], scale: float, autocast: bool) -> None:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)).sign() * scale
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for given in (scores, scores.bfloat16(), scores[:1].expand(shape[0], -1)):
            found = sinkhorn(given)
            assert found.dtype == torch.float32 and found.isfinite().all() and not found.requires_grad
            torch.testing.assert_close(found.sum(dim=1), torch.ones(shape[0]))


@pytest.mark.parametrize("case", range(2))
def test_mutual_information_equals_the_authors_with_its_gradient(case: int) -> None:
    golden = np.load(GOLDEN / "imc_mutual_information.npz", allow_pickle=False)
    y = torch.from_numpy(golden[f"case{case}_y"]).requires_grad_()
    u = torch.from_numpy(golden[f"case{case}_u"]).requires_grad_()
    mi, excess = mutual_information_loss(y, u)
    (mi + excess).backward()
    np.testing.assert_allclose(mi.item(), golden[f"case{case}_mi"], rtol=1e-9)
    np.testing.assert_allclose(excess.item(), golden[f"case{case}_reg"], rtol=1e-9)
    np.testing.assert_allclose(y.grad, golden[f"case{case}_grad_y"], rtol=1e-9, atol=1e-15)
    assert u.grad is None, "no gradient reaches the prototypes"


def test_mutual_information_is_finite_where_a_cluster_is_empty() -> None:
    y = torch.tensor([[200.0, -200.0, 0.0]] * 4, requires_grad=True)
    mi, excess = mutual_information_loss(y, torch.tensor([[300.0, -300.0]] * 4))
    (mi + excess).backward()
    assert mi.isfinite() and y.grad is not None and y.grad.isfinite().all()


def test_swapped_prediction_by_its_definition_and_its_laws() -> None:
    chance = torch.Generator().manual_seed(0)
    scores = [torch.randn(6, 5, generator=chance, dtype=torch.float64) for _ in range(4)]
    terms = [
        -(sinkhorn(scores[i]) * (scores[v] / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
        for i in range(2) for v in range(4) if v != i
    ]  # fmt: skip
    assert len(terms) == 6
    torch.testing.assert_close(swapped_prediction_loss(scores, 2), torch.stack(terms).mean())
    order = torch.tensor([4, 2, 0, 1, 3])
    renamed = [view[:, order] for view in scores]
    torch.testing.assert_close(swapped_prediction_loss(renamed, 2), swapped_prediction_loss(scores, 2))
    swapped = [scores[1], scores[0], scores[3], scores[2]]
    torch.testing.assert_close(swapped_prediction_loss(swapped, 2), swapped_prediction_loss(scores, 2))


def pairwise(y: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mutual information of each pair of views by itself, written out (Ntelemis et al., 2021, section 3.3)."""
    information = y.new_zeros(len(y), len(u))
    for v, logits in enumerate(y):
        for w, scores in enumerate(u):
            joint = torch.zeros(logits.shape[1], scores.shape[1], dtype=y.dtype)
            for p_y, p_u in zip(logits.softmax(dim=1), scores.detach().softmax(dim=1), strict=True):
                joint = joint + torch.outer(p_y, p_u) / len(logits)
            conditional = -(joint * (joint / joint.sum(dim=0)).log()).sum()
            cluster = joint.sum(dim=1)
            information[v, w] = conditional + 4 * (cluster * cluster.log()).sum()
    penalty = torch.stack([0.01 * (logits.abs() - 5).clamp_min(0).sum() / len(logits) for logits in y])
    return information, penalty


def test_mutual_information_of_stacked_views_equals_that_of_each_pair() -> None:
    chance = torch.Generator().manual_seed(0)
    u = torch.randn(3, 7, 5, generator=chance, dtype=torch.float64)
    values = 4 * torch.randn(2, 7, 4, generator=chance, dtype=torch.float64)
    gradients = []
    results = []
    for function in (mutual_information_losses, pairwise):
        y = values.clone().requires_grad_()
        result = function(y, u)
        (result[0].mean() + result[1].mean()).backward()
        results.append(result)
        gradients.append(y.grad)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_stacked_scores_are_as_a_list_with_the_gradient_of_the_loops() -> None:
    chance = torch.Generator().manual_seed(0)
    stacked = torch.randn(4, 6, 5, generator=chance, dtype=torch.float64).requires_grad_()
    loops = stacked.detach().clone().requires_grad_()
    terms = [
        -(sinkhorn(loops[i]) * (loops[v] / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
        for i in range(2) for v in range(4) if v != i
    ]  # fmt: skip
    torch.stack(terms).mean().backward()
    loss = swapped_prediction_loss(stacked, 2)
    loss.backward()
    torch.testing.assert_close(loss, swapped_prediction_loss(list(stacked), 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stacked.grad, loops.grad, rtol=1e-12, atol=1e-12)
