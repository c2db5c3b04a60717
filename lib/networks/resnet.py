"""Residual networks (He et al., 2016) for small pictures, from torchvision's blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lib.config.settings import Section, setting
from lib.networks import register

Stem = Literal["small", "small-pool", "small-pool-padded", "imagenet"]


class ResNet(nn.Module):
    """(N, C, H, W) → (N, feature_dim), for pictures of any size.

    The stem is followed by four stages of 64, 128, 256 and 512 channels (times 4 in bottlenecks), strides
    1, 2, 2, 2, and by average pooling.
    """

    block: ClassVar[type[BasicBlock] | type[Bottleneck]] = BasicBlock
    depths: ClassVar[tuple[int, int, int, int]]

    @dataclass(frozen=True)
    class Settings(Section):
        title = "residual network"
        lifetime = "network"
        net_stem: Stem = setting(
            "small-pool-padded",
            "first layers; small = 3×3 convolution; small-pool = then 2×2 pooling; small-pool-padded = that "
            "pooling padded by 1, as in PICA; imagenet = 7×7 convolution, then pooling",
        )
        net_avgpool_size: int | None = setting(
            None,
            "side of the last average pooling, with stride 1; none = the whole feature map",
            unit="cells",
            low=1,
            side=True,
        )

    def __init__(self, in_channels: int, settings: Settings = Settings()) -> None:
        super().__init__()
        self.feature_dim = 512 * self.block.expansion
        self._pool = settings.net_avgpool_size
        self.stem = _stem(in_channels, settings.net_stem)
        stages = []
        width = 64
        for i, depth in enumerate(self.depths):
            stages.append(self._stage(width, 64 * 2**i, depth, stride=1 if i == 0 else 2))
            width = 64 * 2**i * self.block.expansion
        self.stages = nn.Sequential(*stages)

    def _stage(self, width: int, planes: int, depth: int, stride: int) -> nn.Sequential:
        out = planes * self.block.expansion
        shortcut = None
        if stride > 1 or width != out:
            shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        blocks = [self.block(width, planes, stride, shortcut), *(self.block(out, planes) for _ in range(depth - 1))]
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(self.stem(images))  # (N, feature_dim, h, w)
        if self._pool is not None:
            # One cell is left at the sizes that the kernel is meant for; more are averaged below.
            maps = F.avg_pool2d(maps, (min(self._pool, maps.shape[2]), min(self._pool, maps.shape[3])), stride=1)
        features: Tensor = maps.mean(dim=(2, 3))
        return features


def _stem(in_channels: int, kind: Stem) -> nn.Sequential:
    if kind == "imagenet":
        first: nn.Module = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        first = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    pools = {
        "small": [],
        "small-pool": [nn.MaxPool2d(2, ceil_mode=True)],
        "small-pool-padded": [nn.MaxPool2d(2, stride=2, padding=1)],
        "imagenet": [nn.MaxPool2d(3, stride=2, padding=1)],
    }
    return nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(inplace=True), *pools[kind])


@register("resnet18")
class ResNet18(ResNet):
    """ResNet-18 for small images: 11 million weights, 512 features; the network of IMC-SwAV's paper."""

    depths = (2, 2, 2, 2)


@register("resnet34")
class ResNet34(ResNet):
    """ResNet-34 for small images: 21 million weights, 512 features; the network of PICA's paper."""

    depths = (3, 4, 6, 3)


@register("resnet50")
class ResNet50(ResNet):
    """ResNet-50 for small images: 23 million weights, 2,048 features."""

    block = Bottleneck
    depths = (3, 4, 6, 3)
