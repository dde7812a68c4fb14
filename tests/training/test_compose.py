"""Composed scenes: what the labels say is where it is, as loud as it should be, and the file holds it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool import files
from avtool.errors import OutputError
from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest, Picture, PictureSpec, Sound
from avtool.timegrid import Grid
from avtool.training.compose import (
    RATE,
    PictureLaw,
    SoundLaw,
    Span,
    draw_span,
    fill,
    labels,
    picture_scene,
    sound_scene,
    write_clip,
)
from tests.training.small import COLOURS, picture, tone

PLAIN = SoundLaw(event_level=(-20.0, -20.0), jitter=0.0, background_below=(15.0, 15.0))
TIMES = [k / 10 for k in range(100)]
RED, GREEN, BLUE = COLOURS["alpha"], COLOURS["ground"], COLOURS["beta"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def decibels(wave: npt.NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(wave.astype(float) ** 2) + 1e-12))


def part(wave: npt.NDArray[np.float32], start: float, end: float) -> npt.NDArray[np.float32]:
    return wave[round(start * RATE) : round(end * RATE)]


# ---------------------------------------------------------------- spans and labels


@given(st.floats(2, 60), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_spans_lie_in_the_scene(seconds: float, full: float, seed: int) -> None:
    span = draw_span(seconds, 1.0, full, 7, rng(seed))
    assert span.start >= 0 and span.end <= seconds + 1e-9 and span.label == 7
    assert span.end - span.start == seconds or 1.0 <= span.end - span.start <= 0.85 * seconds + 1e-9


def test_some_spans_fill_the_scene() -> None:
    whole = sum(draw_span(10, 1, 0.35, 0, rng(seed)).end == 10 for seed in range(400))
    assert 100 < whole < 180


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0.1, 6), st.integers(-1, 3)), max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_row_has_the_labels_of_the_spans_over_its_centre(spans: list[tuple[float, float, int]]) -> None:
    drawn = [Span(start, start + length, label) for start, length, label in spans]
    got = labels(drawn, 20, 4)
    assert got.shape == (20, 4) and got.dtype == np.bool_
    for row in range(20):
        centre = row * 0.5 + 0.25
        covering = {s.label for s in drawn if s.start <= centre < s.end and s.label >= 0}
        assert set(np.flatnonzero(got[row]).tolist()) == covering


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize("source", [0.05, 0.5, 3.0, 20.0])
@pytest.mark.parametrize("samples", [1, 1000, 5 * RATE])
def test_fill_has_exactly_the_length_asked_for(source: float, samples: int) -> None:
    wave = np.arange(1, round(source * RATE) + 1, dtype=np.float32)
    got = fill(wave, samples, rng())
    assert got.shape == (samples,) and got.dtype == np.float32
    if len(wave) >= samples:
        assert (np.diff(got) == 1).all()
    else:
        starts = np.flatnonzero(got == 1)
        gaps = np.diff(starts) - len(wave)
        assert starts[0] == 0 and (gaps >= 0.02 * RATE - 1).all() and (gaps <= 0.5 * RATE + 1).all()


def test_fill_gives_a_copy() -> None:
    wave = np.ones(RATE, np.float32)
    fill(wave, RATE, rng())[:] = 0
    assert wave.all()


@pytest.mark.parametrize(("start", "end"), [(0.0, 10.0), (2.0, 5.5), (7.25, 10.0), (0.0, 1.0)])
@pytest.mark.parametrize("source", [0.4, 30.0])
def test_an_event_sounds_in_its_span_and_nowhere_else(start: float, end: float, source: float) -> None:
    wave = sound_scene([(Span(start, end, 0), tone(440, source))], None, PLAIN, rng())
    assert wave.shape == (10 * RATE,) and wave.dtype == np.float32
    assert decibels(part(wave, start, end)) == pytest.approx(-20, abs=0.6)  # the fades take a little
    for quiet in (part(wave, 0, start), part(wave, end, 10)):
        assert not len(quiet) or decibels(quiet) < -59


@pytest.mark.parametrize("seed", range(5))
def test_levels_follow_the_law(seed: int) -> None:
    law = SoundLaw(event_level=(-30.0, -16.0), jitter=4.0)
    wave = sound_scene([(Span(2, 8, 0), tone(440, 30))], None, law, rng(seed))
    assert -34.5 < decibels(part(wave, 2.1, 7.9)) < -11.5


def test_the_background_lies_under_the_whole_scene() -> None:
    wave = sound_scene([(Span(4, 6, 0), tone(440, 30))], tone(150, 2.0), PLAIN, rng())
    assert decibels(part(wave, 0, 3.9)) == pytest.approx(-35, abs=1.5)
    assert decibels(part(wave, 6.1, 10)) == pytest.approx(-35, abs=1.5)
    assert decibels(part(wave, 4.1, 5.9)) == pytest.approx(-20, abs=0.6)


def test_overlapping_events_both_sound() -> None:
    events = [(Span(1, 6, 0), tone(440, 30)), (Span(4, 9, 1), tone(3000, 30))]
    wave = sound_scene(events, None, PLAIN, rng())
    power = np.abs(np.fft.rfft(part(wave, 4.5, 5.5))) ** 2  # bins of 1 Hz
    assert power[440] == pytest.approx(power[3000], rel=0.2)
    assert power[[440, 3000]].sum() > 0.9 * power.sum()


def test_scenes_stay_within_full_scale_and_leave_their_sources_alone() -> None:
    law, source = SoundLaw(event_level=(-1.0, -1.0), jitter=0.0), np.random.default_rng(0).standard_normal(RATE * 9)
    wave = source.astype(np.float32)
    before = wave.copy()
    got = sound_scene([(Span(0, 10, 0), wave)], wave, law, rng())
    assert abs(got).max() <= 1 and (wave == before).all()


def test_no_clicks_at_the_borders() -> None:
    wave = sound_scene([(Span(2, 5, 0), np.ones(10 * RATE, np.float32))], None, PLAIN, rng())
    assert abs(np.diff(wave)).max() < 0.01


def test_silence_as_a_source() -> None:
    wave = sound_scene([(Span(2, 5, 0), np.zeros(RATE, np.float32))], np.zeros(RATE, np.float32), PLAIN, rng())
    assert decibels(wave) < -59


# ---------------------------------------------------------------- picture


def strongest(frames: npt.NDArray[np.uint8]) -> list[int]:
    """Colour channel that dominates each frame."""
    return [int(f.reshape(-1, 3).mean(0).argmax()) for f in frames]


@pytest.mark.parametrize("seed", range(3))
def test_pictures_are_shown_in_their_spans(seed: int) -> None:
    events = [(Span(2.0, 6.0, 0), picture(RED)), (Span(5.0, 8.0, 1), picture(BLUE, 200, 90))]
    frames = picture_scene(events, picture(GREEN), TIMES, PictureLaw(), rng(seed), (48, 64))
    assert frames.shape == (100, 48, 64, 3) and frames.dtype == np.uint8
    assert strongest(frames) == [1] * 20 + [0] * 30 + [2] * 30 + [1] * 20  # the later one covers the earlier


def test_labels_are_where_the_picture_is() -> None:
    span = Span(2.3, 7.6, 0)
    centres = [(k + 0.5) * 0.5 for k in range(20)]
    frames = picture_scene([(span, picture(RED))], picture(GREEN), centres, PictureLaw(), rng(), (32, 32))
    assert [c == 0 for c in strongest(frames)] == labels([span], 20, 1)[:, 0].tolist()


def test_shapes_are_drawn_from_the_law() -> None:
    law = PictureLaw(shapes=(((32, 48), 0.5), ((48, 32), 0.5)))
    shapes = {picture_scene([], picture(GREEN), [0.0], law, rng(seed)).shape[1:3] for seed in range(20)}
    assert shapes == {(32, 48), (48, 32)}


@pytest.mark.parametrize("source", [(9, 300), (300, 9), (64, 64), (500, 700)])
@pytest.mark.parametrize("size", [(64, 36), (36, 64)])
def test_crops_of_any_picture(source: tuple[int, int], size: tuple[int, int]) -> None:
    for seed in range(5):
        frames = picture_scene([], picture(RED, *source), [0.0, 5.0, 9.9], PictureLaw(), rng(seed), size)
        assert frames.shape == (3, *size, 3) and set(strongest(frames)) == {0}


def test_the_crop_moves_slowly() -> None:
    gradient = np.repeat((np.add.outer(np.arange(200), np.arange(200)) / 1.6)[:, :, None], 3, 2).astype(np.uint8)
    frames = picture_scene([], gradient, TIMES, PictureLaw(drift=0.5), rng(3), (48, 48)).astype(int)
    steps = abs(np.diff(frames.mean((1, 2, 3))))
    assert abs(frames[0] - frames[-1]).max() > 5 and steps.max() < 3


def test_the_same_seed_draws_the_same_crops_of_another_picture() -> None:
    """What a quadruple rests on: outside the event the frames are equal, whatever is shown inside."""
    frames = [
        picture_scene([(Span(3, 6, 0), picture(c, 90, 120))], picture(GREEN), TIMES, PictureLaw(), rng(4), (48, 64))
        for c in (RED, BLUE)
    ]
    same = [bool((a == b).all()) for a, b in zip(*frames, strict=True)]
    assert same == [not 3 <= t < 6 for t in TIMES]


# ---------------------------------------------------------------- files


def test_a_written_clip_holds_what_was_composed(tmp_path: Path) -> None:
    span, path = Span(2.0, 4.0, 0), tmp_path / "a.mp4"
    times = [k / 10 for k in range(60)]
    frames = picture_scene([(span, picture(RED))], picture(GREEN), times, PictureLaw(), rng(), (48, 64))
    wave = sound_scene([(span, tone(440, 9))], None, SoundLaw(seconds=6.0, event_level=(-20, -20), jitter=0), rng())
    write_clip(path, frames, wave)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    found = list(decode(path, DecodeRequest(PictureSpec(), RATE, Grid(Fraction(1, 10), Fraction(1, 10)))))
    shown = np.stack([p.pixels for p in found if isinstance(p, Picture)])
    heard = np.concatenate([s.samples for s in found if isinstance(s, Sound)])
    assert shown.shape == frames.shape
    assert abs(shown.astype(int) - frames).mean() < 6 and strongest(shown) == strongest(frames)
    assert len(heard) / RATE == pytest.approx(6.0, abs=0.07)
    loud = np.flatnonzero(np.convolve(heard[: 6 * RATE] ** 2, np.ones(320) / 320, "same") > 1e-3)
    assert loud[0] / RATE == pytest.approx(2.0, abs=0.03) and loud[-1] / RATE == pytest.approx(4.0, abs=0.03)
    assert decibels(part(heard, 2.1, 3.9)) == pytest.approx(decibels(part(wave, 2.1, 3.9)), abs=0.5)


def test_writing_is_reproducible(tmp_path: Path) -> None:
    frames, wave = np.zeros((10, 32, 32, 3), np.uint8), tone(440, 1.0)
    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4", frames, wave)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OutputError):
        write_clip(tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8), tone(440, 0.5))
    assert list(tmp_path.iterdir()) == []
