"""LoCo and UnAV on untrimmed videos as tasks of the training loop, and what their grids and pyramids should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avtool.detect.proposals import Proposals
from avtool.detect.softnms import detect_on_grid
from avtool.errors import UsageError
from avtool.evaluation.map import Segments, mean_ap
from avtool.models.loco import LoCo, LoCoConfig
from avtool.models.points import regression_ranges
from avtool.models.pyramid import pyramid_levels
from avtool.models.unav import UnAV, UnAVConfig
from avtool.timegrid import Grid
from avtool.training.datasets.dense import TrueEvent
from avtool.training.engine import Batch, Indices, Moment
from avtool.training.losses import Events, LoCoLoss

Floats = npt.NDArray[np.float32]
SHORTEST_CROP = 0.9  # of a clip that fits T_max (dave.md section 1, "Training crop")
KEPT_SHARE = 0.5  # of an event that a crop must hold
CROPS_TRIED = 200
FEWEST_ROWS = 6  # of the last pyramid level (dave.md 2.8)
MOST_LEVELS = 6
COVERED = 0.95  # share of the training clips that T_max holds


@dataclass(frozen=True)
class DenseClip:
    """One video: seconds, its events, the split it is in."""

    name: str
    duration: float
    events: tuple[TrueEvent, ...]
    split: str


@dataclass(frozen=True, eq=False)
class DenseData:
    """Videos with events.

    Attributes:
        classes: names.
        clips: videos.
        read: index -> visual (N, Dv) and audio (N, Da).
        reads: Dv, Da.
        grid: of the rows.
    """

    classes: tuple[str, ...]
    clips: tuple[DenseClip, ...]
    read: Callable[[int], tuple[Floats, Floats]]
    reads: tuple[int, int]
    grid: Grid

    def split(self, name: str) -> Indices:
        """Indices of the videos of a split."""
        return np.array([i for i, clip in enumerate(self.clips) if clip.split == name], np.int64)


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from durations (dave.md 2.8).

    Attributes:
        max_length: T_max in rows.
        levels: of the pyramid.
        ranges: (L, 2) shortest and longest reach in rows that each level answers for.
        short: share of the events shorter than two rows.
        covered: share of the clips that T_max holds.
    """

    max_length: int
    levels: int
    ranges: npt.NDArray[np.float32]
    short: float
    covered: float


