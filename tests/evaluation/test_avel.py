"""Segment labels: the calibration lines of AVE exactly, parts by hand, cross-modality localization (avel.md 8.2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avtool.errors import UsageError
from avtool.evaluation import cml
from avtool.evaluation.avel import avel_scores, calibration, most_frequent, reliability, spread, stretches

BG = 3
TRUTH = np.array([[0, 0, BG, BG], [1, 1, 1, 1], [BG, 2, 2, BG]])


@pytest.fixture(scope="module")
def ave(shared: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test labels, and the events of CML's test split."""
    pytest.importorskip("h5py")
    from avtool.training.datasets.ave import read_ave

    data = read_ave(shared / "ave")
    test = data.split("test")
    return data.labels[test], data.clip_classes[test], data.events[data.split("test_match")]


def test_calibration_lines_of_ave(ave: tuple[np.ndarray, ...]) -> None:
    labels, classes, _ = ave
    lines = calibration(labels, 28)
    assert lines["all_background"] == 715 / 4020 and lines["oracle_class"] == 3305 / 4020
    nothing = avel_scores(np.full_like(labels, 28), labels, 28)
    oracle = avel_scores(np.broadcast_to(classes[:, None], labels.shape), labels, 28)
    assert f"{100 * nothing.segments.accuracy:.4f} {100 * oracle.segments.accuracy:.4f}" == "17.7861 82.2139"
    assert oracle.clip_accuracy == 1 and nothing.clip_accuracy == 0
    assert oracle.with_background is not None and oracle.with_background.count == 1410
    assert oracle.segments.event_accuracy == 1 and oracle.segments.background_recall == 0


def test_parts_by_hand() -> None:
    predicted = np.array([[0, 0, 0, BG], [2, 2, 2, BG], [BG, 2, 2, BG]])
    scores = avel_scores(predicted, TRUTH, BG)
    assert scores.segments.accuracy == 7 / 12 and scores.clips == 3
    assert scores.with_background is not None and scores.with_background.accuracy == 7 / 8
    assert scores.clip_accuracy == 2 / 3
    assert scores.per_class == {0: 0.75, 1: 0.0, 2: 1.0}
    assert (scores.events.hits, scores.events.found, scores.events.true) == (2, 3, 3)
    assert scores.events.f1 == pytest.approx(2 / 3)
    assert avel_scores(predicted, TRUTH, BG, clip_classes=[0, 1, 0]).clip_accuracy == 2 / 3


def test_clips_without_background_or_events() -> None:
    full = np.zeros((2, 4), int)
    assert avel_scores(full, full, BG).with_background is None
    assert most_frequent(np.full((2, 4), BG), BG).tolist() == [BG, BG]
    assert most_frequent(np.array([[2, 1, 1, 2], [BG, 0, BG, BG]]), BG).tolist() == [1, 0]


def test_stretches_are_the_runs_of_one_label() -> None:
    spans = stretches([[0, 0, 1, 1], [BG, 2, BG, 2]], BG)
    assert spans.videos.tolist() == [0, 0, 1, 1] and spans.labels.tolist() == [0, 1, 2, 2]
    assert spans.starts.tolist() == [0, 2, 1, 3] and spans.ends.tolist() == [2, 4, 2, 4]


def test_spread_over_seeds() -> None:
    three = spread([0.7, 0.8, 0.9])
    assert three.mean == pytest.approx(0.8) and three.std == pytest.approx(0.1) and "3 runs" in str(three)
    assert np.isnan(spread([0.5]).std)
    with pytest.raises(UsageError):
        spread([])


def test_reliability_by_hand_and_of_a_calibrated_model() -> None:
    table = reliability([0.05, 0.95, 1.0, 0.95], [False, True, True, False])
    assert table.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert table.accuracy[9] == pytest.approx(2 / 3) and np.isnan(table.accuracy[1])
    assert table.error == pytest.approx((0.05 + 3 * (2.9 / 3 - 2 / 3)) / 4)
    rng = np.random.default_rng(0)
    sure = rng.uniform(size=50_000)
    assert reliability(sure, rng.uniform(size=50_000) < sure).error < 0.01
    for wrong in (([], []), ([0.5], [True, False]), ([1.5], [True])):
        with pytest.raises(UsageError):
            reliability(*wrong)


