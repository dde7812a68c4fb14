"""The training-free localizer: its words exist, and it wants both media to say the same."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from avtool.errors import UsageError
from avtool.models.tags import FULL_PICTURE, FULL_SOUND, TagsLocalizer, smooth, table, tags_info
from avtool.models.zoo import WindowOutput
from avtool.vocabulary import AUDIOSET, IMAGENET
from tests.features.samples import features

ROWS = 20
LOCALIZER = TagsLocalizer(tags_info())
NAMES = LOCALIZER.info.vocabulary.names


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def sound(**heard: float) -> npt.NDArray[np.float32]:
    """AudioSet logits of one row: the events' first words at a probability, everything else impossible."""
    out = np.full(527, -30.0, np.float32)
    for event, p in heard.items():
        out[table()[event.replace("_", " ")][0][0]] = logit(p)
    return out


def picture(**seen: float) -> npt.NDArray[np.float32]:
    """ImageNet logits of one row: the events share their weight over all their words, the rest goes elsewhere."""
    shares = np.full(1000, 1e-12)
    for event, p in seen.items():
        words = list(table()[event.replace("_", " ")][1])
        shares[words] += p / len(words)
    named = sorted({i for _, words in table().values() for i in words})
    rest = np.setdiff1d(np.arange(1000), named)
    shares[rest] += (1 - shares.sum()) / len(rest)
    return np.log(shares).astype(np.float32)


def run(
    sounds: list[npt.NDArray[np.float32]], pictures: list[npt.NDArray[np.float32]], **parts: object
) -> WindowOutput:
    whole = features(len(sounds), audio_tags=np.stack(sounds), visual_tags=np.stack(pictures), **parts)
    return LOCALIZER.run(whole, 0, len(sounds))


def test_every_name_of_the_table_exists(repo: Path) -> None:
    rows = tomllib.loads((repo / "avtool" / "data" / "tags.toml").read_text(encoding="utf-8"))
    assert len(rows) >= 50 and list(rows) == sorted(rows)
    for event, row in rows.items():
        assert set(row) == {"heard", "seen"} and row["heard"] and row["seen"], event
        assert set(row["heard"]) <= set(AUDIOSET), event
        for name in row["seen"]:
            first, _, last = name.partition(" .. ")
            assert first in IMAGENET, (event, first)
            assert not last or IMAGENET.index(last) > IMAGENET.index(first), (event, name)


def test_a_range_of_names_is_a_range_of_classes() -> None:
    dogs = table()["dog bark"][1]
    assert (IMAGENET[dogs[0]], IMAGENET[dogs[-1]], len(dogs)) == ("Chihuahua", "Mexican hairless", 118)


def test_the_record_says_what_it_reads() -> None:
    info = tags_info()
    assert info.weights == {} and info.commercial == "yes" and "*" in info.visual and "*" in info.audio
    assert info.vocabulary.names == tuple(table()) and set(info.vocabulary.tiers) == {"default"}


def test_both_media_together_find_the_event() -> None:
    got = run([sound(violin=0.9)] * ROWS, [picture(violin=0.9)] * ROWS)
    violin = NAMES.index("violin")
    np.testing.assert_allclose(got.curve[:, violin], 1.0, atol=1e-6)
    others = np.delete(got.curve, violin, 1)
    assert others.max() < 1e-3


@pytest.mark.parametrize(
    ("heard", "seen"), [({"violin": 0.9}, {}), ({}, {"violin": 0.9}), ({"violin": 0.9}, {"cat": 0.9})]
)
def test_one_medium_alone_finds_nothing(heard: dict[str, float], seen: dict[str, float]) -> None:
    got = run([sound(**heard)] * ROWS, [picture(**seen)] * ROWS)
    assert got.curve.max() < 1e-3
    for curve, said in ((got.audio_curve, heard), (got.visual_curve, seen)):
        assert [NAMES[i] for i in np.flatnonzero(curve[0] > 0.5)] == list(said)


