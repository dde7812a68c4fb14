"""Blocks of the networks that judge short clips segment by segment (CACE-Net, CCLN): (B, T, C) with bool masks (B, T).

Masks are True = valid, valid rows first; a padded row never reaches a valid one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.errors import UsageError


def check_clips(visual: Tensor, audio: Tensor, mask: Tensor | None, visual_dim: int, audio_dim: int) -> Tensor:
    """Checks a batch of clips and completes its mask.

    Args:
        visual: (B, T, H, W, Cv), (B, T, N, Cv) or (B, T, Cv), channels last.
        audio: (B, T, Ca).
        mask: (B, T) bool, or None: every row is valid.
        visual_dim: Cv of the network.
        audio_dim: Ca of the network.

    Returns:
        (B, T) bool.

    Raises:
        UsageError: a shape does not fit, a clip has no valid row, or a valid row follows a padded one.
    """
    if visual.ndim not in (3, 4, 5) or visual.shape[-1] != visual_dim:
        want = f"(B, T, H, W, {visual_dim}), (B, T, N, {visual_dim}) or (B, T, {visual_dim})"
        raise UsageError(f"visual features have the shape {tuple(visual.shape)}", f"the network reads {want}")
    if audio.ndim != 3 or audio.shape[-1] != audio_dim or audio.shape[:2] != visual.shape[:2]:
        want = f"({visual.shape[0]}, {visual.shape[1]}, {audio_dim}) beside these visual features"
        raise UsageError(f"audio features have the shape {tuple(audio.shape)}", f"the network reads {want}")
    if mask is None:
        return torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device)
    if mask.shape != audio.shape[:2] or mask.dtype != torch.bool:
        what = f"the mask is {mask.dtype} of the shape {tuple(mask.shape)}"
        raise UsageError(what, f"the clips need bool {tuple(audio.shape[:2])}, True = valid")
    if not bool(mask[:, :1].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise UsageError("the mask has a clip without a valid row, or a valid row after a padded one")
    return mask


def positions(visual: Tensor, mask: Tensor) -> Tensor:
    """(B, T, [H, W | N,] C) -> (B, T, N, C), zero on padded rows."""
    flat = visual.reshape(*mask.shape, -1, visual.shape[-1])
    return flat.masked_fill(~mask[..., None, None], 0)


def bare_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k') v: one head, not scaled (avel.md section 4).

    Args:
        query, key: (..., n, d).
        value: (..., n, c).
        mask: (..., n) valid keys; None: all.
    """
    scores = query @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., None, :], -torch.inf)
    return scores.softmax(-1) @ value


class SoundGuidance(nn.Module):
    """Sound picks channels, then positions, of every picture (avel.md 4.2, steps 3 and 4; names as in CACE-Net).

    Args:
        visual: channels of the map.
        audio: channels of the sound.
    """

    def __init__(self, visual: int, audio: int) -> None:
        super().__init__()
        half = visual // 2
        self.affine_video_1, self.affine_audio_1 = nn.Linear(visual, visual), nn.Linear(audio, visual)
        self.affine_bottleneck, self.affine_v_c_att = nn.Linear(visual, half), nn.Linear(half, visual)
        self.affine_video_2, self.affine_audio_2 = nn.Linear(visual, half), nn.Linear(audio, half)
        self.affine_v_s_att = nn.Linear(half, 1)

    def look(self, x: Tensor, g: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """What the sound picks.

        Args:
            x: (B, T, N, visual) what is picked from.
            g: (B, T, N, visual) what the channels are judged by.
            a: (B, T, audio).

        Returns:
            (B, T, visual), and the weights (B, T, N) of the positions.
        """
        a = a[:, :, None]  # (B, T, 1, audio)
        c = (F.relu(self.affine_audio_1(a)) * F.relu(self.affine_video_1(g))).mean(2, keepdim=True)
        x = x * (1 + self.affine_v_c_att(F.relu(self.affine_bottleneck(c))).sigmoid())
        e = F.relu(self.affine_video_2(x)) * F.relu(self.affine_audio_2(a))
        weight = self.affine_v_s_att(e).tanh().softmax(2)  # (B, T, N, 1)
        return (weight * x).sum(2), weight[..., 0]


def attend(layer: nn.MultiheadAttention, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """Multi-head attention of (B, T, C) on a memory (B, S, C) of which `mask` (B, S) is valid."""
    out: Tensor = layer(query, memory, memory, key_padding_mask=~mask, need_weights=False)[0]
    return out


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T, C), (B, T) -> (B, C): maximum over the valid rows."""
    return x.masked_fill(~mask[..., None], -torch.inf).amax(1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T, C), (B, T) -> (B, C): mean over the valid rows."""
    total = x.masked_fill(~mask[..., None], 0).sum(1)
    return total / mask.sum(1, keepdim=True)


def top_mean(x: Tensor, mask: Tensor, count: int) -> Tensor:
    """(B, T, C), (B, T) -> (B, C): mean of each channel's `count` largest values, of all where fewer rows are valid."""
    best = x.masked_fill(~mask[..., None], -torch.inf).topk(min(count, x.shape[1]), dim=1).values
    taken = mask.sum(1).clamp(max=count)  # (B,)
    valid = torch.arange(best.shape[1], device=x.device) < taken[:, None]  # (B, k): the largest come first
    return best.masked_fill(~valid[..., None], 0).sum(1) / taken[:, None]


def bilstm(inputs: int, hidden: int) -> nn.LSTM:
    """One bidirectional layer, (B, T, inputs) -> (B, T, 2 * hidden); see `recur`."""
    return nn.LSTM(inputs, hidden, batch_first=True, bidirectional=True)


def recur(layer: nn.LSTM, x: Tensor, mask: Tensor) -> Tensor:
    """A `bilstm` over the valid rows of x (B, T, C); rows of padding come out as 0."""
    if bool(mask.all()):
        whole: Tensor = layer(x)[0]
        return whole
    lengths = mask.sum(1).cpu()
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=x.shape[1])
    return out


class EncoderLayer(nn.Module):
    """Post-norm transformer layer: self-attention, then a two-layer MLP (avel.md 4.3).

    Args:
        width: channels.
        hidden: of the MLP.
        heads: of the attention.
        dropout: everywhere in the layer.
    """

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C), mask (B, T) -> (B, T, C)."""
        x = self.norm1(x + self.dropout(attend(self.self_attn, x, x, mask)))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return out


class DecoderLayer(nn.Module):
    """Post-norm transformer layer that reads a memory and has no self-attention (avel.md 4.3)."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, C), memory (B, S, C), mask (B, S) of the memory -> (B, T, C)."""
        x = self.norm1(x + self.dropout(attend(self.multihead_attn, x, memory, mask)))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return out


class Layers(nn.Module):
    """A list of layers under the name `layers`, which is part of the parameters' names in official checkpoints."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
