"""Soft-NMS against the reference's outputs, a textbook loop, and the properties it must have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avtool.detect.proposals import Proposals
from avtool.detect.softnms import Kept, soft_nms, suppress
from avtool.errors import UsageError

CASES = [f"c{i:02d}" for i in range(36)]
F = np.float32


def iou32(start: Any, end: Any, starts: Any, ends: Any) -> Any:
    """IoU as the reference computes it: float32, 1e-6 added to each length."""
    overlap = np.maximum(F(0), np.minimum(end, ends) - np.maximum(start, starts))
    return overlap / ((end - start + F(1e-6)) + (ends - starts + F(1e-6)) - overlap)


def weights(iou: Any, method: str, sigma: float, threshold: float) -> Any:
    if method == "gaussian":
        return np.exp(-(iou * iou) / F(sigma))
    return np.where(iou >= F(threshold), 1 - iou if method == "linear" else F(0), F(1))


def textbook(starts, ends, scores, labels=None, *, method, sigma=0.4, iou_threshold=0.7, min_score=0.001):
    """Every class in full, one pick after the other: (position, score) pairs, sorted as `soft_nms` promises."""
    starts, ends, scores = (np.asarray(a, F) for a in (starts, ends, scores))
    labels = np.zeros(len(starts), int) if labels is None else np.asarray(labels)
    picks: list[tuple[int, Any]] = []
    for label in np.unique(labels):
        left = np.flatnonzero((labels == label) & ((method != "hard") | (scores > F(min_score))))
        current = scores[left]
        while len(left):
            best = min(range(len(left)), key=lambda i: (-current[i], starts[left[i]], ends[left[i]]))
            picks.append((int(left[best]), current[best]))
            iou = iou32(starts[left[best]], ends[left[best]], starts[left], ends[left])
            current = current * weights(iou, method, sigma, iou_threshold)
            stays = (current >= F(min_score)) & (np.arange(len(left)) != best)
            stays &= (iou < F(iou_threshold)) | (method != "hard")
            left, current = left[stays], current[stays]
    return sorted(picks, key=lambda p: (-p[1], labels[p[0]], starts[p[0]], ends[p[0]]))


def literal(segments: Any, scores: Any, sigma: float, min_score: float) -> Any:
    """The reference's Gaussian loop with its swaps, which decide among equal scores: rows (start, end, score)."""
    rows = [[*segment, score] for segment, score in zip(segments.astype(F), scores.astype(F), strict=True)]
    i, count = 0, len(rows)
    while i < count:
        best = max(range(i, count), key=lambda k: rows[k][2])  # the first of equals
        rows[i], rows[best] = rows[best], rows[i]
        k = i + 1
        while k < count:
            iou = iou32(rows[i][0], rows[i][1], rows[k][0], rows[k][1])
            rows[k][2] = F(rows[k][2] * np.exp(-(iou * iou) / F(sigma)))
            if rows[k][2] < F(min_score):
                count -= 1
                rows[k] = rows[count]  # the last one takes the place, and its turn
            else:
                k += 1
        i += 1
    return np.array(rows[:count])


