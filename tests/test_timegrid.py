"""The grid is exact, and the windows over it see every segment and trust each of them once."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtool.timegrid import Grid, windows

HALF = Grid()
OVERLAPPING = Grid(Fraction(2), Fraction(1, 2))
seconds = st.fractions(0, 10_000, max_denominator=90_000)


def test_rows_of_the_half_second_grid() -> None:
    assert (HALF.start(3), HALF.centre(3)) == (Fraction(3, 2), Fraction(7, 4))
    assert [HALF.row(t) for t in (0, 0.25, 0.49, 0.51, 10.0)] == [0, 0, 0, 1, 20]
    assert (OVERLAPPING.start(3), OVERLAPPING.centre(3)) == (Fraction(3, 2), Fraction(5, 2))


@pytest.mark.parametrize(
    ("duration", "rows"),
    [(0, 0), (-1, 0), (0.01, 1), (0.5, 1), (0.7, 1), (0.76, 2), (1.0, 2), (10.0, 20), (10.24, 20), (10.26, 21)],
)
def test_a_tail_of_half_a_stride_gets_a_row(duration: float, rows: int) -> None:
    assert HALF.count(duration) == rows


@given(seconds.filter(bool), st.sampled_from([HALF, OVERLAPPING]))
def test_count_covers_the_file(duration: Fraction, grid: Grid) -> None:
    rows = grid.count(duration)
    assert rows >= 1
    end = grid.start(rows - 1) + grid.segment
    assert duration - end <= grid.stride / 2
    assert rows == 1 or end - duration < grid.stride / 2 + grid.segment - grid.stride


@given(st.integers(0, 10**6), st.sampled_from([HALF, OVERLAPPING]))
def test_row_is_the_inverse_of_centre(row: int, grid: Grid) -> None:
    """In fractions nothing drifts, however long the file."""
    assert grid.row(grid.centre(row)) == row
    assert grid.centre(row) - grid.start(row) == grid.segment / 2
    assert grid.start(row) == row * grid.stride


@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_windows(rows: int, size: int, data: st.DataObject) -> None:
    hop = data.draw(st.integers(1, size))
    found = list(windows(rows, size, hop))
    assert found[0].start == 0
    assert found[-1].stop == rows
    assert all(w.stop - w.start == min(size, rows) for w in found), "every window is as long as the localizer expects"
    assert all(w.start <= w.keep_start < w.keep_stop <= w.stop for w in found)
    kept = [row for w in found for row in range(w.keep_start, w.keep_stop)]
    assert kept == list(range(rows)), "each segment is kept exactly once"
    assert all(0 < b.start - a.start <= hop for a, b in pairwise(found))


def test_kept_parts_meet_in_the_middle_of_the_overlap() -> None:
    first, second, last = windows(50, 20, 15)
    assert [(w.start, w.stop) for w in (first, second, last)] == [(0, 20), (15, 35), (30, 50)]
    assert (first.keep_stop, second.keep_start, second.keep_stop) == (17, 17, 32)


def test_no_rows_no_windows() -> None:
    assert list(windows(0, 20, 10)) == []
