from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from lib.scoring.metrics import partition_uncertainty
from pica.losses import PUILoss, balance_loss, uncertainty_loss


@pytest.mark.parametrize("case", range(4))
def test_loss_and_both_gradients_equal_the_authors(case: int) -> None:
    golden = np.load(GOLDEN / "pica_pui_loss.npz", allow_pickle=False)
    p, q = (torch.from_numpy(golden[f"case{case}_{name}"]).requires_grad_() for name in "pq")
    loss = PUILoss(float(golden[f"case{case}_lamda"]))(p, q)
    loss.backward()
    np.testing.assert_allclose(loss.item(), golden[f"case{case}_loss"], rtol=1e-9)
    np.testing.assert_allclose(p.grad, golden[f"case{case}_grad_p"], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(q.grad, golden[f"case{case}_grad_q"], rtol=1e-9, atol=1e-14)


def softmax(n: int, k: int, seed: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def test_renaming_clusters_in_both_views_changes_nothing() -> None:
    p = softmax(32, 6, 0)
    q = softmax(32, 6, 1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(order, torch.arange(6))
    torch.testing.assert_close(PUILoss()(p[:, order], q[:, order]), PUILoss()(p, q), rtol=1e-12, atol=0)
    assert not torch.isclose(PUILoss()(p[:, order], q), PUILoss()(p, q), rtol=1e-6)


def test_the_index_is_the_cosine_of_columns() -> None:
    p = softmax(16, 3, 0)
    q = softmax(16, 3, 1)
    expected = torch.nn.functional.cosine_similarity(p.T[:, None], q.T[None], dim=2)
    torch.testing.assert_close(partition_uncertainty(p, q), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "p",
    [
        torch.eye(3).repeat(4, 1)[:, [0, 1, 1]] * torch.tensor([1.0, 1.0, 0.0]),  # an empty cluster
        torch.tensor([[1.0, 0.0, 0.0]]).repeat(8, 1),  # all in one
        torch.eye(3).repeat(4, 1),  # one-hot
        torch.tensor([[0.2, 0.5, 0.3]]),  # N = 1
        torch.tensor([[0.0, 1.0, 0.0]]),
    ],
    ids=["empty", "collapsed", "one-hot", "single", "single one-hot"],
)
def test_finite_with_bounded_gradients_at_the_edges(p: torch.Tensor, dtype: torch.dtype) -> None:
    p, q = (p.to(dtype).clone().requires_grad_() for _ in range(2))
    loss = PUILoss()(p, q)
    loss.backward()
    assert torch.isfinite(loss)
    for gradient in (p.grad, q.grad):
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().max() < 2000


def test_an_empty_column_gets_no_gradient_from_the_index() -> None:
    p = torch.tensor([[0.3, 0.7, 0.0], [0.6, 0.4, 0.0]], dtype=torch.float64, requires_grad=True)
    q = softmax(2, 3, 0)
    uncertainty_loss(p, q).backward()
    assert p.grad is not None
    assert (p.grad[:, 2] == 0).all() and (p.grad[:, :2] != 0).any()


def test_the_balance_term_is_zero_at_balance_and_log_k_at_collapse() -> None:
    assert balance_loss(torch.eye(4, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)
    one = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    assert balance_loss(one).item() == pytest.approx(np.log(4))
    assert balance_loss(softmax(50, 4, 3)) > 0
