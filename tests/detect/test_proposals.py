"""Curves and pyramids become the proposals one would draw by hand, and those of the reference model."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avtool.detect.proposals import CurveRule, Proposals, PyramidLevel, from_curve, from_pyramid
from avtool.detect.softnms import soft_nms
from avtool.errors import UsageError
from avtool.timegrid import Grid

GRID = Grid()  # half seconds, side by side
SECONDS = Grid(Fraction(1), Fraction(1))


def best(proposals: Proposals, count: int = 1) -> list[tuple[float, float, float]]:
    """(start, end, score) of the highest scores."""
    top = proposals.ranked()
    return [(float(s), float(e), float(x)) for s, e, x in zip(top.starts, top.ends, top.scores, strict=True)][:count]


def box(rows: int, start: int, stop: int, height: float, ground: float = 0.0) -> Any:
    curve = np.full((rows, 1), ground)
    curve[start:stop] = height
    return curve


@pytest.mark.parametrize("height", [0.04, 0.2, 0.5, 0.93])
@pytest.mark.parametrize(("start", "stop"), [(4, 5), (3, 6), (2, 15)])
def test_a_box_is_found_at_its_edges_with_its_height(height: float, start: int, stop: int) -> None:
    (begin, end, score) = best(from_curve(box(20, start, stop, height), SECONDS))[0]
    assert begin == pytest.approx(start, abs=0.06) and end == pytest.approx(stop, abs=0.06)
    assert score == pytest.approx(height, rel=0.08)


def test_a_loud_peak_in_a_long_plateau_gives_both() -> None:
    curve = box(60, 10, 50, 0.5)
    curve[30:33] = 0.95
    found = from_curve(curve, SECONDS)
    for start, stop, least in ((10, 50, 0.5), (30, 33, 0.6)):
        near = (abs(found.starts - start) < 0.5) & (abs(found.ends - stop) < 0.5)
        assert found.scores[near].max() >= least


def test_two_boxes_and_what_spans_them() -> None:
    curve = np.maximum(box(30, 4, 10, 0.8), box(30, 14, 20, 0.7))
    (first, second, *_) = best(from_curve(curve, SECONDS), 2)
    assert first[:2] == pytest.approx((4, 10), abs=0.1) and second[:2] == pytest.approx((14, 20), abs=0.1)


def test_boundaries_lie_where_the_line_between_centres_crosses_the_level() -> None:
    curve = np.array([[0.0], [0.2], [0.8], [0.8], [0.5], [0.0]])
    rule = CurveRule(floor=0.4, step=10.0, contrast=0.0)  # one level: 0.4
    assert best(from_curve(curve, GRID, rule))[0][:2] == pytest.approx((0.25 + 0.5 * (1 + 1 / 3), 0.25 + 0.5 * 4.2))


def test_an_event_that_fills_the_file_reaches_both_ends() -> None:
    assert best(from_curve(np.full((7, 1), 0.6), GRID))[0] == pytest.approx((0.0, 3.5, 0.6))
    overlapping = Grid(Fraction(24, 25), Fraction(8, 25))
    assert best(from_curve(np.full((5, 1), 0.6), overlapping))[0] == pytest.approx((0.0, 4 * 0.32 + 0.96, 0.6))
    assert best(from_curve(np.full((1, 1), 0.6), GRID))[0] == pytest.approx((0.0, 0.5, 0.6))


def test_what_rises_from_its_ground_beats_what_does_not() -> None:
    def score(ground: float, rule: CurveRule) -> float:
        found = from_curve(box(40, 10, 20, 0.7, ground), SECONDS, rule)
        return float(found.scores[(abs(found.starts - 10) < 0.5) & (abs(found.ends - 20) < 0.5)].max())

    assert score(0.0, CurveRule()) == pytest.approx(0.7, abs=0.02)
    assert score(0.5, CurveRule()) == pytest.approx(0.7 - 0.5 * 0.5, abs=0.02)
    assert score(0.5, CurveRule(contrast=0.0)) == pytest.approx(0.7, abs=0.01)


def test_classes_do_not_affect_each_other() -> None:
    rng = np.random.default_rng(0)
    curve = rng.random((50, 4))
    curve[:, 2] = 0.001  # below every level
    together = from_curve(curve, GRID)
    for c in range(4):
        alone, own = from_curve(curve[:, [c]], GRID), together.take(together.labels == c)
        for name in ("starts", "ends", "scores"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(own, name))
    assert 2 not in together.labels


def test_the_best_of_a_class_stay_and_low_scores_go() -> None:
    curve = np.random.default_rng(1).random((80, 2))
    every = from_curve(curve, GRID, CurveRule(min_score=0.0))
    few = from_curve(curve, GRID, CurveRule(min_score=0.0, max_per_class=5))
    for c in range(2):
        kept = np.sort(every.scores[every.labels == c])[-5:]
        np.testing.assert_array_equal(np.sort(few.scores[few.labels == c]), kept)
    assert from_curve(curve, GRID, CurveRule(min_score=0.4)).scores.min() >= 0.4
    assert len(from_curve(curve, GRID, CurveRule(max_per_class=None))) == len(from_curve(curve, GRID))


@pytest.mark.parametrize("shape", [(0, 3), (5, 0)])
def test_no_rows_or_classes_give_no_proposals(shape: tuple[int, int]) -> None:
    assert len(from_curve(np.ones(shape), GRID)) == 0


def test_nan_is_nothing_and_a_flat_curve_is_refused() -> None:
    curve = box(9, 2, 5, 0.8)
    curve[7] = np.nan
    assert best(from_curve(curve, GRID))[0][:2] == pytest.approx((1.0, 2.5), abs=0.05)
    with pytest.raises(UsageError):
        from_curve(np.ones(4), GRID)
    for arguments in ({"floor": 0.0}, {"step": 1.0}):
        with pytest.raises(UsageError):
            CurveRule(**arguments)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.floats(0, 1)))
def test_proposals_lie_within_the_grid_and_below_their_curve(curve: Any) -> None:
    found = from_curve(curve, GRID)
    assert np.all((found.starts >= 0) & (found.ends <= len(curve) / 2 + 1e-9) & (found.ends > found.starts))
    for start, end, label, score in zip(found.starts, found.ends, found.labels, found.scores, strict=True):
        rows = slice(int(start / 0.5 + 1e-9), int(np.ceil(end / 0.5 - 1e-9)))
        assert score <= curve[rows, label].max() + 1e-6


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (24, 1), elements=st.floats(0, 1)))
def test_a_mirrored_curve_gives_mirrored_proposals(curve: Any) -> None:
    forward, backward = from_curve(curve, GRID), from_curve(curve[::-1], GRID)
    assert len(forward) == len(backward)
    there = Proposals(12 - backward.ends, 12 - backward.starts, backward.labels, backward.scores)
    for name in ("starts", "ends", "scores"):
        np.testing.assert_allclose(
            np.sort(getattr(forward, name)), np.sort(getattr(there, name)), atol=1e-6, err_msg=name
        )


def stored_levels(arrays: Any, case: str, video: int, aware: bool) -> list[PyramidLevel]:
    """The stored head outputs of one video: (C, T) and (2C or 2, T) with left, right interleaved."""
    levels = []
    for i in range(6):
        logits = arrays[f"{case}/cls{i}"][video].T
        offsets = arrays[f"{case}/off{i}"][video].T
        offsets = offsets.reshape(len(logits), -1, 2) if aware else offsets
        levels.append(PyramidLevel(logits, offsets, arrays[f"{case}/mask{i}"][video, 0], 2**i))
    return levels


@pytest.mark.parametrize(
    ("case", "video", "aware"),
    [
        ("a_single33", 0, True),
        ("a_single50", 0, True),
        ("a_single64", 0, True),
        ("a_long", 0, True),
        ("b_plain", 0, False),
        ("b_plain", 1, False),
    ],
)
def test_golden_pyramid(shared: Path, case: str, video: int, aware: bool) -> None:
    """UnAV's stored logits and offsets decode to its stored candidates, and Soft-NMS leads to its detections."""
    with np.load(shared / "golden" / "unav_tiny.npz") as arrays:
        rows = json.loads(str(arrays["meta"]))[case]["lens"][video]
        levels = stored_levels(arrays, case, video, aware)
        grid = Grid(Fraction(24, 25), Fraction(8, 25))
        duration = (8 * rows + 24) / 25
        found = from_pyramid(levels, grid)
        inside = Proposals(found.starts.clip(0, duration), found.ends.clip(0, duration), found.labels, found.scores)
        expected = [arrays[f"{case}/prenms{video}_{key}"] for key in ("segments_seconds", "scores", "labels")]
        check_as_sets(inside, *expected)
        detected = [arrays[f"{case}/det{video}_{key}"] for key in ("segments", "scores", "labels")]
    on_grid = from_pyramid(levels, Grid(Fraction(0), Fraction(1)))  # where the reference suppresses
    kept = soft_nms(
        on_grid.starts.astype(np.float32), on_grid.ends.astype(np.float32), on_grid.scores, on_grid.labels,
        max_segments=100,
    )  # fmt: skip
    times = [np.clip(kept_times * 0.32 + 0.48, 0, duration) for kept_times in (kept.starts, kept.ends)]
    check_as_sets(Proposals(*times, on_grid.labels[kept.indices], kept.scores), *detected)


