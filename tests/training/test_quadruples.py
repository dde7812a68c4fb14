"""Quadruples: four files of two pictures and two sounds, alike in everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest, Picture, PictureSpec, Sound
from avtool.training import quadruples
from avtool.training.compose import RATE
from avtool.training.corpus import Corpus
from avtool.training.localizer import GRID
from avtool.training.quadruples import Encoded, Quadruple, encode, make, read
from tests.training import small

KEYS = {"aa", "ab", "ba", "bb"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small.corpus(tmp_path_factory.mktemp("material"))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quadruples, "SIZE", (48, 64))


@pytest.fixture(scope="module")
def made(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[Quadruple]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadruples, "SIZE", (48, 64))
        return list(make(corpus, "test", 2, tmp_path_factory.mktemp("quadruples"), 5))


def tracks(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    items = list(decode(path, DecodeRequest(PictureSpec(), RATE)))
    pictures = np.stack([i.pixels for i in items if isinstance(i, Picture)])
    return pictures, np.concatenate([i.samples for i in items if isinstance(i, Sound)])


def decibels(wave: npt.NDArray[np.float32], start: float, end: float) -> float:
    return float(10 * np.log10(np.mean(wave[round(start * RATE) : round(end * RATE)].astype(float) ** 2) + 1e-12))


def test_every_class_that_can_be_composed_is_asked_about(corpus: Corpus, made: list[Quadruple]) -> None:
    composed = [i for i, c in enumerate(corpus.classes) if c.composed]
    assert [q.first for q in made] == [c for c in composed for _ in range(2)]
    for quad in made:
        assert quad.second in composed and quad.second != quad.first and set(quad.files) == KEYS
        assert 0 <= quad.start < quad.end <= 10 and quad.end - quad.start >= 3
        assert all(path.is_file() for path in quad.files.values())


def test_files_share_their_tracks_pairwise(made: list[Quadruple]) -> None:
    """The first letter is the picture, the second the sound."""
    for quad in made[:2]:
        found = {key: tracks(path) for key, path in quad.files.items()}
        for letter, other in ("ab", "ba"):
            np.testing.assert_array_equal(found[letter + letter][0], found[letter + other][0])
            np.testing.assert_array_equal(found[letter + letter][1], found[other + letter][1])
        assert len({v[0].shape for v in found.values()}) == len({v[1].shape for v in found.values()}) == 1
        assert abs(found["aa"][0].astype(int) - found["ba"][0]).max() > 50
        assert abs(found["aa"][1] - found["ab"][1]).max() > 0.01


def test_all_four_are_equally_loud(made: list[Quadruple]) -> None:
    """The small corpus has long loud sounds and short soft ones: the level must not depend on them."""
    for quad in made:
        levels = [decibels(tracks(path)[1], quad.start, quad.end) for path in quad.files.values()]
        assert max(levels) - min(levels) < 0.5 and levels[0] == pytest.approx(-22, abs=1.5)


def test_outside_the_event_all_four_are_the_same(made: list[Quadruple]) -> None:
    for quad in made:
        found = [tracks(path) for path in quad.files.values()]
        centres = np.arange(20) * 0.5 + 0.25
        outside = (centres < quad.start - 0.2) | (centres > quad.end + 0.2)
        pictures = np.stack([f[0].astype(int) for f in found])
        if outside.any():
            assert abs(pictures[:, outside] - pictures[:1, outside]).mean() < 3  # up to the codec
        for start, end in ((0.0, quad.start - 0.1), (quad.end + 0.1, 10.0)):
            if end - start > 0.3:
                levels = [decibels(f[1], start, end) for f in found]
                assert max(levels) - min(levels) < 1.0


def test_the_event_is_in_its_interval(corpus: Corpus, made: list[Quadruple]) -> None:
    for quad in made:
        pictures, wave = tracks(quad.files["aa"])
        name = corpus.names[quad.first].split()[0]
        channel = int(np.argmax(small.COLOURS[name]))
        centres = np.arange(20) * 0.5 + 0.25
        inside = (centres > quad.start + 0.1) & (centres < quad.end - 0.1)
        assert (pictures[inside].mean((1, 2)).argmax(1) == channel).all()
        if (~inside).sum() > 2:
            assert (pictures[~inside].mean((1, 2)).argmax(1) == 1).any()  # the green ground
        power = np.abs(np.fft.rfft(wave[round(quad.start * RATE) : round(quad.end * RATE)])) ** 2
        hertz = np.arange(len(power)) / (quad.end - quad.start)
        assert hertz[power.argmax()] == pytest.approx(small.PITCHES[name], rel=0.02)


def test_made_again_they_are_the_same_and_kept_where_they_are(
    corpus: Corpus, made: list[Quadruple], tmp_path: Path
) -> None:
    again = list(make(corpus, "test", 1, tmp_path, 5))
    assert [(q.first, q.second, q.start, q.end) for q in again] == [
        (q.first, q.second, q.start, q.end) for q in made[::2]
    ]
    for a, b in zip(again, made[::2], strict=True):
        assert {k: p.read_bytes() for k, p in a.files.items()} == {k: p.read_bytes() for k, p in b.files.items()}
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again[0].files["ab"].unlink()
    assert list(make(corpus, "test", 1, tmp_path, 5))[1].files == again[1].files
    assert again[0].files["ab"].is_file()
    kept = again[1].files.values()
    assert all(p.stat().st_mtime_ns == stamps[p] for p in kept)


def test_another_seed_never_finds_these_files(corpus: Corpus, tmp_path: Path) -> None:
    first, other = (next(iter(make(corpus, "val", 1, tmp_path, seed))) for seed in (1, 2))
    assert not set(first.files.values()) & set(other.files.values())


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_files_of_the_split_are_read(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    read: list[Path] = []
    for name in ("read_sound", "read_picture"):
        original = getattr(quadruples, name)
        monkeypatch.setattr(quadruples, name, lambda path, f=original: (read.append(path), f(path))[1])
    monkeypatch.setattr(quadruples, "write_clip", lambda path, *_: path.write_bytes(b""))
    list(make(corpus, split, 3, tmp_path, 1))
    assert read and {p.name[: len(split)] for p in read} == {split}


# ---------------------------------------------------------------- as features


@pytest.fixture(scope="module")
def encoded(corpus: Corpus) -> list[Encoded]:
    return list(encode(corpus, small.encoders("mini"), "test", 2, 5))


def test_features_without_files_are_drawn_by_the_same_law(made: list[Quadruple], encoded: list[Encoded]) -> None:
    drawn = [(q.first, q.second, q.start, q.end) for q in made]
    assert [(q.first, q.second, q.start, q.end) for q in encoded] == drawn
    for quad in encoded:
        assert set(quad.clips) == KEYS
        for letter, other in ("ab", "ba"):
            np.testing.assert_array_equal(quad.clips[letter * 2]["visual"], quad.clips[letter + other]["visual"])
            np.testing.assert_array_equal(quad.clips[letter * 2]["audio"], quad.clips[other + letter]["audio"])
        assert (quad.clips["aa"]["visual"] != quad.clips["bb"]["visual"]).any()
        assert (quad.clips["aa"]["audio"] != quad.clips["bb"]["audio"]).any()


def test_features_of_files_have_the_same_rows(made: list[Quadruple], encoded: list[Encoded]) -> None:
    """The codec lies between both, so that numbers differ; what is heard and seen where does not."""
    quad, direct = next(iter(read(made[:1], small.encoders("mini")))), encoded[0]
    assert (quad.first, quad.second, quad.start, quad.end) == (direct.first, direct.second, direct.start, direct.end)
    for key, clip in quad.clips.items():
        assert clip["visual"].shape == direct.clips[key]["visual"].shape
        assert clip["audio"].shape == direct.clips[key]["audio"].shape
        assert clip["seen"].all() and clip["heard"].all() and len(clip["seen"]) == GRID.count(10.0)
