"""Maps from scores to probabilities: what is right, that fitted maps tell the truth, and that files stay apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from avtool.calibration import Calibration
from avtool.detect.proposals import Proposals
from avtool.training import calibration as module
from avtool.training.calibration import (
    REAL_SHARE,
    Answers,
    best_spreads,
    calibrate,
    clip_answers,
    crossed,
    families,
    fit,
    judge,
    scene_answers,
)
from avtool.training.corpus import LabelledClip
from avtool.training.quadruples import Encoded

CLASSES = 6
GROUP = np.array([0, 0, 0, 1, 1, 1])
OFFSETS = np.array([0.0, 0.0, 0.0, -2.0, 0.0, 2.0])


def made(*spans: tuple[float, ...]) -> Proposals:
    """(start, end, label, score) rows."""
    return Proposals(*np.array(spans, np.float64).reshape(-1, 4).T)


def drawn(count: int, seed: int = 0) -> Answers:
    """Candidates that are right as often as maps say that differ between families, and inside the second."""
    rng = np.random.default_rng(seed)
    scores, labels = rng.uniform(0.02, 0.98, count), rng.integers(0, CLASSES, count)
    right = rng.random(count) < truth()(scores, labels)
    return Answers(scores, labels, right, rng.integers(0, count // 10, count), np.ones(count))


def truth() -> Calibration:
    maps = [(2.0, 0.3, -0.5) if g == 0 else (0.8, 0.8, float(o)) for g, o in zip(GROUP, OFFSETS, strict=True)]
    return Calibration(tuple(maps))


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("spans", "events", "right"),
    [
        ([(0, 4, 1, 0.5)], [(1, 0, 8)], [True]),  # half of it
        ([(0, 3.9, 1, 0.5)], [(1, 0, 8)], [False]),
        ([(0, 8, 2, 0.5)], [(1, 0, 8)], [False]),  # another class
        ([(0, 8, 1, 0.5)], [], [False]),
        ([(0, 6, 1, 0.9), (4, 10, 1, 0.3)], [(1, 2, 8)], [True, False]),  # one event makes one candidate right
        ([(0, 6, 1, 0.3), (4, 10, 1, 0.9)], [(1, 2, 8)], [False, True]),  # the better of the two
        ([(0, 4, 1, 0.9), (6, 10, 1, 0.9)], [(1, 0, 4), (1, 6, 10)], [True, True]),
        ([(0, 12, 1, 0.9)], [(1, 0, 5)], [True]),  # cut to the file, 10 s long
    ],
)
def test_what_is_right(spans: Any, events: Any, right: list[bool]) -> None:
    assert judge(made(*spans), 10.0, events, 7).right.tolist() == right


def test_candidates_are_judged_as_users_see_them() -> None:
    """A doubtful second reading of the same stretch is no candidate, and so is what score is too low."""
    got = judge(made((0, 10, 0, 0.8), (2, 8, 0, 0.3), (0, 10, 1, 0.004)), 10.0, [(0, 0, 10)], 3, 0.25)
    assert got.scores == pytest.approx([0.8]) and got.files.tolist() == [3] and got.weight.tolist() == [0.25]


def test_real_clips_and_scenes_have_their_weight(tmp_path: Path) -> None:
    clips = [LabelledClip(tmp_path, label, 0.0, 10.0, 10.0) for label in (0, 1)]
    runs = [[made((0, 10, 0, 0.8), (0, 10, 4, 0.6)), made((0, 10, 1, 0.7))] for _ in range(2)]
    real = clip_answers(runs, clips, CLASSES)
    assert real.files.tolist() == [0, 0, 1] * 2 and real.right.tolist() == [True, False, True] * 2
    assert real.weight.tolist() == [0.5, 0.5 * REAL_SHARE, 0.5] * 2
    assert families(clips, CLASSES).tolist() == [0, 0, 1, 1, 1, 1]
    scenes = [
        Encoded(4, 5, 2.0, 8.0, {a + b: {"seen": np.ones(20, bool), "of": a + b} for a in "ab" for b in "ab"})
        for _ in range(3)
    ]
    found = {"aa": made((2, 8, 4, 0.9)), "bb": made((2, 8, 5, 0.8), (2, 8, 0, 0.9)), "ab": made((2, 8, 4, 0.2))}
    got = scene_answers(lambda clip: [found.get(clip["of"], made())], scenes, 2, 6)
    assert got.labels.tolist() == [4, 4, 5] * 3  # class 0 is not one that scenes show
    assert got.right.tolist() == [True, False, True] * 3
    assert got.files.tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4] and got.weight.tolist() == [0.5] * 9


# ---------------------------------------------------------------- fitting


def test_fitted_maps_tell_the_truth() -> None:
    answers = drawn(60_000)
    found = calibrate(answers, GROUP)
    assert len({found.maps[k] for k in range(3)}) == 1  # nothing sets the classes of the first family apart
    scores, labels = np.tile(np.linspace(0.05, 0.95, 10), CLASSES), np.repeat(np.arange(CLASSES), 10)
    np.testing.assert_allclose(found(scores, labels), truth()(scores, labels), atol=0.05)


def test_the_spread_is_chosen_by_what_left_out_files_say() -> None:
    first, second = best_spreads(drawn(20_000), GROUP)
    assert first == 0 < second


@pytest.mark.parametrize("platt", [False, True])
def test_maps_always_rise(platt: bool) -> None:
    """Even where higher scores are less often right."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 0.9, 2000)
    right = rng.random(2000) > scores
    answers = Answers(scores, np.zeros(2000, np.int64), right, np.arange(2000), np.ones(2000))
    calibration = module.as_calibration(fit(answers, np.zeros(1, np.int64), [0.0], platt))
    line = calibration(np.linspace(0, 1, 50), np.zeros(50, np.int64))
    assert (np.diff(line) >= 0).all()


