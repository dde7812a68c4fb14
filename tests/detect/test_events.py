"""From candidates to events: what is merged, what is shown, and that a threshold is only a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.calibration import Calibration
from avtool.detect.events import clamp, merge, select
from avtool.detect.proposals import Proposals
from avtool.errors import UsageError


@dataclass(frozen=True)
class Names:
    names: tuple[str, ...] = ("siren", "bark", "bell")
    thresholds: tuple[float, ...] = (0.5, 0.2, 0.9)
    calibration: Calibration | None = None


ALL = range(3)


def rows(proposals: Proposals) -> list[tuple[float, ...]]:
    columns = (proposals.starts, proposals.ends, proposals.labels, np.round(proposals.scores.astype(float), 4))
    return list(zip(*(c.tolist() for c in columns), strict=True))


def made(*spans: tuple[float, ...]) -> Proposals:
    """(start, end, label, score) rows."""
    return Proposals(*np.array(spans, np.float64).reshape(-1, 4).T)


@pytest.mark.parametrize(
    ("given_spans", "expected"),
    [
        # a doubtful second reading of the same stretch, shorter or longer
        ([(0, 10, 0, 0.8), (2, 8, 0, 0.3)], [(0, 10, 0, 0.8)]),
        ([(0, 10, 0, 0.8), (0, 13, 0, 0.3)], [(0, 10, 0, 0.8)]),
        # covered by two stronger ones together
        ([(0, 4, 0, 0.8), (6, 10, 0, 0.8), (0, 10, 0, 0.3)], [(0, 4, 0, 0.8), (6, 10, 0, 0.8)]),
        # a weak long stretch around a strong short one stays
        ([(0, 20, 0, 0.3), (5, 8, 0, 0.9)], [(0, 20, 0, 0.3), (5, 8, 0, 0.9)]),
        # touching, nearly touching, too far apart
        ([(0, 6, 0, 0.8), (6, 8, 0, 0.6)], [(0, 8, 0, 0.75)]),
        ([(0, 6, 0, 0.8), (6.25, 8.25, 0, 0.8)], [(0, 8.25, 0, 0.8)]),
        ([(0, 6, 0, 0.8), (6.5, 8, 0, 0.8)], [(0, 6, 0, 0.8), (6.5, 8, 0, 0.8)]),
        # scores that do not belong together
        ([(0, 6, 0, 0.8), (6, 8, 0, 0.3)], [(0, 6, 0, 0.8), (6, 8, 0, 0.3)]),
        # overlap by less than half
        ([(0, 6, 0, 0.6), (4, 10, 0, 0.8)], [(0, 10, 0, 0.7)]),
        # a long stretch around a short one of similar score, not one event
        ([(0, 20, 0, 0.5), (5, 8, 0, 0.6)], [(0, 20, 0, 0.5), (5, 8, 0, 0.6)]),
        # a chain, and classes apart
        ([(0, 2, 0, 0.8), (2, 4, 0, 0.8), (4, 6, 0, 0.8), (0, 6, 1, 0.8)], [(0, 6, 0, 0.8), (0, 6, 1, 0.8)]),
        # noise
        ([(0, 2, 0, 0.004)], []),
        ([], []),
    ],
)
def test_merge(given_spans: list[Any], expected: list[Any]) -> None:
    found = rows(merge(made(*given_spans)))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b)


def test_each_class_has_its_own_threshold_unless_one_is_given() -> None:
    candidates = made((0, 1, 0, 0.45), (2, 3, 1, 0.45), (4, 5, 2, 0.45))
    assert [e.label for e in select(candidates, Names(), ALL)] == ["bark"]
    assert [e.label for e in select(candidates, Names(), ALL, 0.4)] == ["siren", "bark", "bell"]
    assert [e.label for e in select(candidates, Names(thresholds=()), [0, 2])] == ["siren", "bell"]


def test_a_score_that_reads_like_the_threshold_reaches_it() -> None:
    candidates = made((0, 1, 0, 0.29996), (2, 3, 1, 0.29994))
    events = select(candidates, Names(), ALL, 0.3)
    assert [(e.label, e.score) for e in events] == [("siren", 0.3)]


def test_the_best_come_through_a_limit_in_order_of_time() -> None:
    candidates = made((4, 5, 0, 0.9), (0, 1, 1, 0.7), (8, 9, 2, 0.7), (2, 3, 1, 0.95))
    assert [e.start for e in select(candidates, Names(), ALL, 0.0, 3)] == [0.0, 2.0, 4.0]
    with pytest.raises(UsageError):
        select(candidates, Names(), ALL, 0.0, 0)


def test_events_are_ordered_by_start_end_label() -> None:
    candidates = made((0, 2, 0, 0.9), (0, 2, 1, 0.9), (0, 1, 2, 0.9), (0, 2, 2, 0.9))
    assert [(e.end, e.label) for e in select(candidates, Names(), [1, 0], 0.0)] == [(2.0, "bark"), (2.0, "siren")]
    assert select(candidates, Names(), ALL, 0.0)[0].label == "bell"


def test_events_end_with_the_file() -> None:
    cut = clamp(made((-1, 2, 0, 0.9), (9, 12, 0, 0.8), (11, 12, 0, 0.7), (3, 3, 0, 0.6)), 10.0)
    assert rows(cut) == [(0.0, 2.0, 0, 0.9), (9.0, 10.0, 0, 0.8)]


@st.composite
def candidates(draw: st.DrawFn) -> Proposals:
    count = draw(st.integers(0, 16))
    column = lambda high: np.array(draw(st.lists(st.integers(0, high), min_size=count, max_size=count)), float)  # noqa: E731
    starts = column(60) / 4 - 1
    return Proposals(starts, starts + column(40) / 4, column(2), (column(1000) / 1000) ** 2)


@settings(max_examples=80, deadline=None)
@given(candidates(), st.floats(0, 1), st.floats(0.5, 20))
def test_a_higher_threshold_is_a_filter(found: Proposals, threshold: float, duration: float) -> None:
    low = select(found, Names(), ALL, 0.0, duration=duration)
    high = select(found, Names(), ALL, threshold, duration=duration)
    assert high == tuple(e for e in low if e.score >= threshold)
    own = {"siren": 0.5, "bark": 0.2, "bell": 0.9}
    assert select(found, Names(), ALL, duration=duration) == tuple(e for e in low if e.score >= own[e.label])


@settings(max_examples=80, deadline=None)
@given(candidates(), st.floats(0.5, 20), st.randoms(use_true_random=False))
def test_selection_is_in_the_file_in_order_and_independent_of_the_input_order(
    found: Proposals, duration: float, random: Any
) -> None:
    events = select(found, Names(), ALL, 0.0, duration=duration)
    assert all(0 <= e.start < e.end <= duration and 0.005 <= e.score <= 1 for e in events)
    assert list(events) == sorted(events, key=lambda e: (e.start, e.end, e.label))
    order = list(range(len(found)))
    random.shuffle(order)
    assert events == select(found.take(np.array(order, np.int64)), Names(), ALL, 0.0, duration=duration)


@settings(max_examples=80, deadline=None)
@given(candidates())
def test_merging_twice_is_merging_once(found: Proposals) -> None:
    once = merge(found)
    assert rows(merge(once)) == rows(once)
    assert len(once) <= len(found)
    if len(once):
        assert once.scores.max() <= np.round(found.scores.max(), 4) + 1e-6