def test_labels_of_another_form_are_refused() -> None:
    for wrong in (TRUTH[0], TRUTH[:, :2], TRUTH.astype(float)):
        with pytest.raises(UsageError):
            avel_scores(wrong, TRUTH, BG)


# ---- cross-modality localization ---------------------------------------------------------------------------


def embeddings(events: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*events.shape, 8))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_perfect_distances_hit_always_and_a_shift_by_one_never(
    ave: tuple[np.ndarray, ...], distance: cml.Distance
) -> None:
    events = ave[2]
    x = embeddings(events, 0)
    both = cml.evaluate(x, x, events, distance)
    assert both.a2v.accuracy == both.v2a.accuracy == 1 and both.a2v.skipped == 0
    shifted = np.roll(x, 1, axis=1)
    missed = cml.match(x, shifted, events, distance)
    room = missed.truth + events.sum(1) < 10  # elsewhere the shift leaves the clip
    assert (missed.starts[room] == missed.truth[room] + 1).all()
    assert cml.match(x, shifted, events, distance).accuracy < 0.2


def test_a_random_scorer_hits_a_fifth(ave: tuple[np.ndarray, ...]) -> None:
    events = ave[2]
    assert len(events) == 402 and round(100 * cml.random_accuracy(events), 2) == 20.77
    hits = []
    for seed in range(8):
        both = cml.evaluate(embeddings(events, seed), embeddings(events, 100 + seed), events)
        hits += [both.a2v.accuracy, both.v2a.accuracy]
    assert 100 * np.mean(hits) == pytest.approx(20.8, abs=2)


def test_full_and_empty_clips_are_skipped_and_ties_go_to_the_first() -> None:
    events = np.array([[1] * 5, [0] * 5, [0, 1, 1, 0, 0]], bool)
    same = np.zeros((3, 5, 2))
    found = cml.match(same, same, events)
    assert found.skipped == 2 and found.clips.tolist() == [2] and found.starts.tolist() == [0] and found.accuracy == 0
    assert np.isnan(cml.match(same[:2], same[:2], events[:2]).accuracy)
    for wrong in ((same, same[:, :4], events), (same, same, events[:, :4])):
        with pytest.raises(UsageError):
            cml.match(*wrong)
    with pytest.raises(UsageError):
        cml.match(same, same, events, "city")  # type: ignore[arg-type]


def test_the_published_baseline_loads_and_embeds(shared: Path) -> None:
    pytest.importorskip("h5py")
    import h5py
    import torch

    from avtool.models.cmm import load_matching, matching_loss

    file = shared / "ave" / "cmm_model_weights.h5"
    network = load_matching(file)
    random = np.random.default_rng(0)
    visual, audio = random.uniform(size=(2, 10, 7, 7, 512)), random.uniform(size=(2, 10, 128))
    with torch.no_grad():
        v, a = network(torch.from_numpy(visual).float(), torch.from_numpy(audio).float())
    with h5py.File(file) as source:  # the formula by hand, from the file's own arrays

        def layer(x: np.ndarray, name: str) -> np.ndarray:
            return np.asarray(x @ source[f"{name}/{name}/kernel:0"][...] + source[f"{name}/{name}/bias:0"][...])

        def tower(x: np.ndarray, first: str, second: str) -> np.ndarray:
            hidden = layer(x, first)
            return layer(np.where(hidden > 0, hidden, 0.3 * hidden), second)

        np.testing.assert_allclose(v.numpy(), tower(visual.mean((2, 3)), "dense_1", "dense_2"), atol=1e-4)
        np.testing.assert_allclose(a.numpy(), tower(audio, "dense_3", "dense_4"), atol=1e-4)
    assert matching_loss(v, v, torch.ones(2, 10)).item() == pytest.approx(1e-7)
    assert matching_loss(v, v, torch.zeros(2, 10)).item() == pytest.approx((2 - 1e-7**0.5) ** 2)
