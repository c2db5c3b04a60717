"""Colour jitter for whole batches, on floats in [0, 1]: what torchvision does to float tensors.

Pictures are planes, (C, N, H, W), so that a channel is one block; C is 1 or 3. Factors are (N,). What
changes the planes does so in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # of R, G, B (ITU-R BT.601)


def grey(planes: Tensor) -> Tensor:
    """(N, H, W) luma."""
    if len(planes) == 1:
        return planes[0]
    luma = planes[0] * LUMA[0]
    return luma.add_(planes[1], alpha=LUMA[1]).add_(planes[2], alpha=LUMA[2])


def brightness(planes: Tensor, factor: Tensor) -> None:
    """Times the factor."""
    planes.mul_(_wide(factor)).clamp_(0, 1)


def contrast(planes: Tensor, factor: Tensor) -> None:
    """Away from the mean luma of the picture, or towards it."""
    mean = grey(planes.mean(dim=(2, 3))[..., None, None])[:, 0, 0]
    planes.mul_(_wide(factor)).add_(_wide((1 - factor) * mean)).clamp_(0, 1)


def saturation(planes: Tensor, factor: Tensor) -> None:
    """Away from the luma of each pixel, or towards it."""
    if len(planes) > 1:
        luma = grey(planes)
        planes.mul_(_wide(factor)).add_(luma.mul_(_wide(1 - factor))).clamp_(0, 1)


def hue(planes: Tensor, turns: Tensor) -> None:
    """Turned around the colour circle (hexagon), the largest and the smallest channel kept."""
    if len(planes) == 1:
        return
    red, green, blue = planes
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # The angle in sixths of a turn, times the chroma: 0 at red, 2 at green, 4 at blue.
    sixths = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)),
    )
    sixths.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny)).add_(_wide(turns * 6))
    sixths.sub_(sixths.div(6).floor_(), alpha=6)  # into [0, 6)
    red.copy_((sixths - 3).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(low))
    for channel, centre in ((green, 2), (blue, 4)):
        channel.copy_((sixths - centre).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low))


JITTER = (brightness, contrast, saturation, hue)


def grayscale(planes: Tensor) -> None:
    """Every channel becomes the luma."""
    if len(planes) > 1:
        planes.copy_(grey(planes).expand_as(planes))


def _wide(per_picture: Tensor) -> Tensor:
    return per_picture[:, None, None]
