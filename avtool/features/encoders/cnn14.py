"""Cnn14, the AudioSet tagger of PANNs, in its authors' protocol; the network's class is that of panns-inference.

Source: Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern Recognition" (TASLP 2020);
weights Cnn14_mAP=0.431.pth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.features import logmel
from avtool.features.encoders import panns
from avtool.features.encoders.base import dtype_of, fill, foreign, kept, matched, shell, tensors
from avtool.features.encoders.packed import Conv

EMBEDDING, CLASSES = 2048, 527
BLOCKS = 6  # all but the last halve time and frequency
FRONT_END = ("spectrogram_extractor.", "logmel_extractor.")  # fixed tensors, computed here by logmel.CNN14
MEL = "logmel_extractor.melW"
NEAR = 1e-4  # of the largest weight: how near the file's mel matrix is to ours
SECONDS = {"sliding": 2.0, "per-second": 1.0}


def _shell() -> nn.Module:
    front = logmel.CNN14
    sizes = (front.rate, front.fft, front.hop, front.bands, front.low, front.high, CLASSES)
    return shell(lambda: panns.models().Cnn14(*sizes))


def from_upstream(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The published state dict, or the checkpoint with it under "model", without the fixed front end.

    Raises:
        WeightsError: these are not the tensors of the network, or its front end is another one.
    """
    inner = state.get("model")
    given = tensors(inner if isinstance(inner, Mapping) else state, "cnn14")
    if MEL in given:
        ours = logmel.mel_filters(logmel.CNN14)
        if given[MEL].shape != ours.shape or (given[MEL] - ours).abs().max() > NEAR * ours.max():
            raise foreign("cnn14", "its mel filters are not those of 64 bands of 50 to 14,000 Hz at 32 kHz")
    kept = {name: value for name, value in given.items() if not name.startswith(FRONT_END)}
    return matched(_shell(), kept, "cnn14")


class Cnn14:
    """The network for inference.

    Input: log-mel (B, 64, T) of features.logmel.CNN14, T >= 32.
    Output: embedding (B, 2048), after the ReLU, and logits (B, 527) in AudioSet index order.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device, precision: str = "float32") -> None:
        self.dtype = dtype_of(precision)
        net: Any = fill(_shell(), state, "cnn14").to(device, self.dtype)
        self.scale = net.bn0.weight * torch.rsqrt(net.bn0.running_var + net.bn0.eps)  # (64,)
        self.shift = net.bn0.bias - net.bn0.running_mean * self.scale
        blocks = [net.get_submodule(f"conv_block{index + 1}") for index in range(BLOCKS)]
        self.convs = [(Conv(b.conv1, b.bn1, "relu"), Conv(b.conv2, b.bn2, "relu")) for b in blocks]
        self.embed, self.classify = kept(net.fc1), kept(net.fc_audioset)

    def __call__(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        x = (mel.transpose(1, 2).to(self.dtype) * self.scale + self.shift)[:, None]  # (B, 1, T, 64)
        for index, (first, second) in enumerate(self.convs):
            x = second(first(x))
            if index < BLOCKS - 1:
                x = F.avg_pool2d(x, 2)
        x = x.mean(3)  # (B, 2048, T / 32)
        embedding = F.relu(self.embed(x.amax(2) + x.mean(2)))
        return embedding, self.classify(embedding)
