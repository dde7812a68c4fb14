"""ActivityNet mean average precision and recall@kx of temporal detections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]  # class numbers or class names

TIOUS = tuple(np.linspace(0.1, 0.9, 9).tolist())
SAME = 1e-3  # seconds; ground truth of one class this close at both ends is one event


@dataclass(frozen=True, eq=False)
class Segments:
    """Labelled spans of time in many videos, as parallel arrays: ground truth, or detections with scores.

    Attributes:
        videos: (P,) names or numbers of the videos.
        starts: (P,) any unit.
        ends: (P,) same unit.
        labels: (P,) class names or numbers.
        scores: (P,) of detections; left out, all are 1.
    """

    videos: npt.NDArray[Any]
    starts: Floats
    ends: Floats
    labels: Labels
    scores: Floats = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        for name in ("videos", "labels"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        for name in ("starts", "ends", "scores"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if not len(self.scores):
            object.__setattr__(self, "scores", np.ones(len(self.starts)))
        lengths = {len(getattr(self, name)) for name in ("videos", "starts", "ends", "labels", "scores")}
        if len(lengths) > 1:
            raise UsageError("segments need arrays of one length", f"lengths are {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, index: Mask | Indices) -> Segments:
        """The segments at `index`: positions or a mask."""
        return Segments(
            self.videos[index], self.starts[index], self.ends[index], self.labels[index], self.scores[index]
        )


@dataclass(frozen=True, eq=False)
class MeanAP:
    """Result of `mean_ap`.

    Attributes:
        tious: (T,) thresholds.
        labels: (C,) classes of the ground truth, ascending.
        ap: (T, C) average precision, 0 for a class without detections.
        by_tiou: (T,) mean over classes: mAP at each threshold.
        average: mean over thresholds.
    """

    tious: tuple[float, ...]
    labels: Labels
    ap: Floats
    by_tiou: Floats
    average: float


def read_ground_truth(database: Mapping[str, Any], subset: str | Iterable[str] | None = None) -> Segments:
    """Ground truth of an ActivityNet-like annotation file.

    Args:
        database: the parsed JSON, or what it holds under "database": `{video: {"subset", "annotations": [{"segment":
            [start, end], "label", "label_id"}]}}`.
        subset: names of the subsets to take, any case; None takes all.

    Returns:
        Segments labelled with `label_id` where every annotation has one, else with `label`.
    """
    wanted = {s.lower() for s in ([subset] if isinstance(subset, str) else subset or ())}
    rows = [
        (video, note)
        for video, entry in database.get("database", database).items()
        if not wanted or str(entry.get("subset", "")).lower() in wanted
        for note in entry.get("annotations", ())
    ]
    key = "label_id" if all("label_id" in note for _, note in rows) else "label"
    return Segments(
        np.array([video for video, _ in rows], dtype=object),
        np.array([note["segment"][0] for _, note in rows], np.float64),
        np.array([note["segment"][1] for _, note in rows], np.float64),
        np.array([note[key] for _, note in rows]),
    )


def mean_ap(truth: Segments, detections: Segments, tious: Sequence[float] = TIOUS) -> MeanAP:
    """Mean average precision as ActivityNet, UnAV-100, ActionFormer and OpenTAD compute it.

    Ground truth that repeats an event (same class, both ends within 1e-3) counts once. Classes are those of the ground
    truth; detections of other classes, whatever their number, are ignored. Per class, detections are taken by falling
    score over all videos; each takes the free event of its video with the highest temporal IoU, if that reaches the
    threshold, and is a false alarm otherwise. The area under the precision envelope at each new recall is the AP.

    Equal scores are taken by video, start, end, so that the result does not depend on the order of the input; the
    reference's order among them is arbitrary.

    Example:
        >>> truth = Segments(["v1", "v1"], [0.0, 10.0], [4.0, 12.0], ["bark", "siren"])
        >>> found = Segments(["v1", "v1"], [0.0, 30.0], [5.0, 31.0], ["bark", "siren"], [0.9, 0.8])
        >>> mean_ap(truth, found, tious=[0.5]).by_tiou
        array([0.5])

    Args:
        truth: at least one event.
        detections: with scores; may be empty.
        tious: thresholds in (0, 1].

    Returns:
        AP for each threshold and class, and its means.

    Raises:
        UsageError: there is no ground truth.
    """
    problem = _Problem.of(truth, detections)
    hits = _match(problem, np.asarray(tious, np.float64))  # (P, T)
    ap = np.zeros((len(tious), len(problem.labels)))
    order = np.argsort(problem.rank)
    place = _place_in_group(problem.found_class[order], len(problem.labels))
    right = np.flatnonzero(np.asarray(hits.any(axis=1))[order])  # only hits make steps in recall and peaks of precision
    right = right[np.argsort(problem.found_class[order[right]], kind="stable")]
    bounds = np.searchsorted(problem.found_class[order[right]], np.arange(len(problem.labels) + 1))
    for c, (a, b) in enumerate(pairwise(bounds)):
        ap[:, c] = _average_precision(hits[order[right[a:b]]], place[right[a:b]] + 1, int(problem.events[c]))
    by_tiou = ap.mean(axis=1)
    return MeanAP(tuple(tious), problem.labels, ap, by_tiou, float(by_tiou.mean()))


def recall_at(
    truth: Segments, detections: Segments, multiples: Sequence[int] = (1, 5), tious: Sequence[float] = TIOUS
) -> Floats:
    """Recall@kx: how many events the best k·n detections of a video find, n being the number of its events.

    Counted for each class by itself and averaged over the classes of the ground truth. An event is found when any of
    these detections reaches the threshold; one detection may find several. Source: ActionFormer's `recall@kx`.

    Args:
        truth: at least one event; repeated events count once.
        detections: with scores.
        multiples: the values of k.
        tious: thresholds.

    Returns:
        (K, T) recall in [0, 1].

    Raises:
        UsageError: there is no ground truth.
    """
    problem = _Problem.of(truth, detections)
    found = np.zeros((len(multiples), len(tious), len(problem.labels)))
    for group in problem.groups():
        order = np.argsort(group.rank, axis=None)  # all rows of a block, best first
        place = _place_in_group(group.row[order], group.size)
        iou, row = group.iou[order], group.row[order]
        for i, k in enumerate(multiples):
            chosen = place < k * group.width[row]
            best = np.zeros((group.size, iou.shape[1]))
            np.maximum.at(best, row[chosen], iou[chosen])
            hit = best[..., None] >= np.asarray(tious)  # (groups, G, T)
            np.add.at(found[i].T, group.label, hit.sum(axis=1))
    recall: Floats = (found / problem.events).mean(axis=2)
    return recall


class _Block(NamedTuple):
    """Pairs (class, video) with a similar number of events, and the detections that belong to them."""

    places: Indices  # (P,) detections
    row: Indices  # (P,) pair of each
    rank: Indices  # (P,) place among all detections: score first
    iou: Floats  # (P, G) with each event of the pair, -1 beyond their number
    width: Indices  # (groups,) events of each pair
    label: Indices  # (groups,) class of each pair
    size: int  # number of pairs


@dataclass(frozen=True, eq=False)
class _Problem:
    """Ground truth and detections with classes and videos as numbers; what cannot be right is already set aside."""

    labels: Labels  # (C,)
    events: Indices  # (C,) events of each class
    truth: Segments  # sorted by pair, start, end
    truth_pair: Indices  # (E,) class * videos + video
    found: Segments  # detections of known classes
    found_class: Indices  # (P,)
    found_pair: Indices  # (P,) as truth_pair; -1 where the video has no events at all
    rank: Indices  # (P,) place by falling score, then video, start, end
    videos: int

    @classmethod
    def of(cls, truth: Segments, detections: Segments) -> _Problem:
        if not len(truth):
            raise UsageError("there is nothing to compare with", "the ground truth is empty")
        labels, truth_class = np.unique(truth.labels, return_inverse=True)
        names, truth_video = np.unique(truth.videos, return_inverse=True)
        pair = truth_class * len(names) + truth_video
        order = np.lexsort((truth.ends, truth.starts, pair))
        order = order[_first_of_same(truth.take(order), pair[order])]
        place = _position(labels, detections.labels)
        found, found_class = detections.take(place >= 0), place[place >= 0]
        place = _position(names, found.videos)
        found_pair = np.where(place >= 0, found_class * len(names) + place, -1)
        rank = np.empty(len(found), np.int64)
        rank[_by_score(found)] = np.arange(len(found))
        events = np.bincount(truth_class[order], minlength=len(labels))
        return cls(labels, events, truth.take(order), pair[order], found, found_class, found_pair, rank, len(names))

    def groups(self) -> Iterator[_Block]:
        """Blocks of pairs whose numbers of events lie between two powers of two, so that little is padded."""
        pairs, first, width = np.unique(self.truth_pair, return_index=True, return_counts=True)
        place = _position(pairs, self.found_pair)
        size = np.ceil(np.log2(width)).astype(np.int64)
        for power in np.unique(size):
            own = np.flatnonzero(size == power)
            number = np.full(len(pairs) + 1, -1)  # the last one for place -1
            number[own] = np.arange(len(own))
            index = np.flatnonzero(number[place] >= 0)
            row = number[place[index]]
            iou = self._ious(index, first[own][row], width[own][row])
            label = pairs[own] // self.videos
            yield _Block(index, row, self.rank[index], iou, width[own], label, len(own))

    def _ious(self, index: Indices, first: Indices, width: Indices) -> Floats:
        """(P, G) IoU of detections with the events [first, first + width) of their pair, -1 beyond."""
        column = np.arange(int(width.max(initial=1)))
        inside = column < width[:, None]
        event = np.where(inside, first[:, None] + column, 0)
        starts, ends = self.found.starts[index, None], self.found.ends[index, None]
        low, high = self.truth.starts[event], self.truth.ends[event]
        overlap = np.maximum(np.minimum(ends, high) - np.maximum(starts, low), 0.0)
        union = (ends - starts) + (high - low) - overlap
        iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
        return np.where(inside, iou, -1.0)


def _position(known: npt.NDArray[Any], values: npt.NDArray[Any]) -> Indices:
    """(P,) where each value stands in the ascending `known`, -1 where it does not."""
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[place] == values, place, -1)


def _by_score(found: Segments) -> Indices:
    """Order by falling score; equal scores by video, start, end."""
    order = np.argsort(-found.scores, kind="stable")
    if not np.any(np.diff(found.scores[order]) == 0):
        return order
    video = np.unique(found.videos, return_inverse=True)[1]
    return np.lexsort((found.ends, found.starts, video, -found.scores))


def _first_of_same(truth: Segments, pair: Indices) -> Mask:
    """Mask: events that do not repeat an earlier one that is kept. Input sorted by pair and start."""
    keep = np.ones(len(truth), bool)
    for lag in range(1, len(truth)):
        near = (pair[lag:] == pair[:-lag]) & (truth.starts[lag:] - truth.starts[:-lag] <= SAME)
        if not near.any():
            break
        same = near & (np.abs(truth.ends[lag:] - truth.ends[:-lag]) <= SAME)
        for later in np.flatnonzero(same) + lag:
            keep[later] &= not keep[later - lag]
    return keep


def _match(problem: _Problem, tious: Floats) -> Mask:
    """(P, T) True where a detection takes an event at a threshold."""
    hits = np.zeros((len(problem.found), len(tious)), bool)
    for block in problem.groups():
        near = np.flatnonzero(block.iou.max(axis=1, initial=-1.0) >= tious.min())
        near = near[np.lexsort((block.rank[near], block.row[near]))]
        work = _match_single if block.iou.shape[1] == 1 else _match_many
        hits[block.places[near]] = work(block.iou[near], block.row[near], block.size, tious)
    return hits


def _match_single(iou: Floats, row: Indices, size: int, tious: Floats) -> Mask:
    """(P, T) hits where each pair has one event: the best detection above the threshold takes it.

    Sorted by row, rank.
    """
    hits = np.zeros((len(iou), len(tious)), bool)
    for t, threshold in enumerate(tious):
        above = np.flatnonzero(iou[:, 0] >= threshold)
        hits[above[np.diff(row[above], prepend=-1) != 0], t] = True
    return hits


def _match_many(iou: Floats, row: Indices, size: int, tious: Floats) -> Mask:
    """(P, T) hits, the n-th detections of all pairs at once. Sorted by row, rank."""
    hits = np.zeros((len(iou), len(tious)), bool)
    taken = np.zeros((size, iou.shape[1], len(tious)), bool)
    place = np.arange(len(row)) - np.searchsorted(row, row)
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(place.max(initial=-1) + 2))
    for a, b in pairwise(bounds):
        turn = order[a:b]
        hits[turn] = _take(iou[turn], row[turn], taken, tious)
    return hits


def _take(iou: Floats, row: Indices, taken: Mask, tious: Floats) -> Mask:
    """(n, T) whether one detection of each pair finds a free event, which is taken then: `taken` (groups, G, T)."""
    free = np.where(taken[row], -1.0, iou[:, :, None])  # (n, G, T)
    hit: Mask = free.max(axis=1) >= tious
    n, t = np.nonzero(hit)
    taken[row[n], free[n, :, t].argmax(axis=1), t] = True
    return hit


def _place_in_group(row: Indices, size: int) -> Indices:
    """(P,) how many earlier entries have the same row; rows are in [0, size)."""
    order = np.argsort(row.astype(np.int16) if size < 2**15 else row, kind="stable")  # radix sort on 16 bits
    first = np.cumsum(np.bincount(row, minlength=size)) - np.bincount(row, minlength=size)
    place = np.empty(len(row), np.int64)
    place[order] = np.arange(len(row)) - first[row[order]]
    return place


def _average_precision(hits: Mask, place: Indices, events: int) -> Floats:
    """(T,) interpolated AP of one class: hits (P, T) by falling score, and the place of each among all, from 1."""
    precision = np.cumsum(hits, axis=0) / place[:, None]
    envelope = np.maximum.accumulate(np.where(hits, precision, 0.0)[::-1], axis=0)[::-1]
    area: Floats = np.where(hits, envelope, 0.0).sum(axis=0) / events  # recall grows by 1 / events at each hit
    return area
