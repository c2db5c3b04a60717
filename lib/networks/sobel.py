"""A fixed front end that replaces colour by edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.machine import precision


class Sobel(nn.Module):
    """(N, 3 or 1, H, W) → (N, 2, H, W): horizontal and vertical Sobel filters of the mean of R, G and B.

    A single channel counts as three equal ones. Nothing in it is trained. It is applied after the
    normalisation, as in Huang et al., 2020, section 4 (and Caron et al., 2018, before them).
    """

    out_channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Conv2d(3, 1, 1)
        self.edges = nn.Conv2d(1, 2, 3, padding=1)
        kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        with torch.no_grad():
            self.grey.weight.fill_(1 / 3)
            self.edges.weight.copy_(torch.stack([kernel, kernel.T])[:, None])
            for part in (self.grey, self.edges):
                if part.bias is not None:
                    part.bias.zero_()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        with precision.full(images.device):  # in bfloat16 weak edges would lose 5 %
            exact = precision.unrounded(images)
            grey = _convolved(self.grey, exact.expand(-1, 3, -1, -1))
            edges = _convolved(self.edges, grey)
        return edges.to(images.dtype)


def _convolved(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """By the layer's filters, in the images' type."""
    bias = None if layer.bias is None else layer.bias.to(images.dtype)
    return F.conv2d(images, layer.weight.to(images.dtype), bias, padding=layer.padding)
