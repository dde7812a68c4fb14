"""LoCo on ten-second clips with a label per segment (AVE, VGGSound-AVEL): the pyramid's class head alone (dave.md 2.7).

How levels are merged, the losses and the use of weak labels are not stated by the paper; they are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avtool.errors import UsageError
from avtool.models.ccln import over_time
from avtool.models.loco import LoCo, LoCoConfig
from avtool.models.segments import check_clips, positions


@dataclass(frozen=True)
class SegmentOutput:
    """What a segment classifier says about a batch.

    Attributes:
        logits: (B, T, C + 1), background last.
        visual, audio: (B, T, D) encoded streams, which the correspondence loss compares.
        mask: (B, T) valid segments.
        weak: trained with clip labels alone, which changes the rule of `labels`.
    """

    logits: Tensor
    visual: Tensor
    audio: Tensor
    mask: Tensor
    weak: bool = False

    @property
    def background(self) -> int:
        """Index of the label "no event"."""
        return self.logits.shape[2] - 1

    def events(self) -> Tensor:
        """(B, T) probability that a segment is not background."""
        return 1 - self.logits.softmax(2)[..., -1]

    def labels(self, threshold: float = 0.5) -> Tensor:
        """(B, T) labels: the likeliest of the C + 1; weak: background up to `threshold`, else the clip's best class."""
        if not self.weak:
            return self.logits.argmax(2)
        best = over_time(self.events(), self.logits, self.mask)[:, :-1].argmax(1, keepdim=True)
        return torch.where(self.events() > threshold, best.expand_as(self.mask), self.background)

    def curve(self) -> Tensor:
        """(B, T, C) probability of every event class, 0 on padded rows."""
        return self.logits.softmax(2)[..., :-1] * self.mask[..., None]


class LoCoSegments(nn.Module):
    """LoCo whose levels' class logits are brought to one row per segment and averaged.

    Args:
        visual_dim: channels of the picture features; maps are averaged over their positions.
        audio_dim: sound features.
        classes: event classes, without background.
        supervision: "full" or "weak".
        **changes: any other setting of `LoCoConfig`; the defaults are 3 levels and windows of 4.
    """

    def __init__(
        self,
        visual_dim: int = 512,
        audio_dim: int = 128,
        classes: int = 28,
        supervision: Literal["full", "weak"] = "full",
        **changes: Any,
    ) -> None:
        super().__init__()
        if supervision not in ("full", "weak"):
            raise UsageError(f"supervision = {supervision!r} is not known", hint="full or weak")
        settings: dict[str, Any] = {"levels": 3, "window": 4, "max_length": 12}
        fixed = {"regression": "none", "prior": 0.5}  # a bias of 0
        try:
            self.config = LoCoConfig(visual_dim, audio_dim, classes + 1, **(settings | changes | fixed))
        except TypeError as error:
            raise UsageError("LoCo has no such setting", str(error)) from None
        self.network, self.weak = LoCo(self.config), supervision == "weak"

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor | None = None) -> SegmentOutput:
        """Logits of every segment.

        Args:
            visual: (B, T, [H, W | N,] Cv), any T.
            audio: (B, T, Ca).
            mask: (B, T) bool, valid rows first; None: all.

        Raises:
            UsageError: the tensors do not fit each other or the network.
        """
        mask = check_clips(visual, audio, mask, self.config.visual_dim, self.config.audio_dim)
        output = self.network(positions(visual, mask).mean(2), audio, mask)
        rows = mask.shape[1]
        levels = [logits.repeat_interleave(2**k, 1)[:, :rows] for k, logits in enumerate(output.logits)]
        return SegmentOutput(torch.stack(levels).mean(0), output.visual, output.audio, mask, self.weak)
