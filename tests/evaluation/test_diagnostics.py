"""Diagnostic pictures: the numbers behind them by hand, and that what they show is in the picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from avtool.errors import UsageError
from avtool.evaluation import diagnostics
from avtool.evaluation.avel import reliability
from avtool.evaluation.diagnostics import LaneEvent, LearntWindow, cross_similarity, judge_lane, mean_of_std

pytest.importorskip("matplotlib", reason="pictures need it")
Image = pytest.importorskip("PIL.Image", reason="an independent reader of PNG")


def pixels(png: bytes) -> Any:
    """(H, W, 3) as an independent reader sees it."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has(png: bytes, colour: str) -> bool:
    """Whether a colour is in the picture."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels(png) - wanted).max(axis=2) <= 3).sum() > 20)


def test_similarity_and_its_deviation_by_hand() -> None:
    visual, audio = np.array([[1.0, 0], [0, 2]]), np.array([[3.0, 0], [1, 1]])
    np.testing.assert_allclose(cross_similarity(visual, audio), [[1, 0], [0.5**0.5, 0.5**0.5]])
    assert mean_of_std([np.eye(2), np.ones((3, 3))]) == 0.25
    assert not cross_similarity(np.zeros((2, 3)), np.ones((2, 3))).any()
    with pytest.raises(UsageError):
        mean_of_std([])
    with pytest.raises(UsageError):
        cross_similarity(visual, audio[:, :1])


def test_events_of_a_lane_are_right_merged_or_wrong_and_truth_found_or_missed() -> None:
    truth = [LaneEvent(0, 4, "dog"), LaneEvent(5, 9, "dog"), LaneEvent(2, 3, "car"), LaneEvent(12, 14, "dog")]
    found = [LaneEvent(0, 3, "dog"), LaneEvent(0, 10, "dog"), LaneEvent(2, 3, "bird"), LaneEvent(12, 14, "dog")]
    verdicts, hit = judge_lane(truth, found)
    assert verdicts == ["right", "merged", "wrong", "right"]
    assert hit == [True, False, False, True]
    assert judge_lane([], []) == ([], [])


def test_lanes_show_every_kind_of_event() -> None:
    truth = [LaneEvent(0, 4, "dog"), LaneEvent(5, 9, "dog"), LaneEvent(2, 3, "car")]
    models = {"one": [LaneEvent(0, 4, "dog"), LaneEvent(1, 2, "bird")], "two": [LaneEvent(0, 10, "dog")]}
    png = diagnostics.lanes(truth, models, 12)
    assert all(has(png, c) for c in (diagnostics.TRUTH, diagnostics.GOOD, diagnostics.BAD, diagnostics.MERGED))
    quiet = diagnostics.lanes([], {"one": []}, 12)
    assert pixels(quiet).shape[0] < pixels(png).shape[0]


def test_attention_is_bright_where_the_sound_looks() -> None:
    frames = np.full((3, 60, 90, 3), 128, np.uint8)
    maps = np.full((3, 49), 0.01)
    maps[:, 48] = 0.5  # the lower right corner
    picture = pixels(diagnostics.attention_overlay(frames, maps))
    red = picture[..., 0] - picture[..., 2]
    hot = np.argwhere(red > 0.9 * red.max())
    width = picture.shape[1] // 3
    assert (hot[:, 1] % width > width / 2).all() and len(hot) > 20
    flat = pixels(diagnostics.attention_overlay(frames[:1], np.full((1, 4, 4), 0.5)))
    assert (flat[..., 0] - flat[..., 2]).max() < 40
    for wrong in (maps[:2], np.ones((3, 7))):
        with pytest.raises(UsageError):
            diagnostics.attention_overlay(frames, wrong)


def test_matrix_windows_and_reliability_are_pictures_of_their_numbers() -> None:
    matrix = diagnostics.similarity_matrix(np.eye(6), [(1, 3)], 0.5)
    assert has(matrix, "#fde724") and has(matrix, "#440154")  # both ends of the colour scale
    windows = [
        LearntWindow(level, "visual", head, w, 2.0 * w, 2.0 * w + 3)
        for level in (0, 1)
        for head in (0, 1)
        for w in (0, 1)
    ]
    assert has(diagnostics.learnt_windows(windows, [(1, 4)]), "#1f77b4")
    with pytest.raises(UsageError, match="no learnt windows"):
        diagnostics.learnt_windows(windows, stream="audio")
    sure = reliability(np.linspace(0, 1, 50), np.arange(50) % 2 == 0)
    assert has(diagnostics.reliability_diagram(sure), diagnostics.TRUTH)
