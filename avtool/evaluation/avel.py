"""What the accuracy of segment labels means: its parts, its calibration lines, its spread over seeds, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError
from avtool.evaluation.map import Segments
from avtool.evaluation.metrics import EventScores, SegmentScores, event_scores, segment_scores

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AvelScores:
    """Scores of segment labels over many clips of one length (avel.md 1.5).

    Attributes:
        segments: over all segments; its `accuracy` is the field's figure.
        with_background: over the clips that contain background in truth: there a class alone does not do; None without.
        clip_accuracy: clips whose class is right; a clip's class is its most frequent predicted event, of equals the
            lowest, or what was given.
        events: whole events, matched at IoU 0.5; one event per class and stretch.
        per_class: true class -> accuracy over the segments of its clips, ascending by class.
        clips: their number.
    """

    segments: SegmentScores
    with_background: SegmentScores | None
    clip_accuracy: float
    events: EventScores
    per_class: dict[int, float]
    clips: int


def avel_scores(
    predicted: npt.ArrayLike, truth: npt.ArrayLike, background: int, clip_classes: npt.ArrayLike | None = None
) -> AvelScores:
    """Compares segment labels of clips.

    Args:
        predicted: (V, T) labels.
        truth: (V, T) labels.
        background: label of segments without an event, e.g. 28 for AVE.
        clip_classes: (V,) predicted class of each clip; None: the most frequent one of its segments.

    Raises:
        UsageError: the shapes differ or are empty.
    """
    found, right = _table(predicted), _table(truth)
    if found.shape != right.shape or not found.size:
        raise UsageError("two tables of labels of one shape are needed", f"shapes are {found.shape} and {right.shape}")
    true_class = most_frequent(right, background)
    own_class = most_frequent(found, background) if clip_classes is None else np.asarray(clip_classes, np.int64)
    mixed = (right == background).any(axis=1)
    same = found == right
    return AvelScores(
        segments=segment_scores(found.ravel(), right.ravel(), background),
        with_background=segment_scores(found[mixed].ravel(), right[mixed].ravel(), background) if mixed.any() else None,
        clip_accuracy=float((own_class == true_class).mean()),
        events=event_scores(stretches(right, background), stretches(found, background)),
        per_class={int(c): float(same[true_class == c].mean()) for c in np.unique(true_class) if c != background},
        clips=len(right),
    )


def _table(labels: npt.ArrayLike) -> Labels:
    table = np.asarray(labels)
    if table.ndim != 2 or table.dtype.kind not in "iu":
        raise UsageError("labels are needed as whole numbers (clips, segments)", f"given {table.dtype} {table.shape}")
    return table.astype(np.int64)


def most_frequent(labels: Labels, background: int) -> Labels:
    """(V, T) labels -> (V,) the most frequent event of each clip, of equals the lowest; background without any."""
    classes = np.unique(labels[labels != background])
    if not len(classes):
        return np.full(len(labels), background, np.int64)
    counts = (labels[..., None] == classes).sum(axis=1)  # (V, C)
    return np.where(counts.any(axis=1), classes[counts.argmax(axis=1)], background)


def stretches(labels: npt.ArrayLike, background: int, seconds: float = 1.0) -> Segments:
    """Runs of one event label as events: (V, T) labels -> spans in seconds, the clip's number as its video."""
    table = _table(labels)
    edge = np.full((len(table), 1), -1)
    before = np.concatenate([edge, table[:, :-1]], axis=1)
    after = np.concatenate([table[:, 1:], edge], axis=1)
    event = table != background
    video, first = np.nonzero(event & (table != before))
    last = np.nonzero(event & (table != after))[1]
    starts, ends = (np.asarray(edge * seconds, np.float64) for edge in (first, last + 1))
    return Segments(video, starts, ends, table[video, first])


def calibration(truth: npt.ArrayLike, background: int) -> dict[str, float]:
    """Accuracies that need no network (avel.md 1.5): what a figure has to be read against.

    Returns:
        "all_background": everything is background; "oracle_class": the true class in every segment, the ceiling of
        whoever knows the class and nothing about time. On AVE's test split 0.1779 and 0.8221.
    """
    right = _table(truth)
    oracle = np.broadcast_to(most_frequent(right, background)[:, None], right.shape)
    return {
        "all_background": float((right == background).mean()),
        "oracle_class": float(((oracle == right) & (oracle != background)).mean()),
    }


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over runs that differ in their seed; NaN from one run."""

    mean: float
    std: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"{self.mean:.4f} ± {self.std:.4f} ({len(self.values)} runs)"
            if len(self.values) > 1
            else f"{self.mean:.4f}"
        )


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1) of at least one value.

    Raises:
        UsageError: there is none.
    """
    if not values:
        raise UsageError("a spread needs at least one run")
    each = tuple(float(v) for v in values)
    return Spread(float(np.mean(each)), float(np.std(each, ddof=1)) if len(each) > 1 else float("nan"), each)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often a model is right where it is so sure.

    Attributes:
        edges: (B + 1,) of the bins of confidence.
        confidence: (B,) mean in each bin, NaN where it is empty.
        accuracy: (B,) share that is right, NaN where it is empty.
        counts: (B,) predictions.
        error: expected calibration error, the mean gap between both, weighted by count.
    """

    edges: Floats
    confidence: Floats
    accuracy: Floats
    counts: Labels
    error: float


def reliability(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> Reliability:
    """Bins predictions by confidence.

    Args:
        confidence: any shape, in [0, 1].
        correct: same shape, bool.
        bins: of equal width.

    Raises:
        UsageError: shapes differ, nothing is given, or a confidence is outside [0, 1].
    """
    sure, right = np.asarray(confidence, np.float64).ravel(), np.asarray(correct, bool).ravel()
    if sure.shape != right.shape or not len(sure) or bins < 1:
        raise UsageError("a reliability diagram needs a confidence and an answer for each prediction")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise UsageError("confidences must lie in [0, 1]", f"they reach from {sure.min():g} to {sure.max():g}")
    place = np.minimum((sure * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, share = (np.bincount(place, x, bins) / counts for x in (sure, right.astype(np.float64)))
    gap = np.nansum(np.abs(mean - share) * counts) / len(sure)
    return Reliability(np.linspace(0, 1, bins + 1), mean, share, counts, float(gap))
