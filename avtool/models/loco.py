"""LoCo: finds audio-visual events by attending across modalities inside local windows whose place and width are learnt.

After arXiv 2409.07967 as specified in dave.md section 2. Tensors inside are (B, C, T) with bool masks (B, 1, T); at the
border they are (B, T, C) and (B, T), True = valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.errors import UsageError
from avtool.models.blocks import Attention, ClassHead, OffsetHead, TransformerBlock, UnimodalEncoder

CHOICES = {
    "attention": ("adaptive", "fixed", "global", "none"),
    "wa_source": ("kv", "q", "both"),
    "lcf_target": ("diagonal", "smoothed", "fixed_gaussian", "learned_gaussian"),
    "lcf_objective": ("ce", "kl"),
    "reg_loss": ("diou", "giou"),
    "regression": ("class", "shared", "none"),
}
SIZES = ("visual_dim", "audio_dim", "classes", "width", "heads", "levels", "max_length", "mlp_ratio", "head_depth")


@dataclass(frozen=True)
class LoCoConfig:
    """Every size and switch of LoCo; the defaults are the published network (dave.md sections 2 and 2.9).

    Attributes:
        visual_dim: visual feature dimension.
        audio_dim: audio feature dimension.
        classes: C.
        width: D, channels of each stream; decoder and heads read 2D.
        heads: attention heads h, everywhere.
        levels: pyramid levels L, strides 1, 2, 4, ...
        window: base window w in rows of its level, even.
        unimodal_blocks: self-attention blocks per modality.
        decoder_blocks: blocks on the concatenated streams, shared by the levels.
        max_length: T_max, rows of the position table.
        mlp_ratio: hidden width of the MLPs over their input.
        head_depth: convolutions per head.
        drop_path: chance that a clip skips a residual branch in training.
        dropout: inside attention output and MLP.
        layer_scale: scale of the residual branches at the start.
        prior: probability every class starts with.
        attention: adaptive (learnt windows), fixed (plain windows), global (all keys), none (each stream alone).
        wa_source: what the windows are learnt from: the keys, the queries or both.
        regression: offsets per class, shared by the classes, or none (classification only).
        reg_loss, lcf_weight, lcf_target, lcf_objective: read by `avtool.training.losses`.
    """

    visual_dim: int
    audio_dim: int
    classes: int
    width: int = 512
    heads: int = 4
    levels: int = 6
    window: int = 8
    unimodal_blocks: int = 2
    decoder_blocks: int = 1
    max_length: int = 256
    mlp_ratio: int = 4
    head_depth: int = 3
    drop_path: float = 0.1
    dropout: float = 0.0
    layer_scale: float = 1e-4
    prior: float = 0.01
    attention: Literal["adaptive", "fixed", "global", "none"] = "adaptive"
    wa_source: Literal["kv", "q", "both"] = "kv"
    regression: Literal["class", "shared", "none"] = "class"
    reg_loss: Literal["diou", "giou"] = "diou"
    lcf_weight: float = 0.1
    lcf_target: Literal["diagonal", "smoothed", "fixed_gaussian", "learned_gaussian"] = "learned_gaussian"
    lcf_objective: Literal["ce", "kl"] = "kl"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                what = f"{name} = {getattr(self, name)!r} is no setting of LoCo"
                raise UsageError(what, hint=f"one of {', '.join(choices)}")
        for name in SIZES:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} is too small", hint="at least 1")
        if self.width % (2 * self.heads):
            raise UsageError(f"width {self.width} does not fit {self.heads} heads", hint="a multiple of 2 * heads")
        if self.window < 2 or self.window % 2:
            why = "a row sees window / 2 rows on each side"
            raise UsageError(f"window = {self.window} cannot be halved", why, "an even number")

    @classmethod
    def tiny(cls, visual_dim: int, audio_dim: int, classes: int, **changes: Any) -> LoCoConfig:
        """A network for windows of about 20 segments: below a million parameters at 1280 + 527 inputs, 87 classes."""
        small: dict[str, Any] = {"width": 64, "levels": 3, "window": 4, "unimodal_blocks": 1, "max_length": 64}
        small |= {"mlp_ratio": 2, "layer_scale": 0.1}  # so that residual branches count within a short training
        return cls(visual_dim, audio_dim, classes, **(small | changes))


@dataclass(frozen=True)
class LoCoOutput:
    """What LoCo says about a batch, level by level; level l has T_l = ceil(T / 2^l) rows.

    Attributes:
        logits: per level (B, T_l, C).
        offsets: per level (B, T_l, 2C), channels 2c and 2c + 1 the distances left and right of class c in strides of
            the level; (B, T_l, 2) with regression = "shared"; empty with "none".
        masks: per level (B, T_l), True = valid.
        visual: (B, T, D) encoded visual stream V, which the correspondence loss compares with `audio`.
        audio: (B, T, D) encoded audio stream A.
    """

    logits: tuple[Tensor, ...]
    offsets: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    visual: Tensor
    audio: Tensor


@dataclass(frozen=True)
class TargetWindows:
    """The windows learnt at one level for one direction (dave.md 2.10).

    Attributes:
        level: from 0.
        stream: the stream that keys and values come from, "visual" or "audio".
        starts: (B, h, W) first sampled position in input rows (fractional), clamped to the clip.
        ends: (B, h, W) last sampled position in input rows.
        mask: (B, W), True where a window holds a valid row.
    """

    level: int
    stream: str
    starts: Tensor
    ends: Tensor
    mask: Tensor


class WindowAdaptation(nn.Module):
    """Learns per head and base window how to move and widen it, and says where to sample (dave.md 2.4, 2 to 4)."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.linear = nn.Conv1d(channels, 2 * heads, 1)
        assert self.linear.bias is not None
        nn.init.zeros_(self.linear.weight)  # training starts at plain windows, as VSA resets its sampler
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Positions to sample.

        Args:
            x: (B, C, T) what the windows are learnt from.
            mask: (B, 1, T), valid rows first.

        Returns:
            (B, h, W, w) positions inside [0, length - 1], float32 or wider, W = ceil(T / w).
        """
        move = self.linear(F.leaky_relu(self._window_means(x, mask), 0.01))  # (B, 2h, W)
        move = move.to(torch.promote_types(move.dtype, torch.float32))  # half precision cannot tell row 200.5 from 201
        scale, offset = (part[..., None] for part in move.split(self.heads, 1))  # (B, h, W, 1)
        w = self.window
        steps = torch.arange(move.shape[2] * w, device=x.device, dtype=move.dtype).view(-1, w)  # (W, w)
        local = steps[0] - (w - 1) / 2  # (w,)
        centre = steps[:, :1] + (w - 1) / 2  # (W, 1)
        last = (mask.sum(2, keepdim=True)[..., None] - 1).clamp(min=0).to(move.dtype)  # (B, 1, 1, 1)
        positions = centre + (1 + scale) * local + offset * (w / 2)
        return torch.minimum(positions.clamp(min=0), last)

    def _window_means(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, W): mean over the valid rows of each window, 0 where there is none."""
        pad = -x.shape[2] % self.window
        sums, counts = (torch.unflatten(F.pad(y, (0, pad)), 2, (-1, self.window)).sum(3) for y in (x * mask, mask))
        return sums / counts.clamp(min=1)


