"""Rows of features lie where the media lie: windows, ends, limits, batches, and what was seen and heard."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avtool.errors import DeviceError
from avtool.features import extract as module
from avtool.features.encoders.catalog import Encoder
from avtool.features.extract import extract
from avtool.features.store import Features
from avtool.media.decoding import decode
from avtool.media.request import DecodeReport, DecodeRequest, Picture, PictureSpec, Sound
from avtool.timegrid import Grid
from avtool.timeline import MediaInfo, Notice
from tests.synth import FLASH, LASTS, TONE, Audio, Video, write

CPU = torch.device("cpu")
RATE = 100  # Hz: the arithmetic is the same as at 32 kHz
HALVES = Grid()
MEDIA = MediaInfo("x.mp4", 1, 0, True, True, 1.0, None, None, None, 1.0)


def end_of_file(seconds: float, lost: float = 0.0) -> DecodeReport:
    return DecodeReport(MEDIA, (Notice("code", "text"),), lost, 0, seconds)


def borders(rate: int = RATE, seconds: float = 2.0) -> Encoder:
    """Gives the first and the last sample of its window, so that the window's place can be read off."""

    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        assert wave.shape[1] == round(rate * seconds)
        return torch.stack([wave[:, 0], wave[:, -1]], 1), wave[:, :1] * 2

    return Encoder("fake", "audio", 2, 1, run, "ab", rate=rate, seconds=seconds)


