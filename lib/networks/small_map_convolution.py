"""3×3 convolutions of small maps, whose weights' gradient takes long on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from lib.machine import precision

SMALL = 16
WIDE = 256  # cells of a map at most, and channels at least, where our way is the faster (benchmarks/step.py)


class _Convolve(torch.autograd.Function):
    """The weights' gradient as a convolution of the maps by the gradient, pictures in the place of channels.

    PyTorch's CPU library loops over pictures instead, each too small to fill its registers.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = conv2d_input(images.shape, weight, gradient, padding=1)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            of_weight = F.conv2d(images.transpose(0, 1), gradient.transpose(0, 1), padding=1).transpose(0, 1)
        return of_images, of_weight


class SmallMapConv2d(nn.Conv2d):
    """`nn.Conv2d`, 3×3, stride 1, padding 1, no bias; see `_Convolve`."""

    def forward(self, input: Tensor) -> Tensor:
        small = input.dim() == 4 and input.shape[2] * input.shape[3] <= SMALL
        if not self.training or not small or precision.lowers(input.device):
            return super().forward(input)
        convolved: Tensor = _Convolve.apply(input, self.weight)
        return convolved


def adapt(network: nn.Module) -> None:
    """Give every convolution that qualifies the faster gradient; names and weights stay."""
    for part in network.modules():
        if (
            type(part) is nn.Conv2d
            and part.kernel_size == (3, 3)
            and part.stride == part.dilation == (1, 1)
            and part.padding == (1, 1)
            and part.padding_mode == "zeros"
            and part.groups == 1
            and part.in_channels >= WIDE
            and part.bias is None
        ):
            part.__class__ = SmallMapConv2d