def options(case: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Arguments of `soft_nms` for a stored case, and whether classes are apart."""
    p = case["params"]
    common = {"iou_threshold": p["iou_threshold"], "min_score": p.get("min_score", 0.0), "sigma": p.get("sigma", 0.4)}
    if case["kind"] == "op_soft":
        return {**common, "method": ("hard", "linear", "gaussian")[p["method"]]}, False
    if case["kind"] == "op_hard":
        return {**common, "min_score": -1.0, "method": "hard"}, False
    common |= {"method": "gaussian" if p["use_soft_nms"] else "hard", "max_segments": p["max_seg_num"]}
    if p["multiclass"]:
        return common, True
    votes = {"voting": p["voting_variant"], "voting_threshold": p["voting_thresh"]} if p["voting_thresh"] else {}
    return {**common, **votes}, False


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    with np.load(shared / "golden" / "softnms.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.mark.parametrize("name", CASES)
def test_golden(golden: dict[str, Any], name: str) -> None:
    case = next(c for c in json.loads(str(golden["meta"])) if c["case"] == name)
    segments, scores, labels = (golden[f"{name}_{key}"] for key in ("segs", "scores", "labels"))
    arguments, class_wise = options(case)
    kept = soft_nms(segments[:, 0], segments[:, 1], scores, labels if class_wise else None, **arguments)
    groups = labels if class_wise else np.zeros(len(labels), int)
    replay(kept.indices, kept.scores, segments, scores, groups, arguments)
    if not case["ties"]:
        check_same_set(kept, labels[kept.indices], golden, name)
    elif f"{name}_out_inds" in golden:  # another valid order of the same equal scores
        replay(golden[f"{name}_out_inds"], golden[f"{name}_out_scores"], segments, scores, groups, arguments)


@pytest.mark.parametrize("name", ["c09", "c34"])
def test_golden_ties_differ_by_the_order_in_memory_alone(golden: dict[str, Any], name: str) -> None:
    """How many survive depends on who of equals goes first: the reference goes by its swaps, we go by time."""
    case = next(c for c in json.loads(str(golden["meta"])) if c["case"] == name)
    segments, scores, labels = (golden[f"{name}_{key}"] for key in ("segs", "scores", "labels"))
    groups = labels if options(case)[1] else np.zeros(len(labels), int)
    sigma, floor = case["params"]["sigma"], case["params"]["min_score"]
    parts = [literal(segments[groups == g], scores[groups == g], sigma, floor) for g in np.unique(groups)]
    expected = np.column_stack([golden[f"{name}_out_segs"], golden[f"{name}_out_scores"]])
    by_row = lambda rows: rows[np.lexsort(np.round(rows.T, 4))]  # noqa: E731
    np.testing.assert_allclose(by_row(np.concatenate(parts)), by_row(expected), rtol=1e-6)


def check_same_set(kept: Kept, labels: Any, golden: dict[str, Any], name: str) -> None:
    """Same (start, end, score) rows, and labels where the case has them, whatever the order of equal scores."""
    expected = np.column_stack([golden[f"{name}_out_segs"], golden[f"{name}_out_scores"]])
    found = np.column_stack([kept.starts, kept.ends, kept.scores])
    if f"{name}_out_labels" in golden:
        expected = np.column_stack([expected, golden[f"{name}_out_labels"]])
        found = np.column_stack([found, labels])
    near = np.isclose(expected[:, None], found, rtol=1e-6, atol=1e-7).all(axis=2)  # (expected, found)
    assert len(expected) == len(found)
    assert near.any(axis=1).all() and near.any(axis=0).all()


def replay(indices: Any, faded: Any, segments: Any, scores: Any, labels: Any, arguments: dict[str, Any]) -> None:
    """The order is a valid run: no pick is outscored in its class, each score is right, and nothing is left."""
    near = F(1 - 3e-6)
    hard, floor = arguments["method"] == "hard", F(arguments["min_score"])
    current = scores.astype(F)
    if hard:
        current[current <= floor] = -np.inf
    for index, score in zip(indices, faded, strict=True):
        group = labels == labels[index]
        assert score == pytest.approx(current[index], rel=3e-6, abs=1e-9)
        assert current[index] >= current[group].max() * near
        iou = iou32(*segments[index], segments[:, 0], segments[:, 1])
        alive = np.isfinite(current) & (np.arange(len(current)) != index)
        weight = weights(iou, arguments["method"], arguments["sigma"], arguments["iou_threshold"])
        after = np.where(alive, np.where(alive, current, 0) * weight, -np.inf)
        after[(iou >= F(arguments["iou_threshold"])) if hard else (after < floor)] = -np.inf
        current = np.where(group, after, current).astype(F)
    assert np.all(np.diff(faded) <= 0)
    full = len(indices) == arguments.get("max_segments")
    assert current.max(initial=-np.inf) <= (faded[-1] / near if full else -np.inf)


@st.composite
def problems(draw: st.DrawFn, most: int = 24) -> tuple[Any, Any, Any, Any]:
    """Starts, ends, scores, labels on a coarse lattice, so that ties, touching and nested segments are common."""
    count = draw(st.integers(0, most))
    column = lambda high: hnp.arrays(np.int64, count, elements=st.integers(0, high))  # noqa: E731
    starts = draw(column(20)).astype(F) / 2
    ends = starts + draw(column(12)).astype(F) / 2
    return starts, ends, draw(column(40)).astype(F) / 40, draw(column(3))


METHODS = st.sampled_from(["gaussian", "linear", "hard"])


@settings(max_examples=60, deadline=None)
@given(problems(), METHODS, st.booleans(), st.sampled_from([0.0, 0.001, 0.3]), st.sampled_from([0.3, 0.5, 1.0]))
def test_equals_the_textbook_loop(problem, method, class_wise, min_score, threshold) -> None:
    starts, ends, scores, labels = problem
    labels = labels if class_wise else None
    expected = textbook(
        starts, ends, scores, labels, method=method, min_score=min_score, iou_threshold=threshold, sigma=0.5
    )
    kept = soft_nms(
        starts, ends, scores, labels, method=method, min_score=min_score, iou_threshold=threshold, sigma=0.5
    )
    np.testing.assert_allclose(kept.scores, [score for _, score in expected], rtol=1e-6)
    np.testing.assert_allclose(np.sort(starts[kept.indices]), np.sort(starts[[i for i, _ in expected]]))
    assert len(set(kept.indices.tolist())) == len(kept)


@settings(max_examples=40, deadline=None)
@given(problems(), METHODS, st.integers(1, 8))
def test_a_limit_keeps_the_head_of_the_full_result(problem, method, limit) -> None:
    full = soft_nms(*problem, method=method)
    head = soft_nms(*problem, method=method, max_segments=limit)
    np.testing.assert_array_equal(head.indices, full.indices[:limit])
    np.testing.assert_array_equal(head.scores, full.scores[:limit])


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
@pytest.mark.parametrize("decimals", [1, 7])  # many equal scores, hardly any
def test_a_limit_far_below_the_number_of_segments_changes_nothing(method: Any, decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    for limit in (1, 7, 40):
        starts = rng.uniform(0, 30, 4000).astype(F)
        columns = (starts, starts + rng.uniform(0, 9, 4000).astype(F), rng.beta(0.3, 3, 4000).round(decimals))
        labels = rng.integers(0, 5, 4000)
        full = soft_nms(*columns, labels, method=method, iou_threshold=0.4, sigma=0.1)
        head = soft_nms(*columns, labels, method=method, iou_threshold=0.4, sigma=0.1, max_segments=limit)
        np.testing.assert_array_equal(head.indices, full.indices[:limit])
        np.testing.assert_array_equal(head.scores, full.scores[:limit])


@settings(max_examples=40, deadline=None)
@given(problems(), METHODS, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(problem, method, random) -> None:
    order = list(range(len(problem[0])))
    random.shuffle(order)
    shuffled = [column[order] for column in problem]
    first, second = soft_nms(*problem, method=method), soft_nms(*shuffled, method=method)
    for name in ("starts", "ends", "scores"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(problem[3][first.indices], shuffled[3][second.indices])


@settings(max_examples=40, deadline=None)
@given(problems(), METHODS)
def test_scores_only_fall_and_segments_stay(problem, method) -> None:
    starts, ends, scores, labels = problem
    kept = soft_nms(starts, ends, scores, labels, method=method, min_score=0.05)
    assert np.all(kept.scores <= scores[kept.indices])
    assert np.all(np.diff(kept.scores) <= 0)
    np.testing.assert_array_equal(kept.starts, starts[kept.indices])
    np.testing.assert_array_equal(kept.ends, ends[kept.indices])
    top = {scores[labels == label].max() for label in np.unique(labels)}
    assert top <= set(kept.scores) or method == "hard"


@settings(max_examples=30, deadline=None)
@given(problems())
def test_hard_nms_twice_is_hard_nms(problem) -> None:
    once = soft_nms(*problem, method="hard", iou_threshold=0.5)
    labels = problem[3][once.indices]
    twice = soft_nms(once.starts, once.ends, once.scores, labels, method="hard", iou_threshold=0.5)
    np.testing.assert_array_equal(np.sort(twice.indices), np.arange(len(once)))
    np.testing.assert_array_equal(twice.scores, once.scores)


@settings(max_examples=30, deadline=None)
@given(problems(), st.sampled_from(["unav", "actionformer"]), st.sampled_from([0.5, 0.75, 0.9]))
def test_votes_are_weighted_means(problem, voting, threshold) -> None:
    starts, ends, scores, _ = problem
    plain = soft_nms(starts, ends, scores)
    voted = soft_nms(starts, ends, scores, voting=voting, voting_threshold=threshold)
    np.testing.assert_array_equal(plain.indices, voted.indices)
    for k in range(len(plain)):
        overlap = np.maximum(0, np.minimum(plain.ends[k], ends) - np.maximum(plain.starts[k], starts))
        union = (plain.ends[k] - plain.starts[k]) + (ends - starts) - overlap
        iou = np.array([o / u if u > 0 else 0 for o, u in zip(overlap, union, strict=True)])
        weight = np.where(iou >= threshold, scores, 0) * (iou if voting == "actionformer" else 1)
        expected = (weight @ starts / weight.sum(), weight @ ends / weight.sum()) if weight.sum() else None
        found = voted.starts[k], voted.ends[k]
        assert found == pytest.approx(expected or (plain.starts[k], plain.ends[k]), abs=1e-5)


def test_equal_scores_come_by_class_then_start_then_end() -> None:
    starts, ends = [4.0, 0.0, 0.0, 8.0, 2.0], [5.0, 3.0, 1.0, 9.0, 3.0]
    kept = soft_nms(starts, ends, [0.5] * 5, [1, 1, 1, 0, 0], method="hard", iou_threshold=0.9)
    assert kept.indices.tolist() == [4, 3, 2, 1, 0]


def test_the_best_of_a_class_is_never_below_the_floor_except_with_hard() -> None:
    for method, count in (("gaussian", 1), ("linear", 1), ("hard", 0)):
        kept = soft_nms([0.0, 5.0], [1.0, 6.0], [0.01, 0.02], min_score=0.1, method=method)
        assert len(kept) == count


def test_a_score_equal_to_the_floor_survives() -> None:
    floor = float(F(0.1))
    assert len(soft_nms([0.0, 5.0], [1.0, 6.0], [0.5, floor], min_score=floor)) == 2
    assert len(soft_nms([0.0, 5.0], [1.0, 6.0], [0.5, floor], min_score=floor, method="hard")) == 1


def test_hours_of_seconds_keep_their_precision() -> None:
    """Float32 knows 39,600 s to 4 ms only; Proposals are float64 and must fade as they would at 0 s."""
    near = soft_nms([0.0, 0.101], [0.5, 0.601], [0.9, 0.8])
    far = soft_nms([39600.0, 39600.101], [39600.5, 39600.601], [0.9, 0.8])
    np.testing.assert_allclose(near.scores, far.scores, rtol=1e-6)


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_classes_with_many_segments_give_what_a_plain_loop_gives(method: Any) -> None:
    """Above 1,024 segments only the neighbourhood of a pick is looked at: some very long ones, and equal starts."""
    rng = np.random.default_rng(7)
    starts = rng.uniform(0, 500, 1500).round(1)
    ends = starts + np.where(rng.random(1500) < 0.02, 200.0, rng.exponential(1.0, 1500).round(1))
    scores = rng.random(1500).astype(F)
    kept = soft_nms(starts, ends, scores, method=method, iou_threshold=0.3, max_segments=1400)
    current, length = scores.copy(), ends - starts + 1e-6
    for index, score in zip(kept.indices, kept.scores, strict=True):
        assert current[index] == score == current.max()
        overlap = np.maximum(np.minimum(ends, ends[index]) - np.maximum(starts, starts[index]), 0)
        iou = overlap / (length + length[index] - overlap)
        current[index] = -1
        alive = current > 0
        weight = (iou < 0.3) if method == "hard" else 1 - np.where(iou >= F(0.3), iou, 0)
        weight = np.exp(-(iou**2) / F(0.4)) if method == "gaussian" else weight
        current[alive] *= weight[alive].astype(F)
        current[current < F(0.001)] = -1
    assert len(kept) == 1400 or current.max() < 0


def test_suppress_keeps_labels_beside_their_segments() -> None:
    proposals = Proposals([0, 0, 5], [4, 4, 6], [7, 2, 7], [0.9, 0.8, 0.3])
    apart, together = suppress(proposals), suppress(proposals, class_wise=False)
    assert apart.labels.tolist() == [7, 2, 7] and apart.scores.tolist() == pytest.approx([0.9, 0.8, 0.3])
    assert together.labels.tolist() == [7, 7, 2]
    assert together.scores.tolist() == pytest.approx([0.9, 0.3, 0.8 * np.exp(-1 / 0.4)], rel=1e-4)
    assert len(suppress(Proposals.empty())) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "greedy"},
        {"max_segments": 0},
        {"max_segments": -1},
        {"sigma": 0.0},
        {"voting": "majority"},
        {"voting": "unav", "labels": [0]},
        {"labels": [0, 1]},
        {"scores": [np.nan]},
        {"ends": [np.inf]},
    ],
)
def test_refuses_what_it_cannot_do(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        soft_nms(**{"starts": [0.0], "ends": [1.0], "scores": [0.5], **arguments})
