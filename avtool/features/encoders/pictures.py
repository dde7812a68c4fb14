"""Decoded pictures to what ImageNet networks were trained on: size as PIL makes it, then the network's own scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.features.encoders.base import Pixels

SIDE = 224  # pixels, what all of these networks see
THIN = 6  # beyond this aspect the long side is cut first, far outside the crop, so that a thin strip cannot grow huge


@dataclass(frozen=True)
class Size:
    """How a picture gets its size. `short`: of the short side before the centre crop; None: squashed to a square."""

    short: int | None
    side: int = SIDE

    def __call__(self, pixels: Pixels) -> Pixels:
        """(H, W, 3) uint8 of any size to (side, side, 3); antialiased bilinear on uint8, PIL's to one step in 255."""
        height, width = pixels.shape[:2]
        if self.short is None:
            return resized(pixels, self.side, self.side)
        limit = THIN * min(height, width)
        pixels = centre(pixels, limit, limit)
        return centre(resized(pixels, *scaled(pixels.shape[0], pixels.shape[1], self.short)), self.side, self.side)

    def __str__(self) -> str:
        size = "whole picture to" if self.short is None else f"short side {self.short}, centre crop"
        return f"torch antialiased bilinear on uint8, {size} {self.side} x {self.side}"


def scaled(height: int, width: int, short: int) -> tuple[int, int]:
    """Size with the short side at `short`; the long side is rounded down as torchvision's Resize does."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Antialiased bilinear; channels_last memory and uint8 on purpose: floats cost six times as much."""
    if pixels.shape[:2] == (height, width):
        return pixels
    picture = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    out = F.interpolate(picture, (height, width), mode="bilinear", antialias=True, align_corners=False)
    array: Pixels = out[0].permute(1, 2, 0).numpy()
    return array


def centre(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle of a picture, at most this large; torchvision's rounding."""
    top = max(0, round((pixels.shape[0] - height) / 2))
    left = max(0, round((pixels.shape[1] - width) / 2))
    return pixels[top : top + height, left : left + width]


Scale = Callable[[Tensor], Tensor]  # uint8 RGB (B, H, W, 3) -> float (B, 3, H, W) channels_last


def imagenet(dtype: torch.dtype) -> Scale:
    """torchvision's: [0, 1], then minus ImageNet's mean over its deviation, RGB."""
    mean = torch.tensor([0.485, 0.456, 0.406]) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225]) * 255

    def scale(pictures: Tensor) -> Tensor:
        x = pictures.to(torch.float32).sub_(mean.to(pictures.device)).div_(deviation.to(pictures.device))
        return x.to(dtype).permute(0, 3, 1, 2)

    return scale


def caffe(dtype: torch.dtype) -> Scale:
    """Caffe's: BGR in [0, 255] minus ImageNet's mean, no further scale (Keras' preprocess_input of VGG)."""
    mean = torch.tensor([103.939, 116.779, 123.68])  # B, G, R

    def scale(pictures: Tensor) -> Tensor:
        x = pictures.flip(3).to(torch.float32).sub_(mean.to(pictures.device))
        return x.to(dtype).permute(0, 3, 1, 2)

    return scale
