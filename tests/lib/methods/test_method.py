"""The base class for methods tells its author what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.methods.batches import ViewBatch
from lib.methods.method import ViewMethod
from lib.transforms import TransformSettings


class Unfinished(ViewMethod):
    def classify(self, features: Tensor) -> Tensor:
        return features.softmax(dim=1)


def test_a_method_without_views_or_a_loss_is_a_mistake_that_names_the_page() -> None:
    network: Any = nn.Identity()
    network.feature_dim = 4
    method = Unfinished(network, 4)
    with pytest.raises(UserError, match="Unfinished has no `views`; write it, as docs/extend.md"):
        method.views(TransformSettings())
    batch = ViewBatch(torch.arange(2), [torch.zeros(2, 4)], counts=(2,))
    with pytest.raises(UserError, match="Unfinished has no `loss`; write it, as docs/extend.md"):
        method(batch)
