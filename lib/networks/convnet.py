"""A light network for CPUs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lib.config.settings import Section, setting
from lib.networks import register


@register("convnet")
class ConvNet(nn.Module):
    """Small network for small images or a CPU: six 3×3 convolutions.

    Three stages of two convolutions, halving the map twice; global average pooling.

    (N, C, H, W) → (N, 4 · net_width), for pictures of any size.
    """

    @dataclass(frozen=True)
    class Settings(Section):
        title = "network convnet"
        lifetime = "network"
        net_width: int = setting(
            32, "channels of the first stage; the second and third stage have 2 and 4 times as many", low=1
        )

    def __init__(self, in_channels: int, settings: Settings = Settings()) -> None:
        super().__init__()
        widths = [settings.net_width * 2**i for i in range(3)]
        self.feature_dim = widths[-1]
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            for j, channels in enumerate((in_channels if i == 0 else widths[i - 1], width)):
                stride = 2 if i > 0 and j == 0 else 1
                layers += [
                    nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.layers(images)
        return maps.mean(dim=(2, 3))
