"""EfficientAT mn04_as: the small AudioSet tagger, in the exact protocol of its authors.

Source: Schmid et al., "Efficient Large-scale Audio Tagging via Transformer-to-CNN Knowledge Distillation" (2023);
MobileNetV3-large at width 0.4; weights fschmid56/EfficientAT, file mn04_as_mAP_432.pt (MIT).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATE = 32_000  # Hz
EMBEDDING = 384


class _Row(NamedTuple):
    kernel: int
    expanded: int
    outputs: int
    squeeze: int  # hidden units of the squeeze-and-excitation, 0 = none
    hard_swish: bool
    stride: int


ROWS = (
    _Row(3, 8, 8, 0, False, 1),
    _Row(3, 24, 16, 0, False, 2),
    _Row(3, 32, 16, 0, False, 1),
    _Row(5, 32, 16, 8, False, 2),
    _Row(5, 48, 16, 16, False, 1),
    _Row(5, 48, 16, 16, False, 1),
    _Row(3, 96, 32, 0, True, 2),
    _Row(3, 80, 32, 0, True, 1),
    _Row(3, 72, 32, 0, True, 1),
    _Row(3, 72, 32, 0, True, 1),
    _Row(3, 192, 48, 48, True, 1),
    _Row(3, 272, 48, 72, True, 1),
    _Row(5, 272, 64, 72, True, 2),
    _Row(5, 384, 64, 96, True, 1),
    _Row(5, 384, 64, 96, True, 1),
)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, groups: int, act: type[nn.Module] | None
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class _Squeeze(nn.Module):
    """Squeeze-and-excitation over channels; the attribute names are those of the published state dict."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        layer = nn.Module()
        layer.fc1 = nn.Linear(channels, hidden)
        layer.fc2 = nn.Linear(hidden, channels)
        self.conc_se_layers = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:  # (B, C, F, T)
        layer = self.conc_se_layers[0]
        hidden = F.relu(layer.get_submodule("fc1")(x.mean((2, 3))))
        gate = torch.sigmoid(layer.get_submodule("fc2")(hidden))
        return x * gate[:, :, None, None]


class _Block(nn.Module):
    def __init__(self, inputs: int, row: _Row) -> None:
        super().__init__()
        act: type[nn.Module] = nn.Hardswish if row.hard_swish else nn.ReLU
        parts: list[nn.Module] = []
        if row.expanded != inputs:
            parts.append(_conv(inputs, row.expanded, 1, 1, 1, act))
        parts.append(_conv(row.expanded, row.expanded, row.kernel, row.stride, row.expanded, act))
        if row.squeeze:
            parts.append(_Squeeze(row.expanded, row.squeeze))
        parts.append(_conv(row.expanded, row.outputs, 1, 1, 1, None))
        self.block = nn.Sequential(*parts)
        self.residual = row.stride == 1 and inputs == row.outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class Mn04(nn.Module):
    """mn04_as.

    Input: log-mel (B, 1, 128, T) of features.logmel.MN04.
    Output: logits (B, 527) in AudioSet index order and embedding (B, 384).
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(1, 8, 3, 2, 1, nn.Hardswish)]
        channels = 8
        for row in ROWS:
            layers.append(_Block(channels, row))
            channels = row.outputs
        layers.append(_conv(channels, EMBEDDING, 1, 1, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.ModuleDict({"2": nn.Linear(EMBEDDING, 512), "5": nn.Linear(512, 527)})

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.features(mel).mean((2, 3))
        logits: Tensor = self.classifier["5"](F.hardswish(self.classifier["2"](embedding)))
        return logits, embedding
