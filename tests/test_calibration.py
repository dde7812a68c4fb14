"""Scores as probabilities: the maps rise, say what their formula says, and bad ones are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtool.calibration import Calibration, Map

HEADER = {"version": 1, "kind": "beta"}
slope = st.floats(0, 20)
any_map = st.tuples(slope, slope, st.floats(-50, 50)).filter(lambda m: max(m[:2]) > 0)


def test_the_formula() -> None:
    given_maps: tuple[Map, ...] = ((1.0, 1.0, 0.0), (2.0, 0.5, -1.0))
    scores, labels = np.array([0.3, 0.3, 0.8]), np.array([0, 1, 1])
    odds = [0.3 / 0.7, 0.3**2 / 0.7**0.5 / np.e, 0.8**2 / 0.2**0.5 / np.e]
    expected = [o / (1 + o) for o in odds]
    np.testing.assert_allclose(Calibration(given_maps)(scores, labels), expected, rtol=1e-6)


@given(any_map)
def test_the_order_of_a_classs_scores_stays(one: Map) -> None:
    scores = np.linspace(0, 1, 300)
    found = Calibration((one,))(scores, np.zeros(300, int))
    assert found[0] == 0 and (np.diff(found) >= 0).all() and found.max() <= 1


@given(st.lists(any_map, min_size=1, max_size=4))
def test_a_curve_gets_what_candidates_get(maps: list[Map]) -> None:
    calibration = Calibration(tuple(maps))
    curve = np.random.default_rng(0).random((5, len(maps)), np.float32)
    curve[0] = 0
    labels = np.broadcast_to(np.arange(len(maps)), curve.shape)
    expected = calibration(curve.reshape(-1), labels.reshape(-1)).reshape(curve.shape)
    calibration.apply(curve)
    np.testing.assert_array_equal(curve, expected)


@pytest.mark.parametrize(
    "bad",
    [(1.0, 1.0), (-0.1, 1.0, 0.0), (0.0, 0.0, 0.0), (float("nan"), 1.0, 0.0), (1.0, 1.0, float("inf")), (1, True, 0),
     (1.0, "1", 0.0), (101.0, 1.0, 0.0), (1.0, 1.0, -1e9), ((1.0,), 1.0, 0.0)],
)  # fmt: skip
def test_bad_maps_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="class 1 is no rising map"):
        Calibration(((1.0, 1.0, 0.0), bad))


def test_what_a_description_says() -> None:
    maps = [[1.0, 2.0, 3.0], [1, 0, -1]]
    assert Calibration.read(HEADER, maps) == Calibration(((1.0, 2.0, 3.0), (1, 0, -1)))
    assert Calibration.read(None, [None, None]) is None


@pytest.mark.parametrize(
    ("header", "maps"),
    [(None, [[1.0, 1.0, 0.0]]), (HEADER, [[1.0, 1.0, 0.0], None]), (HEADER, ["a"]), ("beta", [[1.0, 1.0, 0.0]]),
     ({"version": 2, "kind": "beta"}, [[1.0, 1.0, 0.0]]), ({"version": 1, "kind": "isotonic"}, [[1.0, 1.0, 0.0]]),
     (HEADER, [[1.0, 1.0]])],
)  # fmt: skip
def test_a_description_must_be_whole_and_known(header: Any, maps: list[Any]) -> None:
    with pytest.raises(ValueError, match="calibration"):
        Calibration.read(header, maps)