def plan(durations: Sequence[float], lengths: Sequence[float], grid: Grid) -> Plan:
    """T_max, levels and ranges for clips and events of these lengths in seconds.

    T_max holds 95 % of the clips, rounded up to a multiple of 2^(L - 1); L is the largest, up to 6, whose last level
    has 6 rows.

    Raises:
        UsageError: there are no clips.
    """
    if not durations:
        raise UsageError("there are no clips to plan for")
    rows = np.array([grid.count(d) for d in durations])
    needed = max(1, int(np.ceil(np.quantile(rows, COVERED, method="inverted_cdf"))))
    levels = max(n for n in range(1, MOST_LEVELS + 1) if n == 1 or _rounded(needed, n) // 2 ** (n - 1) >= FEWEST_ROWS)
    length = _rounded(needed, levels)
    short = float(np.mean([x < 2 * grid.stride for x in lengths])) if lengths else 0.0
    return Plan(length, levels, regression_ranges(levels), short, float((rows <= length).mean()))


def _rounded(rows: int, levels: int) -> int:
    step = int(2 ** (levels - 1))
    return -(-rows // step) * step


class DenseTask:
    """LoCo or UnAV on whole videos.

    Args:
        kind: "loco" or "unav".
        settings: of the network; sizes that are missing are those of the data.
        data: videos.
        start: of the loss's normaliser (dave.md 2.5).
    """

    metric = "mAP"

    def __init__(self, kind: str, settings: Mapping[str, Any], data: DenseData, start: float = 250.0) -> None:
        self.kind, self.data = kind, data
        sizes = {"visual_dim": data.reads[0], "audio_dim": data.reads[1], "classes": len(data.classes)}
        self.settings = sizes | dict(settings)
        try:
            config = LoCoConfig(**self.settings) if kind == "loco" else UnAVConfig(**self.settings)
        except TypeError as error:
            raise UsageError(f"{kind} has no such setting", str(error)) from None
        self.network: nn.Module = LoCo(config) if isinstance(config, LoCoConfig) else UnAV(config)
        self.loss = LoCoLoss(config, start=start)
        self.criterion: nn.Module | None = self.loss
        self.length = _rounded(config.max_length, config.levels)
        self._train = data.split("train")

    @property
    def samples(self) -> int:
        """Videos that are trained on."""
        return len(self._train)

    def load(self, index: Indices, rng: np.random.Generator) -> Batch:
        """Crops padded to T_max, masks, and events on the grid."""
        crops = [self._crop(int(i), rng) for i in self._train[index]]
        visual, audio = (
            np.stack([_padded(x, self.length) for x in side])
            for side in ([crop[0] for crop in crops], [crop[1] for crop in crops])
        )
        rows = torch.tensor([len(crop[0]) for crop in crops])
        mask = torch.arange(self.length) < rows[:, None]
        events = [crop[2] for crop in crops]
        return {"visual": torch.from_numpy(visual), "audio": torch.from_numpy(audio), "mask": mask, "events": events}

    def _crop(self, clip: int, rng: np.random.Generator) -> tuple[Floats, Floats, Events]:
        visual, audio = self.data.read(clip)
        segments, labels = on_grid(self.data.clips[clip].events, self.data.grid)
        start, stop = choose_crop(len(visual), self.length, segments, rng)
        inside = np.clip(segments, start, stop) if len(segments) else segments
        kept = _share(segments, start, stop) >= KEPT_SHARE
        shifted = torch.from_numpy((inside[kept] - start).astype(np.float32)).reshape(-1, 2)
        return visual[start:stop], audio[start:stop], Events(shifted, torch.from_numpy(labels[kept]))

    def losses(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """See `Task`."""
        output = self.network(batch["visual"], batch["audio"], batch["mask"])
        parts = self.loss(output, self.loss.targets(batch["events"], batch["mask"].shape[1]))
        names = ("classification", "regression", "correspondence")
        return {"loss": parts.total, **{name: getattr(parts, name) for name in names}}

    def validate(self, network: nn.Module, split: str) -> Mapping[str, float]:
        """Mean average precision over tIoU 0.1 to 0.9, and at 0.5."""
        clips = self.data.split(split)
        truth = true_segments(self.data, clips)
        if not len(truth.labels):
            return {}
        found = mean_ap(truth, self.detections(network, clips))
        return {"mAP": found.average, "mAP@0.5": float(found.by_tiou[4])}

    def detections(self, network: nn.Module, clips: Indices) -> Segments:
        """What a network finds in videos, each named by its index."""
        parameter = next(network.parameters())
        found: list[tuple[int, Proposals]] = []
        for i in clips.tolist():
            inputs = [torch.from_numpy(x)[None].to(parameter) for x in self.data.read(i)]
            mask = torch.ones(inputs[0].shape[:2], dtype=torch.bool, device=parameter.device)
            clip = self.data.clips[i]
            levels = pyramid_levels(network(*inputs, mask))
            found.append((i, detect_on_grid(levels, self.data.grid, clip.duration)))
        return gathered(found)

    def memory(self) -> Mapping[str, Tensor]:
        """Nothing: the normaliser is a buffer of the loss."""
        return {}

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Task`."""


def gathered(parts: Sequence[tuple[int, Proposals]]) -> Segments:
    """Detections of several videos in one table."""
    videos = np.concatenate([np.full(len(p), i) for i, p in parts] or [np.empty(0)]).astype(np.int64)
    every = Proposals.concat([p for _, p in parts])
    return Segments(videos, every.starts, every.ends, every.labels, every.scores.astype(np.float64))


def true_segments(data: DenseData, clips: Indices) -> Segments:
    """The true events of some videos, each named by its index."""
    rows = [(i, e.start, e.end, e.label) for i in clips.tolist() for e in data.clips[i].events]
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Segments(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3].astype(np.int64))


def on_grid(events: Sequence[TrueEvent], grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Events in rows, g = (t - segment / 2) / stride (dave.md section 1): (M, 2), and labels (M,)."""
    seconds = np.array([(e.start, e.end) for e in events], np.float64).reshape(-1, 2)
    rows = (seconds - float(grid.segment) / 2) / float(grid.stride)
    return rows, np.array([e.label for e in events], np.int64)


def choose_crop(
    rows: int, longest: int, segments: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[int, int]:
    """The training crop of dave.md section 1: rows [start, stop), at least one event where the clip has any."""
    start, stop = 0, min(rows, longest)
    for _ in range(CROPS_TRIED):
        length = longest if rows > longest else int(rng.integers(max(1, round(SHORTEST_CROP * rows)), rows + 1))
        start = int(rng.integers(rows - length + 1))
        stop = start + length
        if not len(segments) or (_share(segments, start, stop) >= KEPT_SHARE).any():
            break
    return start, stop


def _share(segments: npt.NDArray[np.float64], start: int, stop: int) -> npt.NDArray[np.float64]:
    """(M,) how much of each event lies in [start, stop)."""
    inside = np.minimum(segments[:, 1], stop) - np.maximum(segments[:, 0], start)
    return np.asarray(np.maximum(inside, 0) / np.maximum(segments[:, 1] - segments[:, 0], 1e-9))


def _padded(x: Floats, rows: int) -> Floats:
    return np.pad(x, ((0, rows - len(x)), (0, 0))) if len(x) < rows else x[:rows]