def brightness(sizes: list[tuple[int, ...]] | None = None, most: int = 99) -> Encoder:
    """Gives each picture's mean; notes the shape of its batches; runs out of memory above `most` pictures."""

    def run(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        if len(pictures) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory\nand more lines")
        if sizes is not None:
            sizes.append(tuple(pictures.shape))
        return pictures.float().mean((1, 2, 3))[:, None], None

    return Encoder("fake", "visual", 1, 0, run, "cd", PictureSpec(short=8))


def ramp(first: int, stop: int) -> npt.NDArray[np.float32]:
    """Sample number i has the value i + 1; 0 is left for what is not there."""
    return np.arange(first + 1, stop + 1, dtype=np.float32)


def chunked(samples: npt.NDArray[np.float32], sizes: Sequence[int], start: int = 0) -> list[Sound]:
    """Contiguous chunks whose sizes repeat."""
    out, place = [], 0
    while place < len(samples):
        piece = samples[place : place + sizes[len(out) % len(sizes)]]
        out.append(Sound(start + place, piece))
        place += len(piece)
    return out


def listen(
    sounds: Iterable[Sound],
    seconds: float,
    grid: Grid = HALVES,
    context: float = 2.0,
    start: Fraction | None = None,
    end: Fraction | None = None,
) -> Features:
    return extract([*sounds, end_of_file(seconds)], None, borders(RATE, context), grid, CPU, start, end)


def window_of(row: int, grid: Grid, length: int, begin: int, stop: int) -> tuple[float, float]:
    """What the encoder must see of a row: centred on it, shifted inwards at both ends; a short file ends in silence."""
    first = round(grid.centre(row) * RATE) - length // 2
    first = max(begin, min(first, stop - length))
    last = first + length - 1
    return first + 1.0, last + 1.0 if last < stop else 0.0


def check_windows(got: Features, samples: int, grid: Grid, length: int, begin: int = 0) -> None:
    assert got.audio is not None
    for row in range(got.rows):
        exists = grid.start(row) * RATE < samples and grid.centre(row) * RATE >= begin
        expected = window_of(row, grid, length, begin, samples) if exists else (0.0, 0.0)
        assert tuple(got.audio[row]) == expected, (row, samples)


# ---------------------------------------------------------------- windows of sound


@given(
    samples=st.integers(1, 2500),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    context=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    grid=st.sampled_from([HALVES, Grid(Fraction(1), Fraction(1)), Grid(Fraction(1, 2), Fraction(1, 5))]),
)
@settings(max_examples=60, deadline=None)
def test_windows_are_centred_and_shifted_inwards(samples: int, sizes: list[int], context: float, grid: Grid) -> None:
    got = listen(chunked(ramp(0, samples), sizes), samples / RATE, grid, context)
    assert got.rows == grid.count(samples / RATE)
    check_windows(got, samples, grid, round(context * RATE))


@pytest.mark.parametrize("seconds", [9.0, 9.75, 10.0, 11.0, 12.3])
def test_the_last_rows_see_the_last_full_window(seconds: float) -> None:
    """Chunks of a second, as a decoder gives them: what was dropped from memory must not be needed at the end."""
    samples = round(seconds * RATE)
    got = listen(chunked(ramp(0, samples), [RATE]), seconds)
    assert got.audio is not None
    assert tuple(got.audio[-1]) == (samples - 2 * RATE + 1, samples)
    assert tuple(got.audio[0]) == (1, 2 * RATE)


def test_a_file_shorter_than_the_context_is_followed_by_silence() -> None:
    got = listen(chunked(ramp(0, 70), [30]), 0.7)
    assert got.audio is not None
    assert got.rows == 1 and tuple(got.audio[0]) == (1.0, 0.0) and got.heard.all()


def test_sound_that_ends_before_the_picture_leaves_rows_unheard() -> None:
    pictures = [Picture(row, row / 2, np.zeros((8, 8, 3), np.uint8)) for row in range(10)]
    sounds = chunked(ramp(0, 250), [100])
    got = extract([*sounds, *pictures, end_of_file(5.0)], brightness(), borders(), HALVES, CPU)
    assert got.rows == 10 and got.seen.all() and got.heard.tolist() == [True] * 5 + [False] * 5
    check_windows(got, 250, HALVES, 200)


@pytest.mark.parametrize(("samples", "heard"), [(310, 6), (325, 6), (326, 7), (340, 7), (10, 0), (26, 1)])
def test_a_row_is_heard_if_the_sound_reaches_its_centre(samples: int, heard: int) -> None:
    """The window of a last row shows what was before it, so it must not count for what is not there any more."""
    pictures = [Picture(row, row / 2, np.zeros((8, 8, 3), np.uint8)) for row in range(10)]
    got = extract(
        [*chunked(ramp(0, samples), [100]), *pictures, end_of_file(5.0)], brightness(), borders(), HALVES, CPU
    )
    assert got.heard.tolist() == [row < heard for row in range(10)]


@pytest.mark.parametrize("start", [Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(33, 10)])
@pytest.mark.parametrize("end", [Fraction(5), Fraction(11, 2), Fraction(29, 5)])
def test_limits_are_those_of_the_decoder(start: Fraction, end: Fraction) -> None:
    """Rows whose centre lies in [start, end); the others are zero, neither seen nor heard."""
    first, stop = round(start * RATE), round(end * RATE)
    got = listen(chunked(ramp(first, stop), [64], first), float(end), start=start, end=end)
    wanted = [start <= HALVES.centre(row) < end for row in range(got.rows)]
    assert got.audio is not None
    assert got.audio.any(1).tolist() == wanted == got.heard.tolist()
    for row in np.flatnonzero(wanted):
        assert tuple(got.audio[row]) == window_of(int(row), HALVES, 200, first, stop)


def test_limits_agree_with_the_decoders_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", Video(), Audio())
    for start, end in ((Fraction(1, 2), Fraction(2)), (Fraction(9, 4), Fraction(17, 4)), (Fraction(1), Fraction(9))):
        request = DecodeRequest(PictureSpec(short=16), 8000, start=start, end=end)
        got = extract(decode(path, request), brightness(), borders(8000), HALVES, CPU, start, end)
        centres = (got.times[:, 0] + got.times[:, 1]) / 2
        wanted = (centres >= start) & (centres < min(end, 5))
        assert got.seen.tolist() == wanted.tolist() == got.heard.tolist()


def test_late_sound_is_not_moved() -> None:
    """A decoder fills late starts with silence; sound numbered from later on stays where its numbers say."""
    got = listen(chunked(ramp(310, 800), [100], 310), 8.0)
    assert got.audio is not None
    assert got.heard.tolist() == [False] * 6 + [True] * 10
    for row in range(7, 16):
        assert tuple(got.audio[row]) == window_of(row, HALVES, 200, 310, 800)


# ---------------------------------------------------------------- heard


@pytest.mark.parametrize(("peak", "heard"), [(0.0, False), (5e-5, False), (2e-4, True), (-2e-4, True)])
def test_heard_is_more_than_digital_silence(peak: float, heard: bool) -> None:
    wave = np.zeros(600, np.float32)
    wave[320] = peak  # row 6
    got = listen(chunked(wave, [77]), 6.0)
    assert got.heard.tolist() == [row == 6 and heard for row in range(12)]


def test_a_loud_neighbour_in_the_window_does_not_make_a_row_heard() -> None:
    wave = np.zeros(1000, np.float32)
    wave[500:550] = 0.5
    got = listen(chunked(wave, [RATE]), 10.0)
    assert np.flatnonzero(got.heard).tolist() == [10]


# ---------------------------------------------------------------- pictures and batches


def shown(rows: Iterable[int], size: tuple[int, int] = (8, 8)) -> list[Picture]:
    return [Picture(row, row / 2, np.full((*size, 3), row % 250, np.uint8)) for row in rows]


def test_pictures_land_in_their_rows() -> None:
    rows = [0, 1, 2, 5, 6, 130, 131]
    got = extract([*shown(rows), end_of_file(66.0)], brightness(), None, HALVES, CPU)
    assert got.visual is not None and got.rows == 132
    assert np.flatnonzero(got.seen).tolist() == rows
    assert got.visual[rows, 0].tolist() == rows and not got.visual[~got.seen].any()
    assert got.audio is None and got.audio_tags is None and got.visual_tags is None and not got.heard.any()


def test_a_batch_holds_one_shape_and_no_more_than_its_size() -> None:
    sizes: list[tuple[int, ...]] = []
    pictures = [*shown(range(20)), *shown(range(20, 23), (8, 14)), *shown(range(23, 25))]
    got = extract([*pictures, end_of_file(12.5)], brightness(sizes), None, HALVES, CPU)
    assert [s[:3] for s in sizes] == [(8, 8, 8), (8, 8, 8), (4, 8, 8), (3, 8, 14), (2, 8, 8)]
    assert got.visual is not None and got.visual[:, 0].tolist() == list(range(25))


def test_a_picture_that_stays_on_screen_is_computed_once() -> None:
    sizes: list[tuple[int, ...]] = []
    still = shown([0])[0]
    pictures = [Picture(row, 0.0, still.pixels) for row in range(20)] + shown(range(20, 30))
    got = extract([*pictures, end_of_file(15.0)], brightness(sizes), None, HALVES, CPU)
    assert [s[0] for s in sizes] == [8, 3]
    assert got.visual is not None and got.visual[:, 0].tolist() == [0.0] * 20 + list(range(20, 30)) and got.seen.all()


@pytest.mark.parametrize("prepared", [None, lambda pixels: pixels[:4, :4], lambda pixels: pixels // 1])
def test_pictures_that_are_only_lent(prepared: Any) -> None:
    """Pixels are overwritten when the next item is asked for; rows of one still share what was made of them."""
    sizes: list[tuple[int, ...]] = []

    def lent() -> Iterable[Picture | DecodeReport]:
        places = [np.zeros((8, 8, 3), np.uint8) for _ in range(3)]
        for row in range(20):
            pixels = places[row % 3][:]  # a new array over a place that is used again
            pixels[:] = 10 * row
            yield Picture(row, row / 2, pixels)
            pixels[:] = 255
        for row in range(20, 40):
            yield Picture(row, 10.0, pixels)  # the last one stays on screen
        yield end_of_file(20.0)

    encoder = replace(brightness(sizes), prepare=prepared, scaling="in words")
    got = extract(lent(), encoder, None, HALVES, CPU)
    assert got.visual is not None and got.visual[:, 0].tolist() == [10.0 * min(row, 19) for row in range(40)]
    assert [s[0] for s in sizes] == [8, 8, 4]


def test_pictures_are_prepared_one_by_one_before_they_meet() -> None:
    """Sources that change their size in mid-stream still fill whole batches."""
    sizes: list[tuple[int, ...]] = []
    encoder = replace(brightness(sizes), prepare=lambda pixels: pixels[:4, :4], scaling="in words")
    got = extract([*shown(range(5)), *shown(range(5, 8), (8, 14)), end_of_file(4.0)], encoder, None, HALVES, CPU)
    assert sizes == [(8, 4, 4, 3)] and got.scaling == "in words"
    assert got.visual is not None and got.visual[:, 0].tolist() == list(range(8))


def test_a_window_alone_is_filled_with_silence_at_both_ends() -> None:
    """The published per-second protocol: a row's own second, and nothing of its neighbours."""
    alone = replace(borders(seconds=1.0), alone=True)
    grid = Grid(Fraction(1), Fraction(1))
    got = extract([*chunked(ramp(0, 270), [64]), end_of_file(2.7)], None, alone, grid, CPU)
    assert got.audio is not None and got.audio.tolist() == [[1, 100], [101, 200], [201, 0]]
    half = extract([*chunked(ramp(0, 200), [64]), end_of_file(2.0)], None, alone, HALVES, CPU)
    assert half.audio is not None and half.audio.tolist() == [[0, 75], [26, 125], [76, 175], [126, 0]]


def test_a_window_may_lie_off_its_rows_centre() -> None:
    """VGGish's patch reads 0.48 s before its centre and 0.495 s after it."""
    encoder = replace(borders(seconds=1.0), before=0.3)
    got = extract([*chunked(ramp(0, 500), [64]), end_of_file(5.0)], None, encoder, HALVES, CPU)
    assert got.audio is not None
    expected = [max(0, min(25 + 50 * row - 30, 400)) + 1 for row in range(10)]
    assert got.audio.tolist() == [[first, first + 99] for first in expected]


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_out_of_memory_halves_the_batch_and_loses_nothing(most: int) -> None:
    sizes: list[tuple[int, ...]] = []
    got = extract([*shown(range(21)), end_of_file(10.5)], brightness(sizes, most), None, HALVES, CPU)
    assert got.visual is not None and got.visual[:, 0].tolist() == list(range(21)) and got.seen.all()
    assert max(s[0] for s in sizes) == 2 ** (most.bit_length() - 1)


def test_out_of_memory_at_one_is_an_error_with_a_way_out() -> None:
    with pytest.raises(DeviceError) as caught:
        extract([*shown(range(3)), end_of_file(1.5)], brightness(most=0), None, HALVES, CPU)
    assert caught.value.why == "CUDA out of memory" and "--device cpu" in caught.value.hint


def test_class_scores_stay_with_their_rows() -> None:
    got = listen(chunked(ramp(0, 1000), [RATE]), 10.0)
    assert got.audio is not None and got.audio_tags is not None
    np.testing.assert_array_equal(got.audio_tags[:, 0], 2 * got.audio[:, 0])


@pytest.mark.parametrize(("seconds", "rows"), [(0.0, 0), (0.1, 1), (10.0, 20), (10.2, 20), (10.3, 21)])
def test_rows_are_those_of_the_grid(seconds: float, rows: int) -> None:
    got = extract([*shown(range(24)), end_of_file(seconds)], brightness(), borders(), HALVES, CPU)
    assert got.rows == rows == len(got.seen) == len(got.heard)
    assert got.visual is not None and len(got.visual) == rows and got.audio is None
    np.testing.assert_array_equal(got.times, np.arange(rows)[:, None] / 2 + [0.0, 0.5])


def test_nothing_but_a_report() -> None:
    got = extract([end_of_file(0.0, 7.0)], brightness(), borders(), HALVES, CPU)
    assert (got.rows, got.visual, got.audio, got.lost_seconds) == (0, None, None, 7.0)


def test_the_record_is_copied_from_what_ran() -> None:
    got = extract([end_of_file(3.0)], brightness(), borders(), HALVES, CPU)
    assert dict(got.weights) == {"fake (visual)": "cd", "fake (audio)": "ab"}
    assert (got.visual_encoder, got.audio_encoder, got.media) == ("fake", "fake", MEDIA)
    assert got.notices[0].code == "code" and got.scaling == "swscale area, short side 8, whole picture up to 2:1"
    assert module.scaling(None) == ""


def test_progress_is_in_seconds_of_media() -> None:
    calls: list[tuple[str, float, float]] = []
    extract(
        [*shown(range(4)), end_of_file(2.0)],
        brightness(),
        None,
        HALVES,
        CPU,
        on_progress=lambda *call: calls.append(call),
        duration=2.0,
    )
    assert calls == [("features", 0.0, 2.0), ("features", 0.5, 2.0), ("features", 1.0, 2.0), ("features", 1.5, 2.0)]


def test_memory_stays_flat() -> None:
    """A long sound: the listener keeps a few seconds of it."""
    listener = module._Listener(module._Batch(borders(), CPU, 4), borders(), HALVES, 0, None)
    most = 0
    for sound in chunked(ramp(0, 300 * RATE), [RATE]):
        listener.add(sound)
        most = max(most, len(listener._buffer))
    assert most <= 6 * RATE


def wide(dim: int) -> Encoder:
    """As `brightness`, repeated, with class scores that are its negative."""

    def run(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        mean = pictures.float().mean((1, 2, 3))[:, None].expand(-1, dim)
        return mean, -mean

    return Encoder("fake", "visual", dim, dim, run, "cd", PictureSpec(short=8))


def test_rows_are_held_once() -> None:
    """Neither while they grow nor at the end is there a second copy; what nobody reads is not kept at all."""
    rows, dim = 3000, 512
    pictures = shown(range(rows), (2, 2))
    tracemalloc.start()
    try:
        got = extract([*pictures, end_of_file(rows / 2)], wide(dim), None, HALVES, CPU, tags=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got.visual is not None and got.visual.shape == (rows, dim) and got.visual_tags is None
    np.testing.assert_array_equal(got.visual[:, -1], np.arange(rows) % 250)
    assert got.visual.nbytes < peak < 1.25 * got.visual.nbytes


# ---------------------------------------------------------------- a real file


def loudness(rate: int = 8000) -> Encoder:
    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        return wave.square().mean(1, keepdim=True).sqrt(), None

    return Encoder("fake", "audio", 1, 0, run, "", rate=rate, seconds=0.5)


@pytest.mark.parametrize(
    "tracks",
    [
        (Video(), Audio()),
        (Video(flash=1.0), Audio(tone=3.5, rate=48_000)),
        (Video(start=1.2), Audio()),
        (Video(), Audio(start=2.5)),
        (Video(times=[k / 25 + 0.013 * (k % 3) for k in range(125)]), Audio(channels=2)),
    ],
    ids=["plain", "moved", "late picture", "late sound", "jitter"],
)
def test_flash_and_tone_land_in_their_rows(tmp_path: Path, tracks: tuple[Any, ...]) -> None:
    path = write(tmp_path / "a.mp4", *tracks)
    request = DecodeRequest(PictureSpec(short=32), 8000)
    got = extract(decode(path, request), brightness(), loudness(), HALVES, CPU)
    video, audio = tracks
    flash, tone = FLASH if video.flash is None else video.flash, TONE if audio.tone is None else audio.tone
    assert got.visual is not None and got.audio is not None and got.rows == 10
    bright = np.flatnonzero(got.visual[:, 0] > 150)
    loud = np.flatnonzero(got.audio[:, 0] > 0.2)
    assert bright.tolist() == [round((flash + LASTS / 2) * 2 - 0.5)]
    assert loud.tolist() == [round((tone + LASTS / 2) * 2 - 0.5)]
    assert got.seen[bright].all() and got.heard[loud].all()
