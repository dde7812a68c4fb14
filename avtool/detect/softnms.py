"""One-dimensional Soft-NMS: of overlapping proposals the weaker fade, as if every class were worked off in full.

Scores only ever fall, so the picks of one class never rise and the best K of all classes are a K-way merge: take the
class with the highest current score, emit its best proposal, fade the rest of that class alone. The work is K times the
size of a class instead of the sum of all squared class sizes, and the products are the same, in the same order.

Source: Bodla et al., Soft-NMS (2017); semantics of ActionFormer's `nms_1d_cpu` and `batched_nms`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from avtool.detect.proposals import Proposals, from_pyramid
from avtool.errors import UsageError
from avtool.models.points import PyramidLevel
from avtool.timegrid import Grid

Method = Literal["gaussian", "linear", "hard"]
Voting = Literal["unav", "actionformer"]
Reals = npt.NDArray[np.floating[Any]]
Real = np.floating[Any]
Scores = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

METHODS = ("gaussian", "linear", "hard")
VOTINGS = ("unav", "actionformer")
EPSILON = 1e-6  # added to a length, so that touching a threshold exactly does not suppress
PART = 32  # so many times the wanted number of proposals are tried first
SAMPLE = 4096  # scores that the quantile of all is estimated from
NEAR = 1024  # classes with more proposals are sorted, so that only what lies near a pick is looked at
GONE = np.float32(-np.inf)  # current score of a proposal that was emitted or dropped


@dataclass(frozen=True, eq=False)
class Kept:
    """What Soft-NMS keeps, highest score first.

    Attributes:
        indices: (K,) positions in the input.
        starts: (K,) as given, or voted.
        ends: (K,) as given, or voted.
        scores: (K,) faded scores.
    """

    indices: Places
    starts: Reals
    ends: Reals
    scores: Scores

    def __len__(self) -> int:
        return len(self.indices)


class _Rule(NamedTuple):
    method: Method
    sigma: np.float32
    threshold: np.float32
    floor: np.float32


class _Group(NamedTuple):
    """The proposals of one class, in arrays of their own that are written in place.

    Those from `split` on are sorted by start and at most `reach` long, so that whatever overlaps one of them is near.
    """

    places: Places  # positions in the input
    starts: Reals
    ends: Reals  # -inf once it was emitted, so that it never overlaps again
    areas: Reals
    scores: Scores  # current
    split: int
    reach: float


def soft_nms(
    starts: npt.ArrayLike,
    ends: npt.ArrayLike,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    method: Method = "gaussian",
    sigma: float = 0.4,
    iou_threshold: float = 0.7,
    min_score: float = 0.001,
    max_segments: int | None = None,
    voting: Voting | None = None,
    voting_threshold: float = 0.75,
) -> Kept:
    """Keeps the best of overlapping segments and fades or drops the others.

    The highest current score is emitted (equal scores: the lower label, then the earlier start, then the earlier end);
    every other segment of its class is multiplied by a weight, then dropped if its score is below `min_score`:

        gaussian  exp(-IoU² / sigma)
        linear    1 - IoU where IoU >= iou_threshold
        hard      0 where IoU >= iou_threshold; only scores above `min_score` take part at all

    with IoU = overlap / (length_a + length_b - overlap), lengths + 1e-6. With the first two the best of a class is kept
    whatever its score.

    Scores are float32. Float32 times are compared in float32, which agrees with the reference implementation to the
    last bits; any other times in float64, for hours of seconds need it.

    Args:
        starts: (P,) any unit.
        ends: (P,) same unit, not before the starts.
        scores: (P,) not negative.
        labels: (P,) classes, which do not affect each other; None treats all segments as one class.
        method: how overlap fades a score.
        sigma: width of the Gaussian; unused otherwise.
        iou_threshold: unused by the Gaussian.
        min_score: the pruning floor above.
        max_segments: how many are kept over all classes; None for all.
        voting: with `labels` None, replaces each kept segment by the mean of all input segments whose IoU with it is at
            least `voting_threshold`, weighted by input score ("unav") or by score times IoU ("actionformer").
        voting_threshold: used by voting alone.

    Returns:
        Kept segments, highest score first.

    Raises:
        UsageError: lengths differ, a number is not finite, an option is unknown or out of range, or votes per class.
    """
    _check(method, sigma, max_segments, voting, labels)
    begin, finish, score, label = _columns(starts, ends, scores, labels)
    rule = _Rule(method, np.float32(sigma), np.float32(iou_threshold), np.float32(min_score))
    pool = np.flatnonzero(score > rule.floor) if method == "hard" else np.arange(len(score))
    for least, part in _pools(pool, score, max_segments):
        groups = [_group(members, begin, finish, score) for members in _by_class(part, label[part])]
        index, faded = _merge(groups, rule, max_segments)
        if len(index) == max_segments and faded[-1] >= least:
            break
    kept = Kept(index, begin[index], finish[index], faded)
    return kept if voting is None else _vote(kept, begin, finish, score, voting, voting_threshold)


def suppress(
    proposals: Proposals,
    *,
    class_wise: bool = True,
    method: Method = "gaussian",
    sigma: float = 0.4,
    iou_threshold: float = 0.7,
    min_score: float = 0.001,
    max_segments: int | None = None,
    voting: Voting | None = None,
    voting_threshold: float = 0.75,
) -> Proposals:
    """`soft_nms` on proposals, each class by itself or all as one; returns the candidates, highest score first."""
    kept = soft_nms(
        proposals.starts,
        proposals.ends,
        proposals.scores,
        proposals.labels if class_wise else None,
        method=method,
        sigma=sigma,
        iou_threshold=iou_threshold,
        min_score=min_score,
        max_segments=max_segments,
        voting=voting,
        voting_threshold=voting_threshold,
    )
    return Proposals(
        kept.starts.astype(np.float64), kept.ends.astype(np.float64), proposals.labels[kept.indices], kept.scores
    )


def detect_on_grid(
    levels: Sequence[PyramidLevel],
    grid: Grid,
    duration: float,
    *,
    method: Method = "gaussian",
    sigma: float = 0.4,
    min_score: float = 0.001,
    max_segments: int = 100,
) -> Proposals:
    """Detections of one whole video as UnAV and ActionFormer report them: suppressed on the grid, then in seconds.

    Args:
        levels: of the video, see `avtool.models.pyramid.pyramid_levels`.
        grid: where the rows lie; row g stands for `g * stride + segment / 2` seconds (dave.md section 1).
        duration: seconds; times are clamped to [0, duration].
        method, sigma, min_score, max_segments: see `soft_nms`; the defaults are UnAV's test settings.

    Returns:
        At most `max_segments` detections in seconds, highest score first.
    """
    found = from_pyramid(levels, Grid(Fraction(0), Fraction(1)))
    kept = soft_nms(
        found.starts.astype(np.float32),
        found.ends.astype(np.float32),
        found.scores,
        found.labels,
        method=method,
        sigma=sigma,
        min_score=min_score,
        max_segments=max_segments,
    )
    origin, stride = np.float32(grid.centre(0)), np.float32(grid.stride)
    starts, ends = (np.clip(times * stride + origin, 0, duration) for times in (kept.starts, kept.ends))
    return Proposals(starts.astype(np.float64), ends.astype(np.float64), found.labels[kept.indices], kept.scores)


def _check(
    method: str, sigma: float, max_segments: int | None, voting: str | None, labels: npt.ArrayLike | None
) -> None:
    if method not in METHODS:
        raise UsageError(f"unknown NMS method {method!r}", hint=f"one of {', '.join(METHODS)}")
    if voting is not None and voting not in VOTINGS:
        raise UsageError(f"unknown voting {voting!r}", hint=f"one of {', '.join(VOTINGS)}")
    if voting is not None and labels is not None:
        raise UsageError("voting mixes segments of all classes", hint="leave the labels out, or the voting")
    if method == "gaussian" and not sigma > 0:
        raise UsageError(f"sigma must be above 0, not {sigma}")
    if max_segments is not None and max_segments < 1:
        raise UsageError(f"max_segments must be at least 1, not {max_segments}", hint="None keeps all")


def _columns(
    starts: npt.ArrayLike, ends: npt.ArrayLike, scores: npt.ArrayLike, labels: npt.ArrayLike | None
) -> tuple[Reals, Reals, Scores, Places]:
    """The four columns as arrays of one length: times float32 or float64, scores float32, labels int64."""
    begin, finish = np.asarray(starts), np.asarray(ends)
    exact = np.float32 if begin.dtype == finish.dtype == np.float32 else np.float64
    score = np.asarray(scores, np.float32)
    label = np.zeros(score.shape, np.int64) if labels is None else np.asarray(labels, np.int64)
    if not begin.shape == finish.shape == score.shape == label.shape or score.ndim != 1:
        shapes = ", ".join(str(a.shape) for a in (begin, finish, score, label))
        raise UsageError("soft_nms needs arrays of one length", f"shapes are {shapes}")
    if not all(np.isfinite(column).all() for column in (begin, finish, score)):
        raise UsageError("soft_nms needs finite times and scores")
    return begin.astype(exact), finish.astype(exact), score, label


def _pools(pool: Places, scores: Scores, limit: int | None) -> Iterator[tuple[np.float32, Places]]:
    """Growing parts of the pool, each all that score at least the value given with it; the last is the whole pool.

    Only what is emitted fades others. So as long as the best `limit` of a part reach the part's least score, nothing
    outside the part could have come before them, and they are the best of all.
    """
    count = PART if limit is None else PART * limit
    while limit is not None and count < len(pool):
        sample = scores[pool[:: max(1, len(pool) // SAMPLE)]]
        rank = len(sample) - 1 - len(sample) * count // len(pool)
        least = np.partition(sample, rank)[rank]
        yield least, pool[scores[pool] >= least]
        count *= 8
    yield GONE, pool


def _by_class(part: Places, labels: Places) -> list[Places]:
    """The positions of each class, classes ascending."""
    small = not len(labels) or (labels.min() >= 0 and labels.max() < 2**15)
    order = np.argsort(labels.astype(np.int16) if small else labels, kind="stable")  # radix sort on 16 bits
    bounds = (np.flatnonzero(np.diff(labels[order])) + 1).tolist()
    return [part[order[a:b]] for a, b in pairwise([0, *bounds, len(order)])] if len(part) else []


def _group(index: Places, starts: Reals, ends: Reals, scores: Scores) -> _Group:
    """Picks one class from the columns of all."""
    begin, finish = starts[index], ends[index]
    split, reach = len(index), np.inf
    if len(index) > NEAR:
        lengths = finish - begin
        reach = 4 * float(np.median(lengths))
        order = np.lexsort((begin, lengths <= reach))  # the long ones first
        split = int(np.count_nonzero(lengths > reach))
        index, begin, finish = index[order], begin[order], finish[order]
    areas = finish - begin + begin.dtype.type(EPSILON)
    return _Group(index, begin, finish, areas, scores[index], split, reach)


def _merge(groups: list[_Group], rule: _Rule, limit: int | None) -> tuple[Places, Scores]:
    """K-way merge of the classes; returns positions in the input (K,) and faded scores (K,)."""
    queue = [(score, c, position) for c, (score, position) in enumerate(map(_best, groups))]
    heapq.heapify(queue)
    places: list[int] = []
    faded: list[float] = []
    while queue and (limit is None or len(places) < limit):
        score, c, position = heapq.heappop(queue)
        places.append(int(groups[c].places[position]))
        faded.append(-score)
        _emit(groups[c], position, rule)
        following, position = _best(groups[c])
        if following <= -rule.floor and following < np.inf:  # scores only fall: what is below the floor stays there
            heapq.heappush(queue, (following, c, position))
    return np.asarray(places, np.int64), np.asarray(faded, np.float32)


def _best(group: _Group) -> tuple[float, int]:
    """Minus the highest current score, and its position; of equal scores the earlier start, then the earlier end."""
    position = int(group.scores.argmax())
    score = group.scores[position]
    equal = np.flatnonzero(group.scores == score)
    if len(equal) > 1:
        position = int(equal[np.lexsort((group.ends[equal], group.starts[equal]))[0]])
    return -float(score), position


def _emit(group: _Group, best: int, rule: _Rule) -> None:
    """Takes `best` out and fades the rest."""
    start, end, area = group.starts[best], group.ends[best], group.areas[best]
    group.scores[best], group.ends[best] = GONE, -np.inf
    if group.split:
        _fade(group, slice(0, group.split), start, end, area, rule)
    if group.split < len(group.starts):
        near = group.starts[group.split :].searchsorted(np.array([start - group.reach, end])) + group.split
        _fade(group, slice(int(near[0]), int(near[1])), start, end, area, rule)


def _fade(group: _Group, part: slice, start: Real, end: Real, area: Real, rule: _Rule) -> None:
    """Fades a part of a group by its overlap with [start, end), in place."""
    scores = group.scores[part]
    overlap = np.minimum(group.ends[part], end)
    overlap -= np.maximum(group.starts[part], start)
    np.maximum(overlap, 0, out=overlap)
    union = group.areas[part] + area
    union -= overlap
    overlap /= union
    if rule.method == "hard":
        scores[overlap >= rule.threshold] = GONE
    else:
        scores *= _weights(overlap, rule)


def _weights(iou: Reals, rule: _Rule) -> Scores:
    """What Gaussian and linear fading multiply the scores with, (P,) float32; overwrites `iou`."""
    if rule.method == "gaussian":
        iou *= iou
        iou /= -rule.sigma
        return np.exp(iou, out=iou).astype(np.float32, copy=False)
    iou[iou < rule.threshold] = 0
    return np.subtract(1, iou, out=iou).astype(np.float32, copy=False)


def _vote(kept: Kept, starts: Reals, ends: Reals, scores: Scores, voting: Voting, threshold: float) -> Kept:
    """Each kept segment as the weighted mean of the input segments that agree with it; without votes it stays."""
    order = np.lexsort((scores, ends, starts))  # one order of summation, whatever the order of the input
    starts, ends, scores = starts[order].astype(np.float64), ends[order].astype(np.float64), scores[order]
    overlap = np.minimum(kept.ends[:, None], ends) - np.maximum(kept.starts[:, None], starts)  # (K, P)
    overlap = np.maximum(overlap, 0)
    union = (kept.ends - kept.starts)[:, None] + (ends - starts) - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    weights = np.where(iou >= threshold, scores, 0) * (iou if voting == "actionformer" else 1)
    total = weights.sum(axis=1)
    voted = total > 0
    weights = weights[voted] / total[voted, None]
    new_starts, new_ends = kept.starts.copy(), kept.ends.copy()
    new_starts[voted], new_ends[voted] = weights @ starts, weights @ ends
    return Kept(kept.indices, new_starts, new_ends, kept.scores)
