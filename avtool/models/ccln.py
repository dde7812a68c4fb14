"""A CCLN-style network: our reading of the abstract of "Listen With Seeing" (IEEE TMM 2025, 10.1109/TMM.2025.3535359).

The paper's: a backbone and a branch network; fusion, interaction, integration; SBI, a bi-modal attention with one gated
audio-visual correlation matrix, guided by the fused information; FEE, which pushes event segments away from the scene
around them by adaptive weights in training; WCCL, where video labels align both branches and both modalities.
Ours: everything else, that is every equation, size and weight (avel.md 9.2). Neither code, equations nor numbers of the
paper were available; results of this network are not results of CCLN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.errors import UsageError
from avtool.models.segments import (
    EncoderLayer,
    SoundGuidance,
    bilstm,
    check_clips,
    masked_max,
    positions,
    recur,
)

CHOICES = {"sbi": ("gated", "ungated", "off"), "supervision": ("full", "weak")}
GATE_START = 2.0  # bias of the gate: 0.88 open
GATE_FLOOR = 1e-6  # added to a gate before its logarithm
EVENT_SHARPNESS = 0.5  # weak: temperature of the softmax over time
PROJECTED = 128  # width of the contrasts' embeddings


@dataclass(frozen=True)
class CCLNConfig:
    """Sizes and switches (avel.md 9.2 and 9.3).

    Attributes:
        visual_dim: channels of the visual map.
        audio_dim: sound features; another width than `audio_width` is projected.
        classes: event classes, without background.
        visual_width, audio_width, width: channels after the projections, and of everything later.
        heads: of the SBI; the encoder layers have the same.
        layers: SBI layers.
        sbi: gated, ungated (every gate open) or off (no interaction).
        sbi_fusion: whether the gate is computed from the fused stream, or from the two streams themselves.
        fee: whether events are emphasised, and its loss counts.
        wccl: whether video labels align the branches and the modalities.
        branch: whether the branch network exists; without it WCCL aligns the modalities alone.
        supervision: full (segment labels) or weak (video labels).
        kappa: how much a boundary adds to the emphasis.
        dropout: everywhere.
        fee_weight, wccl_weight, branch_weight: in the loss.
        tau: temperature of WCCL.
    """

    visual_dim: int = 512
    audio_dim: int = 128
    classes: int = 28
    visual_width: int = 512
    audio_width: int = 128
    width: int = 256
    heads: int = 4
    layers: int = 2
    sbi: Literal["gated", "ungated", "off"] = "gated"
    sbi_fusion: bool = True
    fee: bool = True
    wccl: bool = True
    branch: bool = True
    supervision: Literal["full", "weak"] = "full"
    kappa: float = 1.0
    dropout: float = 0.1
    fee_weight: float = 0.1
    wccl_weight: float = 0.1
    branch_weight: float = 0.5
    tau: float = 0.1

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                what = f"{name} = {getattr(self, name)!r} is no setting of CCLN"
                raise UsageError(what, hint=f"one of {', '.join(choices)}")
        for name in ("visual_dim", "audio_dim", "classes", "heads", "layers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} is too small", hint="at least 1")
        for name, parts in (("visual_width", 2), ("audio_width", 1), ("width", 2 * self.heads)):
            if getattr(self, name) < parts or getattr(self, name) % parts:
                raise UsageError(f"{name} = {getattr(self, name)} does not fit", hint=f"a multiple of {parts}")
        if self.tau <= 0:
            raise UsageError(f"tau = {self.tau} is no temperature", hint="above 0")


@dataclass(frozen=True)
class View:
    """What one branch says.

    Attributes:
        events: (B, T) logits of "an event".
        classes: (B, C) class logits of the clip; weak: (B, C + 1) with background, weighted over time by the events.
        segments: (B, T, C + 1) class logits of the segments, weak supervision alone.
        states: (B, T, d) what the heads read.
    """

    events: Tensor
    classes: Tensor
    segments: Tensor | None
    states: Tensor


@dataclass(frozen=True)
class CCLNOutput:
    """What the network says about a batch of B clips of T segments.

    Attributes:
        main: of the backbone, which alone is used for inference.
        branch: of the branch network, or None.
        early: (B, T) logits of the pre-score of FEE, or None.
        boundary: (B, T, 128) unit vectors that FEE separates, or None.
        pooled: (B, 128) unit vectors of the clip from backbone, branch, picture and sound, those of them that exist.
        mask: (B, T) valid segments.
        background: index of the label "no event".
    """

    main: View
    branch: View | None
    early: Tensor | None
    boundary: Tensor | None
    pooled: dict[str, Tensor]
    mask: Tensor
    background: int

    def labels(self, threshold: float = 0.5) -> Tensor:
        """(B, T) label of every segment: background unless its event is likelier than `threshold`, else the clip's."""
        best = self.main.classes[:, : self.background].argmax(1, keepdim=True).expand_as(self.main.events)
        return torch.where(self.main.events.sigmoid() > threshold, best, self.background)

    def curve(self) -> Tensor:
        """(B, T, C) probability of an event times probability of its class, 0 on padded rows."""
        event = self.main.events.sigmoid() * self.mask
        return event[..., None] * self.main.classes[:, : self.background].softmax(1)[:, None]