def check_as_sets(found: Proposals, segments: Any, scores: Any, labels: Any) -> None:
    """Equal but for the order of near-equal scores."""
    assert len(found) == len(scores)
    expected = np.column_stack([segments, scores, labels])
    mine = np.column_stack([found.starts, found.ends, found.scores, found.labels])
    near = np.isclose(expected[:, None], mine, rtol=0, atol=[2e-4, 2e-4, 2e-6, 0]).all(axis=2)
    assert near.any(axis=1).all() and near.any(axis=0).all()


def decoded_by_hand(level: PyramidLevel, min_score: float, min_length: float) -> list[tuple[float, ...]]:
    rows = []
    for point, logits in enumerate(level.logits):
        for label, logit in enumerate(logits):
            score = 1 / (1 + np.exp(-logit)) * level.mask[point]
            left, right = level.offsets[point, label] if level.offsets.ndim == 3 else level.offsets[point]
            if score > min_score and (left + right) * level.stride > min_length:
                place = point * level.stride
                rows.append((place - left * level.stride, place + right * level.stride, label, score))
    return sorted(rows, key=lambda r: -r[3])


@pytest.mark.parametrize("aware", [True, False])
def test_a_level_decodes_as_by_hand(aware: bool) -> None:
    rng = np.random.default_rng(3)
    offsets = np.maximum(rng.normal(0.5, 1, (8, 3, 2) if aware else (8, 2)), 0).astype(np.float32)
    mask = np.arange(8) < 6
    level = PyramidLevel(rng.normal(-3, 3, (8, 3)).astype(np.float32), offsets, mask, 4)
    found = from_pyramid([level], Grid(Fraction(0), Fraction(1)), min_score=0.05, min_length=0.5)
    expected = np.array(decoded_by_hand(level, 0.05, 0.5))
    mine = np.column_stack([found.starts, found.ends, found.labels, found.scores])
    np.testing.assert_allclose(mine, expected, rtol=1e-5)
    few = from_pyramid([level], SECONDS, min_score=0.05, max_per_level=3, min_length=0.0, first_row=10)
    every = from_pyramid([level], SECONDS, min_score=0.05, min_length=0.0)
    np.testing.assert_allclose(few.starts, every.starts[:3] + 10)