def test_the_score_is_the_geometric_mean() -> None:
    got = run([sound(cat=0.2)] * ROWS, [picture(cat=0.1)] * ROWS)
    expected = np.sqrt(0.2 / FULL_SOUND * 0.1 / FULL_PICTURE)
    np.testing.assert_allclose(got.curve[:, NAMES.index("cat")], expected, rtol=1e-4)


def test_an_event_lasts_as_long_as_both() -> None:
    sounds = [sound(train=0.9) if 4 <= k < 12 else sound() for k in range(ROWS)]
    pictures = [picture(train=0.9) if 8 <= k < 16 else picture() for k in range(ROWS)]
    curve = run(sounds, pictures).curve[:, NAMES.index("train")]
    assert np.flatnonzero(curve > 0.9).tolist() == [9, 10]  # the ends are smoothed
    assert curve[:7].max() < 1e-3 and curve[13:].max() < 1e-3


@pytest.mark.parametrize("missing", ["seen", "heard"])
def test_what_was_not_seen_or_heard_scores_nothing(missing: str) -> None:
    got = run([sound(cow=0.9)] * ROWS, [picture(cow=0.9)] * ROWS, **{missing: np.zeros(ROWS, bool)})
    assert not got.curve.any()


@pytest.mark.parametrize("missing", ["seen", "heard"])
def test_an_event_ends_with_the_sound_or_the_picture(missing: str) -> None:
    """Silence says nothing: no score leaks into it, and it takes nothing from the segment before."""
    there = np.arange(ROWS) < 12
    got = run([sound(cow=0.9)] * ROWS, [picture(cow=0.9)] * ROWS, **{missing: there})
    np.testing.assert_allclose(got.curve[:, NAMES.index("cow")], there, atol=1e-6)


def test_curves_are_scores() -> None:
    rng = np.random.default_rng(0)
    for scale in (1.0, 30.0, 1000.0):
        sounds, pictures = rng.standard_normal((ROWS, 527)) * scale, rng.standard_normal((ROWS, 1000)) * scale
        got = run(list(sounds.astype(np.float32)), list(pictures.astype(np.float32)))
        for curve in (got.curve, got.audio_curve, got.visual_curve):
            assert curve.shape == (ROWS, len(NAMES)) and curve.dtype == np.float32
            assert np.isfinite(curve).all() and curve.min() >= 0 and curve.max() <= 1


def test_a_window_is_its_rows() -> None:
    sounds = [sound(harp=0.9) if k > 9 else sound() for k in range(ROWS)]
    whole = features(ROWS, audio_tags=np.stack(sounds), visual_tags=np.stack([picture(harp=0.9)] * ROWS))
    got = LOCALIZER.run(whole, 10, 15)
    assert (got.start, got.stop, len(got.curve)) == (10, 15, 5)
    np.testing.assert_allclose(got.curve[:, NAMES.index("harp")], 1.0, atol=1e-6)


@pytest.mark.parametrize("missing", ["audio_tags", "visual_tags"])
def test_features_without_class_scores_are_refused(missing: str) -> None:
    tags = {"audio_tags": np.zeros((3, 527), np.float32), "visual_tags": np.zeros((3, 1000), np.float32)}
    with pytest.raises(UsageError, match="class scores") as caught:
        LOCALIZER.run(features(3, **{**tags, missing: None}), 0, 3)
    assert "fake" in caught.value.why


def test_smoothing_keeps_level_and_length() -> None:
    flat, everywhere = np.full((5, 2), 0.5, np.float32), np.ones(5, bool)
    np.testing.assert_array_equal(smooth(flat, everywhere), flat)
    peak = np.zeros((5, 1), np.float32)
    peak[2] = 1
    assert smooth(peak, everywhere)[:, 0].tolist() == [0, 0.25, 0.5, 0.25, 0]
    assert smooth(np.ones((1, 1), np.float32), everywhere[:1]).tolist() == [[1]]
    assert smooth(np.ones((3, 1), np.float32), np.array([True, False, True]))[:, 0].tolist() == [1, 0, 1]
    assert smooth(flat, ~everywhere).tolist() == np.zeros((5, 2)).tolist()