class SBI(nn.Module):
    """One layer of bi-modal interaction: one correlation matrix for both directions, gated pair by pair.

    The paper's: one audio-visual correlation matrix, gated, with fused information. Ours: gating in log space (a closed
    gate removes its pair), the strength of the widest open gate on each message, the bias per head, the update of f.
    """

    def __init__(self, config: CCLNConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.open, self.fused = config.heads, config.sbi == "ungated", config.sbi_fusion
        self.query, self.key = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.gate_query, self.gate_key = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.gate_bias = nn.Parameter(torch.full((config.heads, 1, 1), GATE_START))
        self.value_audio, self.value_visual = nn.Linear(d, d), nn.Linear(d, d)
        self.out_visual, self.out_audio = nn.Linear(d, d), nn.Linear(d, d)
        self.norm_visual, self.norm_audio, self.norm_fused = (nn.LayerNorm(d) for _ in range(3))
        self.feed_visual, self.feed_audio = (_FeedForward(d, config.dropout) for _ in range(2))
        self.update = nn.Linear(2 * d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_v: Tensor, x_a: Tensor, f: Tensor, mask: Tensor, gate: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both streams after hearing of each other, and the fused stream after both.

        Args:
            x_v, x_a, f: (B, T, d).
            mask: (B, T).
            gate: (B, H, T, T) to use in place of the learnt one, video rows and audio columns.
        """
        if gate is None:
            gate = self.gate(x_v, x_a, f)
        m_v, m_a = self.messages(x_v, x_a, gate, mask)
        y_v = self.feed_visual(self.norm_visual(x_v + self.dropout(self.out_visual(m_v))))
        y_a = self.feed_audio(self.norm_audio(x_a + self.dropout(self.out_audio(m_a))))
        return y_v, y_a, self.norm_fused(f + self.update(torch.cat((y_v, y_a), -1)))

    def correlation(self, x_v: Tensor, x_a: Tensor) -> Tensor:
        """(B, H, T, T) scaled products of picture (rows) and sound (columns)."""
        q, k = self._split(self.query(x_v)), self._split(self.key(x_a))
        scores: Tensor = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        return scores

    def gate(self, x_v: Tensor, x_a: Tensor, f: Tensor) -> Tensor:
        """(B, H, T, T) in (0, 1): how far each pair is let through."""
        rows, columns = (f, f) if self.fused else (x_v, x_a)
        q, k = self._split(self.gate_query(rows)), self._split(self.gate_key(columns))
        learnt: Tensor = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5 + self.gate_bias).sigmoid()
        return torch.ones_like(learnt) if self.open else learnt

    def messages(self, x_v: Tensor, x_a: Tensor, gate: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each modality hears from the other, (B, T, d) each, before the output maps."""
        gate = gate * mask[:, None, None] * mask[:, None, :, None]
        logits = self.correlation(x_v, x_a) + torch.log(gate + GATE_FLOOR)
        to_v = logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(3)
        to_a = logits.masked_fill(~mask[:, None, :, None], -torch.inf).softmax(2).transpose(2, 3)
        # without the widest gate's strength a row whose gates are all closed would still hear a full message
        m_v = gate.amax(3)[..., None] * (to_v @ self._split(self.value_audio(x_a)))
        m_a = gate.amax(2)[..., None] * (to_a @ self._split(self.value_visual(x_v)))
        return m_v.transpose(1, 2).flatten(2), m_a.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, H, T, d / H)."""
        return torch.unflatten(x, 2, (self.heads, -1)).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.norm = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            nn.LayerNorm(width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.dropout(self.second(self.dropout(F.relu(self.first(x))))))
        return out


class FEE(nn.Module):
    """Emphasises event segments, most of all those at a boundary (the formula is ours)."""

    def __init__(self, width: int, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa
        self.score, self.emphasis = nn.Linear(width, 1), nn.Linear(width, width)
        self.project = nn.Linear(width, PROJECTED)

    def forward(self, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, T, d) -> z' (B, T, d), logits of the pre-score (B, T), unit vectors (B, T, 128)."""
        logits = self.score(z)[..., 0]
        p = logits.sigmoid()
        weight = p * (1 + self.kappa * boundary(p, mask))
        return z + weight[..., None] * F.relu(self.emphasis(z)), logits, F.normalize(self.project(z), dim=-1)


def boundary(p: Tensor, mask: Tensor) -> Tensor:
    """(B, T) how much a segment's score differs from its neighbours', clipped to [0, 1]; a missing one adds 0."""
    step = (p[:, 1:] - p[:, :-1]).abs() * (mask[:, 1:] & mask[:, :-1])
    return (F.pad(step, (1, 0)) + F.pad(step, (0, 1))).clamp(max=1)


class Heads(nn.Module):
    """Event and class logits of one branch."""

    def __init__(self, config: CCLNConfig) -> None:
        super().__init__()
        self.weak = config.supervision == "weak"
        self.event = nn.Linear(config.width, 1)
        self.classes = nn.Linear(config.width, config.classes + self.weak)

    def forward(self, z: Tensor, mask: Tensor) -> View:
        """z (B, T, d)."""
        events = self.event(z)[..., 0]
        if not self.weak:
            return View(events, self.classes(masked_max(z, mask)), None, z)
        segments = self.classes(z)  # (B, T, C + 1)
        return View(events, over_time(events.sigmoid(), segments, mask), segments, z)


def over_time(events: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
    """Logits of a clip from those of its segments, the likelier an event the more (avel.md 9.2, "Weak").

    Args:
        events: (B, T) probabilities of an event.
        segments: (B, T, K) logits.
        mask: (B, T).

    Returns:
        (B, K).
    """
    share = (events / EVENT_SHARPNESS).masked_fill(~mask, -torch.inf).softmax(1)
    return (share[..., None] * segments).sum(1)


class CCLN(nn.Module):
    """The CCLN-style network of avel.md 9.2.

    Example:
        >>> network = CCLN(CCLNConfig()).eval()
        >>> network(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128)).labels().shape
        torch.Size([2, 10])
    """

    def __init__(self, config: CCLNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CCLNConfig()
        v, a, d = config.visual_width, config.audio_width, config.width
        self.visual_in = nn.Linear(config.visual_dim, v)
        self.audio_in = nn.Linear(config.audio_dim, a) if config.audio_dim != a else None
        self.guidance = SoundGuidance(v, a)
        self.visual_rnn, self.audio_rnn = bilstm(v, d // 2), bilstm(a, d // 2)
        self.fuse, self.norm_fused = nn.Linear(3 * d, d), nn.LayerNorm(d)
        self.interaction = nn.ModuleList(SBI(config) for _ in range(config.layers if config.sbi != "off" else 0))
        self.visual_encoder, self.audio_encoder = (
            EncoderLayer(d, 4 * d, config.heads, config.dropout) for _ in range(2)
        )
        self.integrate, self.norm_joint = nn.Linear(2 * d, d), nn.LayerNorm(d)
        self.fee = FEE(d, config.kappa) if config.fee else None
        self.heads = Heads(config)
        self.branch = Branch(config) if config.branch else None
        names = (["main", "branch"] if config.branch else []) + ["visual", "audio"]
        self.projections = nn.ModuleDict({n: nn.Linear(d, PROJECTED) for n in names} if config.wccl else {})
        self.dropout = nn.Dropout(0.2)  # of the visual input, as in CACE-Net

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor | None = None) -> CCLNOutput:
        """Scores of every segment.

        Args:
            visual: (B, T, 7, 7, Cv) channels last; (B, T, N, Cv) for another map, (B, T, Cv) for pooled features.
            audio: (B, T, Ca).
            mask: (B, T) bool, True = valid, valid rows first; None: all. What stands on padded rows is never read.

        Raises:
            UsageError: the tensors do not fit each other or the network.
        """
        mask = check_clips(visual, audio, mask, self.config.visual_dim, self.config.audio_dim)
        x, a = positions(visual, mask), audio.masked_fill(~mask[..., None], 0)
        x = self.dropout(F.relu(self.visual_in(x)))  # (B, T, N, v)
        a = a if self.audio_in is None else self.audio_in(a)
        x_v, x_a = recur(self.visual_rnn, self.guidance.look(x, x, a)[0], mask), recur(self.audio_rnn, a, mask)
        alone = recur(self.visual_rnn, x.mean(2), mask)  # the picture without any sound in it
        z = self._joint(x_v, x_a, mask)
        early, apart = None, None
        if self.fee is not None:
            z, early, apart = self.fee(z, mask)
        main = self.heads(z, mask)
        branch = self.branch(alone, x_a, mask) if self.branch is not None else None
        pooled = self._pooled(main, branch, alone, x_a, mask)
        return CCLNOutput(main, branch, early, apart, pooled, mask, self.config.classes)

    def _joint(self, x_v: Tensor, x_a: Tensor, mask: Tensor) -> Tensor:
        """Fusion, interaction, integration: x_v, x_a (B, T, d) -> z (B, T, d)."""
        f = self.norm_fused(self.fuse(torch.cat((x_v, x_a, x_v * x_a), -1)))
        for layer in self.interaction:
            x_v, x_a, f = layer(x_v, x_a, f, mask)
        y_v, y_a = self.visual_encoder(x_v, mask), self.audio_encoder(x_a, mask)
        z: Tensor = self.norm_joint(self.integrate(torch.cat((y_v, y_a), -1)) + y_v * y_a + f)
        return z

    def _pooled(self, main: View, branch: View | None, v: Tensor, a: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Unit vectors (B, 128) of the clip, each stream weighted by how likely its segments are events."""
        views = {"main": main, "branch": branch, "visual": main, "audio": main}
        streams = {"main": main.states, "branch": branch.states if branch else None, "visual": v, "audio": a}
        pooled: dict[str, Tensor] = {}
        for name, project in self.projections.items():
            view, stream = views[name], streams[name]
            assert view is not None and stream is not None
            weight = (view.events.sigmoid() * mask).detach()
            weight = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
            pooled[name] = F.normalize(project((weight[..., None] * stream).sum(1)), dim=-1)
        return pooled


class Branch(nn.Module):
    """The view before fusion: both modalities side by side, without cross-modal attention; training alone."""

    def __init__(self, config: CCLNConfig) -> None:
        super().__init__()
        d = config.width
        self.conv = nn.Conv1d(2 * d, d, 3, padding=1)
        self.encoder = EncoderLayer(d, 4 * d, config.heads, config.dropout)
        self.heads = Heads(config)

    def forward(self, x_v: Tensor, x_a: Tensor, mask: Tensor) -> View:
        """x_v, x_a (B, T, d), zero on padded rows."""
        both = torch.cat((x_v, x_a), -1) * mask[..., None]
        z = F.relu(self.conv(both.transpose(1, 2))).transpose(1, 2)
        view: View = self.heads(self.encoder(z, mask), mask)
        return view
