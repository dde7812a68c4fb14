"""Masked building blocks on (B, C, T) tensors that LoCo and UnAV share.

Masks are bool (B, 1, T), True = valid, and travel with their tensors. With `remask` (the default) a padded step is zero
wherever a convolution over time reads it, so right padding changes nothing; `remask=False` is the behaviour of the UnAV
reference, whose LayerNorm bias leaks into the last valid steps (dave.md sections 2.4 and 3).
"""

from __future__ import annotations

from itertools import pairwise
from math import log, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PE_BASE = 10_000.0


class MaskedConv1d(nn.Module):
    """Convolution over time, zero on padded steps; stride s keeps every s-th mask element.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: odd width, padded to the same length.
        stride: temporal stride.
        groups: as in `nn.Conv1d`; groups = channels is depth-wise.
        bias: whether a bias is learnt (starts at 0).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, T), mask (B, 1, T) -> (B, C', ceil(T / stride)) and its mask."""
        mask = mask[..., :: self.stride]
        return self.conv(x) * mask, mask


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every step, eps 1e-5, affine; parameters are (1, C, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T) -> (B, C, T)."""
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return F.layer_norm(x.transpose(1, 2), (x.shape[1],), weight, bias, 1e-5).transpose(1, 2)


class LayerScale(nn.Module):
    """Learnt scale per channel and, in training, stochastic depth per clip: ends a residual branch (dave.md 2.1)."""

    def __init__(self, channels: int, drop_path: float = 0.0, start: float = 1e-4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1), start))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T) -> (B, C, T)."""
        x = self.scale * x
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


def sinusoids(length: int, channels: int) -> Tensor:
    """Sinusoidal positions divided by sqrt(channels).

    Args:
        length: positions.
        channels: even number of channels.

    Returns:
        (channels, length): sine on even, cosine on odd channels, base 10000 (dave.md 2.2).
    """
    rate = torch.exp(torch.arange(0, channels, 2) * (-log(PE_BASE) / channels))  # (C / 2,)
    angle = rate[:, None] * torch.arange(length)  # (C / 2, T)
    return torch.stack((angle.sin(), angle.cos()), 1).flatten(0, 1) / sqrt(channels)


def stretched(table: Tensor, spans: Tensor, length: int) -> Tensor:
    """Positions for clips of any length: a clip longer than the table reads it linearly stretched over its span.

    Args:
        table: (C, T_max) positions.
        spans: (B,) steps that the table has to cover, per clip.
        length: steps T to return.

    Returns:
        (B, C, T): the table itself for span <= T_max, else it interpolated to the span (align_corners = False).
    """
    limit = table.shape[1]
    scale = limit / spans.clamp(min=limit).to(table.dtype)[:, None]  # (B, 1), <= 1
    steps = torch.arange(length, device=table.device, dtype=table.dtype)
    at = ((steps + 0.5) * scale - 0.5).clamp(0, limit - 1)  # (B, T)
    low = at.floor().clamp(max=max(limit - 2, 0)).long()
    high = (low + 1).clamp(max=limit - 1)
    return torch.lerp(table[:, low], table[:, high], at - low).transpose(0, 1)


class ConvProjection(nn.Module):
    """Query, key or value: depth-wise convolution, norm, then a linear map per step (dave.md 2.2, step 3)."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = MaskedConv1d(channels, channels, 3, stride, groups=channels)
        self.norm = ChannelNorm(channels)
        self.linear = pointwise(channels, channels)

    def local(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, T) -> LN(mask * DWConv(x)) (B, C, T_l), and its mask."""
        x, mask = self.conv(x, mask)
        return self.norm(x), mask


