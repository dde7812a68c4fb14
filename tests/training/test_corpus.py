"""The corpus as readers: which files belong to which class and split, and how clips are dealt into folds."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avtool.training import corpus as module
from avtool.training.corpus import Corpus, LabelledClip, folds, read_picture, read_sound, times
from tests.synth import Video, write
from tests.training import small


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small.corpus(tmp_path_factory.mktemp("material"))


def test_classes_are_those_with_clips_or_enough_material(corpus: Corpus) -> None:
    assert corpus.names == ("alpha one", "beta", "gamma")  # delta has neither
    assert [c.composed for c in corpus.classes] == [True, True, False]
    assert [c.clip_label for c in corpus.classes] == ["", "b label", "g label"]


@pytest.mark.parametrize("split", small.SPLITS)
def test_files_of_a_class_and_split(corpus: Corpus, split: str) -> None:
    for found, folder, ending in ((corpus.sounds(split), "audio", "wav"), (corpus.pictures(split), "images", "png")):
        assert set(found) == {0, 1}
        for index, name in ((0, "alpha"), (1, "beta")):
            assert [p.relative_to(corpus.root).as_posix() for p in found[index]] == [
                f"{folder}/{name}/{split}{k}.{ending}" for k in range(3)
            ]


def test_doubtful_sounds_are_left_out_of_training_where_enough_remain(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENOUGH", 2)
    assert [p.stem for p in corpus.sounds("train")[0]] == ["train0", "train1"]  # the third has 0.001
    assert len(corpus.sounds("test")[0]) == 3  # never of what is reported on


def test_backgrounds_belong_to_no_class(corpus: Corpus) -> None:
    sounds, pictures = corpus.backgrounds("train")
    assert [p.name for p in sounds] == ["s.wav"] and [p.name for p in pictures] == ["p.png"]
    sounds, pictures = corpus.backgrounds("val")
    assert {p.parent.name for p in sounds} == {"ground"} and {p.stem[:3] for p in sounds} == {"val"}
    assert [p.stem for p in pictures] == ["val1", "val2"]  # the first is too small


def test_clips_and_their_events(corpus: Corpus) -> None:
    clips = corpus.clips()
    assert [c.label for c in clips] == [1, 2, 1, 2, 1, 2]
    assert [c.fills for c in clips] == [True, True, False, False, False, False]
    assert all(c.path.is_file() and c.offset == 10.0 for c in clips)


def test_a_folder_that_is_not_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Corpus(tmp_path)


def test_no_file_is_in_two_splits_of_the_real_corpus(shared: Path) -> None:
    real = Corpus(shared)
    assert len(real.classes) > 100 and sum(bool(c.clip_label) for c in real.classes) == 86
    for read in (real.sounds, real.pictures):
        parts = [{p for files in read(split).values() for p in files} for split in small.SPLITS]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        owners = Counter(p for split in small.SPLITS for files in read(split).values() for p in files)
        composed = {i for i, c in enumerate(real.classes) if c.composed}
        shared_files = [p for split in small.SPLITS for i, files in read(split).items() if i in composed for p in files]
        assert len(shared_files) == len(set(shared_files)) and owners
    for split in small.SPLITS:
        for found, under in zip((real.sounds(split), real.pictures(split)), real.backgrounds(split), strict=True):
            assert not set(under) & {p for files in found.values() for p in files}
    assert not any("corpus/clips" in p.as_posix() for split in small.SPLITS for p in real.backgrounds(split)[0])


# ---------------------------------------------------------------- folds


def clips_of(labels: list[int]) -> list[LabelledClip]:
    return [LabelledClip(Path(f"{i}.mp4"), label, 0, 1, 1) for i, label in enumerate(labels)]


@pytest.mark.parametrize("seed", range(4))
def test_each_class_is_dealt_out_evenly(seed: int) -> None:
    labels = np.random.default_rng(9).integers(0, 5, 40).tolist()
    fold = folds(clips_of(labels), seed)
    for label in range(5):
        counts = Counter(f for f, own in zip(fold, labels, strict=True) if own == label)
        assert set(fold) == {0, 1, 2} and max(counts.values()) - min(counts.get(k, 0) for k in range(3)) <= 1
    assert fold == folds(clips_of(labels), seed)


def test_seeds_deal_differently_and_seed_0_is_file_order() -> None:
    clips = clips_of([0, 0, 0, 1, 1, 1, 0])
    assert folds(clips, 0) == [0, 1, 2, 0, 1, 2, 0]
    assert len({tuple(folds(clips, seed)) for seed in range(5)}) > 2


# ---------------------------------------------------------------- readers


def test_sounds_and_pictures_are_read(corpus: Corpus) -> None:
    wave = read_sound(corpus.sounds("val")[1][1])
    assert wave.dtype == np.float32 and len(wave) == round(1.7 * 32_000) and abs(wave).max() < 0.03
    pixels = read_picture(corpus.pictures("val")[0][0])
    assert pixels.shape == (60, 80, 3) and pixels.dtype == np.uint8
    assert pixels.mean((0, 1)) == pytest.approx(small.COLOURS["alpha"], abs=3)


def test_a_film_without_sound_reads_as_nothing(tmp_path: Path) -> None:
    assert read_sound(write(tmp_path / "a.mp4", Video(seconds=1.0))).shape == (0,)


def test_times_of_frames() -> None:
    assert list(times(0.5, Fraction(10))) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert len(list(times(10.0, Fraction(30_000, 1001)))) == 299
