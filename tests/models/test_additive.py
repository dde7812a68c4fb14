"""The additive localizer's arithmetic against plain loops, and what its scores must never do."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.models.additive import (
    BOUND,
    CLIP,
    CONTEXT,
    EVIDENCE,
    Additive,
    Judge,
    Side,
    evidence,
    log_softmax,
    margin,
    normalise,
    shapes,
)
from avtool.training.additive import EAR, EYE

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
ROWS, CLASSES, DV, DA = 9, 5, 6, 4


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def random_side(rng: np.random.Generator, size: int) -> Side:
    return Side(
        floats(rng, size),
        0.5 + rng.random(size).astype(np.float32),
        floats(rng, size, CLASSES),
        floats(rng, CLASSES),
        3.0,
    )


def random_network(seed: int = 0) -> Additive:
    """Weights of the evidence are never negative, as fit gives them."""
    rng = np.random.default_rng(seed)
    judges = []
    for used in (range(EVIDENCE), EAR, EYE):
        weight = np.zeros((CLASSES, EVIDENCE), np.float32)
        weight[:, list(used)] = 0.08 * rng.random((CLASSES, len(used))).astype(np.float32)
        judges.append(Judge(weight, np.ones(CLASSES, np.float32)))  # scores in the middle of the range
    return Additive(random_side(rng, DV), random_side(rng, DA), *judges)


def random_window(seed: int = 0, rows: int = ROWS) -> tuple[Floats, Floats, Bools, Bools]:
    rng = np.random.default_rng(seed + 1000)
    return floats(rng, rows, DV), floats(rng, rows, DA), rng.random(rows) < 0.8, rng.random(rows) < 0.8


# ---------------------------------------------------------------- the same, by hand


def blurred(logits: Floats, valid: Bools, row: int) -> list[float]:
    near = [r for r in range(len(logits)) if abs(r - row) <= CONTEXT and valid[r]]
    return [sum(float(logits[r, c]) for r in near) / len(near) if near else 0.0 for c in range(logits.shape[1])]


def mean(logits: Floats, valid: Bools) -> list[float]:
    rows = [r for r in range(len(logits)) if valid[r]]
    return [sum(float(logits[r, c]) for r in rows) / len(rows) if rows else 0.0 for c in range(logits.shape[1])]


def posterior(logits: list[float], c: int) -> float:
    top = max(logits)
    return logits[c] - top - math.log(sum(math.exp(x - top) for x in logits))


def lead(logits: list[float], c: int) -> float:
    return logits[c] - max(x for k, x in enumerate(logits) if k != c)


def kinds(visual: list[float], audio: list[float], c: int) -> list[float]:
    both = [v + a for v, a in zip(visual, audio, strict=True)]
    leads = lead(visual, c), lead(audio, c)
    plain = visual[c], audio[c]
    return [posterior(both, c), posterior(visual, c), posterior(audio, c), *leads, min(leads), *plain, min(plain)]


@pytest.mark.parametrize("seed", range(5))
def test_evidence_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    visual, audio = 3 * floats(rng, ROWS, CLASSES), 3 * floats(rng, ROWS, CLASSES)
    seen, heard = rng.random(ROWS) < 0.6, rng.random(ROWS) < 0.6
    got = evidence(visual, audio, seen, heard)
    assert got.shape == (ROWS, CLASSES, EVIDENCE)
    for row in range(ROWS):
        for c in range(CLASSES):
            local = kinds(blurred(visual, seen, row), blurred(audio, heard, row), c)
            whole = kinds(mean(visual, seen), mean(audio, heard), c)
            np.testing.assert_allclose(got[row, c], local + whole, atol=1e-4)


@given(st.lists(st.sampled_from([-2.0, 0.0, 1.0, 1.5, 7.0]), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_margin_with_ties(logits: list[float]) -> None:
    got = margin(np.array([logits], np.float32))[0]
    assert got.tolist() == [lead(logits, c) for c in range(len(logits))]


def test_a_vocabulary_of_one_class_has_no_rival() -> None:
    rng, everywhere = np.random.default_rng(0), np.ones(ROWS, bool)
    np.testing.assert_array_equal(margin(np.array([[3.0], [-2.0]], np.float32)), [[3], [-2]])
    visual, audio = floats(rng, ROWS, 1), floats(rng, ROWS, 1)
    got = evidence(visual, audio, everywhere, everywhere)
    assert got.shape == (ROWS, 1, EVIDENCE) and np.isfinite(got).all()
    np.testing.assert_allclose(got[:, 0, 3], [blurred(visual, everywhere, row)[0] for row in range(ROWS)], atol=1e-5)


def test_log_softmax_of_large_numbers() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0]], np.float32)
    np.testing.assert_allclose(log_softmax(logits)[0], [posterior([1000.0, 999.0, -1000.0], c) for c in range(3)])
    np.testing.assert_allclose(np.exp(log_softmax(floats(np.random.default_rng(0), 4, 7))).sum(1), 1, rtol=1e-5)


def test_normalise_by_hand() -> None:
    rng = np.random.default_rng(0)
    x, mu, scale = 50 * floats(rng, 4, 3), floats(rng, 3), 0.5 + rng.random(3).astype(np.float32)
    for row, got in zip(x, normalise(x, mu, scale), strict=True):
        wanted = np.clip((row.astype(float) - mu) / scale, -CLIP, CLIP)
        np.testing.assert_allclose(got, wanted / math.sqrt(float((wanted**2).sum())), atol=1e-6)
    assert np.isfinite(normalise(mu[None], mu, scale)).all()  # a row at the mean has no direction


def test_votes_by_hand() -> None:
    rng = np.random.default_rng(0)
    side, x = random_side(rng, DV), floats(rng, 2, ROWS, DV)
    wanted = 3.0 * (normalise(x, side.mean, side.scale).astype(float) @ side.weight + side.bias)
    np.testing.assert_allclose(side.votes(x), wanted, atol=1e-5)
    assert side.votes(x).dtype == np.float32


def test_the_judge_is_logistic() -> None:
    rng = np.random.default_rng(0)
    judge, table = Judge(floats(rng, 3, EVIDENCE) / 10, floats(rng, 3)), 8 * floats(rng, 2, 3, EVIDENCE)
    table[0, 1, 2], table[1, 2, 0] = 1e9, -1e9
    for n in range(2):
        for c in range(3):
            bounded = np.clip(table[n, c].astype(float), -BOUND, BOUND)
            wanted = 1 / (1 + math.exp(-(float(bounded @ judge.weight[c]) + float(judge.bias[c]))))
            assert judge.score(table)[n, c] == pytest.approx(wanted, abs=1e-6)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_in_0_to_1_and_nothing_is_where_nothing_was(seed: int) -> None:
    network, (visual, audio, seen, heard) = random_network(seed), random_window(seed)
    for scale in (1.0, 1e3):
        both, ear, eye = network.scores(visual * scale, audio * scale, seen, heard)
        for curve in (both, ear, eye):
            assert curve.shape == (ROWS, CLASSES) and curve.dtype == np.float32
            assert np.isfinite(curve).all() and curve.min() >= 0 and curve.max() <= 1
        assert not both[~(seen & heard)].any() and not ear[~heard].any() and not eye[~seen].any()
        assert both[seen & heard].all() and ear[heard].all() and eye[seen].all()


def test_a_window_without_anything() -> None:
    visual, audio, *_ = random_window()
    for curve in random_network().scores(visual, audio, np.zeros(ROWS, bool), np.zeros(ROWS, bool)):
        assert not curve.any()


@given(st.integers(0, 50), st.integers(0, ROWS - 1), st.integers(0, CLASSES - 1), st.floats(0.01, 20), st.booleans())
@settings(max_examples=80, deadline=None)
def test_more_evidence_never_lowers_a_score(seed: int, row: int, label: int, more: float, seeing: bool) -> None:
    """A medium's votes for a class go up in one row: that class's score goes down nowhere."""
    rng = np.random.default_rng(seed)
    visual, audio = 2 * floats(rng, ROWS, CLASSES), 2 * floats(rng, ROWS, CLASSES)
    _, _, seen, heard = random_window(seed)
    network = random_network(seed)
    before = evidence(visual, audio, seen, heard)
    (visual if seeing else audio)[row, label] += np.float32(more)
    after = evidence(visual, audio, seen, heard)
    for judge in (network.both, network.ear, network.eye):
        assert (judge.score(after)[:, label] >= judge.score(before)[:, label] - 1e-5).all()


def test_one_medium_alone_does_not_hear_the_other() -> None:
    network, (visual, audio, seen, heard) = random_network(), random_window()
    other = random_window(7)
    ears = [network.scores(v, audio, seen, heard)[1] for v in (visual, other[0])]
    eyes = [network.scores(visual, a, seen, heard)[2] for a in (audio, other[1])]
    np.testing.assert_array_equal(*ears)
    np.testing.assert_array_equal(*eyes)
    boths = [network.scores(visual, a, seen, heard)[0] for a in (audio, other[1])]
    assert abs(boths[0] - boths[1]).max() > 0.01


def test_the_two_media_are_not_interchangeable() -> None:
    """Same sizes on purpose: swapping what is seen and what is heard must change what is found."""
    rng = np.random.default_rng(0)
    judges = random_network()
    network = Additive(random_side(rng, DV), random_side(rng, DV), judges.both, judges.ear, judges.eye)
    first, second, every = floats(rng, ROWS, DV), floats(rng, ROWS, DV), np.ones(ROWS, bool)
    straight, crossed = network.scores(first, second, every, every), network.scores(second, first, every, every)
    for a, b in zip(straight, crossed, strict=True):
        assert abs(a - b).max() > 0.05


def test_permuted_classes_give_permuted_scores() -> None:
    network, window = random_network(), random_window()
    order = np.random.default_rng(0).permutation(CLASSES)

    def permuted(side: Side) -> Side:
        return Side(side.mean, side.scale, side.weight[:, order], side.bias[order], side.sharpness)

    judges = (Judge(j.weight[order], j.bias[order]) for j in (network.both, network.ear, network.eye))
    other = Additive(permuted(network.visual), permuted(network.audio), *judges)
    for a, b in zip(network.scores(*window), other.scores(*window), strict=True):
        np.testing.assert_allclose(a[:, order], b, atol=1e-6)


def test_rows_that_do_not_exist_say_nothing() -> None:
    """What stands in rows that were neither seen nor heard changes no score of the others."""
    network, (visual, audio, seen, heard) = random_network(), random_window()
    seen[3:5] = heard[3:5] = False
    before = network.scores(visual, audio, seen, heard)
    visual[3:5], audio[3:5] = 1e3, -1e3
    for a, b in zip(before, network.scores(visual, audio, seen, heard), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_what_was_not_seen_does_not_count_as_seen() -> None:
    """Each medium has its own mask: what stands in rows without a picture says nothing, though there is sound."""
    network, (visual, audio, _, _) = random_network(), random_window()
    seen, heard = np.arange(ROWS) % 3 > 0, np.arange(ROWS) % 4 > 0
    before = network.scores(visual, audio, seen, heard)
    visual[~seen], audio[~heard] = 9.0, -9.0
    for a, b in zip(before, network.scores(visual, audio, seen, heard), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_time_turned_round_turns_the_scores_round() -> None:
    network, window = random_network(), random_window()
    for a, b in zip(network.scores(*window), network.scores(*(x[::-1] for x in window)), strict=True):
        np.testing.assert_allclose(a[::-1], b, atol=1e-5)


# ---------------------------------------------------------------- tensors


def test_tensors_and_back() -> None:
    network, window = random_network(), random_window()
    tensors = network.tensors()
    assert {k: tuple(v.shape) for k, v in tensors.items()} == shapes(DV, DA, CLASSES)
    assert {k for k, v in tensors.items() if v.element_size() == 2} == {"visual.weight", "audio.weight"}
    again = Additive.from_tensors(tensors)
    for a, b in zip(network.scores(*window), again.scores(*window), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)
    twice = again.tensors()
    assert all((twice[k] == tensors[k]).all() for k in tensors)


def test_tensors_are_copies() -> None:
    network = random_network()
    network.tensors()["visual.mean"].zero_()
    assert network.visual.mean.any()


def test_a_missing_tensor() -> None:
    tensors = random_network().tensors()
    del tensors["ear.bias"]
    with pytest.raises(KeyError):
        Additive.from_tensors(tensors)