def pointwise(inputs: int, outputs: int) -> nn.Conv1d:
    """A linear map of every step, (B, inputs, T) -> (B, outputs, T), bias 0 at the start."""
    conv = nn.Conv1d(inputs, outputs, 1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class Attention(nn.Module):
    """Multi-head attention of one stream on another, all keys visible; the subclass in `loco.py` narrows it to windows.

    Args:
        channels: C, divisible by heads.
        heads: h.
        stride: of the depth-wise convolutions, shortens the result.
        dropout: on the output projection.
    """

    def __init__(self, channels: int, heads: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.query = ConvProjection(channels, stride)
        self.key = ConvProjection(channels, stride)
        self.value = ConvProjection(channels, stride)
        self.proj = pointwise(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, kv: Tensor, query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """kv, query (B, C, T), mask (B, 1, T) -> (B, C, T_l), mask (B, 1, T_l)."""
        q_local, out_mask = self.query.local(query, mask)
        k_local, _ = self.key.local(kv, mask)
        v_local, _ = self.value.local(kv, mask)
        q, k, v = (
            self._split(part.linear(x))
            for part, x in ((self.query, q_local), (self.key, k_local), (self.value, v_local))
        )
        out = self._attend(q, k, v, out_mask, k_local, q_local)  # (B, h, T_l, D')
        out = out.transpose(2, 3).flatten(1, 2)  # (B, C, T_l)
        return self.dropout(self.proj(out)) * out_mask, out_mask

    def _split(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, h, T, D')."""
        return torch.unflatten(x, 1, (self.heads, -1)).transpose(2, 3)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, k_local: Tensor, q_local: Tensor) -> Tensor:
        """q, k, v (B, h, T, D'), mask (B, 1, T) -> softmax(q k' / sqrt(D')) v over the valid keys, (B, h, T, D')."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])


def pooled(x: Tensor, mask: Tensor, stride: int, remask: bool) -> Tensor:
    """The residual at the next level: max-pool k3 s2 p1 for stride 2, else x; zero on padded steps.

    Args:
        x: (B, C, T).
        mask: (B, 1, T).
        stride: 1 or 2.
        remask: padded steps never win; without it they take part as zeros, as in the reference.
    """
    if stride == 1:
        return x * mask
    if remask:
        x = x.masked_fill(~mask, torch.finfo(x.dtype).min)
    return F.max_pool1d(x, 3, stride, 1) * mask[..., ::stride]


class TransformerBlock(nn.Module):
    """Pre-norm transformer block whose residual is the key/value stream (dave.md 2.2 step 3, 2.4 steps 1 and 7).

    Args:
        attention: makes (B, C, T_l) of (kv, query, mask).
        channels: C.
        hidden: channels inside the MLP.
        stride: that of the attention's convolutions.
        drop_path, dropout, layer_scale: see `LayerScale`; dropout acts inside the MLP.
        remask: see the module.
    """

    def __init__(
        self,
        attention: Attention,
        channels: int,
        hidden: int,
        stride: int = 1,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        layer_scale: float = 1e-4,
        remask: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.remask = stride, remask
        self.norm_kv, self.norm_query, self.norm_mlp = (ChannelNorm(channels) for _ in range(3))
        self.attention = attention
        self.mlp = nn.Sequential(
            pointwise(channels, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            pointwise(hidden, channels),
            nn.Dropout(dropout),
        )
        self.scale_attention = LayerScale(channels, drop_path, layer_scale)
        self.scale_mlp = LayerScale(channels, drop_path, layer_scale)

    def forward(self, kv: Tensor, query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """kv, query (B, C, T), mask (B, 1, T) -> (B, C, T_l), mask (B, 1, T_l); one tensor twice: self-attention."""
        a, b = self.norm_kv(kv), self.norm_query(query)
        if self.remask:
            a, b = a * mask, b * mask
        out, out_mask = self.attention(a, b, mask)
        x = pooled(kv, mask, self.stride, self.remask) + self.scale_attention(out)
        return x + self.scale_mlp(self.mlp(self.norm_mlp(x)) * out_mask), out_mask


class ConvStack(nn.Module):
    """Convolutions k3 without bias, each with norm and ReLU: embedding and trunk of the heads (dave.md 2.2, 2.5)."""

    def __init__(self, inputs: int, outputs: int, depth: int, remask: bool = True) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * depth
        self.convs = nn.ModuleList(MaskedConv1d(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(ChannelNorm(outputs) for _ in range(depth))
        self.remask = remask

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, C, T), mask (B, 1, T) -> (B, C', T)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x, mask)[0]))
            if self.remask:
                x = x * mask
        return x


class UnimodalEncoder(nn.Module):
    """Features of one modality in context: embedding, positions, self-attention blocks (dave.md 2.2).

    Args:
        inputs: feature dimension.
        channels: D.
        blocks: self-attention blocks, already built.
        max_length: steps in the position table; longer clips read it stretched.
        remask: see the module; without it the stretch depends on the padded length, as in the reference.
    """

    positions: Tensor

    def __init__(
        self, inputs: int, channels: int, blocks: list[TransformerBlock], max_length: int, remask: bool = True
    ) -> None:
        super().__init__()
        self.embed = ConvStack(inputs, channels, 2, remask)
        self.blocks = nn.ModuleList(blocks)
        self.remask = remask
        self.register_buffer("positions", sinusoids(max_length, channels), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, inputs, T), mask (B, 1, T) -> (B, D, T)."""
        x = self.embed(x, mask)
        spans = mask.sum((1, 2)) if self.remask else torch.full_like(mask[:, 0, 0], x.shape[2], dtype=torch.long)
        x = x + stretched(self.positions, spans, x.shape[2]).to(x.dtype) * mask
        for block in self.blocks:
            x, _ = block(x, x, mask)
        return x


class ClassHead(nn.Module):
    """Class logits of every step: `depth` convolutions, the last with a bias that starts at the prior (dave.md 2.5)."""

    def __init__(
        self, inputs: int, hidden: int, classes: int, depth: int = 3, prior: float = 0.01, remask: bool = True
    ) -> None:
        super().__init__()
        self.trunk = ConvStack(inputs, hidden, depth - 1, remask)
        self.out = MaskedConv1d(hidden if depth > 1 else inputs, classes, bias=True)
        assert self.out.conv.bias is not None
        nn.init.constant_(self.out.conv.bias, -log((1 - prior) / prior))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, inputs, T), mask (B, 1, T) -> logits (B, C, T)."""
        logits: Tensor = self.out(self.trunk(x, mask), mask)[0]
        return logits


class OffsetHead(nn.Module):
    """Distances to both ends of an event, >= 0, in units of the level's stride (dave.md 2.5).

    Channels 2c and 2c + 1 are (left, right) of class c; one scale is learnt per level.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, levels: int, depth: int = 3, remask: bool = True
    ) -> None:
        super().__init__()
        self.trunk = ConvStack(inputs, hidden, depth - 1, remask)
        self.out = MaskedConv1d(hidden if depth > 1 else inputs, outputs, bias=True)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in range(levels))

    def forward(self, x: Tensor, mask: Tensor, level: int) -> Tensor:
        """x (B, inputs, T), mask (B, 1, T), level from 0 -> (B, outputs, T)."""
        return F.relu(self.scales[level] * self.out(self.trunk(x, mask), mask)[0])
