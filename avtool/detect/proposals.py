"""Turns what a localizer computes, curves or pyramids, into proposals (start, end, label, score)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError
from avtool.models.points import PyramidLevel
from avtool.timegrid import Grid

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Proposals as parallel arrays; nothing is said about their order.

    Attributes:
        starts: (P,) seconds.
        ends: (P,) seconds, not before the start.
        labels: (P,) class indices of the localizer's vocabulary.
        scores: (P,) in [0, 1].
    """

    starts: Floats
    ends: Floats
    labels: Indices
    scores: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, dtype in (("starts", np.float64), ("ends", np.float64), ("labels", np.int64), ("scores", np.float32)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        shapes = {self.starts.shape, self.ends.shape, self.labels.shape, self.scores.shape}
        if len(shapes) != 1 or self.starts.ndim != 1:
            raise UsageError("proposals need four arrays of one length", f"shapes are {sorted(shapes)}")

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def empty(cls) -> Proposals:
        """No proposals."""
        return cls(np.empty(0), np.empty(0), np.empty(0, np.int64), np.empty(0, np.float32))

    @classmethod
    def concat(cls, parts: Iterable[Proposals]) -> Proposals:
        """All proposals of `parts`, in order."""
        rows = [p for p in parts if len(p)]
        if not rows:
            return cls.empty()
        columns = ([getattr(p, name) for p in rows] for name in ("starts", "ends", "labels", "scores"))
        return cls(*(np.concatenate(column) for column in columns))

    def take(self, index: Mask | Indices) -> Proposals:
        """The proposals at `index`: positions (K,) or a mask (P,)."""
        return Proposals(self.starts[index], self.ends[index], self.labels[index], self.scores[index])

    def ranked(self) -> Proposals:
        """Highest score first; equal scores by label, start, end."""
        return self.take(np.lexsort((self.ends, self.starts, self.labels, -self.scores)))

    def in_time(self) -> Proposals:
        """Earliest first: by start, end, label, then the higher score."""
        return self.take(np.lexsort((-self.scores, self.labels, self.ends, self.starts)))


@dataclass(frozen=True)
class CurveRule:
    """How a score curve becomes intervals.

    Attributes:
        floor: lowest level at which the curve is cut; a curve that stays below gives nothing.
        step: each level is this many times the one below (1.2: 26 levels from 0.01 to 1). The edge of an event is
            unbiased at half its height, and some level is within `sqrt(step)` of that whatever the height.
        contrast: how much of the mean beside an interval is subtracted from the mean inside it, in [0, 1]. 0 prefers
            the sharpest peak, 1 wants silence on both sides.
        flank: length of each side that counts as "beside", as a fraction of the interval, at least one stride.
        apart: of two stretches at neighbouring levels whose IoU is at least this, only the better is a proposal.
        min_length: shorter intervals are dropped; in strides.
        min_score: proposals below are dropped.
        max_per_class: the best of each class that are kept; None for all.
    """

    floor: float = 0.01
    step: float = 1.2
    contrast: float = 0.5
    flank: float = 0.25
    apart: float = 0.5
    min_length: float = 0.25
    min_score: float = 0.005
    max_per_class: int | None = 20_000

    def __post_init__(self) -> None:
        if not (0 < self.floor <= 1 and self.step > 1):
            raise UsageError("levels need a floor in (0, 1] and a step above 1", f"given {self.floor} and {self.step}")

    def levels(self) -> Floats:
        """(L,) ascending levels in [floor, 1]."""
        count = int(np.floor(-np.log(self.floor) / np.log(self.step))) + 1
        return np.asarray(self.floor * self.step ** np.arange(count), np.float64)


CHUNK = 4_000_000  # booleans of one (classes, levels, rows) block


def from_curve(curve: npt.NDArray[np.floating[Any]], grid: Grid, rule: CurveRule | None = None) -> Proposals:
    """Cuts every class's curve at many levels: each stretch above a level is a proposal.

    A short loud peak inside a long plateau gives both. Boundaries lie where the straight line between two
    neighbouring segment centres crosses the level; a stretch that reaches the first (last) segment reaches the start
    (end) of the grid. With rows as cells of one stride around their centres,

        score = mean inside - contrast * mean beside        (nothing lies beside the ends of the grid)

    so that of nested stretches the one that ends where the curve falls wins: a box of height h scores h.

    Args:
        curve: (N, C) scores in [0, 1]; NaN counts as 0.
        grid: where the rows lie.
        rule: levels and scoring; default `CurveRule()`.

    Returns:
        Proposals in seconds, by class.
    """
    rule = rule or CurveRule()
    values = np.nan_to_num(np.asarray(curve, dtype=np.float64)).T  # (C, N)
    if values.ndim != 2:
        raise UsageError("a curve needs the shape (segments, classes)", f"it has {values.ndim} dimensions")
    rows = values.shape[1]
    alive = np.flatnonzero(values.max(axis=1, initial=0.0) >= rule.floor) if rows else np.empty(0, np.int64)
    levels = rule.levels()
    block = max(1, CHUNK // max(1, len(levels) * rows))
    parts = [_cut(values[c], c, levels, grid, rule) for c in np.split(alive, range(block, len(alive), block)) if len(c)]
    return Proposals.concat(parts)


def _cut(values: Floats, labels: Indices, levels: Floats, grid: Grid, rule: CurveRule) -> Proposals:
    """Proposals of some classes: values (c, N), their labels (c,)."""
    row, level, first, last = _stretches(values, levels)
    half = float(grid.segment / grid.stride) / 2  # strides from the outer centres to the ends of the grid
    left, right = _crossings(values, row, levels[level], first, last, half)
    score = _contrast(values, row, left, right, half, rule)
    size = values.shape[1]
    key = (row * len(levels) + level) * size + first
    keep = _distinct(key, np.where(level > 0, key - size, -1), left, right, score, rule.apart)
    keep &= (score >= rule.min_score) & (right - left >= rule.min_length)
    if rule.max_per_class is not None:
        keep[keep] = _best_of_class(row[keep], score[keep], rule.max_per_class)
    origin, stride = float(grid.centre(0)), float(grid.stride)
    starts, ends = origin + stride * left[keep], origin + stride * right[keep]
    return Proposals(np.maximum(starts, 0.0), ends, labels[row[keep]], score[keep].astype(np.float32))


def _stretches(values: Floats, levels: Floats) -> tuple[Indices, Indices, Indices, Indices]:
    """Runs at or above each level: row of `values`, level index, first and last segment, each (P,)."""
    above = values[:, None, :] >= levels[None, :, None]  # (c, L, N)
    edge = np.zeros((*above.shape[:2], 1), bool)
    rises = np.nonzero(above & ~np.concatenate([edge, above[..., :-1]], axis=-1))
    falls = np.nonzero(above & ~np.concatenate([above[..., 1:], edge], axis=-1))
    return rises[0], rises[1], rises[2], falls[2]


def _crossings(
    values: Floats, row: Indices, level: Floats, first: Indices, last: Indices, half: float
) -> tuple[Floats, Floats]:
    """Where the curve crosses its level on both sides, in strides from the centre of the first row."""
    end = values.shape[1] - 1
    before, after = np.maximum(first - 1, 0), np.minimum(last + 1, end)
    rise = _ratio(values[row, first] - level, values[row, first] - values[row, before])
    fall = _ratio(values[row, last] - level, values[row, last] - values[row, after])
    left = np.where(first == 0, -half, first - rise)
    right = np.where(last == end, end + half, last + fall)
    return left, right


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def _contrast(values: Floats, row: Indices, left: Floats, right: Floats, half: float, rule: CurveRule) -> Floats:
    """Score of each interval: its mean less a part of the mean beside it, (P,)."""
    length = right - left
    flank = np.maximum(rule.flank * length, 1.0)
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)  # (c, N + 1)
    total = _area(values, sums, row, right, half) - _area(values, sums, row, left, half)
    wide = _area(values, sums, row, right + flank, half) - _area(values, sums, row, left - flank, half)
    inside = _ratio(total, length)
    score: Floats = np.maximum(inside - rule.contrast * (wide - total) / (2 * flank), 0.0)
    return score


def _area(values: Floats, sums: Floats, row: Indices, position: Floats, half: float) -> Floats:
    """Integral of the rows as cells of one stride, from the start of the grid to `position`, (P,)."""
    end = values.shape[1] - 1
    place = np.clip(position, -half, end + half) + 0.5  # cell k spans [k, k + 1)
    cell = np.clip(np.floor(place).astype(np.int64), 0, end)
    area: Floats = sums[row, cell] + values[row, cell] * (place - cell)
    return area


def _distinct(key: Indices, parent: Indices, left: Floats, right: Floats, score: Floats, apart: float) -> Mask:
    """Mask: the stretches that no similar one directly above or below outdoes.

    Args:
        key: (P,) ascending: row, level and first segment of each stretch in one number.
        parent: (P,) key of the same first segment one level below.
        left: (P,) where stretches begin.
        right: (P,) where they end; a stretch lies within the one below.
        score: (P,).
        apart: IoU from which two are similar.
    """
    below = np.searchsorted(key, parent, side="right") - 1
    alike = (parent >= 0) & (right - left >= apart * (right[below] - left[below]))
    child, below = np.flatnonzero(alike), below[alike]
    best = np.ones(len(key), bool)
    best[child[score[child] <= score[below]]] = False
    best[below[score[child] > score[below]]] = False
    return best


def _best_of_class(row: Indices, score: Floats, count: int) -> Mask:
    """Mask: the `count` highest scores of each row."""
    order = np.lexsort((-score, row))
    starts = np.searchsorted(row[order], row[order])  # position of each class's best in `order`
    best = np.zeros(len(order), bool)
    best[order[np.arange(len(order)) - starts < count]] = True
    return best


def from_pyramid(
    levels: Sequence[PyramidLevel],
    grid: Grid,
    *,
    first_row: int = 0,
    min_score: float = 0.001,
    max_per_level: int = 2000,
    min_length: float = 0.05,
) -> Proposals:
    """Decodes an anchor-free pyramid, level by level.

    Every (point, class) whose sigmoid exceeds `min_score` gives a proposal; the `max_per_level` best of a level stay
    (equal scores in point-major, class-minor order). Nothing is clamped.
    Source: ActionFormer and UnAV, `inference_single_video`.

    Args:
        levels: one entry per level.
        grid: where the segments lie: segment g is centred at `g * stride + segment / 2` seconds.
        first_row: grid row of the pyramid's first point, for a window of a long video.
        min_score: a score must be above it.
        max_per_level: proposals kept of each level.
        min_length: proposals of this length or less are dropped; in segments.

    Returns:
        Proposals in seconds, level by level, each level highest score first.
    """
    origin, stride = float(grid.centre(first_row)), float(grid.stride)
    decoded = [_decode(level, min_score, max_per_level, min_length) for level in levels]
    return Proposals.concat(
        Proposals(origin + stride * p.starts, origin + stride * p.ends, p.labels, p.scores) for p in decoded
    )


class PyramidWindow(Protocol):
    """What a localizer says about one window; see `models.zoo.WindowOutput`."""

    @property
    def start(self) -> int: ...

    @property
    def curve(self) -> npt.NDArray[np.float32]: ...

    @property
    def audio_curve(self) -> npt.NDArray[np.float32]: ...

    @property
    def visual_curve(self) -> npt.NDArray[np.float32]: ...

    @property
    def levels(self) -> tuple[PyramidLevel, ...] | None: ...


@dataclass(frozen=True, eq=False)
class Decoded:
    """One window with its pyramid turned into proposals; None if they are to be made from the joined curve."""

    curve: npt.NDArray[np.float32]
    audio_curve: npt.NDArray[np.float32]
    visual_curve: npt.NDArray[np.float32]
    proposals: Proposals | None


def decode_window(window: PyramidWindow, grid: Grid) -> Decoded:
    """Proposals of a window in seconds of the file, if its localizer has a pyramid."""
    found = None if window.levels is None else from_pyramid(window.levels, grid, first_row=window.start)
    return Decoded(window.curve, window.audio_curve, window.visual_curve, found)


def _decode(level: PyramidLevel, min_score: float, count: int, min_length: float) -> Proposals:
    """Proposals of one level; times in segments, rounded to float32 as the reference computes them."""
    scores = _sigmoid(level.logits) * level.mask[:, None]
    flat = scores.ravel()  # point-major, class-minor
    above = np.flatnonzero(flat > np.float32(min_score))
    picked = above[np.argsort(-flat[above], kind="stable")[:count]]
    point, label = np.divmod(picked, level.logits.shape[1])
    offsets = level.offsets[point, label] if level.offsets.ndim == 3 else level.offsets[point]  # (P, 2)
    place = (point * level.stride).astype(np.float32)
    reach = offsets.astype(np.float32) * np.float32(level.stride)
    starts, ends = place - reach[:, 0], place + reach[:, 1]
    decoded = Proposals(starts.astype(np.float64), ends.astype(np.float64), label, flat[picked])
    return decoded.take(ends - starts > np.float32(min_length))


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / (1 + exp(-x)) in float32, without overflow."""
    small = np.exp(-np.abs(logits.astype(np.float32)))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
