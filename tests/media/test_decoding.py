"""What comes out of a decoder: pixels, times, samples, ranges, limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from avtool.errors import InputError, UsageError
from avtool.media.decoding import decode
from avtool.media.frames import scaled
from avtool.media.probe import probe
from avtool.media.request import DecodeReport, DecodeRequest, Limits, Picture, PictureSpec, Sound
from avtool.timegrid import Grid
from tests.synth import Audio, Video, long_film, wav, write


def pictures(path: Path, spec: PictureSpec | None = None, **options: Any) -> list[Picture]:
    request = DecodeRequest(spec or PictureSpec(), None, **options)
    return [item for item in decode(path, request) if isinstance(item, Picture)]


def samples(path: Path, rate: int, **options: Any) -> npt.NDArray[np.float32]:
    request = DecodeRequest(None, rate, **options)
    return np.concatenate([item.samples for item in decode(path, request) if isinstance(item, Sound)])


def report(path: Path, request: DecodeRequest) -> DecodeReport:
    *_, last = decode(path, request)
    assert isinstance(last, DecodeReport)
    return last


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("film") / "a.mp4", Video(width=160, height=90), Audio())


# ---------------------------------------------------------------- rows and times


def test_each_row_shows_the_frame_at_its_centre(film: Path) -> None:
    got = pictures(film)
    assert [p.row for p in got] == list(range(10))
    for p in got:
        centre = p.row * 0.5 + 0.25
        assert p.time <= centre < p.time + 0.04


@pytest.mark.parametrize("stride", [Fraction(1, 10), Fraction(1, 2), Fraction(1), Fraction(8, 25), Fraction(3)])
def test_any_grid(film: Path, stride: Fraction) -> None:
    grid = Grid(Fraction(1, 2), stride)
    for p in pictures(film, grid=grid):
        assert p.time <= grid.centre(p.row) < Fraction(p.time) + Fraction(2, 50)


def test_rows_and_samples_of_a_range_are_those_of_the_whole(film: Path) -> None:
    whole, rate = pictures(film), 16_000
    part = pictures(film, start=Fraction(2), end=Fraction(7, 2))
    assert [p.row for p in part] == [4, 5, 6]
    for p in part:
        assert p.time == whole[p.row].time and np.array_equal(p.pixels, whole[p.row].pixels)
    request = DecodeRequest(None, rate, start=Fraction(2), end=Fraction(7, 2))
    chunks = [item for item in decode(film, request) if isinstance(item, Sound)]
    assert chunks[0].start == 2 * rate and sum(len(c.samples) for c in chunks) == 1.5 * rate
    sound = np.concatenate([c.samples for c in chunks])
    # resampling starts at another frame, so the samples may lie up to half a sample beside those of the whole
    half_a_sample = 0.5 * 2 * np.pi * 1000 * 0.5 / rate
    assert np.abs(sound - samples(film, rate)[2 * rate : 7 * rate // 2]).max() < half_a_sample + 0.005


def test_a_range_past_the_end_is_empty_but_not_an_error(film: Path) -> None:
    request = DecodeRequest(PictureSpec(), 16_000, start=Fraction(60))
    items = list(decode(film, request))
    assert len(items) == 1 and isinstance(items[0], DecodeReport)


def test_the_report_of_a_range_says_how_far_it_went(film: Path) -> None:
    got = report(film, DecodeRequest(PictureSpec(), 16_000, end=Fraction(2)))
    assert got.media.analysed_until == 2.0 and got.media.duration == pytest.approx(5, abs=0.1)
    assert not got.notices and got.lost_seconds == 0


def test_rows_of_one_still_share_their_pixels(tmp_path: Path) -> None:
    got = pictures(write(tmp_path / "a.mp4", Video(times=[0, 2.0, 4.9]), Audio()))
    assert got[0].pixels is got[1].pixels and got[3].pixels is not got[4].pixels


def test_the_picture_stays_for_a_second_after_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", Video(seconds=2), Audio(seconds=6))
    assert [p.row for p in pictures(path)] == [0, 1, 2, 3]  # the file is as long as what is decoded
    both = [i.row for i in decode(path, DecodeRequest(PictureSpec(), 8000)) if isinstance(i, Picture)]
    assert both == [0, 1, 2, 3, 4, 5]


def test_a_file_shorter_than_half_a_row_has_one_row(tmp_path: Path) -> None:
    assert [p.row for p in pictures(write(tmp_path / "a.mp4", Video(seconds=0.08)))] == [0]


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("size", "spec", "shape"),
    [
        ((160, 90), PictureSpec(), (90, 160)),
        ((160, 90), PictureSpec(short=64), (64, 114)),
        ((90, 160), PictureSpec(short=64), (114, 64)),
        ((160, 90), PictureSpec(short=64, crop=64), (64, 64)),
        ((160, 90), PictureSpec(short=64, crop=48), (48, 48)),
        ((400, 100), PictureSpec(short=50), (50, 100)),
        ((400, 100), PictureSpec(short=50, max_aspect=3.0), (50, 150)),
        ((1280, 16), PictureSpec(short=64), (64, 128)),
        ((64, 64), PictureSpec(short=128), (128, 128)),
    ],
)
def test_shapes(tmp_path: Path, size: tuple[int, int], spec: PictureSpec, shape: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mkv", Video("ffv1", seconds=1, width=size[0], height=size[1]))
    assert pictures(path, spec)[0].pixels.shape == (*shape, 3)


def test_the_short_side_is_exact_and_the_aspect_kept() -> None:
    for width, height in ((1920, 1080), (853, 480), (480, 853), (1, 1), (3, 1000)):
        w, h = scaled(width, height, 160)
        assert min(w, h) == 160
        assert abs(w / h - width / height) <= 1 / 160 * max(1, width / height)


@pytest.mark.parametrize(("turn", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_pictures_are_upright(tmp_path: Path, turn: int, corner: tuple[int, int]) -> None:
    """The red corner of the stored picture is at its top left; the display matrix turns it anticlockwise."""
    path = write(tmp_path / "a.mp4", Video(seconds=1, width=160, height=96, rotation=turn), Audio(seconds=1))
    got = pictures(path)[0].pixels
    assert got.shape == ((96, 160, 3) if turn in (0, 180) else (160, 96, 3))
    rows, columns = (slice(0, 12) if c == 0 else slice(-12, None) for c in corner)
    red = got[rows, columns].reshape(-1, 3).mean(0)
    assert red[0] > 150 and red[1] < 100, red
    info = probe(path).video
    assert info is not None and (info.height, info.width) == got.shape[:2]
    assert info.rotation == -turn % 360


def patches(path: Path, height: int, **tags: int) -> npt.NDArray[np.int_]:
    """A film of four coloured fields, coded with BT.709; gives the decoded colours."""
    width = height * 16 // 9 // 2 * 2
    colours = np.array([(200, 30, 30), (30, 180, 40), (40, 60, 210), (128, 128, 128)], np.uint8)
    rgb = np.repeat(colours[None, :], width // 4, axis=1).repeat(height, axis=0)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
    frame = frame.reformat(format="yuv444p", src_colorspace="ITU709", dst_colorspace="ITU709")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = rgb.shape[1], height, "yuv444p"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number in range(10):
            frame.pts = number
            frame.colorspace = tags.get("colorspace", 2)
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    got = pictures(path)[0].pixels.astype(int)
    centres = [int((i + 0.5) * rgb.shape[1] / 4) for i in range(4)]
    return np.abs(got[height // 2, centres] - colours).max(1)


def test_untagged_high_definition_is_bt709(tmp_path: Path) -> None:
    assert patches(tmp_path / "a.mkv", 720).max() <= 4


def test_untagged_small_pictures_are_bt601(tmp_path: Path) -> None:
    assert patches(tmp_path / "a.mkv", 480)[:3].max() > 8  # they were not: this is the convention, not the truth


@pytest.mark.parametrize("height", [480, 720])
def test_tags_are_followed(tmp_path: Path, height: int) -> None:
    assert patches(tmp_path / "a.mkv", height, colorspace=1).max() <= 4


# ---------------------------------------------------------------- sound


CONTAINERS = [
    ("a.wav", "pcm_s16le", 48_000, 1),
    ("a.mp4", "aac", 44_100, 2),
    ("a.mkv", "libopus", 48_000, 1),
    ("a.mp3", "libmp3lame", 44_100, 1),
    ("a.flac", "flac", 22_050, 2),
    ("a.ts", "aac", 48_000, 2),
    ("a.flv", "aac", 44_100, 1),
]


@pytest.mark.parametrize(("file", "codec", "rate", "channels"), CONTAINERS)
@pytest.mark.parametrize("wanted", [16_000, 32_000])
def test_sound_stays_in_place(tmp_path: Path, file: str, codec: str, rate: int, channels: int, wanted: int) -> None:
    """The tone from 3.0 to 3.5 s is found to 10 ms, whatever the codec delays; the length is right."""
    path = write(tmp_path / file, Audio(codec, rate, channels))
    got = samples(path, wanted)
    loud = np.flatnonzero(np.abs(got) > 0.2)
    offset = 0.0 if not file.endswith(("mp3", "flv", "ts")) else 0.06  # these have no way to hide the encoder's delay
    assert loud[0] / wanted == pytest.approx(3.0, abs=0.01 + offset)
    assert loud[-1] / wanted == pytest.approx(3.5, abs=0.01 + offset)
    assert len(got) / wanted == pytest.approx(5.0, abs=0.06)
    assert np.abs(got).max() == pytest.approx(0.5, abs=0.15)  # the encoder overshoots


def test_resampling_keeps_the_band_and_does_not_alias(tmp_path: Path) -> None:
    """48 to 32 kHz: flat to 0.9 of the new band, and at least 60 dB down from 1.06 of it on."""
    time = np.arange(48_000 * 2) / 48_000

    def level(hertz: float) -> float:
        tone = (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
        got = samples(wav(tmp_path / "a.wav", tone, 48_000), 32_000)[8000:-8000]
        return float(20 * np.log10(np.sqrt((got**2).mean()) / (0.5 / np.sqrt(2))))

    for hertz in (100, 1000, 8000, 14_400):
        assert abs(level(hertz)) < 0.5, hertz
    for hertz in (17_000, 18_000, 21_000):
        assert level(hertz) < -60, hertz


def test_downmix_is_the_mean_of_left_and_right(tmp_path: Path) -> None:
    left, right = np.full(16_000, 0.5, np.float32), np.full(16_000, -0.1, np.float32)
    path = wav(tmp_path / "a.wav", np.stack([left, right], axis=1).reshape(-1), 16_000, 2)
    assert samples(path, 16_000)[4000:-4000] == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize("channels", [3, 6, 9, 20, 64])
@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_any_number_of_channels(tmp_path: Path, channels: int, kind: Any) -> None:
    value = 0.5 if kind is np.float32 else 1 << 14
    path = wav(tmp_path / "a.wav", np.full(16_000 * channels, value, kind), 16_000, channels)
    got = samples(path, 16_000)
    assert len(got) == 16_000 and got[8000] == pytest.approx(0.5, abs=1e-3)


def test_samples_that_are_no_numbers_become_silence(tmp_path: Path) -> None:
    values = np.full(48_000, 0.25, np.float32)
    values[10_000], values[20_000], values[30_000] = np.nan, np.inf, 1e30
    got = samples(wav(tmp_path / "a.wav", values, 48_000), 32_000)
    assert np.isfinite(got).all() and np.abs(got).max() < 1
    assert (np.abs(got[2000:-2000] - 0.25) > 1e-3).mean() < 0.1


# ---------------------------------------------------------------- limits, streams, progress


def test_pictures_over_the_limit_are_refused(film: Path) -> None:
    limits = Limits(max_pixels=160 * 90 - 1)
    for act in (lambda: probe(film, limits), lambda: list(decode(film, DecodeRequest(PictureSpec(), limits=limits)))):
        with pytest.raises(InputError) as refusal:
            act()
        assert "160 x 90" in refusal.value.why or "too large" in refusal.value.why
    assert pictures(film, limits=Limits(max_pixels=160 * 96))


def test_files_over_the_limit_of_duration_are_refused(film: Path) -> None:
    limits = Limits(max_seconds=3)
    with pytest.raises(InputError, match="refused"):
        probe(film, limits)
    with pytest.raises(InputError, match="refused"):
        list(decode(film, DecodeRequest(None, 8000, limits=limits)))


def test_a_lying_header_does_not_get_round_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", options={"live": "1"})  # declares nothing
    with pytest.raises(InputError, match="refused"):
        list(decode(path, DecodeRequest(PictureSpec(), 8000, limits=Limits(max_seconds=3))))
    request = DecodeRequest(PictureSpec(), 8000, end=Fraction(2), limits=Limits(max_seconds=3))
    assert report(path, request).media.analysed_until == 2.0


@pytest.mark.parametrize("track", [1, -1, 99])
def test_a_track_that_is_not_there(film: Path, track: int) -> None:
    with pytest.raises(UsageError, match="no audio track"):
        probe(film, audio_track=track)


def test_only_what_is_asked_for(film: Path) -> None:
    kinds = {type(i) for i in decode(film, DecodeRequest(PictureSpec(), None))}
    assert kinds == {Picture, DecodeReport}
    assert {type(i) for i in decode(film, DecodeRequest(None, 8000))} == {Sound, DecodeReport}
    assert {type(i) for i in decode(film, DecodeRequest(None, None))} == {DecodeReport}


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    path = long_film(tmp_path / "a.mp4", 60, 96, 64)
    seen: list[tuple[str, float, float]] = []
    list(decode(path, DecodeRequest(PictureSpec(), 8000), lambda *p: seen.append(p)))
    assert seen and {stage for stage, _, _ in seen} == {"decode"}
    done = [d for _, d, _ in seen]
    assert done == sorted(done) and done[-1] > 50
    assert all(total == pytest.approx(60, abs=1) for _, _, total in seen)


def test_probe_describes(film: Path) -> None:
    info = probe(film)
    assert info.video is not None and info.audio is not None
    assert (info.video.codec, info.video.width, info.video.height, info.video.average_rate) == ("h264", 160, 90, "25")
    assert (info.audio.codec, info.audio.rate, info.audio.channels, info.audio.track) == ("aac", 44_100, 1, 0)
    assert info.duration == info.declared_duration == pytest.approx(5, abs=0.1)
    assert (info.path, info.bytes, info.mtime_ns) == (str(film), film.stat().st_size, film.stat().st_mtime_ns)


def test_a_variable_rate_is_noticed(film: Path, tmp_path: Path) -> None:
    times = [i / 25 + (0.03 if i % 3 == 0 else 0) for i in range(100)]
    odd = write(tmp_path / "a.mp4", Video(times=times), Audio())
    for skip in (True, False):
        for path, expected in ((film, False), (odd, True)):
            *_, last = decode(path, DecodeRequest(PictureSpec(), None), skip=skip)
            assert isinstance(last, DecodeReport) and last.media.video is not None
            assert last.media.video.variable is expected


def test_leaving_early_closes_the_file(film: Path) -> None:
    def opened() -> Iterator[str]:
        for fd in os.listdir("/proc/self/fd"):
            try:
                yield os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                continue

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    items = decode(film, DecodeRequest(PictureSpec(), 8000))
    next(items)
    assert str(film) in set(opened())
    items.close()  # type: ignore[attr-defined]
    assert str(film) not in set(opened())


def test_relative_paths_and_path_objects(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(film.parent)
    assert probe("a.mp4") == probe(film) == probe(str(film))
    assert replace(probe(Path("a.mp4")), path="") == replace(probe(film), path="")
