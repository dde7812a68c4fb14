"""VGGish, the 128-d sound embedding of AudioSet: own implementation of the published network and its front end.

Source: Hershey et al., "CNN Architectures for Large-Scale Audio Classification" (ICASSP 2017); TensorFlow models'
research/audioset/vggish; weights as torchvggish publishes them. The AVE and UnAV-100 sound features are this
embedding after its last ReLU, without PCA and without quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.features import logmel
from avtool.features.encoders.base import dtype_of, fill, foreign, matched, shell, tensors
from avtool.features.encoders.packed import Conv

EMBEDDING = 128
FRAMES = 96  # of 10 ms in a patch
SAMPLES = (FRAMES - 1) * logmel.VGGISH.hop + logmel.VGGISH.window  # 15,600: what a patch reads
SECONDS = SAMPLES / logmel.VGGISH.rate
BEFORE = FRAMES * logmel.VGGISH.hop / logmel.VGGISH.rate / 2  # 0.48 s of the patch lie before its centre
WIDTHS = ((64,), (128,), (256, 256), (512, 512))  # convolutions; a pooling after each group
CLIP = 2.0  # the quantiser's range is [-2, 2]


def _shell() -> nn.Module:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        inputs = 1
        for group in WIDTHS:
            for width in group:
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2, 2))
        sizes = (inputs * FRAMES * logmel.VGGISH.bands // 4 ** len(WIDTHS), 4096, 4096, EMBEDDING)
        dense = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.ModuleDict({"features": nn.Sequential(*layers), "embeddings": nn.Sequential(*dense)})

    return shell(make)


def from_upstream(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchvggish's state dict, checked; its own output is taken too.

    Raises:
        WeightsError: these are not the tensors of the network.
    """
    return matched(_shell(), tensors(state, "vggish"), "vggish")


def pca_from_upstream(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The published PCA parameters: pca_eigen_vectors (128, 128), rows are vectors, and pca_means (128, 1).

    Raises:
        WeightsError: these are other tensors.
    """
    given = {name: value.to(torch.float32) for name, value in tensors(state, "vggish-pca").items()}
    wanted = {"pca_eigen_vectors": (EMBEDDING, EMBEDDING), "pca_means": (EMBEDDING, 1)}
    if {name: tuple(value.shape) for name, value in given.items()} != wanted:
        raise foreign("vggish-pca", f"it must hold {wanted} and nothing else")
    return given


class Vggish:
    """The network for inference.

    Input: log-mel patches (B, 64, 96) of features.logmel.VGGISH.
    Output: embedding (B, 128), after the last ReLU.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device, precision: str = "float32") -> None:
        self.dtype = dtype_of(precision)
        net: Any = fill(_shell(), state, "vggish").to(device, self.dtype)
        self.convs = [Conv(layer, None, "relu") for layer in net["features"] if isinstance(layer, nn.Conv2d)]
        self.dense = net["embeddings"]

    def __call__(self, mel: Tensor) -> Tensor:
        x = mel.transpose(1, 2)[:, None].to(self.dtype)  # (B, 1, 96, 64)
        layers = iter(self.convs)
        for group in WIDTHS:
            for _ in group:
                x = next(layers)(x)
            x = F.max_pool2d(x, 2, 2)
        embedding: Tensor = self.dense(x.permute(0, 2, 3, 1).flatten(1))  # channels last, as TensorFlow flattens
        return embedding


def whitened(embedding: Tensor, pca: Mapping[str, Tensor]) -> Tensor:
    """The published PCA: (B, 128) -> (B, 128), eigenvectors times the embedding less its mean."""
    return (embedding - pca["pca_means"].T) @ pca["pca_eigen_vectors"].T


def quantised(whitened: Tensor) -> Tensor:
    """The published 8-bit form as numbers 0 to 255; halves go to the even neighbour, as NumPy rounds."""
    return torch.round((whitened.clamp(-CLIP, CLIP) + CLIP) * (255.0 / (2 * CLIP)))
