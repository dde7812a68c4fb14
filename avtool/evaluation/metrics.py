"""Accuracies of segments, events and clips, and how sure one can be of a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.detect.proposals import Proposals
from avtool.errors import UsageError
from avtool.evaluation.map import Segments

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

BACKGROUND = -1


def segment_labels(
    events: Proposals, centres: npt.ArrayLike, thresholds: npt.ArrayLike = 0.0, background: int = BACKGROUND
) -> Indices:
    """The strongest event at each moment.

    Args:
        events: scored spans in seconds, half open; of equal scores the lower label wins.
        centres: (N,) seconds, e.g. 0.25 + 0.5 k.
        thresholds: one for all classes, or (C,) one for each: events below do not count.
        background: what a moment without an event is called.

    Returns:
        (N,) labels.
    """
    limit = np.asarray(thresholds, np.float64)
    least = np.broadcast_to(limit, events.labels.shape) if limit.ndim == 0 else limit[events.labels]
    strong = events.take(events.scores.astype(np.float64) >= least)
    times = np.asarray(centres, np.float64)
    labels = np.full(len(times), background, np.int64)
    for row in np.lexsort((-strong.labels, strong.scores)):  # the strongest writes last
        labels[(times >= strong.starts[row]) & (times < strong.ends[row])] = strong.labels[row]
    return labels


@dataclass(frozen=True)
class SegmentScores:
    """Agreement of labels per segment.

    Attributes:
        accuracy: over all segments, background being a label like any other.
        event_accuracy: over the segments that are not background in truth; NaN without any.
        background_recall: of the segments that are background in truth; NaN without any.
        balanced: mean of the recalls of all labels that occur in truth.
        event_f1: of "event or background", whatever the class.
        count: segments.
    """

    accuracy: float
    event_accuracy: float
    background_recall: float
    balanced: float
    event_f1: float
    count: int


def segment_scores(predicted: npt.ArrayLike, truth: npt.ArrayLike, background: int = BACKGROUND) -> SegmentScores:
    """Compares labels segment by segment.

    Segment accuracy mostly measures whether a clip is recognised; the parts tell how well time is.

    Args:
        predicted: (N,) labels.
        truth: (N,) labels.
        background: label of segments without an event.

    Raises:
        UsageError: the lengths differ or are 0.
    """
    found, right = np.asarray(predicted), np.asarray(truth)
    if found.shape != right.shape or not found.size:
        raise UsageError("two label rows of one length are needed", f"shapes are {found.shape} and {right.shape}")
    same, event = found == right, right != background
    recalls = [_mean(same[right == label]) for label in np.unique(right)]
    return SegmentScores(
        accuracy=_mean(same),
        event_accuracy=_mean(same[event]),
        background_recall=_mean(same[~event]),
        balanced=float(np.mean(recalls)),
        event_f1=_f1(int((event & (found != background)).sum()), int((found != background).sum()), int(event.sum())),
        count=found.size,
    )


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _f1(hits: int, found: int, true: int) -> float:
    """Harmonic mean of precision and recall; 1 where there was nothing to find and nothing was found."""
    return 2 * hits / (found + true) if found + true else 1.0


@dataclass(frozen=True)
class EventScores:
    """Agreement of whole events: precision, recall and their harmonic mean, with the counts behind them."""

    precision: float
    recall: float
    f1: float
    hits: int
    found: int
    true: int


def event_scores(truth: Segments, found: Segments, tiou: float = 0.5) -> EventScores:
    """Matches events of the same video and class one to one, the pairs of highest IoU first.

    Args:
        truth: events in any videos.
        found: events, already thresholded; scores play no part.
        tiou: least IoU of a match.

    Returns:
        Scores over all videos and classes; precision is 1 where nothing was found, recall where nothing was to find.
    """
    true, seen = _by_video_and_class(truth), _by_video_and_class(found)
    hits = sum(_matches(truth, found, true[key], seen[key], tiou) for key in true.keys() & seen.keys())
    return EventScores(
        precision=hits / len(found) if len(found) else 1.0,
        recall=hits / len(truth) if len(truth) else 1.0,
        f1=_f1(hits, len(found), len(truth)),
        hits=hits,
        found=len(found),
        true=len(truth),
    )


def _by_video_and_class(segments: Segments) -> dict[tuple[Any, Any], Indices]:
    """Positions of the segments of each video and class."""
    rows: dict[tuple[Any, Any], list[int]] = {}
    for i, key in enumerate(zip(segments.videos.tolist(), segments.labels.tolist(), strict=True)):
        rows.setdefault(key, []).append(i)
    return {key: np.array(row) for key, row in rows.items()}


def _matches(truth: Segments, found: Segments, i: Indices, j: Indices, tiou: float) -> int:
    """Number of pairs between two short lists, greedily by IoU."""
    overlap = np.minimum(truth.ends[i, None], found.ends[j]) - np.maximum(truth.starts[i, None], found.starts[j])
    overlap = np.maximum(overlap, 0.0)
    union = (truth.ends - truth.starts)[i, None] + (found.ends - found.starts)[j] - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    count = 0
    while iou.size and iou.max() >= tiou:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row, :] = iou[:, column] = -1.0
        count += 1
    return count


def clip_scores(events: Proposals, classes: int) -> Floats:
    """(C,) the best score that each class reaches in a clip, 0 for a class without an event."""
    best = np.zeros(classes)
    np.maximum.at(best, events.labels, events.scores)
    return best


def top_k(scores: npt.ArrayLike, truth: npt.ArrayLike, k: int = 1) -> npt.NDArray[np.bool_]:
    """Whether the right class is among the k best of each clip.

    A class that scores 0 was not found and never counts; of equal scores the lower class comes first.

    Args:
        scores: (V, C) from `clip_scores`.
        truth: (V,) classes.
        k: at least 1.

    Returns:
        (V,) hits; their mean is top-k accuracy.
    """
    values, right = np.asarray(scores, np.float64), np.asarray(truth, np.int64)
    own = values[np.arange(len(right)), right]
    before = (values > own[:, None]) | ((values == own[:, None]) & (np.arange(values.shape[1]) < right[:, None]))
    return np.asarray((before.sum(axis=1) < k) & (own > 0))


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds that hold it with the given probability."""

    mean: float
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike | None = None,
    *,
    groups: Sequence[Any] | npt.NDArray[Any] | None = None,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of the mean of `first - second`, both measured on the same items.

    Items that belong together (segments of a clip, seeds of a fold) are drawn together: give their group. With weights
    the mean of each draw is the weighted one, e.g. items = clips, weights = their segments.

    Args:
        first: (P,) a number per item, e.g. hit or miss.
        second: (P,) the same items of the other method; None for the mean of `first` alone.
        groups: (P,) which items are drawn together; None draws each by itself.
        weights: (P,) of the items; None for equal ones.
        level: probability that the interval holds.
        draws: samples of groups, with replacement.
        seed: of the draws.

    Raises:
        UsageError: lengths differ or are 0.
    """
    values = np.asarray(first, np.float64)
    if second is not None:
        other = np.asarray(second, np.float64)
        if other.shape != values.shape:
            raise UsageError("paired items are needed", f"shapes are {values.shape} and {other.shape}")
        values = values - other
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    if values.ndim != 1 or not len(values) or weight.shape != values.shape or len(names) != len(values):
        raise UsageError("a bootstrap needs items, with one group and one weight each")
    member = np.unique(names, return_inverse=True)[1]
    total = np.asarray(np.bincount(member, values * weight), np.float64)  # (groups,)
    mass = np.asarray(np.bincount(member, weight), np.float64)
    means = _resampled(total, mass, draws, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(total.sum() / mass.sum()), float(low), float(high), level)


def _resampled(total: Floats, mass: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(draws,) weighted means of groups drawn with replacement."""
    means = np.empty(draws)
    block = max(1, 2_000_000 // len(total))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = rng.integers(0, len(total), (size, len(total)))
        means[start : start + size] = total[drawn].sum(axis=1) / mass[drawn].sum(axis=1)
    return means
