"""Long videos: what is found must not depend on where the windows lie."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.detect.events import select
from avtool.detect.proposals import Proposals, from_curve
from avtool.detect.softnms import suppress
from avtool.detect.stitch import blend, join_proposals, stitch, taper
from avtool.errors import UsageError
from avtool.timegrid import Grid, Window, windows
from avtool.timeline import Event

GRID = Grid()
CLASSES = 4


@dataclass(frozen=True)
class Names:
    names: tuple[str, ...] = ("siren", "bark", "bell", "speech")
    thresholds: tuple[float, ...] = ()
    calibration: None = None


@dataclass(frozen=True)
class Output:
    curve: Any
    audio_curve: Any
    visual_curve: Any
    proposals: Proposals | None = None


def evidence(rows: int, seed: int) -> Any:
    """(rows, CLASSES) noise with events of half a second to twenty seconds, weak and strong."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.08, (rows, CLASSES))
    for c in range(CLASSES):
        row = 0
        while True:
            row += int(rng.integers(4, 60))
            length = int(np.clip(rng.lognormal(2, 1), 1, 40))
            if row + length >= rows:
                break
            values[row : row + length, c] += rng.uniform(0.3, 1.0)
            row += length
    return values


def localize(values: Any) -> Any:
    """A localizer that sees one window: each segment with 1.5 s of context to both sides, less the window's mean."""
    row = np.arange(len(values))
    near = np.exp(-0.5 * ((row[:, None] - row) / 3.0) ** 2)
    local = 0.5 * values + 0.5 * (near / near.sum(axis=1, keepdims=True)) @ values
    return (1 / (1 + np.exp(-(9 * (local - 0.4) - values.mean(axis=0))))).astype(np.float32)


def shifted(rows: int, size: int, hop: int, shift: int) -> list[Window]:
    """The plan of a video that began `shift` segments earlier: the first and the last window may be short."""
    plan: list[Window] = []
    for start in range(shift - size + hop if shift else 0, rows, hop):
        low, high = max(0, start), min(rows, start + size)
        if high > (plan[-1].stop if plan else 0):
            plan.append(Window(low, high, low, high))
    return plan


def timeline(values: Any, plan: list[Window], own_proposals: bool) -> tuple[Event, ...]:
    """The whole way from windows to events."""
    outputs = []
    for window in plan:
        curve = localize(values[window.start : window.stop])
        outputs.append(Output(curve, curve, curve, proposals_of(curve, window.start) if own_proposals else None))
    candidates = suppress(stitch(outputs, plan, len(values), GRID).proposals)
    return select(candidates, Names(), range(CLASSES), 0.3, duration=len(values) / 2)


def proposals_of(curve: Any, start: int) -> Proposals:
    """What a localizer with proposals of its own says: it knows nothing outside its window."""
    found, offset = suppress(from_curve(curve, GRID)), float(GRID.start(start))
    return Proposals(found.starts + offset, found.ends + offset, found.labels, found.scores)


def share_kept(before: tuple[Event, ...], after: tuple[Event, ...]) -> float:
    """How many events are found again within a segment and 0.05 of score."""
    found = sum(
        any(
            a.label == b.label
            and abs(a.start - b.start) <= 0.5
            and abs(a.end - b.end) <= 0.5
            and abs(a.score - b.score) <= 0.05
            for b in after
        )
        for a in before
    )
    return found / len(before)


