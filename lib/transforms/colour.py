"""Colour jitter for whole batches, on floats in [0, 1]: what torchvision does to float tensors.

Pictures are planes, (C, N, H, W), so that a channel is one block; C is 1 or 3. Factors are (N,). What returns
nothing changes the planes in place.

There are two forms. `JITTER` and `grayscale` are fast on a CPU, for the images that drew them. `blend`, `turned`
and `where_grey` take few operations, and leave an image with neutral numbers as it is: they suit a GPU.
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


def blend(planes: Tensor, own: Tensor, luma: Tensor, mean: Tensor) -> None:
    """Brightness, contrast, saturation, or nothing, for each image: a sum with weights, cut to [0, 1].

    Args:
        planes: (C, N, H, W) in [0, 1].
        own: (N,) weight of the image itself: the factor; neutral: 1.
        luma: (N,) weight of the luma of each pixel: saturation has 1 - factor, and the others 0.
        mean: (N,) weight of the mean luma of the image: contrast has 1 - factor, and the others 0.
    """
    lumas = grey(planes)
    means = lumas.mean(dim=(1, 2), keepdim=True)
    added = (lumas * _wide(luma)).addcmul_(means, _wide(mean))
    planes.mul_(_wide(own)).add_(added).clamp_(0, 1)


def turned(planes: Tensor, turns: Tensor) -> Tensor:
    """`hue` in half as many operations; images with 0 turns stay exactly as they are."""
    if len(planes) == 1:
        return planes
    cycle = torch.cat([planes, planes[:2]])
    differences = cycle[1:4] - cycle[2:]  # green - blue, blue - red, red - green
    high, brightest = planes.max(dim=0, keepdim=True)
    low = planes.amin(dim=0, keepdim=True)
    chroma = high - low
    sixths = differences.gather(0, brightest).addcmul_(brightest, chroma, value=2)
    sixths.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny)).add_(_wide(turns * 6)).remainder_(6)
    centres = torch.arange(0, 6, 2, dtype=planes.dtype, device=planes.device)[:, None, None, None]
    shares = (sixths - centres).remainder_(6).sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.where(_wide(turns != 0), torch.addcmul(low, chroma, shares), planes)


def where_grey(planes: Tensor, chosen: Tensor) -> Tensor:
    """`grayscale` of the chosen images; (N,) bool."""
    return torch.where(_wide(chosen), grey(planes), planes)


def _wide(per_picture: Tensor) -> Tensor:
    return per_picture[:, None, None]
