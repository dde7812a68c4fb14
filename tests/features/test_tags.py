"""The label space: what another tagger or classifier says becomes what the one at hand would have said."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from avtool.features import tags
from avtool.features.tags import LEVELS, LIFT, QUIET, SHARES, Scale

Floats = npt.NDArray[np.float32]
RNG = np.random.default_rng(0)


def drawn(rows: int, seed: int = 0) -> Floats:
    """Logits with the quantiles of the table, as mn04 gives them."""
    shares = np.random.default_rng(seed).random((rows, tags.WORDS))
    return np.interp(shares, SHARES, LEVELS).astype(np.float32)


def other(z: Floats) -> Floats:
    """The same tagger with another, monotone, tone of voice: its tail is far lower, as YAMNet's is."""
    return np.where(z > 0, z, 1.8 * z).astype(np.float32)


def test_the_table_is_a_curve() -> None:
    assert len(SHARES) == len(LEVELS) == 15
    assert (np.diff(SHARES) > 0).all() and (np.diff(LEVELS) > 0).all() and SHARES[-1] == 1


def test_another_tone_of_voice_is_undone() -> None:
    z = drawn(200)
    x = tags.heard_words(z)
    scale = Scale.of(other(z))
    assert scale is not None
    assert np.abs(tags.heard_words(other(z)) - x).max() > 0.05
    np.testing.assert_allclose(tags.heard_words(scale(other(z))), x, atol=0.04)


def test_the_scale_keeps_the_order_and_needs_no_finite_ends() -> None:
    scale = Scale.of(drawn(20) * 2)
    assert scale is not None
    z = np.sort(RNG.normal(0, 40, 500)).astype(np.float32)
    mapped = scale(z)
    assert (np.diff(mapped) >= 0).all() and np.isfinite(scale(np.array([-1e30, 1e30], np.float32))).all()
    assert np.isnan(scale(np.array([np.nan], np.float32))).all()


def test_a_clipped_tail_is_a_tail() -> None:
    """A tenth of YAMNet's values is one and the same number: it must not be taken for the level above it."""
    z = np.maximum(drawn(50), -10.0)
    scale = Scale.of(z)
    assert scale is not None and (np.diff(scale.given) > 0).all()
    assert scale(np.array([-10.0], np.float32))[0] < LEVELS[3]
    constant = Scale.of(np.full((4, tags.WORDS), -3.0, np.float32))
    assert constant is not None and np.isfinite(constant(np.float32([-9, -3, 2]))).all()


def test_there_is_no_scale_of_nothing() -> None:
    assert Scale.of(np.zeros((0, tags.WORDS), np.float32)) is None
    assert Scale.of(np.full((3, tags.WORDS), np.nan, np.float32)) is None


def test_a_quiet_video_does_not_become_words() -> None:
    """Its own quantiles alone would lift the best of 527 improbable words to certainty."""
    quiet = drawn(20) - 9.0
    scale = Scale.of(quiet)
    assert scale is not None and quiet.max() < -5
    assert tags.heard_words(scale(quiet)).max() < 0.3  # the table alone: 0.98
    assert (scale(quiet) <= np.maximum(quiet + LIFT, QUIET) + 1e-5).all()


def test_silent_segments_are_no_part_of_the_scale() -> None:
    z, heard = other(drawn(40)), np.arange(40) < 20
    z[20:] = -30.0
    scale = tags.scale_of("foreign", z, heard)
    alone = Scale.of(z[:20])
    assert scale is not None and alone is not None
    np.testing.assert_array_equal(scale.given, alone.given)
    assert tags.scale_of("foreign", z, np.zeros(40, bool)) is None


def test_the_tagger_that_is_the_scale_stays_as_it_is() -> None:
    z, heard = drawn(10) * 1.3, np.ones(10, bool)
    assert tags.scale_of(tags.ORIGIN, z, heard) is None
    np.testing.assert_array_equal(tags.words(z, heard, None), tags.heard_words(z))


def test_probabilities_become_logits() -> None:
    p = np.array([0.0, 1e-12, 0.5, 0.9, 1.0], np.float32)
    z = tags.logits(p)
    np.testing.assert_allclose(z[2:4], [0, np.log(9)], atol=1e-5)
    assert z[0] == z[1] == pytest.approx(-20.72, abs=0.01) and z[4] == pytest.approx(16.12, abs=0.2)


def test_short_windows_are_averaged_over_neighbours_that_sound() -> None:
    p = np.full((5, tags.WORDS), 0.001, np.float32)
    p[2, 7], p[4, 9] = 0.9, 0.9
    heard = np.array([True, True, True, False, True])
    got = tags._sigmoid(tags.averaged(tags.logits(p), heard))
    np.testing.assert_allclose(got[1:3, 7], [(0.9 + 0.002) / 3, (0.9 + 0.001) / 2], rtol=1e-4)
    np.testing.assert_allclose(got[4, 9], 0.9, rtol=1e-4)  # its only neighbour is silent
    short = tags.words(tags.logits(p), heard, None, 0.975)
    assert short[1, 7] > 5 * tags.words(tags.logits(p), heard, None, 1.0)[1, 7]


def test_missing_words_stay_missing() -> None:
    z = drawn(6)
    z[:, 12] = np.nan
    heard = np.ones(6, bool)
    for seconds in (0.5, 2.0):
        got = tags.words(z, heard, Scale.of(z), seconds)
        assert np.isnan(got[:, 12]).all() and np.isfinite(np.delete(got, 12, 1)).all()


def test_pictures_are_shares_with_a_floor() -> None:
    z = RNG.normal(0, 3, (4, tags.THINGS)).astype(np.float32)
    z[0, 5] = 500.0
    x = tags.seen_things(z)
    shares = np.exp(z[1:].astype(np.float64)) / np.exp(z[1:].astype(np.float64)).sum(1, keepdims=True)
    np.testing.assert_allclose(x[1:], np.log(shares + 0.001), rtol=1e-5)
    assert x[0, 5] == pytest.approx(np.log(1.001), abs=1e-6) and np.delete(x[0], 5).max() == pytest.approx(np.log(1e-3))
    np.testing.assert_allclose(tags.seen_things(z + 40), x, atol=1e-5)  # logits are known up to a constant
