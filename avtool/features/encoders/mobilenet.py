"""MobileNetV2 for ImageNet-1k: the Coral weights with TensorFlow's padding, and how their pictures are prepared.

Source: Sandler et al., "MobileNetV2" (CVPR 2018), table 2; weights of TensorFlow's quantised release (Apache-2.0)
with batch norm folded, so every convolution has a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
