"""From candidates to events: what a reader sees, and from which score on."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from avtool.calibration import Calibration
from avtool.detect.proposals import Proposals
from avtool.errors import UsageError
from avtool.timeline import Event

DECIMALS = 4  # of a score, as files keep it: what is compared with a threshold is what can be read
NOISE = 0.005  # candidates below are never events
NO_THRESHOLD = 0.3  # for a model without thresholds of its own


class Names(Protocol):
    """What is read of a vocabulary: class names, and the thresholds and the calibration of the model or nothing."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def thresholds(self) -> Sequence[float]: ...

    @property
    def calibration(self) -> Calibration | None: ...


class _Span(NamedTuple):
    start: float
    end: float
    score: float


def select(
    candidates: Proposals,
    vocabulary: Names,
    classes: Iterable[int],
    min_score: float | None = None,
    max_events: int | None = None,
    *,
    duration: float = math.inf,
) -> tuple[Event, ...]:
    """The events among the candidates, ordered by start, end, label.

    Candidates are cut to the file and merged (see `merge`), and their scores made probabilities where the model has a
    calibration, before any threshold is applied, scores rounded as files keep them. So the events at a higher
    `min_score` are exactly those of a lower one that score at least as much.

    Args:
        candidates: after Soft-NMS; seconds.
        vocabulary: names, and thresholds and calibration that a class has from its model.
        classes: indices of the classes to show.
        min_score: threshold of every class; None takes each class's own (0.3 for a model that has none).
        max_events: the highest scores that are kept (equal ones: the earlier); None for no limit.
        duration: of the file in seconds.

    Raises:
        UsageError: `max_events` is below 1.
    """
    if max_events is not None and max_events < 1:
        raise UsageError(f"at least one event must be allowed, not {max_events}", hint="leave the limit out for all")
    shown = candidates.take(np.isin(candidates.labels, np.fromiter(classes, np.int64)))
    merged = merge(clamp(shown, duration))
    if vocabulary.calibration is not None:
        merged = replace(merged, scores=vocabulary.calibration(merged.scores, merged.labels))
    events = (
        Event(float(start), float(end), vocabulary.names[label], round(float(score), DECIMALS))
        for start, end, label, score in zip(merged.starts, merged.ends, merged.labels, merged.scores, strict=True)
        if round(float(score), DECIMALS) >= _threshold(vocabulary, int(label), min_score)
    )
    best = sorted(events, key=lambda e: (-e.score, e.start, e.end, e.label))[:max_events]
    return tuple(sorted(best, key=lambda e: (e.start, e.end, e.label, -e.score)))


def _threshold(vocabulary: Names, label: int, min_score: float | None) -> float:
    """Score from which a candidate of a class is an event."""
    if min_score is not None:
        return min_score
    return vocabulary.thresholds[label] if vocabulary.thresholds else NO_THRESHOLD


def clamp(proposals: Proposals, duration: float) -> Proposals:
    """Cuts everything to [0, duration] seconds and drops what is empty then."""
    starts, ends = np.clip(proposals.starts, 0.0, duration), np.clip(proposals.ends, 0.0, duration)
    return Proposals(starts, ends, proposals.labels, proposals.scores).take(ends > starts)


def merge(proposals: Proposals, *, gap: float = 0.25, cover: float = 0.5, ratio: float = 0.6) -> Proposals:
    """Makes one of what is one event to a reader, class by class, until nothing changes.

    - Highest score first, a proposal is dropped when stronger ones of its class cover at least `cover` of it: it is a
      doubtful second reading of the same stretch.
    - Two that overlap less than that, or lie at most `gap` apart, become one from the first start to the last end, with
      the mean score weighted by length, if the lower score is at least `ratio` times the higher.
    - A weak long stretch around a strong short one stays beside it.

    Args:
        proposals: in any order; scores below 0.005 are dropped.
        gap: seconds.
        cover: fraction of a proposal's length.
        ratio: of two scores.

    Returns:
        Proposals by start, end, label; scores rounded to 4 decimals. Merging them again changes nothing.
    """
    counts = np.round(proposals.scores.astype(np.float64), DECIMALS) >= NOISE
    strong = proposals.take(counts & (proposals.ends > proposals.starts))
    merged = []
    for label in np.unique(strong.labels):
        own = strong.take(strong.labels == label)
        spans = [_span(*row) for row in zip(own.starts, own.ends, own.scores, strict=True)]
        starts, ends, scores = zip(*_settle(spans, gap, cover, ratio), strict=True)
        merged.append(Proposals(np.array(starts), np.array(ends), np.full(len(starts), label), np.array(scores)))
    return Proposals.concat(merged).in_time()


def _span(start: float, end: float, score: float) -> _Span:
    return _Span(float(start), float(end), round(float(score), DECIMALS))


def _settle(spans: list[_Span], gap: float, cover: float, ratio: float) -> list[_Span]:
    """Absorbs and joins until neither changes anything."""
    while True:
        fewer = _join(_absorb(spans, cover), gap, cover, ratio)
        if len(fewer) == len(spans):
            return fewer
        spans = fewer


def _absorb(spans: list[_Span], cover: float) -> list[_Span]:
    """The spans that stronger ones do not cover, strongest first."""
    kept: list[_Span] = []
    taken: list[tuple[float, float]] = []  # union of the kept, disjoint, ascending
    for span in sorted(spans, key=lambda s: (-s.score, s.start, s.end)):
        near = _overlapping(taken, span)
        covered = sum(min(end, span.end) - max(start, span.start) for start, end in taken[near])
        if covered < cover * (span.end - span.start):
            kept.append(span)
            parts = [*taken[near], (span.start, span.end)]
            taken[near] = [(min(start for start, _ in parts), max(end for _, end in parts))]
    return kept


def _overlapping(taken: list[tuple[float, float]], span: _Span) -> slice:
    """Where in ascending disjoint intervals those lie that share time with the span."""
    first = bisect_left(taken, span.start, key=lambda interval: interval[1])
    stop = bisect_left(taken, span.end, key=lambda interval: interval[0])
    return slice(first, max(first, stop))


def _join(spans: list[_Span], gap: float, cover: float, ratio: float) -> list[_Span]:
    """One sweep that unites neighbours of similar score; a united span goes on as one."""
    closed: list[_Span] = []
    within: list[_Span] = []  # reach, or nearly reach, the next span
    for span in sorted(spans):
        closed += [s for s in within if span.start - s.end > gap]
        within = [s for s in within if span.start - s.end <= gap]
        similar = [s for s in within if _continues(s, span, cover, ratio)]
        if similar:
            within.remove(similar[-1])
            span = _unite(similar[-1], span)
        within.append(span)
    return closed + within


def _continues(earlier: _Span, later: _Span, cover: float, ratio: float) -> bool:
    """Whether two spans that meet are side by side rather than one around the other, and of similar score."""
    shorter = min(earlier.end - earlier.start, later.end - later.start)
    beside = min(earlier.end, later.end) - later.start < cover * shorter
    return beside and min(earlier.score, later.score) >= ratio * max(earlier.score, later.score)


def _unite(a: _Span, b: _Span) -> _Span:
    lengths = a.end - a.start, b.end - b.start
    score = (lengths[0] * a.score + lengths[1] * b.score) / sum(lengths)
    return _span(min(a.start, b.start), max(a.end, b.end), score)