def test_equal_scores_of_a_level_come_point_by_point() -> None:
    level = PyramidLevel(np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32), np.ones(3, bool), 1)
    found = from_pyramid([level], Grid(Fraction(0), Fraction(1)), max_per_level=5)
    assert found.starts.tolist() == [-1, -1, 0, 0, 1] and found.labels.tolist() == [0, 1, 0, 1, 0]


def test_large_logits_do_not_overflow() -> None:
    level = PyramidLevel(np.array([[-1000.0, 1000.0]], np.float32), np.ones((1, 2), np.float32), np.ones(1, bool), 1)
    assert from_pyramid([level], SECONDS).scores.tolist() == [1.0]


def test_proposals_are_arrays_of_one_length() -> None:
    one = Proposals([0], [1], [2], [0.5])
    assert (one.starts.dtype, one.labels.dtype, one.scores.dtype) == (np.float64, np.int64, np.float32)
    with pytest.raises(UsageError):
        Proposals([0, 1], [1], [2], [0.5])
    assert len(Proposals.concat([])) == len(Proposals.concat([Proposals.empty()])) == 0
    both = Proposals.concat([one, Proposals.empty(), Proposals([0, 0], [1, 2], [1, 2], [0.9, 0.5])])
    assert both.ranked().labels.tolist() == [1, 2, 2] and both.ranked().ends.tolist() == [1, 1, 2]
    assert both.in_time().labels.tolist() == [1, 2, 2] and both.take(both.ends > 1).labels.tolist() == [2]
