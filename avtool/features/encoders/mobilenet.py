"""MobileNetV2 for ImageNet-1k: the Coral weights with TensorFlow's padding, and torchvision's form of the network.

Source: Sandler et al., "MobileNetV2" (CVPR 2018), table 2; weights of TensorFlow's quantised release (Apache-2.0)
with batch norm folded, so every convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.features.encoders.base import dtype_of, fill, kept, matched, shell, tensors
from avtool.features.encoders.packed import Conv

# (expansion, output channels, repeats, stride of the first), paper table 2
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
EMBEDDING = 1280


def _same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a 3x3 convolution with TensorFlow's SAME padding: the odd zero goes to the bottom and right."""
    if conv.stride[0] == 1:
        return F.conv2d(x, conv.weight, conv.bias, 1, 1, 1, conv.groups)
    bottom, right = 1, 1
    top, left = x.shape[-2] % 2, x.shape[-1] % 2
    return F.conv2d(F.pad(x, (left, right, top, bottom)), conv.weight, conv.bias, 2, 0, 1, conv.groups)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion > 1 else None
        self.dw = nn.Conv2d(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        y: Tensor = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(_same(y, self.dw)))
        return x + y if self.residual else y


class MobileNetV2Coral(nn.Module):
    """MobileNetV2 1.0 as TensorFlow computes it.

    Input: RGB (B, 3, H, W) in [-1, 1]; 224 x 224 by training, any size works.
    Output: logits (B, 1000) in torchvision's class order and embedding (B, 1280).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        channels, index = 32, 0
        for expansion, outputs, repeats, stride in STAGES:
            for repeat in range(repeats):
                self.add_module(f"b{index}", _Block(channels, outputs, expansion, stride if repeat == 0 else 1))
                channels, index = outputs, index + 1
        self.blocks = index
        self.head = nn.Conv2d(channels, EMBEDDING, 1)
        self.classifier = nn.Linear(EMBEDDING, 1000)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(_same(pictures, self.stem))
        for index in range(self.blocks):
            x = self.get_submodule(f"b{index}")(x)
        embedding = F.relu6(self.head(x)).mean((2, 3))  # (B, 1280)
        return self.classifier(embedding), embedding


def prepare(pictures: Tensor) -> Tensor:
    """Scale uint8 RGB (B, 3, H, W) to the [-1, 1] that the network was trained on."""
    return pictures.float().div_(127.5).sub_(1.0)


def load_state(model: MobileNetV2Coral, state: dict[str, Tensor]) -> MobileNetV2Coral:
    """Load the float16 release into float32 parameters; names and shapes must match exactly."""
    model.load_state_dict({name: value.to(torch.float32) for name, value in state.items()}, strict=True)
    return model.eval()


# ---------------------------------------------------------------- torchvision's form, `mobilenet_v2`


SHORT = 256  # short side before the crop of 224, as the transform of torchvision's IMAGENET1K_V1 weights


def _shell() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return shell(lambda: mobilenet_v2(weights=None))


def from_upstream(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchvision's state dict of mobilenet_v2, checked; its own output is taken too.

    Raises:
        WeightsError: these are not the tensors of the network.
    """
    return matched(_shell(), tensors(state, "mobilenet_v2"), "mobilenet_v2")


class _Inverted:
    def __init__(self, block: Any) -> None:
        *before, project, norm = block.conv
        self.convs = [Conv(part[0], part[1], "relu6") for part in before]
        self.project = Conv(project, norm)
        self.residual = bool(block.use_res_connect)

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(y)
        return self.project(y, x if self.residual else None)


class MobileNetV2:
    """torchvision's network for inference.

    Input: RGB (B, 3, H, W), normalised by `pictures.imagenet`.
    Output: last map (B, 1280, H / 32, W / 32) and logits (B, 1000) in torchvision's class order.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device, precision: str = "float32") -> None:
        net: Any = fill(_shell(), state, "mobilenet_v2").to(device, dtype_of(precision))
        first, *middle, last = net.features
        self.stem = Conv(first[0], first[1], "relu6")
        self.blocks = [_Inverted(block) for block in middle]
        self.head = Conv(last[0], last[1], "relu6")
        self.classify = kept(net.classifier[1])

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        maps = self.head(x)
        return maps, self.classify(maps.mean((2, 3)))
