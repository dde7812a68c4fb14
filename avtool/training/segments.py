"""Networks that label segments (CACE-Net, CCLN-style, LoCo on segments) as tasks of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avtool.errors import UsageError
from avtool.evaluation.avel import avel_scores
from avtool.models.cacenet import CACENet, CACENetConfig
from avtool.models.ccln import CCLN, CCLNConfig
from avtool.models.loco_segments import LoCoSegments
from avtool.models.pyramid import standardise
from avtool.models.segment_localizer import NETWORKS
from avtool.training.engine import Batch, Indices, Moment
from avtool.training.losses import Correspondence
from avtool.training.segment_losses import (
    SegmentTargets,
    VideoMemory,
    cace_loss,
    ccln_loss,
    loco_segment_loss,
)

Floats = npt.NDArray[np.float32]
Rows = Callable[[Indices], Floats]  # clips (K,) -> features (K, T, ...), from memory or from a file
CONTRAST_FROM = 1 / 8  # of the epochs: CACE-Net's contrast is off before (avel.md 5.2)
WEAK_FEE_FROM = 1 / 4  # of the epochs: FEE without segment labels waits for the gate (avel.md 9.2)
ENOUGH_PARTNERS = 64  # samples of a batch from which WCCL needs no memory of earlier ones (avel.md 9.2)
JUDGED_AT_ONCE = 32  # clips


@dataclass(frozen=True, eq=False)
class SegmentData:
    """Clips with a label per segment.

    Attributes:
        classes: names, without background.
        visual: features of clips, (K, T, [H, W,] Cv); audio: (K, T, Ca).
        labels: (M, T) class of each segment, `background` without an event.
        clip_classes: (M,) class of each clip; `background` for one without any event.
        valid: (M, T) segments that exist, valid ones first.
        splits: "train", "val", "test" -> (K,) clips.
        background_clips: (K,) clips without events, which weakly supervised training adds to "train".
        reads: last dimensions of the features, visual and audio.
        seconds: of a segment.
    """

    classes: tuple[str, ...]
    visual: Rows
    audio: Rows
    labels: npt.NDArray[np.int64]
    clip_classes: Indices
    valid: npt.NDArray[np.bool_]
    splits: Mapping[str, Indices]
    reads: tuple[int, int]
    background_clips: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    seconds: float = 1.0

    @property
    def background(self) -> int:
        """Index of the label "no event"."""
        return len(self.classes)

    def split(self, name: str) -> Indices:
        """Clips of a split, none if there is no such split."""
        return self.splits.get(name, np.empty(0, np.int64))


class SegmentTask:
    """One of the networks on clips with segment labels, or with clip labels alone where its supervision is weak.

    Args:
        kind: "cace", "ccln" or "loco-segments".
        settings: of the network; sizes that are missing are those of the data.
        data: clips.
    """

    metric = "accuracy"

    def __init__(self, kind: str, settings: Mapping[str, Any], data: SegmentData) -> None:
        self.kind, self.data = kind, data
        self.settings = {"visual_dim": data.reads[0], "audio_dim": data.reads[1], "classes": len(data.classes)}
        self.settings |= dict(settings)
        self.weak = settings.get("supervision") == "weak"
        if self.weak and kind == "cace":
            raise UsageError("CACE-Net has no weak mode", hint="ccln and loco-segments have one")
        self.network, self._loss, self.criterion = LOSSES[kind](self.settings)
        train = data.split("train")
        self._train = np.concatenate([train, data.background_clips]) if self.weak else train
        self._memory = VideoMemory() if kind == "ccln" else None

    @property
    def samples(self) -> int:
        """Clips that are trained on."""
        return len(self._train)

    def load(self, index: Indices, rng: np.random.Generator) -> Batch:
        """Features, mask and targets; weak: no segment label is read."""
        clips = self._train[index]
        batch = self.inputs(clips) | {"classes": torch.from_numpy(self.data.clip_classes[clips])}
        if not self.weak:
            labels = self.data.labels[clips]
            batch["events"] = torch.from_numpy((labels != self.data.background).astype(np.float32))
        return batch

    def inputs(self, clips: Indices) -> dict[str, Tensor]:
        """Features and mask of clips of any split."""
        visual, audio = self.data.visual(clips), self.data.audio(clips)
        mask = torch.from_numpy(self.data.valid[clips])
        return {"visual": torch.from_numpy(visual), "audio": torch.from_numpy(audio), "mask": mask}

    def losses(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """See `Task`; what weak supervision may not see is NaN, which would spoil any loss that read it."""
        classes = batch["classes"]
        unknown = torch.full(batch["mask"].shape, torch.nan, device=classes.device)
        targets = SegmentTargets(batch.get("events", unknown), classes)
        small = len(classes) < ENOUGH_PARTNERS
        return self._loss(self.network, batch, targets, moment, self._memory if small else None)

    def validate(self, network: nn.Module, split: str) -> Mapping[str, float]:
        """Accuracy over segments and its parts."""
        clips = self.data.split(split)
        if not len(clips):
            return {}
        parameter = next(network.parameters())
        found, wide = [], parameter.dtype
        for start in range(0, len(clips), JUDGED_AT_ONCE):
            part = self.inputs(clips[start : start + JUDGED_AT_ONCE])
            inputs = (part[name].to(parameter.device, wide) for name in ("visual", "audio"))
            found.append(network(*inputs, part["mask"].to(parameter.device)).labels().cpu().numpy())
        return segment_figures(np.concatenate(found), self.data, clips)

    def memory(self) -> Mapping[str, Tensor]:
        """Recent embeddings of WCCL."""
        memory = self._memory
        if memory is None or memory.classes is None:
            return {}
        return {"classes": memory.classes, **{f"vectors.{name}": value for name, value in memory.vectors.items()}}

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `memory`."""
        if self._memory is not None and "classes" in tensors:
            device = next(self.network.parameters()).device
            self._memory.classes = tensors["classes"].to(device)
            vectors = {name: value for name, value in tensors.items() if name.startswith("vectors.")}
            self._memory.vectors = {name.removeprefix("vectors."): v.to(device) for name, v in vectors.items()}


