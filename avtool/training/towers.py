"""Towers for cross-modality localization as a task of the training loop (avel.md 8.2 and 9.2, "CML")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avtool.errors import UsageError
from avtool.evaluation.cml import evaluate
from avtool.models.cmm import MatchingNetwork
from avtool.training.engine import Batch, Indices, Moment
from avtool.training.segment_losses import tower_loss
from avtool.training.segments import JUDGED_AT_ONCE, SegmentData

Floats = npt.NDArray[np.float32]


class TowerTask:
    """Embeds every segment by itself, so that where it stands cannot be read off.

    Args:
        settings: `hidden` and `width` of `MatchingNetwork`.
        data: clips, with the match splits as "train", "val" and "test".
    """

    metric = "cml"
    criterion: nn.Module | None = None

    def __init__(self, settings: Mapping[str, Any], data: SegmentData) -> None:
        self.data, self.settings = data, dict(settings)
        try:
            self.network: nn.Module = MatchingNetwork(*data.reads, **settings, unit=True)
        except TypeError as error:
            raise UsageError("the towers have no such setting", str(error)) from None
        clips = data.split("train")
        self._train = clips[(data.labels[clips] != data.background).any(1)]  # one row of AVE has no event

    @property
    def samples(self) -> int:
        """Clips that are trained on."""
        return len(self._train)

    def load(self, index: Indices, rng: np.random.Generator) -> Batch:
        """Features and targets of clips."""
        clips = self._train[index]
        visual, audio = self.data.visual(clips), self.data.audio(clips)
        events = (self.data.labels[clips] != self.data.background).astype(np.float32)
        arrays = {"visual": visual, "audio": audio, "events": events, "classes": self.data.clip_classes[clips]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def losses(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """See `Task`."""
        visual, audio = self.network(batch["visual"], batch["audio"])
        return {"loss": tower_loss(visual, audio, batch["events"], batch["classes"])}

    def validate(self, network: nn.Module, split: str) -> Mapping[str, float]:
        """Exact starts in both directions, and their mean."""
        clips = self.data.split(split)
        if not len(clips):
            return {}
        visual, audio = self.embed(network, clips)
        found = evaluate(visual, audio, self.data.labels[clips] != self.data.background, "cosine")
        a2v, v2a = found.a2v.accuracy, found.v2a.accuracy
        return {"cml": (a2v + v2a) / 2, "a2v": a2v, "v2a": v2a}

    def embed(self, network: nn.Module, clips: Indices) -> tuple[Floats, Floats]:
        """Unit vectors (K, T, width) of both media."""
        parameter, parts = next(network.parameters()), []
        with torch.inference_mode():
            for start in range(0, len(clips), JUDGED_AT_ONCE):
                part = clips[start : start + JUDGED_AT_ONCE]
                inputs = (torch.from_numpy(rows(part)).to(parameter) for rows in (self.data.visual, self.data.audio))
                parts.append([x.float().cpu().numpy() for x in network(*inputs)])
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def memory(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Task`."""
