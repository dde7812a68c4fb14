"""Mean average precision and recall@kx against stored numbers of public evaluators and a row-by-row one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.errors import UsageError
from avtool.evaluation.map import TIOUS, Segments, mean_ap, read_ground_truth, recall_at

NAMES = [
    "basic",
    "large",
    "noncontiguous",
    "duplicates",
    "missing_class",
    "ties",
    "no_gt_videos",
    "extra_label_safe",
    "extra_label_collision",
]


@pytest.fixture(scope="module")
def scenarios(shared: Path) -> dict[str, Any]:
    return {case["name"]: case for case in json.loads((shared / "golden" / "map.json").read_text())["cases"]}


def problem_of(case: dict[str, Any]) -> tuple[Segments, Segments]:
    found = case["predictions"]
    columns = (np.array(found[key]) for key in ("video-id", "t-start", "t-end", "label", "score"))
    return read_ground_truth(case["ground_truth"], case["subset"]), Segments(*columns)


@pytest.mark.parametrize("name", NAMES)
def test_golden(scenarios: dict[str, Any], name: str) -> None:
    case = scenarios[name]
    truth, found = problem_of(case)
    result = mean_ap(truth, found, case["tiou_thresholds"])
    tolerance = 0.02 if case["order_sensitive"] else 1e-12  # stored with an arbitrary order of equal scores
    np.testing.assert_allclose(result.by_tiou, case["crosscheck"]["opentad_mAP"], rtol=0, atol=tolerance)
    assert result.average == pytest.approx(case["crosscheck"]["opentad_average"], abs=tolerance)
    if not case["known_bug"] and not case["order_sensitive"]:
        expected = case["expected"]["ap_per_label_id"]
        for label, ap in zip(result.labels, result.ap.T, strict=True):
            np.testing.assert_allclose(ap, expected[str(label)], rtol=0, atol=1e-12)
        np.testing.assert_allclose(result.by_tiou, case["expected"]["mAP"], rtol=0, atol=1e-12)
        recall = recall_at(truth, found, (1, 5), case["tiou_thresholds"])
        for row, key in zip(recall, ("actionformer_recall_1x", "actionformer_recall_5x"), strict=True):
            np.testing.assert_allclose(row, case["crosscheck"][key], rtol=0, atol=1e-12)


def test_every_scenario_is_listed(scenarios: dict[str, Any]) -> None:
    assert sorted(scenarios) == sorted(NAMES)


def test_the_label_collision_is_not_reproduced(scenarios: dict[str, Any]) -> None:
    case = scenarios["extra_label_collision"]
    result = mean_ap(*problem_of(case), case["tiou_thresholds"])
    assert abs(result.average - case["expected"]["average_mAP"]) > 0.002


def row_by_row(truth: Segments, found: Segments, tiou: float) -> float:
    """One detection after the other, in the order that `mean_ap` documents."""
    aps = []
    for label in sorted(set(truth.labels.tolist())):
        events: list[tuple[Any, float, float]] = []
        for v, s, e, c in zip(truth.videos, truth.starts, truth.ends, truth.labels, strict=True):
            same = (abs(s - s2) <= 1e-3 and abs(e - e2) <= 1e-3 for v2, s2, e2 in events if v2 == v)
            if c == label and not any(same):
                events.append((v, s, e))
        rows = [
            (-x, v, s, e)
            for v, s, e, c, x in zip(found.videos, found.starts, found.ends, found.labels, found.scores, strict=True)
            if c == label
        ]
        free, hits = set(range(len(events))), []
        for _, v, s, e in sorted(rows):
            scored = []
            for i in sorted(free):
                overlap = max(0.0, min(e, events[i][2]) - max(s, events[i][1]))
                union = (e - s) + (events[i][2] - events[i][1]) - overlap
                if events[i][0] == v and union > 0 and overlap / union >= tiou:
                    scored.append((-overlap / union, events[i][1], events[i][2], i))
            hits.append(bool(scored))
            if scored:
                free.remove(min(scored)[3])
        right = np.cumsum(hits) if hits else np.zeros(0)
        precision = right / np.arange(1, len(hits) + 1)
        aps.append(sum(precision[i:].max() for i in range(len(hits)) if hits[i]) / len(events))
    return float(np.mean(aps))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Segments, Segments]:
    """Few videos and classes on a coarse lattice: many equal scores, touching and repeated segments."""

    def segments(count: int) -> Segments:
        column = lambda high: np.array(draw(st.lists(st.integers(0, high), min_size=count, max_size=count)))  # noqa: E731
        starts = column(9) / 2
        return Segments(column(2), starts, starts + column(6) / 2, column(2), column(8) / 8)

    return segments(draw(st.integers(1, 9))), segments(draw(st.integers(0, 14)))


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]))
def test_equals_row_by_row(problem: tuple[Segments, Segments], tiou: float) -> None:
    assert mean_ap(*problem, [tiou]).average == pytest.approx(row_by_row(*problem, tiou), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_order_does_not_matter(problem: tuple[Segments, Segments], random: Any) -> None:
    shuffled = []
    for segments in problem:
        order = list(range(len(segments)))
        random.shuffle(order)
        shuffled.append(segments.take(np.array(order, np.int64)))
    np.testing.assert_array_equal(mean_ap(*problem).ap, mean_ap(*shuffled).ap)
    found = problem[1]
    if len(set(found.scores.tolist())) == len(found):
        np.testing.assert_array_equal(recall_at(*problem), recall_at(*shuffled))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_bounds(problem: tuple[Segments, Segments]) -> None:
    truth, found = problem
    result, recall = mean_ap(truth, found), recall_at(truth, found)
    assert np.all((result.ap >= 0) & (result.ap <= 1 + 1e-12))
    assert np.all(np.diff(result.by_tiou) <= 1e-12) or len(truth) > 1  # with one event a stricter threshold never helps
    assert np.all(np.diff(recall, axis=1) <= 1e-12) and np.all(recall[1] >= recall[0])
    rows = np.stack([truth.videos, truth.labels, truth.starts, truth.ends], 1)
    unlike = np.isin(
        np.arange(len(truth)), np.unique(rows, axis=0, return_index=True)[1]
    )  # twins may take one another's
    perfect = truth.take(unlike & (truth.ends > truth.starts))
    if len(perfect):
        assert mean_ap(perfect, perfect).average == pytest.approx(1.0)


def test_names_and_numbers_give_the_same() -> None:
    starts, ends = np.array([0.0, 3.0, 1.0]), np.array([2.0, 5.0, 4.0])
    numbers = Segments(np.array([0, 1, 1]), starts, ends, np.array([0, 1, 0]), np.array([0.9, 0.8, 0.7]))
    names = Segments(np.array(["a", "b", "b"]), starts, ends, np.array(["x", "y", "x"]), numbers.scores)
    shifted = Segments(numbers.videos, starts + 0.5, ends + 0.5, numbers.labels)
    renamed = Segments(names.videos, starts + 0.5, ends + 0.5, names.labels)
    np.testing.assert_array_equal(mean_ap(shifted, numbers).ap, mean_ap(renamed, names).ap)
    assert mean_ap(renamed, names).labels.tolist() == ["x", "y"]


def test_detections_in_videos_without_events_are_false_alarms() -> None:
    truth = Segments(["a"], [0.0], [1.0], ["x"])
    found = Segments(["b", "a"], [0.0, 0.0], [1.0, 1.0], ["x", "x"], [0.9, 0.8])
    assert mean_ap(truth, found, [0.5]).average == pytest.approx(0.5)
    assert recall_at(truth, found, [1], [0.5]).tolist() == [[1.0]]


def test_nothing_found_and_nothing_to_find() -> None:
    truth, nothing = Segments(["a"], [0.0], [1.0], ["x"]), Segments([], [], [], [])
    result = mean_ap(truth, nothing)
    assert result.average == 0.0 and result.tious == TIOUS and result.ap.shape == (9, 1)
    assert recall_at(truth, nothing).tolist() == np.zeros((2, 9)).tolist()
    with pytest.raises(UsageError):
        mean_ap(nothing, truth)
    with pytest.raises(UsageError):
        Segments(["a"], [0.0, 1.0], [1.0], ["x"])


def test_reads_subsets_and_names() -> None:
    note = {"segment": [1, 2], "label": "bark"}
    database = {"v": {"subset": "Test", "annotations": [note]}, "w": {"subset": "train", "annotations": [note, note]}}
    assert len(read_ground_truth({"database": database})) == 3
    truth = read_ground_truth(database, "test")
    assert truth.videos.tolist() == ["v"] and truth.labels.tolist() == ["bark"]
    assert len(read_ground_truth(database, "validation")) == 0
