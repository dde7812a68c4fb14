"""Joins what a localizer says about overlapping windows, so that it hardly matters where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from avtool.detect.proposals import CurveRule, Floats, Indices, Proposals, from_curve
from avtool.errors import UsageError
from avtool.timegrid import Grid, Window

Curve = npt.NDArray[np.float32]  # (N, C)

TAPER = 2.0  # weight of a row = (its distance from the nearest cut of the window / length of the window) ** TAPER
EDGE = 0.75  # a proposal that comes this near to a cut of its window, in rows, is taken to go on beyond it
SHARE = 0.5  # of the cut piece, or of the overlap of two windows: what a partner must cover
DOUBT = 0.5  # what the score of a cut proposal is worth that the neighbour neither continues nor sees whole
RATIO = 0.5  # of two scores: below, they are not of the same event


class WindowResult(Protocol):
    """What a localizer says about the n rows of one window; see `models.zoo.WindowOutput`."""

    @property
    def curve(self) -> Curve: ...

    @property
    def audio_curve(self) -> Curve: ...

    @property
    def visual_curve(self) -> Curve: ...

    @property
    def proposals(self) -> Proposals | None: ...


@dataclass(frozen=True, eq=False)
class Stitched:
    """What a localizer says about a whole file.

    Attributes:
        curve: (N, C) audible and visible, in [0, 1].
        audio_curve: (N, C) evidence in sound alone.
        visual_curve: (N, C) evidence in the picture alone.
        proposals: seconds; not yet suppressed.
    """

    curve: Curve
    audio_curve: Curve
    visual_curve: Curve
    proposals: Proposals


def stitch(
    outputs: Sequence[WindowResult],
    windows: Sequence[Window],
    rows: int,
    grid: Grid,
    rule: CurveRule | None = None,
) -> Stitched:
    """Joins the outputs of overlapping windows.

    Curves are averaged where windows overlap, each weighted by the squared distance from where its window was cut, for
    there the localizer saw least around a row. If the windows bring no proposals, these are made from the joined curve.
    Otherwise see `join_proposals`.

    Args:
        outputs: one for each window, in their order; times of proposals are seconds of the file.
        windows: in ascending order.
        rows: segments of the file.
        grid: where they lie.
        rule: how proposals are made of a curve.

    Raises:
        UsageError: outputs and windows do not fit each other.
    """
    if len(outputs) != len(windows):
        raise UsageError(f"{len(outputs)} outputs for {len(windows)} windows")
    curve = blend([o.curve for o in outputs], windows, rows)
    audio = blend([o.audio_curve for o in outputs], windows, rows)
    visual = blend([o.visual_curve for o in outputs], windows, rows)
    own = [o.proposals for o in outputs if o.proposals is not None]
    if own and len(own) != len(outputs):
        raise UsageError("some windows have proposals and some have none")
    proposals = join_proposals(own, windows, rows, grid) if own else from_curve(curve, grid, rule)
    return Stitched(curve, audio, visual, proposals)


def blend(curves: Sequence[Curve], windows: Sequence[Window], rows: int) -> Curve:
    """Weighted mean over the windows of each row, 0 where no window is.

    Args:
        curves: (n, C) for each window.
        windows: where their rows lie.
        rows: N of the result.

    Returns:
        (N, C) float32.
    """
    classes = curves[0].shape[1] if curves else 0
    total = np.zeros((rows, classes), np.float32)
    weight = np.zeros((rows, 1), np.float32)
    for curve, window in zip(curves, windows, strict=True):
        if curve.shape != (window.stop - window.start, classes):
            raise UsageError("a curve does not fit its window", f"shape {curve.shape} for {window}")
        own = taper(window, rows)[:, None]
        total[window.start : window.stop] += own * curve
        weight[window.start : window.stop] += own
    return np.divide(total, weight, out=total, where=weight > 0)


def taper(window: Window, rows: int) -> npt.NDArray[np.float32]:
    """(n,) how far a window is trusted at each of its rows: 1 without a cut, less towards one; a file's end is none."""
    size = window.stop - window.start
    left = np.arange(size) + 0.5 if window.start > 0 else np.full(size, float(size))
    right = size - np.arange(size) - 0.5 if window.stop < rows else np.full(size, float(size))
    return np.asarray((np.minimum(left, right) / size) ** TAPER, np.float32)