@pytest.mark.parametrize("right", [True, False])
def test_where_all_are_right_or_none_is(right: bool) -> None:
    scores = np.linspace(0.2, 0.8, 50)
    answers = Answers(scores, np.zeros(50, np.int64), np.full(50, right), np.arange(50), np.ones(50))
    chance = calibrate(answers, np.zeros(1, np.int64))(scores, np.zeros(50, np.int64))
    assert (abs(chance - right) < 0.1).all()


def test_platts_map_has_one_slope() -> None:
    maps = fit(drawn(5000), GROUP, [0.0, 1.0], platt=True)
    np.testing.assert_allclose(maps[:, 0], maps[:, 1])
    assert len({round(float(m), 6) for m in maps[3:, 2]}) == 3


def test_weight_counts() -> None:
    answers = drawn(20_000)
    wrong_is_rare = replace(answers, weight=np.where(answers.right, 1.0, 0.1))
    plain, weighed = (fit(a, GROUP, [0.0, 0.0])[0, 2] for a in (answers, wrong_is_rare))
    assert weighed - plain == pytest.approx(np.log(10), abs=0.3)


def test_no_file_is_judged_by_maps_that_saw_it() -> None:
    """One file says the contrary of all others: its own candidates are given what the others say."""
    answers = drawn(6000)
    odd = answers.files == 5
    turned = replace(answers, right=np.where(odd, ~answers.right, answers.right))
    assert odd.sum() > 3
    given = crossed(turned, GROUP, [0.0, 1.0])
    np.testing.assert_array_equal(given[odd], crossed(answers, GROUP, [0.0, 1.0])[odd])
    assert not np.array_equal(given[~odd], crossed(answers, GROUP, [0.0, 1.0])[~odd])


def test_other_candidates_of_the_same_files() -> None:
    answers = drawn(6000)
    some: npt.NDArray[np.bool_] = answers.labels == 4
    both = crossed(answers, GROUP, [0.0, 1.0]), crossed(answers, GROUP, [0.0, 1.0], answers.take(some))
    np.testing.assert_array_equal(both[0][some], both[1])