def sample(x: Tensor, positions: Tensor, last: Tensor) -> Tensor:
    """Linear interpolation at fractional rows: gather the two neighbours and blend (dave.md 2.4, step 5).

    Args:
        x: (B, h, T, D').
        positions: (B, h, S) inside [0, last].
        last: (B,) last valid row, 0 at least.

    Returns:
        (B, h, S, D'); whole positions give x bit for bit, and neither value nor gradient reads a row after `last`.
    """
    low = torch.minimum(positions.detach().floor().long(), (last - 1).clamp(min=0)[:, None, None])
    high = torch.minimum(low + 1, last[:, None, None])
    share = (positions - low)[..., None].to(x.dtype)
    below, above = (x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[3])) for index in (low, high))
    return torch.lerp(below, above, share)


def window_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int) -> Tensor:
    """Attention of every row on the w + 1 rows around it (dave.md 2.4, step 6), linear in T.

    Queries are cut into blocks of w; the keys that a block can see are the 2w rows around it: no T x T matrix exists.

    Args:
        q, k, v: (B, h, T, D').
        mask: (B, 1, T) valid keys.
        window: w, even; row t sees rows t - w/2 to t + w/2.

    Returns:
        (B, h, T, D'); finite, but meaningless, for a row that sees no valid key.
    """
    length, half = q.shape[2], window // 2
    pad = -length % window
    queries = torch.unflatten(F.pad(q, (0, 0, 0, pad)), 2, (-1, window))  # (B, h, W, w, D')
    # keys, values (B, h, W, D', 2w), valid (B, 1, W, 2w)
    keys, values = (F.pad(x, (0, 0, half, half + pad)).unfold(2, 2 * window, window) for x in (k, v))
    valid = F.pad(mask, (half, half + pad)).unfold(2, 2 * window, window)
    slots = torch.arange(2 * window, device=q.device)
    ahead = slots - slots[:window, None]  # (w, 2w) key row - query row + w/2
    seen = valid[..., None, :] & (ahead >= 0) & (ahead <= window)  # (B, 1, W, w, 2w)
    scores = queries @ keys * q.shape[3] ** -0.5  # (B, h, W, w, 2w)
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    out: Tensor = (weights @ values.transpose(3, 4)).flatten(2, 3)
    return out[:, :, :length]