class _Piece(NamedTuple):
    """The proposals of one window, cut to it."""

    proposals: Proposals
    cut_left: npt.NDArray[np.bool_]  # (P,) reaches the cut at the window's start
    cut_right: npt.NDArray[np.bool_]  # (P,) and at its end
    trust: Floats  # (P,) in [0, 1]


def join_proposals(parts: Sequence[Proposals], windows: Sequence[Window], rows: int, grid: Grid) -> Proposals:
    """Joins the proposals of overlapping windows.

    - One that reaches the cut of its window is united with one of its class that reaches the neighbour's cut and agrees
      with it on the overlap, each with one at most, the best first; scores are averaged by length. So an event may span
      any number of windows.
    - One that reaches a cut without such a partner is dropped where the neighbour sees the same, whole.
    - For the rest the middle decides how far the window is trusted: fully in the half of an overlap that is farther
      from the cut, then less and less. What two windows see twice is left to Soft-NMS.

    Args:
        parts: for each window, in seconds of the file. Suppressing each window first makes this faster.
        windows: in ascending order.
        rows: segments of the file.
        grid: where they lie.

    Returns:
        Proposals in seconds.
    """
    pieces = [_piece(part, i, windows, rows, grid) for i, part in enumerate(parts)]
    offsets = np.cumsum([0, *(len(piece.proposals) for piece in pieces)])
    links: dict[int, int] = {}  # a proposal -> the one that continues it in the next window
    explained: list[Indices] = []
    for i, (here, there) in enumerate(pairwise(pieces)):
        overlap = _cut(windows[i].stop, grid) - _cut(windows[i + 1].start, grid)
        for a, b in _continued(here, there, overlap):
            links[int(offsets[i]) + a] = int(offsets[i + 1]) + b
        explained.append(offsets[i] + _explained(here, here.cut_right, there, ~there.cut_left))
        explained.append(offsets[i + 1] + _explained(there, there.cut_left, here, ~here.cut_right))
    return _follow(pieces, links, np.concatenate([*explained, np.empty(0, np.int64)]))


def _cut(row: int, grid: Grid) -> float:
    """Seconds of a cut before `row`: rows as cells of one stride around their centres."""
    return float(grid.centre(row) - grid.stride / 2)


def _piece(proposals: Proposals, i: int, windows: Sequence[Window], rows: int, grid: Grid) -> _Piece:
    """Finds what reaches a cut, shortens it to the window, and says how far each is trusted."""
    window, slack = windows[i], EDGE * float(grid.stride)
    begin, finish = _cut(window.start, grid), _cut(window.stop, grid)
    left = (proposals.starts <= begin + slack) & (window.start > 0)
    right = (proposals.ends >= finish - slack) & (window.stop < rows)
    starts = np.where(left, begin, proposals.starts)
    ends = np.maximum(np.where(right, finish, proposals.ends), starts)
    middle = (starts + ends) / 2
    trust = np.ones(len(middle))
    if i > 0:
        trust = np.minimum(trust, _ramp(middle - begin, _cut(windows[i - 1].stop, grid) - begin))
    if i + 1 < len(windows):
        trust = np.minimum(trust, _ramp(finish - middle, finish - _cut(windows[i + 1].start, grid)))
    return _Piece(Proposals(starts, ends, proposals.labels, proposals.scores), left, right, trust)


def _ramp(distance: Floats, overlap: float) -> Floats:
    """Trust at a distance from a cut: 0 at the cut, 1 from the middle of the overlap on."""
    return np.clip(distance / (overlap / 2), 0.0, 1.0) if overlap > 0 else np.ones(len(distance))


