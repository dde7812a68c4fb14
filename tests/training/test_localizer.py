"""Material of the localizer: labels on the grid, features as users' files have them, pairs with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avtool.features.encoders.catalog import Encoder
from avtool.features.extract import extract
from avtool.media.request import DecodeReport, Sound
from avtool.timegrid import Grid
from avtool.timeline import MediaInfo
from avtool.training import localizer as module
from avtool.training.additive import Items
from avtool.training.compose import RATE
from avtool.training.corpus import Corpus, LabelledClip
from avtool.training.localizer import (
    EMPTY_EVERY,
    Pair,
    bank_items,
    clip_features,
    clip_items,
    clip_labels,
    encode_pictures,
    encode_sound,
    teaching_pairs,
)
from tests.training import small

PAIR = small.encoders()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small.corpus(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def clip(onset: float, offset: float, label: int = 1) -> LabelledClip:
    return LabelledClip(Path("x.mp4"), label, onset, offset, 5.0)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("onset", "offset", "rows"),
    [
        (0.0, 5.0, range(10)),
        (1.0, 2.0, [2, 3]),
        (1.25, 2.0, [2, 3]),
        (1.26, 2.25, [3]),
        (1.3, 1.7, [2]),  # shorter than a row: the nearest
        (4.9, 5.0, [9]),
        (0.0, 0.1, [0]),
    ],
)
def test_a_row_belongs_to_the_event_over_its_centre(onset: float, offset: float, rows: Any) -> None:
    got = clip_labels([clip(onset, offset)], np.ones((1, 10), bool), 3)
    assert np.flatnonzero(got[0, :, 1]).tolist() == list(rows) and not got[0, :, [0, 2]].any()


def test_an_event_after_the_last_row_gets_the_last_row() -> None:
    valid = np.arange(10)[None] < 6
    assert np.flatnonzero(clip_labels([clip(4.0, 5.0)], valid, 2)[0, :, 1])[0] == 5


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("seconds", [2.0, 2.3, 7.7, 10.0])
def test_scenes_are_heard_as_files_are(seconds: float) -> None:
    """The windows of a composed scene are those of features.extract."""

    def run(waves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.stack([waves[:, 0], waves[:, -1], waves.mean(1)], 1), None

    encoder = Encoder("x", "audio", 3, 0, run, "", rate=RATE, seconds=2.0)
    wave = np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32)
    media = MediaInfo("x", 1, 0, True, False, seconds, None, None, None, seconds)
    items = [Sound(k, wave[k : k + RATE]) for k in range(0, len(wave), RATE)]
    found = extract([*items, DecodeReport(media, (), 0.0, 0, seconds)], None, encoder, Grid(), torch.device("cpu"))
    assert found.audio is not None
    np.testing.assert_allclose(encode_sound(wave, encoder), found.audio, atol=1e-6)


def test_pictures_are_encoded_in_order() -> None:
    frames = np.stack([small.picture((20 * k, 0, 0), 32, 32) for k in range(12)])
    got = encode_pictures(frames, PAIR.visual)
    assert got.shape == (12, 9) and (np.diff(got[1:, 0]) > 0).all()


def test_items_of_the_clips(corpus: Corpus, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visual, audio = clip_items(corpus, PAIR, work)
    rows = visual.x.shape[1]
    assert visual.x.shape == (6, rows, 9) and audio.x.shape == (6, rows, 5) and rows in (20, 21)
    for items in (visual, audio):
        assert items.labels.shape == (6, rows, 3) and items.weight.tolist() == [1] * 6
        assert not (items.labels.any(2) & ~items.valid).any()
        for i, clip_ in enumerate(corpus.clips()):
            centres = np.flatnonzero(items.labels[i, :, clip_.label]) * 0.5 + 0.25
            assert centres.min() == clip_.onset + 0.25 and set(np.flatnonzero(items.labels[i].any(0))) == {clip_.label}
    monkeypatch.setattr(module, "clip_features", lambda *_: pytest.fail("not read from the cache"))
    again = clip_items(corpus, PAIR, work)
    np.testing.assert_array_equal(again[0].x, visual.x)
    np.testing.assert_array_equal(again[1].labels, audio.labels)


def test_features_of_one_clip(corpus: Corpus) -> None:
    found = clip_features(corpus.clips()[2].path, PAIR)
    assert found["seen"][:20].all() and found["heard"][:20].all()
    bright, beta = found["visual"][:, 2], found["audio"][:, 1]  # blue, and the energy at beta's pitch
    assert bright[10:20].min() > bright[:10].max() and beta[11:20].min() > beta[:9].max()


@pytest.mark.parametrize("split", ["train", "val"])
def test_banks_of_scenes(corpus: Corpus, work: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2 * EMPTY_EVERY
    visual, audio = bank_items(corpus, PAIR, split, count, work, 22)
    for items, size in ((visual, 9), (audio, 5)):
        assert items.x.shape == (count, 22, size) and items.labels.shape == (count, 22, 3)
        assert items.valid[:, :20].all() and not items.valid[:, 20:].any() and not items.labels[:, 20:].any()
        empty = [i for i in range(count) if not items.labels[i].any()]
        assert empty == [EMPTY_EVERY - 1, 2 * EMPTY_EVERY - 1]
        assert not items.labels[:, :, 2].any()  # gamma cannot be composed
        assert (items.weight > 0).all() and items.weight.max() <= 1
        alone = [int((items.source == items.source[i]).sum()) for i in empty]
        assert alone == [1, 1] and len(np.unique(items.source)) < count  # nothing shared but files of events
        for source in np.unique(items.source):
            firsts = {tuple(np.flatnonzero(items.labels[i].any(0))[:2]) for i in np.flatnonzero(items.source == source)}
            assert len(set.intersection(*(set(f) for f in firsts))) == 1 or firsts == {()}  # one file, one class
    shown = visual.labels.any(2)[:, :20]
    blue = visual.x[:, :20, 2]
    is_beta = visual.labels[:, :20, 1]
    assert blue[is_beta].mean() > 2 * blue[shown & ~is_beta].mean()
    monkeypatch.setattr(module, "_sound_bank", lambda *_: pytest.fail("not read from the cache"))
    monkeypatch.setattr(module, "_picture_bank", lambda *_: pytest.fail("not read from the cache"))
    np.testing.assert_array_equal(bank_items(corpus, PAIR, split, count, work, 22)[0].x, visual.x)


def test_banks_are_reproducible_and_splits_differ(corpus: Corpus, tmp_path: Path) -> None:
    first, again, other = (bank_items(corpus, PAIR, s, 5, tmp_path / n, 20)[1] for s, n in
                           (("val", "a"), ("val", "b"), ("test", "b")))  # fmt: skip
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.labels, other.labels)


def test_the_cache_of_one_pair_is_not_anothers(corpus: Corpus, work: Path) -> None:
    clip_items(corpus, PAIR, work)
    other = Pair("other", PAIR.visual, PAIR.audio)
    bank_items(corpus, other, "val", 3, work, 20)
    assert (work / "small-clips.npz").is_file() and not (work / "other-clips.npz").exists()
    assert (work / "other-audio-scenes-val-3.npz").is_file()


# ---------------------------------------------------------------- pairs


def items_of(labels: list[int | None], classes: int = 3) -> Items:
    truth = np.zeros((len(labels), 4, classes), bool)
    for i, label in enumerate(labels):
        if label is not None:
            truth[i, 1:, label] = True
    x, valid = np.zeros((len(labels), 4, 1), np.float32), np.ones((len(labels), 4), bool)
    return Items(x, valid, truth, np.ones(len(labels)), np.arange(len(labels)))


def test_pairs_that_teach() -> None:
    clips, scenes = 5, 60
    rng = np.random.default_rng(0)
    drawn = [[None if k % 12 == 11 else int(rng.integers(3)) for k in range(scenes)] for _ in range(2)]
    visual, audio = (items_of([0, 1, 2, 0, 1, *side]) for side in drawn)
    pairs = teaching_pairs(visual, audio, clips, np.random.default_rng(1))
    real = [p for p in pairs if max(p) < clips]
    assert all(real.count((i, i)) >= 2 for i in range(clips)) and len(real) == 3 * clips
    composed = [p for p in pairs if min(p) >= clips]
    crossed = [p for p in pairs if min(p) < clips <= max(p)]
    assert all(0 <= i < clips + scenes for p in pairs for i in p) and crossed
    taught = {p[0] for p in composed}
    for i in taught:
        shown = drawn[0][i - clips]
        partners = [drawn[1][j - clips] for v, j in composed if v == i]
        assert shown is None or shown in partners  # once with a sound of its class ...
        assert len(partners) == (1 if shown is None else 2)  # ... and once with any
    more = teaching_pairs(visual, audio, clips, np.random.default_rng(1), quadruples=2)
    last = clips + scenes
    assert more[: len(pairs)] == pairs
    assert more[len(pairs) :] == [(k + i, k + j) for k in (last - 4, last - 2) for i in (0, 1) for j in (0, 1)]


def test_pairs_without_clips_or_scenes() -> None:
    rng = np.random.default_rng(0)
    only_scenes = teaching_pairs(items_of([0, 1, 2]), items_of([0, 1, 2]), 0, rng)
    assert only_scenes and all(min(p) >= 0 for p in only_scenes)
    only_clips = teaching_pairs(items_of([0, 1]), items_of([0, 1]), 2, rng)
    assert len(only_clips) == 6
