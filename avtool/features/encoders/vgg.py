"""VGG-19 for ImageNet in its two forms: torchvision's `vgg19`, and Caffe's as Keras publishes it, `vgg19-caffe`.

Source: Simonyan, Zisserman, "Very Deep Convolutional Networks" (ICLR 2015), configuration E. The AVE data set's own
picture features are the Caffe form's block5_pool; the two trainings and their inputs differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.features.encoders.base import dtype_of, fill, foreign, matched, shell, tensors
from avtool.features.encoders.packed import Conv

CHANNELS = 512
SHORT = 256  # short side before the crop of 224, as torchvision's transform
AT_ONCE = 2  # pictures; the first maps of one take 13 MB each
PLACES = 7  # rows and columns of the last map

# Keras' layers in order; the number is torchvision's index in `features` and `classifier`
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
_BLOCKS = (2, 2, 4, 4, 4)
_WIDTHS = (64, 128, 256, 512, 512)
_NAMES = [f"block{b + 1}_conv{c + 1}" for b, convs in enumerate(_BLOCKS) for c in range(convs)]
KERAS = {name: f"features.{index}" for name, index in zip(_NAMES, _FEATURES, strict=True)} | {
    "fc1": "classifier.0",
    "fc2": "classifier.3",
    "predictions": "classifier.6",
}
_DATASET = re.compile(
    r"(?:.*/)?(?P<layer>block\d_conv\d|fc\d|predictions)(?:_|/)(?P<kind>W|b|kernel|bias)(?:_\d+)?(?::0)?"
)


class _Shell(nn.Module):
    """Configuration E of the paper's table 1, with torchvision's names; importing torchvision would cost 130 MB."""

    def __init__(self, top: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth, (inputs, width) in zip(_BLOCKS, pairwise((3, *_WIDTHS)), strict=True):
            for index in range(depth):
                layers += [nn.Conv2d(width if index else inputs, width, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        if top:
            sizes = (PLACES * PLACES * CHANNELS, 4096, 4096, 1000)
            first, second, last = (nn.Linear(*ends) for ends in pairwise(sizes))
            self.classifier = nn.Sequential(first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), nn.Dropout(), last)


def _shell(top: bool = True) -> nn.Module:
    return shell(lambda: _Shell(top))


def from_upstream(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """torchvision's state dict of vgg19, checked; its own output is taken too.

    Raises:
        WeightsError: these are not the tensors of the network.
    """
    return matched(_shell(), tensors(state, "vgg19"), "vgg19")


def from_keras(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Keras' VGG19 (.h5), with or without its top, as torchvision's names and layouts; its own output is taken too.

    Args:
        state: path of each dataset, such as "block1_conv1/block1_conv1_W_1:0" or
            "block1_conv1/block1_conv1/kernel:0" -> array. Kernels lie (height, width, inputs, outputs).

    Raises:
        WeightsError: these are not the tensors of the network.
    """
    given = tensors(state, "vgg19-caffe")
    if not any(name.startswith("features.") for name in given):
        given = dict(_from_keras(name, value) for name, value in given.items())
    top = any(name.startswith("classifier.") for name in given)
    return matched(_shell(top), given, "vgg19-caffe")


def _from_keras(name: str, value: Tensor) -> tuple[str, Tensor]:
    found = _DATASET.fullmatch(name)
    if found is None or found["layer"] not in KERAS:
        raise foreign("vgg19-caffe", f"{name} is not one of its datasets")
    layer = KERAS[found["layer"]]
    if found["kind"] in ("b", "bias"):
        return f"{layer}.bias", value
    if value.dim() == 4:
        value = value.permute(3, 2, 0, 1)  # (O, I, H, W)
    elif found["layer"] == "fc1" and value.shape[0] == PLACES * PLACES * CHANNELS:  # it reads the map row by row
        value = value.reshape(PLACES, PLACES, CHANNELS, -1).permute(3, 2, 0, 1).reshape(-1, PLACES * PLACES * CHANNELS)
    elif value.dim() == 2:
        value = value.t()
    return f"{layer}.weight", value.contiguous()


class Vgg19:
    """The network for inference.

    Input: (B, 3, H, W), normalised by `pictures.imagenet` (torchvision) or `pictures.caffe`.
    Output: map after the last pooling (B, 512, H / 32, W / 32) and logits (B, 1000), None without a top.
    """

    def __init__(
        self, state: Mapping[str, Tensor], device: torch.device, precision: str = "float32", top: bool = True
    ) -> None:
        """With `top` False, or where the state dict has none, the dense layers are left out."""
        if not top:
            state = {name: value for name, value in state.items() if not name.startswith("classifier.")}
        self.top = any(name.startswith("classifier.") for name in state)
        net: Any = fill(_shell(self.top), state, "vgg19").to(device, dtype_of(precision))
        self.layers = [Conv(layer, None, "relu") for layer in net.features if isinstance(layer, nn.Conv2d)]
        self.classifier = net.classifier if self.top else None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        layers = iter(self.layers)
        for convs in _BLOCKS:
            for _ in range(convs):
                x = next(layers)(x)
            x = F.max_pool2d(x, 2, 2)
        if self.classifier is None:
            return x, None
        return x, self.classifier(F.adaptive_avg_pool2d(x, PLACES).flatten(1))
