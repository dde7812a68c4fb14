"""The embedded encoders `mini`: two small residual networks that avtool distils itself and ships.

Dense 3x3 convolutions on purpose: on a CPU they run near the matrix peak, where depthwise ones wait for memory
(at equal multiply-adds, measured: 0.5 ms against 1.0 ms a picture, and 8 times faster to train in bfloat16).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.features.encoders.packed import Conv


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of one network.

    Attributes:
        inputs: input channels (3 for pictures, 1 for log-mels).
        widths: channels per stage; each stage halves height and width.
        depths: residual blocks per stage.
        embedding: length of the embedding.
        teacher: length of the teacher's embedding, which one head predicts.
        classes: class scores (1000 ImageNet, 527 AudioSet).
    """

    inputs: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    embedding: int
    teacher: int
    classes: int


SHORT = 128  # pixels of the short side; the whole picture is seen
NOMINAL = (128, 224)  # height and width near those of most pictures and of two seconds of sound
VISUAL = MiniConfig(3, (32, 64, 128, 256, 384), (1, 1, 1, 2, 1), 512, 1280, 1000)
AUDIO = MiniConfig(1, (24, 48, 96, 192, 256), (1, 1, 1, 1, 1), 384, 384, 527)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


class Mini(nn.Module):
    """A residual network with three outputs; any height and width of at least 32 works.

    Input: (B, inputs, H, W) float, normalised by `prepare_pictures` or a log-mel of features.logmel.
    Output: class logits (B, classes), embedding (B, embedding), the teacher's embedding as predicted (B, teacher).
    """

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        self.config = config
        first = config.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(config.inputs, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        blocks, channels = [], first
        for width, depth in zip(config.widths, config.depths, strict=True):
            for index in range(depth):
                blocks.append(_Residual(channels, width, 2 if index == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Sequential(
            nn.Conv2d(channels, config.embedding, 1, bias=False), nn.BatchNorm2d(config.embedding), nn.ReLU()
        )
        self.classify = nn.Linear(config.embedding, config.classes)
        self.imitate = nn.Linear(config.embedding, config.teacher)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding = self.project(self.blocks(self.stem(x))).mean((2, 3))
        return self.classify(embedding), embedding, self.imitate(embedding)


def prepare_pictures(pictures: Tensor) -> Tensor:
    """Scale uint8 RGB (B, 3, H, W) to about zero mean and unit deviation."""
    return pictures.float().sub_(118.0).div_(64.0)


class Fused:
    """The network for inference: batch norm, activation and residual sum in the pass of their convolution.

    Outputs equal the network's within rounding. The weights are laid out once, for pictures of a nominal size, so that
    a result does not depend on what was seen before it.

    Args:
        model: its weights, on the device where they shall run.
    """

    def __init__(self, model: Mini) -> None:
        self._stem = _conv(model.stem, "relu")
        self._blocks = [
            (
                Conv(block.conv1, block.norm1, "relu"),
                Conv(block.conv2, block.norm2, "relu"),
                _conv(block.skip, "none") if isinstance(block.skip, nn.Sequential) else None,
            )
            for block in model.blocks
            if isinstance(block, _Residual)
        ]
        self._project = _conv(model.project, "relu")
        self._classify = model.classify
        with torch.inference_mode():
            self(torch.zeros(1, model.config.inputs, *NOMINAL, device=model.classify.weight.device))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, H, W) as `Mini` reads it -> class logits (B, classes), embedding (B, embedding)."""
        x = self._stem(x.contiguous(memory_format=torch.channels_last))
        for first, second, skip in self._blocks:
            x = second(first(x), x if skip is None else skip(x))
        embedding = self._project(x).mean((2, 3))
        return self._classify(embedding), embedding


def _conv(part: nn.Sequential, activation: str) -> Conv:
    conv, norm = part[0], part[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return Conv(conv, norm, activation)


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def blank(config: MiniConfig, seed: int) -> Mini:
    """A freshly initialised network, reproducible by seed."""
    torch.manual_seed(seed)
    return Mini(config)