def segment_figures(found: npt.NDArray[np.int64], data: SegmentData, clips: Indices) -> dict[str, float]:
    """Accuracy over the valid segments, and its parts where all segments are valid."""
    truth, valid = data.labels[clips], data.valid[clips]
    figures = {"accuracy": float((found == truth)[valid].mean())}
    if valid.all():
        scores = avel_scores(found, truth, data.background)
        figures |= {"clip_accuracy": scores.clip_accuracy, "event_f1": scores.segments.event_f1}
    return figures


# ---- networks with their losses ----------------------------------------------------------------------------

Loss = Callable[[nn.Module, Batch, SegmentTargets, Moment, VideoMemory | None], Mapping[str, Tensor]]
Made = tuple[nn.Module, Loss, nn.Module | None]


def _cace(settings: Mapping[str, Any]) -> Made:
    config = CACENetConfig.from_settings(settings)

    def loss(
        network: nn.Module, batch: Batch, targets: SegmentTargets, moment: Moment, memory: VideoMemory | None
    ) -> Mapping[str, Tensor]:
        on = moment.epoch >= CONTRAST_FROM * moment.epochs
        output = network(batch["visual"], batch["audio"], batch["mask"], contrast=on)
        parts = cace_loss(output, targets, config, contrast=on)
        names = ("event", "classification", "gate", "scores", "contrast")
        return {"loss": parts.total, **{name: getattr(parts, name) for name in names}}

    return CACENet(config), loss, None


def _ccln(settings: Mapping[str, Any]) -> Made:
    try:
        config = CCLNConfig(**settings)
    except TypeError as error:
        raise UsageError("CCLN has no such setting", str(error)) from None

    def loss(
        network: nn.Module, batch: Batch, targets: SegmentTargets, moment: Moment, memory: VideoMemory | None
    ) -> Mapping[str, Tensor]:
        output = network(batch["visual"], batch["audio"], batch["mask"])
        fee = config.supervision == "full" or moment.epoch >= WEAK_FEE_FROM * moment.epochs
        parts = ccln_loss(output, targets, config, fee=fee, memory=memory)
        names = ("event", "classification", "early", "branch", "fee", "wccl")
        return {"loss": parts.total, **{name: getattr(parts, name) for name in names}}

    return CCLN(config), loss, None


def _loco(settings: Mapping[str, Any]) -> Made:
    network = LoCoSegments(**settings)
    config = network.config
    criterion = (
        Correspondence(config.width, config.max_length, config.lcf_target, config.lcf_objective)
        if config.lcf_weight
        else None
    )

    def loss(
        network: nn.Module, batch: Batch, targets: SegmentTargets, moment: Moment, memory: VideoMemory | None
    ) -> Mapping[str, Tensor]:
        output = network(batch["visual"], batch["audio"], batch["mask"])
        return {"loss": loco_segment_loss(output, targets, criterion, config.lcf_weight)}

    return network, loss, criterion


LOSSES: dict[str, Callable[[Mapping[str, Any]], Made]] = {"cace": _cace, "ccln": _ccln, "loco-segments": _loco}
assert LOSSES.keys() == NETWORKS.keys()


def standardised(data: SegmentData, sides: tuple[tuple[Floats, Floats], tuple[Floats, Floats]]) -> SegmentData:
    """The data with features as `avtool.models.pyramid.standardise` makes them."""

    def wrapped(rows: Rows, side: tuple[Floats, Floats]) -> Rows:
        return lambda index: standardise(rows(index), *side)

    return replace(data, visual=wrapped(data.visual, sides[0]), audio=wrapped(data.audio, sides[1]))
