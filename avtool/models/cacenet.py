"""CACE-Net: audio and picture calibrate each other by co-guided attention; segments are judged event or background.

ACM MM 2024 and its public code, as specified in avel.md sections 4 to 6. Parameters have the names of the official
checkpoints; those that the official network carries without using do not exist here (see `from_official`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.errors import UsageError, WeightsError
from avtool.models.segments import (
    DecoderLayer,
    EncoderLayer,
    Layers,
    SoundGuidance,
    attend,
    bare_attention,
    bilstm,
    check_clips,
    masked_max,
    positions,
    recur,
    top_mean,
)

CHOICES = {
    "guide": ("co", "audio", "visual", "none"),
    "modality": ("av", "audio", "visual"),
    "gate_loss": ("published", "corrected"),
}
HEADS = 4
DROPOUT_INPUT, DROPOUT, DROPOUT_INTERACTION = 0.2, 0.1, 0.2
BEST_SEGMENTS = 4  # per class, of a modality's class scores
NOISE = 0.1  # standard deviation of what is added for the noisy copy


@dataclass(frozen=True)
class CACENetConfig:
    """Every size and switch of CACE-Net; the defaults are the 80.80 % row of the paper (avel.md 4 and 5.7).

    Attributes:
        visual_dim: Cv, channels of the visual map: 512 (VGG-19) or 2048 (ResNet-50).
        audio_dim: Ca: 128 (VGGish), or another one, e.g. 2048 (Cnn14), which a linear layer projects to 128.
        classes: event classes, without background.
        visual_width: channels after the visual projection.
        audio_width: channels of the sound; other widths of `audio_dim` are projected to it.
        width: channels of the temporal model and the heads (d_model).
        guide: co (AVCA), audio (sound guides the picture: the paper's baseline), visual (picture guides sound) or none.
        contrast: whether the contrastive branch exists at all; `forward` has a switch for its late start.
        lambda_: weight of the contrast-enhanced feature; "lambda" in settings (see `from_settings`).
        psi: strength of the audio calibration.
        beta: strength of the visual calibration.
        alpha: strength of the cross-modal gate.
        gamma: weight of the class scores of the single modalities.
        tau: temperature of the contrast.
        contrast_class_head: classes from the enhanced feature instead of F_av (last row of the paper's Table 2).
        modality: av, or one alone: the other input is zero and `guide` becomes none.
        contrast_weight: of the contrastive loss.
        gate_loss: published feeds the gate's probability to a with-logits loss; corrected to a loss on probabilities.
    """

    visual_dim: int = 512
    audio_dim: int = 128
    classes: int = 28
    visual_width: int = 512
    audio_width: int = 128
    width: int = 256
    guide: Literal["co", "audio", "visual", "none"] = "co"
    contrast: bool = True
    lambda_: float = 0.6
    psi: float = 0.3
    beta: float = 0.4
    alpha: float = 0.1
    gamma: float = 0.3
    tau: float = 0.01
    contrast_class_head: bool = False
    modality: Literal["av", "audio", "visual"] = "av"
    contrast_weight: float = 1.0
    gate_loss: Literal["published", "corrected"] = "published"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                what = f"{name} = {getattr(self, name)!r} is no setting of CACE-Net"
                raise UsageError(what, hint=f"one of {', '.join(choices)}")
        for name in ("visual_dim", "audio_dim", "classes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} is too small", hint="at least 1")
        for name in ("visual_width", "audio_width", "width"):
            if getattr(self, name) < 4 or getattr(self, name) % 4:
                raise UsageError(f"{name} = {getattr(self, name)} does not fit 4 heads", hint="a multiple of 4")
        if self.tau <= 0:
            raise UsageError(f"tau = {self.tau} is no temperature", hint="above 0; 0.01 is published")
        if self.modality != "av":
            object.__setattr__(self, "guide", "none")  # nothing is left that could guide

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CACENetConfig:
        """From settings by name as in a TOML file, where `lambda_` is "lambda".

        Raises:
            UsageError: there is no such setting, or its value is none.
        """
        given = {("lambda_" if name == "lambda" else name): value for name, value in settings.items()}
        known = {f.name for f in fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise UsageError(f"CACE-Net has no setting {unknown[0]!r}", hint=f"one of {', '.join(sorted(known))}")
        return cls(**given)


@dataclass(frozen=True)
class CACENetOutput:
    """What CACE-Net says about a batch of B clips of T segments; batch first throughout.

    Attributes:
        events: (B, T) logits of "an event" (evt).
        classes: (B, C) class logits of the whole clip (cls).
        gate: (B, T) product of both modalities' gate probabilities.
        scores: (B, C) mean class scores of the single modalities (av).
        query: (B, T, d) unit vectors of the contrast, d = 256, and
        key: (B, T, d) those of the noisy copy.
        attention: (B, T, N) where the sound looks in each picture, rows sum to 1; None for guide visual and none.
        mask: (B, T) valid segments.
    """

    events: Tensor
    classes: Tensor
    gate: Tensor
    scores: Tensor
    query: Tensor
    key: Tensor
    attention: Tensor | None
    mask: Tensor

    def labels(self, threshold: float = 0.5) -> Tensor:
        """(B, T) label of every segment: the clip's best class where an event is likelier than `threshold`, else C.

        The background's index is the number of classes (28 for AVE).
        """
        best = self.classes.argmax(1, keepdim=True).expand_as(self.events)
        return torch.where(self.events.sigmoid() > threshold, best, self.classes.shape[1])

    def curve(self) -> Tensor:
        """(B, T, C) probability of an event times probability of its class, 0 on padded rows."""
        event = self.events.sigmoid() * self.mask
        return event[..., None] * self.classes.softmax(1)[:, None]


class CoGuidance(SoundGuidance):
    """Both modalities calibrate each other, segment by segment (avel.md 4.2); only what `guide` needs exists."""

    def __init__(self, guide: str, v: int, a: int) -> None:
        if guide in ("co", "audio"):
            super().__init__(v, a)
        else:
            nn.Module.__init__(self)
        self.guide = guide
        half, quarter = v // 2, v // 4
        self.video_query, self.video_key = nn.Linear(v, quarter), nn.Linear(v, quarter)
        self.video_value, self.v_norm = nn.Linear(v, v), nn.LayerNorm(v)
        if guide in ("co", "audio"):
            self.affine_video_3, self.affine_video_ave = nn.Linear(v, half), nn.Linear(v, half)
            self.ave_v_att = nn.Linear(half, 1)
        if guide == "co":
            self.video_query2, self.video_key2 = nn.Linear(v, quarter), nn.Linear(v, quarter)
            self.video_value2 = nn.Linear(v, v)
        if guide in ("co", "visual"):
            self.audio_query, self.audio_key, self.audio_value = (nn.Linear(a, a) for _ in range(3))
            self.a_norm = nn.LayerNorm(a)
            self.v_query, self.vaudio_key, self.vaudio_value = nn.Linear(v, a), nn.Linear(a, a), nn.Linear(a, a)
        self.dropout = nn.Dropout(DROPOUT_INPUT)

    def forward(
        self, x: Tensor, a: Tensor, mask: Tensor, beta: float, psi: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (B, T, N, v), a (B, T, a), mask (B, T) -> v (B, T, v), a' (B, T, a), attention (B, T, N) or None."""
        g1 = self.v_norm(x + self.dropout(self._spatial(x, "")))
        v, where = x.mean(2), None
        if self.guide in ("co", "audio"):
            v, where = self.look(x, g1, a)
            v = v + beta * self._calibration(g1).sigmoid() * v
        if self.guide == "audio":
            return v, a, where
        g2 = self.v_norm(x + self.dropout(self._spatial(x, "2"))) if self.guide == "co" else g1
        return v, a + psi * self._audio_calibration(g2, a, mask).sigmoid() * a, where

    def _spatial(self, x: Tensor, copy: str) -> Tensor:
        """Self-attention over the positions of each picture, (B, T, N, 512)."""
        query, key, value = (getattr(self, f"video_{part}{copy}")(x) for part in ("query", "key", "value"))
        return bare_attention(query, key, value)

    def _calibration(self, g: Tensor) -> Tensor:
        """cal_v (B, T, 512): positions weighted by how well they agree with the mean picture."""
        e = F.relu(self.affine_video_3(g)) * F.relu(self.affine_video_ave(g.mean(2, keepdim=True)))
        weight = self.ave_v_att(e).tanh().softmax(2)  # (B, T, N, 1)
        total: Tensor = (weight * g).sum(2)
        return total

    def _audio_calibration(self, g: Tensor, a: Tensor, mask: Tensor) -> Tensor:
        """cal_a (B, T, 128): sound in the context of the clip, asked for by the picture."""
        own = bare_attention(self.audio_query(a), self.audio_key(a), self.audio_value(a), mask)
        a = self.a_norm(a + self.dropout(own))
        return bare_attention(self.v_query(g.mean(2)), self.vaudio_key(a), self.vaudio_value(a), mask)


class Recurrence(nn.Module):
    """One BiLSTM per modality: v -> v channels, a -> 2a."""

    def __init__(self, v: int, a: int) -> None:
        super().__init__()
        self.audio_rnn, self.visual_rnn = bilstm(a, a), bilstm(v, v // 2)


class Encoder(nn.Module):
    """A projection and two post-norm layers."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.affine_matrix = nn.Linear(inputs, width)
        self.encoder = Layers(*(EncoderLayer(width, 4 * width, HEADS, DROPOUT) for _ in range(2)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, 256)."""
        x = self.affine_matrix(x)
        for layer in self.encoder.layers:
            x = layer(x, mask)
        return x


class Decoder(nn.Module):
    """Own stream as query; memory is the other modality's encoding followed by the query itself."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.affine_matrix = nn.Linear(inputs, width)
        self.decoder = Layers(DecoderLayer(width, 2 * width, HEADS, DROPOUT))

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, inputs), other (B, T, 256) -> (B, T, 256)."""
        x = self.affine_matrix(x)
        out: Tensor = self.decoder.layers[0](x, torch.cat((other, x), 1), torch.cat((mask, mask), 1))
        return out


class Interaction(nn.Module):
    """Attention of the product of two streams on both, one after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.video_multihead = nn.MultiheadAttention(width, HEADS, DROPOUT_INTERACTION, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """x, y (B, T, 256) -> (B, T, 256)."""
        g = x * y
        found = attend(self.video_multihead, g, torch.cat((y, x), 1), torch.cat((mask, mask), 1))
        out: Tensor = self.norm1(g + self.dropout(found))
        return out


class Heads(nn.Module):
    """Event logits, class logits and the contrast's projection."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, 1)
        self.encoder_q = nn.Sequential(nn.Linear(width, width))
        self.event_classifier = nn.Linear(width, classes)


class CACENet(nn.Module):
    """The network of avel.md section 4, with the live parameters alone.

    Example:
        >>> network = CACENet(CACENetConfig()).eval()
        >>> output = network(torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128))
        >>> output.labels().shape
        torch.Size([2, 10])
    """

    def __init__(self, config: CACENetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CACENetConfig()
        v, a, width = config.visual_width, config.audio_width, config.width
        self.spatial_channel_att = CoGuidance(config.guide, v, a) if config.guide != "none" else None
        self.v_fc = nn.Linear(config.visual_dim, v)
        self.a_fc = nn.Linear(config.audio_dim, a) if config.audio_dim != a else None
        self.video_encoder, self.audio_encoder = Encoder(v, width), Encoder(2 * a, width)
        self.video_decoder, self.audio_decoder = Decoder(v, width), Decoder(2 * a, width)
        self.audio_visual_rnn_layer = Recurrence(v, a)
        self.audio_gated, self.video_gated = (nn.Sequential(nn.Linear(width, 1)) for _ in range(2))
        self.AVInter, self.VAInter = Interaction(width), Interaction(width)
        self.localize_module = Heads(width, config.classes)
        self.audio_cas, self.video_cas = nn.Linear(width, config.classes), nn.Linear(width, config.classes)
        self.dropout = nn.Dropout(DROPOUT_INPUT)

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        mask: Tensor | None = None,
        *,
        contrast: bool = True,
        noise: Tensor | None = None,
    ) -> CACENetOutput:
        """Scores of every segment.

        Args:
            visual: (B, T, 7, 7, Cv) channels last; (B, T, N, Cv) for another map, (B, T, Cv) for pooled features.
            audio: (B, T, Ca).
            mask: (B, T) bool, True = valid, valid rows first; None: all. What stands on padded rows is never read.
            contrast: the published switch, off in the first eighth of the epochs: without it the event head reads
                F_av alone. Has no effect where the configuration has no contrast.
            noise: (B, T, 256) standard normal, for the noisy copy; None draws it, as the official code does even in
                evaluation, in its order (T, B, 256). Changes nothing but `key`.

        Raises:
            UsageError: the tensors do not fit each other or the network.
        """
        mask = check_clips(visual, audio, mask, self.config.visual_dim, self.config.audio_dim)
        x, a = positions(visual, mask), audio.masked_fill(~mask[..., None], 0)
        if self.config.modality == "audio":
            x = torch.zeros_like(x)
        if self.config.modality == "visual":
            a = torch.zeros_like(a)
        x = self.dropout(F.relu(self.v_fc(x)))  # (B, T, N, 512)
        a = a if self.a_fc is None else self.a_fc(a)
        v, a, where = self._guided(x, a, mask)
        fused, gate, scores = self._temporal(v, a, mask)
        return self._heads(fused, gate, scores, where, mask, contrast and self.config.contrast, noise)

    def _guided(self, x: Tensor, a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.spatial_channel_att is None:
            return x.mean(2), a, None
        v, a, where = self.spatial_channel_att(x, a, mask, self.config.beta, self.config.psi)
        return v, a, where

    def _temporal(self, v: Tensor, a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v (B, T, 512), a (B, T, 128) -> F_av (B, T, 256), gate (B, T), class scores (B, C) (avel.md 4.3)."""
        v = recur(self.audio_visual_rnn_layer.visual_rnn, v, mask)
        a = recur(self.audio_visual_rnn_layer.audio_rnn, a, mask)
        v_memory, a_memory = self.video_encoder(v, mask), self.audio_encoder(a, mask)
        v_out, a_out = self.video_decoder(v, a_memory, mask), self.audio_decoder(a, v_memory, mask)
        v_gate, a_gate = self.video_gated(v_memory).sigmoid(), self.audio_gated(a_memory).sigmoid()  # (B, T, 1)
        v_out = v_out * (1 + self.config.alpha * a_gate)
        a_out = a_out * (1 + self.config.alpha * v_gate)
        each = ((self.video_cas, v_out), (self.audio_cas, a_out))
        scores = [top_mean(head(out), mask, BEST_SEGMENTS) for head, out in each]
        v_out = self.AVInter(v_out, a_out, mask)
        a_out = self.VAInter(a_out, v_out, mask)  # reads the updated visual stream
        return (v_out + a_out) / 2, (v_gate * a_gate)[..., 0], (scores[0] + scores[1]) / 2

    def _heads(
        self,
        fused: Tensor,
        gate: Tensor,
        scores: Tensor,
        where: Tensor | None,
        mask: Tensor,
        contrast: bool,
        noise: Tensor | None,
    ) -> CACENetOutput:
        """Heads on F_av (B, T, 256) (avel.md 4.4)."""
        heads = self.localize_module
        if noise is None:
            noise = torch.randn(fused.shape[1], fused.shape[0], fused.shape[2]).transpose(0, 1).to(fused)
        if noise.shape != fused.shape:
            raise UsageError(f"noise has the shape {tuple(noise.shape)}", f"these clips need {tuple(fused.shape)}")
        enhanced = F.relu(heads.encoder_q(fused))
        noisy = F.relu(heads.encoder_q(fused + NOISE * noise.to(fused)))
        strong = fused + self.config.lambda_ * enhanced if contrast else fused
        best = masked_max(strong if self.config.contrast_class_head else fused, mask)
        return CACENetOutput(
            events=heads.classifier(strong)[..., 0],
            classes=heads.event_classifier(best) + self.config.gamma * scores,
            gate=gate,
            scores=scores,
            query=F.normalize(enhanced, dim=-1),
            key=F.normalize(noisy, dim=-1),
            attention=where,
            mask=mask,
        )


# ---- official checkpoints ----------------------------------------------------------------------------------

# modules that the official network has and never uses (avel.md 4.5)
_UNUSED = (
    "spatial_channel_att.v_norm2.",
    "spatial_channel_att.ave_bottleneck.",
    *(f"{side}_{part}.{part}_layer." for side in ("video", "audio") for part in ("encoder", "decoder")),
    *(f"{side}_decoder.decoder.layers.0.self_attn." for side in ("video", "audio")),
)


def from_official(
    state: Mapping[str, Tensor], config: CACENetConfig | None = None, dtype: torch.dtype = torch.float32
) -> CACENet:
    """A network with the weights of an official checkpoint, in evaluation mode.

    The prefix `module.` is stripped, float64 becomes `dtype`, parameters without use are left out: the official dead
    ones, those that `config.guide` does not need, and `a_fc` where the sound needs no projection.

    Args:
        state: the official state dict by name, e.g. of `torch.load(file, weights_only=True)`.
        config: of the network; None: sizes from the checkpoint, the rest as published.
        dtype: of the parameters.

    Raises:
        WeightsError: a tensor is missing, foreign, of another shape, or not finite.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    with torch.device("meta"):
        network = CACENet(config or _published(tensors))
        # a network with everything says which names are official
        known = CACENet(CACENetConfig(audio_dim=2 * CACENetConfig.audio_width)).state_dict().keys()
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors:
            raise _refused(f"tensor {name} is missing")
        if name not in own and name not in known and not name.startswith(_UNUSED):
            raise _refused(f"tensor {name} is not part of CACE-Net")
        if name in own and tensors[name].shape != own[name].shape:
            raise _refused(f"tensor {name} has shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}")
        if name in own and not bool(tensors[name].isfinite().all()):
            raise _refused(f"tensor {name} holds NaN or infinity")
    network.load_state_dict({name: tensors[name].detach().to(dtype, copy=True) for name in own}, assign=True)
    return network.eval()


def _published(tensors: Mapping[str, Tensor]) -> CACENetConfig:
    """The configuration of a checkpoint: sizes from its tensors, the rest as published."""
    try:
        visual_width, visual_dim = tensors["v_fc.weight"].shape
        classes, width = tensors["localize_module.event_classifier.weight"].shape
        _, audio_width = tensors["audio_visual_rnn_layer.audio_rnn.weight_ih_l0"].shape
    except (KeyError, ValueError):
        raise _refused("v_fc, audio_rnn or the class head is missing") from None
    projection = tensors.get("a_fc.weight")  # 128 -> 128 and without use where the sound is VGGish
    audio_dim = audio_width if projection is None or projection.ndim != 2 else projection.shape[1]
    return CACENetConfig(visual_dim, audio_dim, classes, visual_width, audio_width, width)


def _refused(why: str) -> WeightsError:
    return WeightsError("this is no checkpoint of CACE-Net", why, "give the official file as it was published")