class WindowAttention(Attention):
    """Local cross-modal attention, with learnt target windows if `adaptation` is given (dave.md 2.4, LAC)."""

    def __init__(self, config: LoCoConfig, stride: int) -> None:
        super().__init__(config.width, config.heads, stride, config.dropout)
        self.window, self.source = config.window, config.wa_source
        channels = config.width * (2 if self.source == "both" else 1)
        adaptive = config.attention == "adaptive"
        self.adaptation = WindowAdaptation(channels, config.heads, config.window) if adaptive else None

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, k_local: Tensor, q_local: Tensor) -> Tensor:
        if self.adaptation is not None:
            both = {"kv": (k_local,), "q": (q_local,), "both": (k_local, q_local)}[self.source]
            positions = self.adaptation(torch.cat(both, 1), mask).flatten(2)[..., : k.shape[2]]  # (B, h, T)
            last = (mask.sum((1, 2)) - 1).clamp(min=0)  # (B,)
            k, v = sample(k, positions, last), sample(v, positions, last)
        return window_attention(q, k, v, mask, self.window)


def check_inputs(visual: Tensor, audio: Tensor, mask: Tensor, visual_dim: int, audio_dim: int) -> None:
    """Checks a batch of padded clips.

    Args:
        visual: (B, T, visual_dim).
        audio: (B, T, audio_dim).
        mask: (B, T) bool, valid rows first.

    Raises:
        UsageError: the tensors do not fit each other or the dimensions, or a valid row follows a padded one.
    """
    for name, x, width in (("visual", visual, visual_dim), ("audio", audio, audio_dim)):
        if x.shape != (*mask.shape, width):
            want = f"(B, T, {width}) for a mask {tuple(mask.shape)}"
            raise UsageError(f"{name} features have the shape {tuple(x.shape)}", f"the network reads {want}")
    if not mask.is_meta and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        hint = "put all valid rows first; zero the features of a row in between and leave it valid"
        raise UsageError("the mask has a valid row after a padded one", "windows end at the last valid row", hint)


