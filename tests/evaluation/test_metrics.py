"""Segment, event and clip accuracies on cases counted by hand, and the bootstrap against what is known of means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from avtool.detect.proposals import Proposals
from avtool.errors import UsageError
from avtool.evaluation.map import Segments
from avtool.evaluation.metrics import (
    clip_scores,
    event_scores,
    paired_bootstrap,
    segment_labels,
    segment_scores,
    top_k,
)


def test_segments_take_the_strongest_event_above_its_threshold() -> None:
    events = Proposals([0.0, 0.5, 1.5], [2.0, 1.5, 3.0], [2, 0, 1], [0.6, 0.9, 0.3])
    centres = 0.25 + 0.5 * np.arange(7)
    assert segment_labels(events, centres).tolist() == [2, 0, 0, 2, 1, 1, -1]
    assert segment_labels(events, centres, [0.95, 0.2, 0.5], 3).tolist() == [2, 2, 2, 2, 1, 1, 3]
    assert segment_labels(events, centres, 0.7).tolist() == [-1, 0, 0, -1, -1, -1, -1]
    assert segment_labels(Proposals.empty(), centres, [0.1]).tolist() == [-1] * 7


def test_of_equal_events_the_lower_label_wins_and_the_end_is_open() -> None:
    events = Proposals([0.0, 0.0], [1.0, 1.0], [4, 2], [0.5, 0.5])
    assert segment_labels(events, [0.0, 0.5, 1.0]).tolist() == [2, 2, -1]


def test_segment_scores_by_hand() -> None:
    truth = [0, 0, 0, 1, -1, -1]
    found = [0, 0, 1, -1, -1, 0]
    scores = segment_scores(found, truth)
    assert scores.accuracy == pytest.approx(3 / 6)
    assert scores.event_accuracy == pytest.approx(2 / 4)
    assert scores.background_recall == pytest.approx(1 / 2)
    assert scores.balanced == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    assert scores.event_f1 == pytest.approx(2 * 3 / (4 + 4))
    assert scores.count == 6


def test_segment_scores_without_background() -> None:
    scores = segment_scores([1, 1], [1, 2])
    assert math.isnan(scores.background_recall) and scores.event_f1 == 1.0
    for found, truth in (([], []), ([1], [1, 2])):
        with pytest.raises(UsageError):
            segment_scores(found, truth)


def test_events_match_one_to_one_within_video_and_class() -> None:
    truth = Segments(["a", "a", "a", "b"], [0, 5, 0, 0], [4, 9, 4, 4], ["x", "x", "y", "x"])
    found = Segments(["a", "a", "a", "b", "c"], [0, 1, 0, 8, 0], [4, 4, 2, 9, 4], ["x", "x", "y", "x", "x"])
    scores = event_scores(truth, found, 0.5)  # x in a once, y in a; the second x in a, b and c are wrong
    assert (scores.hits, scores.found, scores.true) == (2, 5, 4)
    assert scores.precision == pytest.approx(2 / 5) and scores.recall == pytest.approx(2 / 4)
    assert scores.f1 == pytest.approx(2 * 2 / 9)


def test_event_scores_of_nothing() -> None:
    nothing, one = Segments([], [], [], []), Segments(["a"], [0], [1], ["x"])
    assert event_scores(nothing, nothing).f1 == 1.0
    assert event_scores(one, nothing).f1 == event_scores(nothing, one).f1 == 0.0
    assert event_scores(one, one).f1 == 1.0


def test_clips_count_the_best_event_of_a_class() -> None:
    best = clip_scores(Proposals([0, 1, 2], [1, 2, 3], [1, 1, 3], [0.2, 0.7, 0.5]), 4)
    np.testing.assert_allclose(best, [0, 0.7, 0, 0.5], rtol=1e-6)
    scores = np.array([best, best, best, [0.4, 0.4, 0.4, 0.1]])
    assert top_k(scores, [1, 3, 0, 1]).tolist() == [True, False, False, False]
    assert top_k(scores, [1, 3, 0, 1], 2).tolist() == [True, True, False, True]
    assert top_k(scores, [1, 3, 0, 3], 5).tolist() == [True, True, False, True]  # class 0 was not found at all


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    second = rng.random(400)
    first = second + rng.normal(0.1, 0.3, 400)
    interval = paired_bootstrap(first, second)
    difference = first - second
    error = 1.96 * difference.std(ddof=1) / 20
    assert interval.mean == pytest.approx(difference.mean())
    assert interval.low == pytest.approx(difference.mean() - error, abs=0.1 * error)
    assert interval.high == pytest.approx(difference.mean() + error, abs=0.1 * error)
    assert interval == paired_bootstrap(first, second) != paired_bootstrap(first, second, seed=1)


def test_items_of_a_group_are_drawn_together() -> None:
    rng = np.random.default_rng(2)
    clips = rng.normal(0, 1, 50)
    segments = np.repeat(clips, 20)  # twenty copies tell no more than one
    alone, together = paired_bootstrap(segments), paired_bootstrap(segments, groups=np.repeat(np.arange(50), 20))
    by_clip = paired_bootstrap(clips, weights=np.full(50, 20.0))
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert together.mean == pytest.approx(by_clip.mean) and together.low == pytest.approx(by_clip.low)


def test_weights_make_the_mean_of_parts_the_mean_of_all() -> None:
    interval = paired_bootstrap([1.0, 0.0], weights=[3, 1], draws=200)
    assert interval.mean == 0.75 and (interval.low, interval.high) == (0.0, 1.0)
    assert str(interval) == "0.7500 [0.0000, 1.0000]"


def test_bootstrap_refuses_what_is_not_paired() -> None:
    for arguments in ({"first": []}, {"first": [1.0], "second": [1.0, 2.0]}, {"first": [1.0], "groups": [1, 2]}):
        with pytest.raises(UsageError):
            paired_bootstrap(**arguments)