@pytest.mark.parametrize(
    ("size", "hop", "own_proposals"),
    [
        (20, 10, False),
        (40, 20, False),
        (40, 20, True),  # proposals longer than the overlap are seen whole by no window, so 20 segments are too few
    ],
)
def test_shifting_the_windows_keeps_the_events(size: int, hop: int, own_proposals: bool) -> None:
    shares = []
    for seed in range(2):
        values = evidence(500, seed)
        first = timeline(values, list(windows(len(values), size, hop)), own_proposals)
        assert len(first) > 30
        for shift in range(1, hop):
            moved = timeline(values, shifted(len(values), size, hop, shift), own_proposals)
            shares += [share_kept(first, moved), share_kept(moved, first)]
    assert np.mean(shares) >= 0.95
    assert np.min(shares) >= 0.85


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 25), st.data())
def test_windows_that_agree_give_the_curve_itself(rows: int, size: int, data: st.DataObject) -> None:
    plan = list(windows(rows, size, data.draw(st.integers(1, size))))
    curve = np.random.default_rng(rows).random((rows, 3)).astype(np.float32)
    parts = [curve[w.start : w.stop] for w in plan]
    np.testing.assert_allclose(blend(parts, plan, rows), curve, atol=1e-6)
    outputs = [Output(p, 1 - p, p / 2) for p in parts]
    stitched, whole = stitch(outputs, plan, rows, GRID), from_curve(curve, GRID)
    np.testing.assert_allclose(stitched.audio_curve, 1 - curve, atol=1e-6)
    np.testing.assert_allclose(stitched.visual_curve, curve / 2, atol=1e-6)
    if np.array_equal(stitched.curve, curve):
        np.testing.assert_array_equal(stitched.proposals.starts, whole.starts)


def test_a_cut_is_trusted_least_and_the_ends_of_the_file_fully() -> None:
    first, middle, last = (taper(w, 40) for w in (Window(0, 20, 0, 15), Window(10, 30, 15, 25), Window(20, 40, 25, 40)))
    assert first[0] == last[-1] == first.max() and first[-1] == last[0] == middle[0] == middle[-1] == first.min() > 0
    assert np.all(np.diff(first) <= 0) and np.all(np.diff(last) >= 0) and middle.argmax() in (9, 10)
    assert taper(Window(0, 8, 0, 8), 8).tolist() == [1.0] * 8
    parts = [np.zeros((20, 1), np.float32), np.ones((20, 1), np.float32)]
    joined = blend(parts, [Window(0, 20, 0, 15), Window(10, 30, 15, 30)], 30)[:, 0]
    assert joined[10] < 0.01 and joined[19] > 0.99 and np.all(np.diff(joined) >= 0)
    assert joined[14] + joined[15] == pytest.approx(1.0)


def test_no_windows_and_rows_without_a_window() -> None:
    nothing = stitch([], [], 7, GRID)
    assert nothing.curve.shape == (7, 0) and len(nothing.proposals) == 0
    curve = blend([np.ones((2, 1), np.float32)], [Window(1, 3, 1, 3)], 4)
    assert curve[:, 0].tolist() == [0, 1, 1, 0]


def test_refuses_what_does_not_fit() -> None:
    curve = np.ones((4, 2), np.float32)
    one, bare = Output(curve, curve, curve, Proposals.empty()), Output(curve, curve, curve)
    plan = [Window(0, 4, 0, 3), Window(2, 6, 3, 6)]
    for outputs, rows in (([one], 6), ([one, bare], 6), ([one, Output(curve[:3], curve, curve)], 6)):
        with pytest.raises(UsageError):
            stitch(outputs, plan, rows, GRID)


SECONDS = Grid(Fraction(1), Fraction(1))
THREE = [Window(0, 20, 0, 15), Window(10, 30, 15, 25), Window(20, 40, 25, 40)]


def made(*spans: tuple[float, ...]) -> Proposals:
    """(start, end, label, score) rows."""
    return Proposals(*np.array(spans, np.float64).reshape(-1, 4).T)


def joined(*parts: Proposals, plan: list[Window] = THREE, rows: int = 40) -> list[tuple[float, ...]]:
    found = join_proposals(parts, plan, rows, SECONDS).in_time()
    columns = (found.starts, found.ends, found.labels, np.round(found.scores.astype(float), 4))
    return list(zip(*(c.tolist() for c in columns), strict=True))