class LoCo(nn.Module):
    """The network of dave.md section 2: encoders, local cross-modal pyramid, decoder, heads."""

    def __init__(self, config: LoCoConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder, self.audio_encoder = (
            UnimodalEncoder(
                inputs, config.width, _blocks(config, config.width, config.unimodal_blocks), config.max_length
            )
            for inputs in (config.visual_dim, config.audio_dim)
        )
        strides = [1] + [2] * (config.levels - 1)
        self.visual_levels, self.audio_levels = (
            nn.ModuleList(_cross_block(config, s) for s in strides) for _ in range(2)
        )
        joint = 2 * config.width
        self.decoder = nn.ModuleList(_blocks(config, joint, config.decoder_blocks))
        self.class_head = ClassHead(joint, config.width, config.classes, config.head_depth, config.prior)
        self.offset_head = None
        if config.regression != "none":
            outputs = 2 * (config.classes if config.regression == "class" else 1)
            self.offset_head = OffsetHead(joint, config.width, outputs, config.levels, config.head_depth)

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor) -> LoCoOutput:
        """Scores and offsets of every point.

        Args:
            visual: (B, T, Dv) features, any T; what stands on padded rows is never read.
            audio: (B, T, Da).
            mask: (B, T) bool, True = valid; valid rows come first.

        Returns:
            See `LoCoOutput`.

        Raises:
            UsageError: the tensors do not fit each other or the network, or a valid row follows a padded one.
        """
        check_inputs(visual, audio, mask, self.config.visual_dim, self.config.audio_dim)
        mask = mask[:, None]  # (B, 1, T)
        v, a = self.encode(visual, audio, mask)
        logits, offsets, masks = [], [], []
        for level, (v_l, a_l, mask_l) in enumerate(self._pyramid(v, a, mask)):
            z = torch.cat((v_l, a_l), 1)  # (B, 2D, T_l)
            for block in self.decoder:
                z, _ = block(z, z, mask_l)
            logits.append(self.class_head(z, mask_l).transpose(1, 2))
            if self.offset_head is not None:
                offsets.append(self.offset_head(z, mask_l, level).transpose(1, 2))
            masks.append(mask_l[:, 0])
        return LoCoOutput(tuple(logits), tuple(offsets), tuple(masks), v.transpose(1, 2), a.transpose(1, 2))

    def encode(self, visual: Tensor, audio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """visual (B, T, Dv), audio (B, T, Da), mask (B, 1, T) -> V, A (B, D, T), each modality alone."""
        visual, audio = (x.transpose(1, 2).masked_fill(~mask, 0) for x in (visual, audio))
        return self.visual_encoder(visual, mask), self.audio_encoder(audio, mask)

    @torch.no_grad()
    def target_windows(self, visual: Tensor, audio: Tensor, mask: Tensor) -> tuple[TargetWindows, ...]:
        """The learnt windows of every level and direction; arguments as `forward`; empty unless attention adapts."""
        found: list[TargetWindows] = []
        with ExitStack() as hooks:
            for stream, blocks in (("visual", self.visual_levels), ("audio", self.audio_levels)):
                for level, block in enumerate(blocks):
                    adaptation = getattr(block.attention, "adaptation", None)
                    if adaptation is not None:
                        hook = adaptation.register_forward_hook(_recorder(found, level, stream))
                        hooks.callback(hook.remove)
            self(visual, audio, mask)
        return tuple(found)

    def _pyramid(self, v: Tensor, a: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(V, A, mask) per level, (B, D, T_l) and (B, 1, T_l); both directions read the same inputs (dave.md 2.4)."""
        cross = self.config.attention != "none"
        for visual_block, audio_block in zip(self.visual_levels, self.audio_levels, strict=True):
            v_next, mask_next = visual_block(v, a if cross else v, mask)
            a, _ = audio_block(a, v if cross else a, mask)
            v, mask = v_next, mask_next
            yield v, a, mask


def _block(config: LoCoConfig, channels: int, attention: Attention | None = None, stride: int = 1) -> TransformerBlock:
    """A block with the config's rates; global self-attention unless another attention is given."""
    return TransformerBlock(
        attention or Attention(channels, config.heads, stride, config.dropout),
        channels,
        channels * config.mlp_ratio,
        stride,
        config.drop_path,
        config.dropout,
        config.layer_scale,
    )


def _blocks(config: LoCoConfig, channels: int, count: int) -> list[TransformerBlock]:
    """Self-attention blocks."""
    return [_block(config, channels) for _ in range(count)]


def _cross_block(config: LoCoConfig, stride: int) -> TransformerBlock:
    """One direction of one pyramid level."""
    local = config.attention in ("adaptive", "fixed")
    return _block(config, config.width, WindowAttention(config, stride) if local else None, stride)


def _recorder(found: list[TargetWindows], level: int, stream: str) -> Any:
    """A forward hook that notes where a `WindowAdaptation` samples, in input rows."""

    def note(module: WindowAdaptation, inputs: tuple[Tensor, Tensor], positions: Tensor) -> None:
        rows = positions * 2**level  # (B, h, W, w)
        _, mask = inputs
        valid = mask[:, 0, :: module.window]  # (B, W): valid rows come first, so a window's first row decides
        found.append(TargetWindows(level, stream, rows[..., 0], rows[..., -1], valid))

    return note
