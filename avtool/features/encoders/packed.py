"""Convolutions for inference: batch norm folded in, activation and residual sum in the same pass over memory.

On a CPU the weights are laid out for oneDNN once, instead of at every call; elsewhere, and where a self-test of these
operators fails, PyTorch's public convolution computes the same.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = ("none", "relu", "relu6")
AGREEMENT = 1e-5  # of the self-test, relative to the largest value

log = logging.getLogger("avtool")


class Conv:
    """One convolution with what follows it, on the device and in the type that its layer has when this is built."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, activation: str = "none") -> None:
        assert activation in ACTIVATIONS and not isinstance(conv.padding, str)
        self.weight, self.bias = folded(conv, norm)
        self.stride, self.padding, self.groups = list(conv.stride), list(conv.padding), conv.groups
        self.activation = activation
        self.packs = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 and operators_work()
        self._is_packed = False
        if not self.packs:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """activation(conv(x) + add): (B, C, H, W) channels_last -> (B, C', H', W') channels_last; overwrites `add`."""
        return self._packed_call(x, add) if self.packs else self._plain_call(x, add)

    def _plain_call(self, x: Tensor, add: Tensor | None) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        if add is not None:
            y = y.add_(add)
        return activated(y, self.activation)

    def _packed_call(self, x: Tensor, add: Tensor | None) -> Tensor:
        if not self._is_packed:  # the best layout depends on the shape of the input
            self.weight, self._is_packed = self._packed(x), True
        shape = (self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups)
        y: Tensor
        if add is not None:
            after = None if self.activation == "none" else self.activation
            assert after != "relu6", "the sum takes no ReLU6, and none of the networks here needs one"
            y = torch.ops.mkldnn._convolution_pointwise_.binary(add, x, *shape, "add", 1.0, after, [], "")
        elif self.activation == "relu6":
            y = torch.ops.mkldnn._convolution_pointwise(x, *shape, "hardtanh", [0.0, 6.0], "")
        else:
            y = torch.ops.mkldnn._convolution_pointwise(x, *shape, self.activation, [], "")
        return y

    def _packed(self, x: Tensor) -> Tensor:
        where = (self.padding, self.stride, [1, 1], self.groups, list(x.shape))
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *where)
        return packed


def activated(x: Tensor, activation: str) -> Tensor:
    """In place."""
    if activation == "none":
        return x
    return F.relu_(x) if activation == "relu" else F.relu6(x, inplace=True)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one convolution that equals a convolution and its batch norm."""
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight, None if bias is None else bias.clone()  # else all of its file would stay in memory
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)  # (C',)
    shift = norm.running_mean if bias is None else norm.running_mean - bias
    return weight * scale[:, None, None, None], norm.bias.detach() - shift * scale


@cache
def operators_work() -> bool:
    """Whether the prepacked operators are there and agree with PyTorch's public convolution."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        try:
            return all(_agrees(*case) for case in _CASES)
        except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
            log.debug("prepacked convolutions are not used: %s", error)
            return False


# inputs, outputs, kernel, stride, groups, activation, with a sum
_CASES = (
    (3, 16, 7, 2, 1, "relu", False),
    (16, 32, 1, 1, 1, "none", False),
    (16, 16, 3, 1, 1, "relu", True),
    (16, 16, 3, 2, 16, "relu6", False),
    (16, 24, 1, 1, 1, "none", True),
)


def _agrees(inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation: str, add: bool) -> bool:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
    x = torch.randn(2, inputs, 13, 17).contiguous(memory_format=torch.channels_last)
    conv = object.__new__(Conv)
    conv.weight, conv.bias = folded(layer, None)
    conv.stride, conv.padding, conv.groups, conv.activation = [stride] * 2, [kernel // 2] * 2, groups, activation
    conv._is_packed = False
    other = torch.randn_like(layer(x)).contiguous(memory_format=torch.channels_last) if add else None
    expected = conv._plain_call(x, other)
    difference = (conv._packed_call(x, other) - expected).abs().max()
    return bool(difference <= AGREEMENT * expected.abs().max())
