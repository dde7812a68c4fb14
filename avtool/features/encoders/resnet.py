"""ResNet-50 for ImageNet, torchvision's architecture: `resnet50-v1` and `resnet50-v2`.

Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016); torchvision.models.resnet50, whose
strided convolution is the 3x3 one. V1 and V2 are the weights IMAGENET1K_V1 and IMAGENET1K_V2: one network, two
trainings, other features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.features.encoders.base import dtype_of, fill, kept, matched, shell, tensors
from avtool.features.encoders.packed import Conv

CHANNELS = 2048
SHORT = {"resnet50-v1": 256, "resnet50-v2": 232}  # short side before the crop of 224, as torchvision's transforms


def _shell() -> nn.Module:
    from torchvision.models import resnet50

    return shell(lambda: resnet50(weights=None))


def from_upstream(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchvision's state dict of resnet50, checked; its own output is taken too.

    Raises:
        WeightsError: these are not the tensors of the network.
    """
    return matched(_shell(), tensors(state, "resnet50"), "resnet50")


class _Bottleneck:
    def __init__(self, block: Any) -> None:
        self.reduce = Conv(block.conv1, block.bn1, "relu")
        self.look = Conv(block.conv2, block.bn2, "relu")
        self.expand = Conv(block.conv3, block.bn3, "relu")
        self.skip = None if block.downsample is None else Conv(block.downsample[0], block.downsample[1])

    def __call__(self, x: Tensor) -> Tensor:
        y = self.look(self.reduce(x))
        return self.expand(y, x if self.skip is None else self.skip(x))  # x is not needed any more


class ResNet50:
    """The network for inference.

    Input: RGB (B, 3, H, W), normalised by `pictures.imagenet`.
    Output: last map (B, 2048, H / 32, W / 32) and logits (B, 1000) in torchvision's class order.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device, precision: str = "float32") -> None:
        net: Any = fill(_shell(), state, "resnet50").to(device, dtype_of(precision))
        self.stem = Conv(net.conv1, net.bn1, "relu")
        layers = (net.layer1, net.layer2, net.layer3, net.layer4)
        self.blocks = [_Bottleneck(block) for layer in layers for block in layer]
        self.classify = kept(net.fc)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return x, self.classify(x.mean((2, 3)))