NONE = Proposals.empty()


def test_what_one_window_sees_whole_replaces_what_its_neighbour_cuts() -> None:
    assert joined(made((6, 18, 0, 0.8)), made((10, 18, 0, 0.7)), NONE) == [(6, 18, 0, 0.8)]
    assert joined(made((16, 20, 0, 0.7)), made((16, 24, 0, 0.8)), NONE) == [(16, 24, 0, 0.8)]


def test_an_event_longer_than_a_window_is_put_together() -> None:
    parts = made((5, 20, 0, 0.9)), made((10, 30, 0, 0.6)), made((20, 33, 0, 0.8))
    score = (15 * 0.9 + 20 * 0.6 + 13 * 0.8) / 48
    assert joined(*parts) == [(5, 33, 0, pytest.approx(score, abs=1e-4))]


def test_the_ends_come_from_the_windows_that_see_them() -> None:
    assert joined(made((5, 19.6, 0, 0.8)), made((10.2, 19.4, 0, 0.8)), NONE) == [(5, 19.4, 0, 0.8)]


def test_windows_side_by_side_are_joined_where_they_touch() -> None:
    plan = [Window(0, 20, 0, 20), Window(20, 40, 20, 40)]
    assert joined(made((12, 20, 0, 0.8)), made((20, 26, 0, 0.8)), plan=plan) == [(12, 26, 0, 0.8)]
    apart = joined(made((12, 18, 0, 0.8)), made((22, 26, 0, 0.8)), plan=plan)
    assert apart == [(12, 18, 0, 0.8), (22, 26, 0, 0.8)]


def test_neither_other_classes_nor_other_scores_are_joined() -> None:
    assert len(joined(made((5, 20, 0, 0.8)), made((10, 24, 1, 0.8)), NONE)) == 2
    assert len(joined(made((5, 20, 0, 0.9)), made((10, 24, 0, 0.3)), NONE)) == 2


def test_each_piece_has_one_partner_the_best_first() -> None:
    left, right = made((5, 20, 0, 0.9), (2, 20, 0, 0.6)), made((10, 24, 0, 0.8), (10, 28, 0, 0.7))
    found = joined(left, right, NONE)
    assert [row[:2] for row in found] == [(2, 28), (5, 24)]


def test_a_cut_piece_that_nobody_confirms_counts_half() -> None:
    assert joined(made((2, 20, 0, 0.8)), NONE, NONE) == [(2, 20, 0, 0.4)]
    assert joined(NONE, NONE, made((35, 40, 0, 0.8))) == [(35, 40, 0, 0.8)]  # the end of the file is no cut


def test_trust_falls_towards_a_cut() -> None:
    parts = NONE, made((11, 14, 0, 0.8), (16, 18, 1, 0.8), (26, 29, 2, 0.8)), NONE
    assert joined(*parts) == [(11, 14, 0, 0.4), (16, 18, 1, 0.8), (26, 29, 2, 0.4)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 40)] * 2, st.integers(0, 2), st.integers(1, 100)), max_size=20))
def test_joining_invents_nothing(spans: list[tuple[int, int, int, int]]) -> None:
    every = made(*((min(a, b), max(a, b), label, x / 100) for a, b, label, x in spans))
    parts = []
    for window in THREE:
        inside = every.take((every.ends > window.start) & (every.starts < window.stop))
        low, high = float(window.start), float(window.stop)
        parts.append(Proposals(inside.starts.clip(low), inside.ends.clip(None, high), inside.labels, inside.scores))
    found = join_proposals(parts, THREE, 40, SECONDS)
    assert len(found) <= sum(map(len, parts))
    assert np.all((found.starts >= 0) & (found.ends <= 40) & (found.ends >= found.starts))
    for label in np.unique(found.labels):
        assert found.scores[found.labels == label].max() <= every.scores[every.labels == label].max() + 1e-6