def _continued(here: _Piece, there: _Piece, overlap: float) -> list[tuple[int, int]]:
    """Pairs (position here, position there) that are one event on both sides of a cut."""
    pairs: list[tuple[int, int]] = []
    for label in np.intersect1d(here.proposals.labels[here.cut_right], there.proposals.labels[there.cut_left]):
        left = _strongest_first(here.proposals, here.cut_right & (here.proposals.labels == label))
        right = _strongest_first(there.proposals, there.cut_left & (there.proposals.labels == label))
        fits = _similar(here.proposals, left, there.proposals, right)
        fits &= _shared(here.proposals, left, there.proposals, right) >= SHARE * overlap
        for row, a in enumerate(left):
            if fits[row].any():
                column = int(fits[row].argmax())
                pairs.append((int(a), int(right[column])))
                fits[:, column] = False
    return pairs


def _explained(piece: _Piece, cut: npt.NDArray[np.bool_], other: _Piece, whole: npt.NDArray[np.bool_]) -> Indices:
    """Positions of cut proposals that the neighbour sees whole."""
    found: list[Indices] = [np.empty(0, np.int64)]
    for label in np.unique(piece.proposals.labels[cut]):
        short = np.flatnonzero(cut & (piece.proposals.labels == label))
        full = np.flatnonzero(whole & (other.proposals.labels == label))
        length = (piece.proposals.ends - piece.proposals.starts)[short, None]
        fits = _similar(piece.proposals, short, other.proposals, full)
        fits &= _shared(piece.proposals, short, other.proposals, full) >= SHARE * length
        found.append(short[fits.any(axis=1)])
    return np.concatenate(found)


def _strongest_first(proposals: Proposals, mask: npt.NDArray[np.bool_]) -> Indices:
    """Positions of the masked, by score, then start, then end."""
    index = np.flatnonzero(mask)
    return index[np.lexsort((proposals.ends[index], proposals.starts[index], -proposals.scores[index]))]


def _similar(p: Proposals, i: Indices, q: Proposals, j: Indices) -> npt.NDArray[np.bool_]:
    """(I, J) scores differ at most by the factor RATIO."""
    a, b = p.scores[i][:, None], q.scores[j][None, :]
    return np.asarray(np.minimum(a, b) >= RATIO * np.maximum(a, b))


def _shared(p: Proposals, i: Indices, q: Proposals, j: Indices) -> Floats:
    """(I, J) seconds that two proposals have in common; 0 or less if they lie apart."""
    ends = np.minimum(p.ends[i][:, None], q.ends[j][None, :])
    return np.asarray(ends - np.maximum(p.starts[i][:, None], q.starts[j][None, :]))


def _follow(pieces: Sequence[_Piece], links: dict[int, int], explained: Indices) -> Proposals:
    """Unites chains of links; all others by their trust, less those that are explained."""
    everything = Proposals.concat(piece.proposals for piece in pieces)
    alone = np.ones(len(everything), bool)
    alone[explained] = False
    alone[list(links.keys() | links.values())] = False
    cut = np.concatenate([piece.cut_left | piece.cut_right for piece in pieces])
    trust = np.concatenate([piece.trust for piece in pieces]) * np.where(cut, DOUBT, 1.0)
    faded = Proposals(everything.starts, everything.ends, everything.labels, everything.scores * trust)
    chains = [_unite(everything.take(_chain(head, links))) for head in sorted(links.keys() - set(links.values()))]
    return Proposals.concat([faded.take(alone), *chains])


def _chain(head: int, links: dict[int, int]) -> Indices:
    """Positions from a head to the end of its chain."""
    chain = [head]
    while chain[-1] in links:
        chain.append(links[chain[-1]])
    return np.array(chain)


def _unite(chain: Proposals) -> Proposals:
    """One proposal from the start of the first to the end of the last, with the mean score weighted by length."""
    lengths = chain.ends - chain.starts
    score = np.asarray(np.average(chain.scores, weights=lengths if lengths.sum() > 0 else None))
    return Proposals(chain.starts[:1], np.maximum(chain.ends[-1:], chain.starts[:1]), chain.labels[:1], score[None])
