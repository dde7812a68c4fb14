"""Makes media for the tests with PyAV alone: good, odd, damaged and hostile files, and what must become of each.

Every scene shows one white flash and plays one tone of half a second at known times, so that the place of both can be
checked. `CASES` is the table; `Case.make(folder)` writes the file (and what belongs to it) and returns its path.

Verdicts: "ok" the file is analysed, with the given notices and no others; "partial" the same, but more of it is lost
than may pass in silence; "error" it is refused with an InputError.
"""

from __future__ import annotations

import gzip
import os
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

FLASH, TONE, LASTS = 2.0, 3.0, 0.5  # seconds
SECONDS, FPS, WIDTH, HEIGHT = 5.0, 25, 96, 64
CANARY = b"canary"


# ---------------------------------------------------------------- scenes


def picture(seconds: float, flash: float | None = FLASH, width: int = WIDTH, height: int = HEIGHT) -> npt.NDArray[Any]:
    """(H, W, 3) uint8: dark moving stripes, a red corner at the top left; white during the flash."""
    if flash is not None and flash <= seconds < flash + LASTS:
        pixels = np.full((height, width, 3), 255, np.uint8)
    else:
        stripes = (np.arange(width) + int(seconds * 50)) % 32 + 16
        pixels = np.broadcast_to(stripes[None, :, None], (height, width, 3)).astype(np.uint8)
    pixels[: height // 4, : width // 4] = (230, 20, 20)
    return pixels


def sound(seconds: float, rate: int, channels: int = 1, tone: float | None = TONE) -> npt.NDArray[Any]:
    """(channels, n) float32: faint noise, 1 kHz during the tone."""
    time = np.arange(round(seconds * rate)) / rate
    wave = np.random.default_rng(1).normal(0, 1e-3, len(time))
    if tone is not None:
        wave += 0.5 * np.sin(2 * np.pi * 1000 * time) * ((time >= tone) & (time < tone + LASTS))
    return np.tile(wave.astype(np.float32), (channels, 1))


@dataclass(frozen=True)
class Video:
    """A picture track; `times` (seconds) overrides `fps`, `shift` moves every timestamp in the file."""

    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    fps: int = FPS
    seconds: float = SECONDS
    times: Sequence[float] | None = None
    start: float = 0.0  # first timestamp; the scene itself starts at 0 there too
    width: int = WIDTH
    height: int = HEIGHT
    pixel_format: str = "yuv420p"
    flash: float | None = FLASH
    rotation: int = 0  # degrees anticlockwise in the display matrix
    default: bool = True
    gop: int = 12
    scene: float = 0.0  # scene time of the first picture


@dataclass(frozen=True)
class Audio:
    """A sound track; `start` cuts the scene's sound before it, so the tone stays where it is."""

    codec: str = "aac"
    rate: int = 44_100
    channels: int = 1
    seconds: float = SECONDS
    start: float = 0.0
    tone: float | None = TONE
    default: bool = True
    options: dict[str, str] = field(default_factory=dict)
    scene: float = 0.0


Shift = Callable[[float], float]
KEPT_BYTES = 1 << 20  # a larger file is not remembered
_WRITTEN: dict[str, bytes] = {}


def write(
    path: Path,
    *tracks: Video | Audio,
    format: str | None = None,
    options: dict[str, str] | None = None,
    shift: Shift | None = None,
    separate: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Encodes and muxes tracks; `shift` maps true to written times, `separate` writes one track after the other.

    What was written before is written again byte for byte, without being encoded again.
    """
    tracks = tracks or (Video(), Audio())
    key = "" if shift else repr((format or path.suffix, tracks, options, separate, metadata))
    if key in _WRITTEN:
        path.write_bytes(_WRITTEN[key])
        return path
    with av.open(str(path), "w", format=format, options=options or {}) as out:
        out.metadata.update(metadata or {})
        streams = [_add(out, track) for track in tracks]
        packets = [p for stream, track in zip(streams, tracks, strict=True) for p in _encode(stream, track)]
        for packet in packets if separate else sorted(packets, key=_decode_time):
            if shift is not None:
                _shift(packet, shift)
            out.mux(packet)
    if key and path.stat().st_size <= KEPT_BYTES:
        _WRITTEN[key] = path.read_bytes()
    return path


def _add(out: Any, track: Video | Audio) -> Any:
    if isinstance(track, Video):
        stream = out.add_stream(track.codec, rate=track.fps, options=dict(track.options))
        stream.width, stream.height, stream.pix_fmt = track.width, track.height, track.pixel_format
        stream.codec_context.gop_size = track.gop
        stream.codec_context.thread_count = 1
        if track.times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if track.rotation:
            stream.set_display_rotation(track.rotation)
    else:
        layout = "mono" if track.channels == 1 else "stereo"
        stream = out.add_stream(track.codec, rate=track.rate, layout=layout, options=dict(track.options))
    stream.disposition = av.stream.Disposition.default if track.default else av.stream.Disposition(0)
    return stream


def _encode(stream: Any, track: Video | Audio) -> Iterator[Any]:
    frames = _pictures(track, stream) if isinstance(track, Video) else _sounds(track, stream)
    for frame in frames:
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _pictures(track: Video, stream: Any) -> Iterator[Any]:
    base = stream.codec_context.time_base or Fraction(1, track.fps)
    count = round((track.seconds - track.start) * track.fps)
    times = track.times if track.times is not None else [track.start + i / track.fps for i in range(count)]
    for time in times:
        pixels = picture(time + track.scene, track.flash, track.width, track.height)
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=track.pixel_format)
        frame.pts, frame.time_base = round(time / base), base
        yield frame


def _sounds(track: Audio, stream: Any) -> Iterator[Any]:
    whole = sound(track.scene + track.seconds, track.rate, track.channels, track.tone)
    samples = whole[:, round((track.scene + track.start) * track.rate) :]
    name = stream.codec_context.format.name
    size = stream.codec_context.frame_size or 1024
    resampler = av.AudioResampler(format=name, layout=stream.codec_context.layout, rate=track.rate)
    for at in range(0, samples.shape[1], size):
        block = np.ascontiguousarray(samples[:, at : at + size])
        frame = av.AudioFrame.from_ndarray(block, "fltp", "mono" if track.channels == 1 else "stereo")
        frame.sample_rate, frame.time_base = track.rate, Fraction(1, track.rate)
        frame.pts = round(track.start * track.rate) + at
        yield from resampler.resample(frame)


def _decode_time(packet: Any) -> Fraction:
    return Fraction(packet.dts or 0) * packet.time_base


def _shift(packet: Any, shift: Shift) -> None:
    base = packet.time_base
    moved = round((shift(float(packet.pts * base)) - float(packet.pts * base)) / base)
    packet.pts, packet.dts = packet.pts + moved, packet.dts + moved


# ---------------------------------------------------------------- surgery


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset, size) of the MP4 boxes in data[start:stop]."""
    stop = len(data) if stop is None else stop
    while start + 8 <= stop:
        size = struct.unpack_from(">I", data, start)[0]
        if size < 8:
            return
        yield data[start + 4 : start + 8], start, size
        start += size


def find(data: bytes, *path: bytes, nth: int = 0) -> tuple[int, int]:
    """(offset, size) of a box such as b"moov", b"trak", b"edts", b"elst"; `nth` picks among the first type's twins."""
    hits = list(_find(data, path, 0, len(data)))
    return hits[nth]


def _find(data: bytes, path: Sequence[bytes], start: int, stop: int) -> Iterator[tuple[int, int]]:
    for kind, at, size in boxes(data, start, stop):
        if kind == path[0]:
            if len(path) == 1:
                yield at, size
            else:
                yield from _find(data, path[1:], at + 8, at + size)


def patch(path: Path, change: Callable[[bytearray], Any]) -> Path:
    """Rewrites a file in place; `change` edits the bytes or returns new ones."""
    data = bytearray(path.read_bytes())
    result = change(data)
    path.write_bytes(bytes(data if result is None else result))
    return path


def noise(data: bytearray, start: float, stop: float, every: int = 97, seed: int = 1) -> None:
    """Flips bytes in a share of the file."""
    generator = random.Random(seed)
    for at in range(int(len(data) * start), int(len(data) * stop), every):
        data[at] ^= generator.randrange(1, 256)


def flip_pictures(path: Path, start: float, stop: float, every: int = 97, seed: int = 1) -> Path:
    """Flips bytes of the pictures that lie in a share of the file; damaged sound can be louder than the tone."""
    data, generator = bytearray(path.read_bytes()), random.Random(seed)
    with av.open(str(path)) as media:
        packets = [p for p in media.demux(media.streams.video[0]) if p.size and p.pos is not None]
        places = [(p.pos, p.size) for p in packets if start <= p.pos / len(data) < stop]
    for at, size in places:
        for k in range(at + 16, at + size, every):
            data[k] ^= generator.randrange(1, 256)
    path.write_bytes(data)
    return path


def zeros(data: bytearray, start: float, stop: float) -> None:
    """Blanks a share of the file."""
    a, b = int(len(data) * start), int(len(data) * stop)
    data[a:b] = bytes(b - a)


def cut(path: Path, share: float) -> Path:
    """Keeps the first share of a file."""
    return patch(path, lambda data: data[: int(len(data) * share)])


def sample_sizes(data: bytes, track: int) -> list[tuple[int, int]]:
    """(offset, size) of every sample of an MP4 track, from stsz, stsc and stco."""
    table = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
    at, _ = find(data, *table, b"stsz", nth=track)
    fixed, count = struct.unpack_from(">II", data, at + 12)
    sizes = [fixed] * count if fixed else list(struct.unpack_from(f">{count}I", data, at + 20))
    at, _ = find(data, *table, b"stco", nth=track)
    chunks = struct.unpack_from(f">{struct.unpack_from('>I', data, at + 12)[0]}I", data, at + 16)
    at, _ = find(data, *table, b"stsc", nth=track)
    runs = [
        struct.unpack_from(">III", data, at + 16 + 12 * i) for i in range(struct.unpack_from(">I", data, at + 12)[0])
    ]
    found, sample = [], 0
    for number, offset in enumerate(chunks, 1):
        per = next(n for first, n, _ in reversed(runs) if first <= number)
        for size in sizes[sample : sample + per]:
            found.append((offset, size))
            offset += size
        sample += per
    return found


def edit(path: Path, track: int, media_time: int, cut_ms: int) -> Path:
    """Moves the start of a track's last edit by `media_time` ticks and shortens it by `cut_ms`."""

    def change(data: bytearray) -> None:
        at, _ = find(data, b"moov", b"trak", b"edts", b"elst", nth=track)
        last = at + 16 + 12 * (struct.unpack_from(">I", data, at + 12)[0] - 1)
        length, start = struct.unpack_from(">Ii", data, last)
        struct.pack_into(">Ii", data, last, length - cut_ms, start + media_time)

    return patch(path, change)


def timescale(path: Path, track: int) -> int:
    """Ticks a second of an MP4 track."""
    data = path.read_bytes()
    at, _ = find(data, b"moov", b"trak", b"mdia", b"mdhd", nth=track)
    return int(struct.unpack_from(">I", data, at + 20)[0])


def mkv_duration(path: Path, seconds: float) -> Path:
    """Rewrites the float64 Duration of a Matroska file (in ms)."""

    def change(data: bytearray) -> None:
        at = data.index(b"\x44\x89\x88")
        struct.pack_into(">d", data, at + 3, seconds * 1000)

    return patch(path, change)


def ts_packets(path: Path, keep: Callable[[int], bool]) -> Path:
    """Keeps the transport packets whose number passes."""

    def change(data: bytearray) -> bytes:
        parts = [data[i : i + 188] for i in range(0, len(data), 188)]
        return b"".join(bytes(p) for n, p in enumerate(parts) if keep(n))

    return patch(path, change)


def joined(path: Path, *parts: Path) -> Path:
    """One file after the other, which is a valid file for MPEG-TS, MP3 and Ogg; the parts are removed."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Case:
    """One construction and what must become of it."""

    name: str
    make: Callable[[Path], Path]
    verdict: str = "ok"  # "ok", "partial" or "error"
    notices: frozenset[str] = frozenset()  # codes that must be there
    may: frozenset[str] = frozenset()  # codes that may be there too
    flash: float | None = FLASH  # seconds of the presentation; None: not to be seen or not to be checked
    tone: float | None = TONE
    seconds: float | None = None  # decoded span, to half a second; None: not checked
    audio_track: int | None = None
    probed: str = ""  # verdict of `probe`, which decodes next to nothing, where it differs


CASES_BY_NAME: dict[str, Case] = {}
NOTHING: dict[str, Any] = {"flash": None, "tone": None}


def case(name: str, verdict: str = "ok", *notices: str, may: Sequence[str] = (), **facts: Any) -> Callable[..., Any]:
    """Enters a function `make(folder)` into the table."""

    def enter(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        if verdict == "error":
            facts.update(NOTHING)
        assert name not in CASES_BY_NAME, name
        CASES_BY_NAME[name] = Case(name, make, verdict, frozenset(notices), frozenset(may), **facts)
        return make

    return enter


def good(path: Path) -> Path:
    """An ordinary MP4 under any name, with the index in front."""
    return write(path, format="mp4", options={"movflags": "faststart"})


# --- containers and codecs as they should be

CLEAN: dict[str, tuple[str, tuple[Video | Audio, ...]]] = {
    "mp4_h264_aac": ("a.mp4", (Video(), Audio())),
    "mp4_hevc": ("a.mp4", (Video("libx265", {"x265-params": "log-level=none"}), Audio())),
    "mp4_mpeg4": ("a.mp4", (Video("mpeg4"), Audio(channels=2))),
    "mov_prores_pcm": ("a.mov", (Video("prores_ks", pixel_format="yuv422p10le"), Audio("pcm_s16le", 48_000, 2))),
    "mkv_h264_opus": ("a.mkv", (Video(), Audio("libopus", 48_000))),
    "mkv_ffv1_flac": ("a.mkv", (Video("ffv1"), Audio("flac", 48_000))),
    "webm_vp9_opus": ("a.webm", (Video("libvpx-vp9"), Audio("libopus", 48_000))),
    "webm_vp8_opus": ("a.webm", (Video("libvpx"), Audio("libopus", 48_000, 2))),
    "mp4_av1": ("a.mp4", (Video("libsvtav1", {"preset": "12"}), Audio())),
    "avi_mpeg4_mp3": ("a.avi", (Video("mpeg4"), Audio("libmp3lame"))),
    "avi_mjpeg_pcm": ("a.avi", (Video("mjpeg", pixel_format="yuvj420p"), Audio("pcm_s16le", 22_050))),
    "ts_h264_aac": ("a.ts", (Video(), Audio())),
    "ts_mpeg2_mp2": ("a.ts", (Video("mpeg2video"), Audio("mp2", 48_000, 2))),
    "mpg_mpeg2_mp2": ("a.mpg", (Video("mpeg2video"), Audio("mp2", 48_000, 2))),
    "flv_h264_aac": ("a.flv", (Video(), Audio())),
    "wmv_wmv2_wma": ("a.wmv", (Video("wmv2"), Audio("wmav2", channels=2, options={"b": "64k"}))),
    "nut_mpeg4_pcm": ("a.nut", (Video("mpeg4"), Audio("pcm_s16le"))),
    "mkv_low_rate_sound": ("a.mkv", (Video(), Audio("pcm_s16le", 8000))),
    "mkv_high_rate_sound": ("a.mkv", (Video(), Audio("pcm_s16le", 192_000))),
    "mp4_10_bit": ("a.mp4", (Video(pixel_format="yuv420p10le"), Audio())),
    "mp4_444": ("a.mp4", (Video(pixel_format="yuv444p"), Audio())),
    "mp4_odd_size": ("a.mp4", (Video(width=97, height=63, pixel_format="yuv444p"), Audio())),
    "mp4_thin_strip": ("a.mkv", (Video("ffv1", width=1024, height=2), Audio())),
    "mp4_60_fps": ("a.mp4", (Video(fps=60), Audio())),
    "mp4_open_groups": ("a.mp4", (Video(options={"x264-params": "open-gop=1:bframes=3:b-pyramid=2"}), Audio())),
    "mp4_one_group": ("a.mp4", (Video(gop=1000), Audio())),
}


def _clean(file: str, tracks: tuple[Video | Audio, ...]) -> Callable[[Path], Path]:
    return lambda folder: write(folder / file, *tracks)


for _name, (_file, _tracks) in CLEAN.items():
    case(_name, seconds=5.0)(_clean(_file, _tracks))

case("mp4_fragmented", seconds=5.0)(
    lambda d: write(d / "a.mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
)
case("mkv_live", seconds=5.0)(lambda d: write(d / "a.mkv", options={"live": "1"}))
case("mp4_interleaved_badly", seconds=5.0)(
    lambda d: write(d / "a.mp4", separate=True, options={"max_interleave_delta": "1"})
)
case("avi_interleaved_badly", seconds=5.0)(
    lambda d: write(
        d / "a.avi", Video("mpeg4"), Audio("pcm_s16le"), separate=True, options={"max_interleave_delta": "1"}
    )
)
case("raw_h264", "ok", "no_audio_stream", tone=None, seconds=5.0)(
    lambda d: write(d / "a.h264", Video(options={"bf": "0"}), format="h264")
)
case("raw_aac", "ok", "no_video_stream", flash=None, seconds=5.0)(lambda d: write(d / "a.aac", Audio(), format="adts"))
case("raw_y4m", "ok", "no_audio_stream", tone=None, seconds=5.0)(
    lambda d: write(d / "a.y4m", Video("wrapped_avframe"), format="yuv4mpegpipe")
)


# --- time


PLAIN = Video(options={"bf": "0"})  # decoding order is the order on screen


def _variable() -> list[float]:
    """Frame times from 10 to 50 a second, irregular."""
    generator, times = random.Random(3), [0.0]
    while times[-1] < SECONDS - 0.2:
        times.append(round(times[-1] + generator.choice((0.02, 0.033, 0.04, 0.1)), 3))
    return times


case("vfr_mp4", seconds=5.0)(lambda d: write(d / "a.mp4", Video(times=_variable()), Audio()))
case("vfr_mkv", seconds=5.0)(lambda d: write(d / "a.mkv", Video(times=_variable()), Audio()))
case("slides_mp4", seconds=5.0)(lambda d: write(d / "a.mp4", Video(times=[0, 1.9, FLASH, 2.5, 4.9]), Audio()))
case("slides_mkv", seconds=5.0)(lambda d: write(d / "a.mkv", Video(times=[0, FLASH, 2.5, 4.9]), Audio()))
case("start_3600_mkv", seconds=5.0)(lambda d: write(d / "a.mkv", shift=lambda t: t + 3600))
case("start_3600_mp4", seconds=5.0)(lambda d: write(d / "a.mp4", shift=lambda t: t + 3600))
case("start_3600_ts", seconds=5.0)(lambda d: write(d / "a.ts", shift=lambda t: t + 3600))
case("start_17_avi", seconds=5.0)(lambda d: write(d / "a.flv", shift=lambda t: t + 17))
case("ts_wrap", seconds=5.0)(lambda d: write(d / "a.ts", shift=lambda t: t + 2**33 / 90_000 - 3.9))
case("ts_wrap_at_the_flash", seconds=5.0)(lambda d: write(d / "a.ts", shift=lambda t: t + 2**33 / 90_000 - 2.2 - 1.4))
case("ts_gap_30", "ok", "timestamps_jump", tone=TONE + 30, seconds=35.0)(
    lambda d: write(d / "a.ts", PLAIN, Audio(), shift=lambda t: t if t < 2.72 else t + 30)
)
case("mkv_gap_30", "ok", may=["timestamps_jump"], tone=TONE + 30, seconds=35.0)(
    lambda d: write(d / "a.mkv", PLAIN, Audio(), shift=lambda t: t if t < 2.72 else t + 30)
)
case("late_sound_mp4", seconds=5.0)(lambda d: write(d / "a.mp4", Video(), Audio(start=1.5)))
case("late_sound_mkv", seconds=5.0)(lambda d: write(d / "a.mkv", Video(), Audio(start=2.5)))
case("late_sound_ts", seconds=5.0)(lambda d: write(d / "a.ts", Video(), Audio(start=2.5)))
case("late_picture_mp4", seconds=5.0)(lambda d: write(d / "a.mp4", Video(start=1.2), Audio()))
case("late_picture_mkv", seconds=5.0)(lambda d: write(d / "a.mkv", Video(start=1.2), Audio()))
case("late_picture_ts", seconds=5.0)(lambda d: write(d / "a.ts", Video(start=1.2), Audio()))
case("short_sound", seconds=5.0)(lambda d: write(d / "a.mp4", Video(), Audio(seconds=3.6)))
case("short_picture", seconds=5.0)(lambda d: write(d / "a.mp4", Video(seconds=2.6), Audio()))
case("sound_hole", seconds=5.0)(lambda d: _sound_hole(d / "a.mkv"))


def _sound_hole(path: Path) -> Path:
    """The sound lacks the second before the tone; nothing is damaged."""
    with av.open(str(path), "w") as out:
        tracks = (Video(), Audio())
        streams = [_add(out, track) for track in tracks]
        packets = [p for stream, track in zip(streams, tracks, strict=True) for p in _encode(stream, track)]
        for packet in sorted(packets, key=_decode_time):
            if packet.stream is streams[0] or not 1.8 <= _decode_time(packet) < 2.8:
                out.mux(packet)
    return path


@case("ts_back_jump", "ok", "timestamps_jump", may=["damaged_packets", "concealed_frames"], seconds=5.0)
def _back_jump(folder: Path) -> Path:
    first = write(folder / "1.ts", format="mpegts")
    second = write(folder / "2.ts", Video(seconds=2, flash=None), Audio(seconds=2, tone=None), format="mpegts")
    return joined(folder / "a.ts", first, second)


@case("ts_joined_recordings", may=["timestamps_jump", "damaged_packets", "concealed_frames"], seconds=5.0)
def _joined_recordings(folder: Path) -> Path:
    """The second part goes on where the first one ends: flash in the first, tone in the second."""
    first = write(folder / "1.ts", Video(seconds=2.6), Audio(seconds=2.6), format="mpegts")
    rest = (Video(seconds=2.4, scene=2.6), Audio(seconds=2.4, scene=2.6))
    second = write(folder / "2.ts", *rest, format="mpegts", shift=lambda t: t + 2.6)
    return joined(folder / "a.ts", first, second)


@case("edit_trim", seconds=4.0, flash=FLASH - 1, tone=TONE - 1)
def _edit_trim(folder: Path) -> Path:
    path = write(folder / "a.mp4")
    for track in (0, 1):
        edit(path, track, timescale(path, track), 1000)
    return path


@case("edit_trim_sound", seconds=5.0, tone=TONE - 1)
def _edit_trim_sound(folder: Path) -> Path:
    path = write(folder / "a.mp4")
    return edit(path, 1, timescale(path, 1), 1000)


@case("edit_trim_picture", seconds=5.0, flash=FLASH - 1)
def _edit_trim_picture(folder: Path) -> Path:
    path = write(folder / "a.mp4")
    return edit(path, 0, timescale(path, 0), 1000)


@case("edit_delay_sound", seconds=6.5, tone=TONE + 1.5)
def _edit_delay(folder: Path) -> Path:
    return write(folder / "a.mp4", Video(), replace(Audio(), start=1.5, seconds=6.5, tone=TONE + 1.5))


@case("mp4_one_wild_time", may=["timestamps_jump", "declared_duration_wrong"], seconds=5.0)
def _wild_time(folder: Path) -> Path:
    """One picture claims to last 10 hours; everything after it would be shown then."""
    path = good(folder / "a.mp4")

    def change(data: bytearray) -> bytes:
        at, _ = find(data, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts")
        count, delta = struct.unpack_from(">II", data, at + 16)
        ticks = timescale(path, 0) * 36_000
        table = struct.pack(">IIIIIII", 3, 100, delta, 1, ticks, count - 101, delta)
        return _with_table(data, (b"mdia", b"minf", b"stbl"), b"stts", table)

    return patch(path, change)


def _with_table(data: bytearray, outer: Sequence[bytes], kind: bytes, body: bytes, nth: int = 0) -> bytes:
    """Replaces the entries of a table (count and rows) of the nth track; moves chunk offsets along."""
    at, size = find(data, b"moov", b"trak", *outer, kind, nth=nth)
    fresh_size = 12 + len(body)
    extra = fresh_size - size
    for depth in range(len(outer) + 2):
        box, old = find(data, *(b"moov", b"trak", *outer)[: depth + 1], nth=0 if depth == 0 else nth)
        struct.pack_into(">I", data, box, old + extra)
    fresh = bytearray(data[:at] + struct.pack(">I", fresh_size) + data[at + 4 : at + 12] + body + data[at + size :])
    if data.index(b"mdat") > at:
        for track in range(data.count(b"stco")):
            stco, _ = find(fresh, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stco", nth=track)
            for place in range(stco + 16, stco + 16 + 4 * struct.unpack_from(">I", fresh, stco + 12)[0], 4):
                struct.pack_into(">I", fresh, place, struct.unpack_from(">I", fresh, place)[0] + extra)
    return bytes(fresh)


@case("edit_trim_end", seconds=3.8)
def _edit_trim_end(folder: Path) -> Path:
    path = write(folder / "a.mp4")
    for track in (0, 1):
        edit(path, track, 0, 1200)
    return path


@case("edit_reorder", seconds=5.0, flash=FLASH + 2.5, tone=TONE - 2.5, may=["timestamps_jump"])
def _edit_reorder(folder: Path) -> Path:
    """Two edits: the second half of the film comes first."""
    path = good(folder / "a.mp4")
    for track in (0, 1):
        ticks = timescale(path, track)

        def change(data: bytearray, ticks: int = ticks, track: int = track) -> bytes:
            at, _ = find(data, b"moov", b"trak", b"edts", b"elst", nth=track)
            shift = struct.unpack_from(">i", data, at + 20)[0]
            halves = ((2500, shift + ticks * 5 // 2), (2500, shift))
            rows = b"".join(struct.pack(">IiI", length, start, 0x10000) for length, start in halves)
            return _with_table(data, (b"edts",), b"elst", struct.pack(">I", 2) + rows, track)

        patch(path, change)
    return path


@case("mkv_wild_cluster", may=["timestamps_jump", "damaged_packets", "lost_span", "damaged_container"], seconds=5.0)
def _wild_cluster(folder: Path) -> Path:
    """One cluster of half a second claims to lie hours ahead."""
    path = write(folder / "a.mkv", options={"cluster_time_limit": "500"})

    def change(data: bytearray) -> None:
        at = -1
        for _ in range(9):
            at = data.index(b"\x1f\x43\xb6\x75", at + 1)
        at = data.index(b"\xe7", at)
        assert data[at + 1] == 0x82
        data[at + 2] = 0x7F  # 32 s instead of 4 s

    return patch(path, change)


case("mkv_times_all_equal", may=["timestamps_jump"], flash=None, tone=None)(lambda d: _all_equal(d / "a.mkv"))


def _all_equal(path: Path) -> Path:
    return write(path, Video(options={"bf": "0"}), Audio("pcm_s16le"), shift=lambda t: 0.0)


# --- rotation, cover art, tracks

for _turn in (90, 180, 270, 33):
    case(f"rotated_{_turn}", seconds=5.0)(lambda d, turn=_turn: write(d / "a.mp4", Video(rotation=turn), Audio()))


def png(width: int, height: int, claim: tuple[int, int] | None = None) -> bytes:
    """A white PNG; `claim` lies about its size."""
    w, h = claim or (width, height)
    rows = (b"\0" + b"\xff" * width * 3) * height

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def id3_cover(image: bytes) -> bytes:
    """An ID3v2.3 tag with one picture."""
    body = b"\0image/png\0\x03\0" + image
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = len(frame)
    return b"ID3\x03\0\0" + bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0)) + frame


SOUND_ONLY: dict[str, Any] = {"flash": None, "seconds": 5.0}
PICTURE_ONLY: dict[str, Any] = {"tone": None, "seconds": 5.0}

for _extension, _codec in (
    ("mp3", "libmp3lame"),
    ("wav", "pcm_s16le"),
    ("flac", "flac"),
    ("m4a", "aac"),
    ("ogg", "flac"),
):
    case(f"sound_only_{_extension}", "ok", "no_video_stream", **SOUND_ONLY)(
        lambda d, e=_extension, c=_codec: write(d / f"a.{e}", Audio(c, channels=2))
    )
case("opus_only", "ok", "no_video_stream", **SOUND_ONLY)(lambda d: write(d / "a.opus", Audio("libopus", 48_000)))
case("picture_only", "ok", "no_audio_stream", **PICTURE_ONLY)(lambda d: write(d / "a.mp4", Video()))
case("picture_only_ts", "ok", "no_audio_stream", **PICTURE_ONLY)(lambda d: write(d / "a.ts", Video()))


@case("cover_art_mp3", "ok", "no_video_stream", **SOUND_ONLY)
def _cover_mp3(folder: Path) -> Path:
    path = write(folder / "a.mp3", Audio("libmp3lame"), options={"id3v2_version": "0"})
    return patch(path, lambda data: id3_cover(png(64, 64)) + data)


def _with_cover(path: Path, *tracks: Video | Audio, format: str | None = None) -> Path:
    """A container whose first stream is an attached picture."""
    with av.open(str(path), "w", format=format) as out:
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        streams = [_add(out, track) for track in tracks]
        still = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 255, np.uint8), "rgb24")
        still.pts = 0
        packets = [p for stream, track in zip(streams, tracks, strict=True) for p in _encode(stream, track)]
        for packet in [*cover.encode(still), *cover.encode(None), *sorted(packets, key=_decode_time)]:
            out.mux(packet)
    return path


case("cover_art_m4a", "ok", "no_video_stream", **SOUND_ONLY)(lambda d: _with_cover(d / "a.m4a", Audio(), format="mp4"))
case("cover_art_before_video", seconds=5.0)(lambda d: _with_cover(d / "a.mp4", Video(), Audio()))

QUIET = Audio(tone=None, default=False)
case("three_tracks_default_last", seconds=5.0)(lambda d: write(d / "a.mkv", Video(), QUIET, QUIET, Audio()))
case("three_tracks_second_chosen", seconds=5.0, audio_track=1)(
    lambda d: write(d / "a.mkv", Video(), replace(QUIET, default=True), Audio(default=False), QUIET)
)
case("sound_first_in_file", seconds=5.0)(lambda d: write(d / "a.mp4", Audio(), Video()))


@case("two_programmes", may=["timestamps_jump", "damaged_packets"], seconds=5.0)
def _two_programmes(folder: Path) -> Path:
    return write(folder / "a.ts", Video(), Audio(), replace(Video(), width=32, height=32, default=False), QUIET)


@case("metadata_not_utf8", seconds=5.0)
def _bad_metadata(folder: Path) -> Path:
    path = write(folder / "a.mkv", metadata={"title": "TITLE-TITLE"})
    return patch(path, lambda data: bytes(data).replace(b"TITLE-TITLE", b"\xff\xfe\xfd-\x80\x81\x1b[1m"))


# --- changes in mid-stream


def _change(first: tuple[Video, Audio], second: tuple[Video, Audio]) -> Callable[[Path], Path]:
    """A transport stream whose coding changes at 2.6 s."""

    def make(folder: Path) -> Path:
        (v1, a1), (v2, a2) = first, second
        one = write(folder / "1.ts", replace(v1, seconds=2.6), replace(a1, seconds=2.6), format="mpegts")
        two = write(
            folder / "2.ts",
            replace(v2, seconds=2.4, scene=2.6),
            replace(a2, seconds=2.4, scene=2.6),
            format="mpegts",
            shift=lambda t: t + 2.6,
        )
        return joined(folder / "a.ts", one, two)

    return make


SEAM: dict[str, Any] = {"may": ["damaged_packets", "concealed_frames", "timestamps_jump"], "seconds": 5.0}
case("size_changes", **SEAM)(_change((Video(), Audio()), (Video(width=160, height=120), Audio())))
case("pixel_format_changes", **SEAM)(_change((Video(), Audio()), (Video(pixel_format="yuv444p"), Audio())))
case("rate_changes", **SEAM)(_change((Video(), Audio()), (Video(), Audio(rate=48_000))))
case("rate_and_channels_change", **SEAM)(
    _change((Video(), Audio(rate=22_050)), (Video(), Audio(rate=48_000, channels=2)))
)


@case("sound_appears_late", **SEAM)
def _appears_late(folder: Path) -> Path:
    one = write(folder / "1.ts", Video(seconds=2.6), format="mpegts")
    rest = (Video(seconds=2.4, scene=2.6), Audio(seconds=2.4, scene=2.6))
    return joined(folder / "a.ts", one, write(folder / "2.ts", *rest, format="mpegts", shift=lambda t: t + 2.6))


@case("sound_appears_late_flv", seconds=5.0)
def _appears_late_flv(folder: Path) -> Path:
    """The header of the FLV names no sound."""
    path = write(folder / "a.flv", Video(), Audio(start=2.0))
    return patch(path, lambda data: data.__setitem__(4, 1))


# --- nearly nothing

case("one_picture", "ok", "no_audio_stream", flash=None, tone=None)(
    lambda d: write(d / "a.mp4", Video(times=[0.0], flash=None))
)
case(
    "two_pictures_40_hours_apart",
    "ok",
    "no_audio_stream",
    "declared_duration_wrong",
    may=["timestamps_jump"],
    **NOTHING,
)(lambda d: write(d / "a.mkv", Video(times=[0.0, 1.0, 140_000.0], flash=None)))
case("one_picture_long_sound", seconds=5.0, flash=None)(lambda d: write(d / "a.mp4", Video(times=[0.0]), Audio()))
case("one_packet_of_sound", "ok", "no_video_stream", flash=None, tone=None)(
    lambda d: write(d / "a.wav", Audio("pcm_s16le", seconds=0.01))
)
case("black_and_silent", seconds=5.0, flash=None, tone=None)(
    lambda d: write(d / "a.mp4", Video(flash=None), Audio(tone=None))
)


def wav(path: Path, samples: npt.NDArray[Any], rate: int, channels: int = 1, claim: int | None = None) -> Path:
    """A WAV by hand: float32 or int16 samples; `claim` lies about the bytes of data."""
    code, width = (3, 4) if samples.dtype == np.float32 else (1, 2)
    size = samples.nbytes if claim is None else claim
    block = min(65_535, channels * width)
    form = struct.pack("<HHIIHH", code, channels, rate, min(2**32 - 1, rate * block), block, width * 8)
    head = b"RIFF" + struct.pack("<I", min(2**32 - 1, 36 + size)) + b"WAVEfmt " + struct.pack("<I", 16) + form
    path.write_bytes(head + b"data" + struct.pack("<I", size) + samples.tobytes())
    return path


@case("samples_not_numbers", "ok", "no_video_stream", **SOUND_ONLY)
def _not_numbers(folder: Path) -> Path:
    samples = sound(SECONDS, 48_000)[0]
    samples[1000:2000], samples[50_000:50_010], samples[60_000] = np.nan, np.inf, 1e38
    return wav(folder / "a.wav", samples, 48_000)


# --- damage


FASTSTART = {"movflags": "faststart"}


def _damaged(
    file: str, tracks: tuple[Video | Audio, ...], change: Callable[[bytearray], Any]
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        options = FASTSTART if file.endswith("mp4") else {}
        return patch(write(folder / file, *tracks, options=options), change)

    return make


DAMAGE = {"damaged_packets", "concealed_frames", "lost_span", "damaged_container", "timestamps_jump", "broken_stream"}
HURT: dict[str, Any] = {"may": [*DAMAGE, "declared_duration_wrong"]}
BOTH = (Video(), Audio())

case("mp4_bytes_flipped", **HURT)(
    lambda d: flip_pictures(write(d / "a.mp4", *BOTH, options=FASTSTART), 0.90, 0.95),
)
case("mp4_hole", **HURT)(_damaged("a.mp4", BOTH, lambda b: zeros(b, 0.90, 0.94)))
case("mkv_bytes_flipped", **HURT)(_damaged("a.mkv", BOTH, lambda b: noise(b, 0.80, 0.84, 301)))
case("ts_bytes_flipped", **HURT)(_damaged("a.ts", BOTH, lambda b: noise(b, 0.72, 0.98, 1009)))
case("ts_hole", **HURT)(_damaged("a.ts", BOTH, lambda b: zeros(b, 0.80, 0.85)))
case("avi_bytes_flipped", **HURT)(
    lambda d: flip_pictures(write(d / "a.avi", Video("mpeg4"), Audio("libmp3lame")), 0.75, 0.95, 211)
)
case("flv_bytes_flipped", **HURT)(lambda d: flip_pictures(write(d / "a.flv", *BOTH), 0.90, 0.95, 97))
case("ogg_hole", "ok", "no_video_stream", flash=None, **HURT)(
    _damaged("a.ogg", (Audio("libopus", 48_000),), lambda b: zeros(b, 0.2, 0.25))
)
case("mp3_hole", "ok", "no_video_stream", **NOTHING, **HURT)(  # MP3 has no timestamps
    _damaged("a.mp3", (Audio("libmp3lame"),), lambda b: zeros(b, 0.2, 0.25))
)
case("mp3_after_junk", "ok", "no_video_stream", flash=None, **HURT)(
    _damaged("a.mp3", (Audio("libmp3lame"),), lambda b: bytes(range(1, 200)) * 20 + bytes(b))
)


@case("mp4_every_tenth_sound_packet_lost", "ok", "damaged_packets", "lost_span", seconds=5.0)
def _lost_sound(folder: Path) -> Path:
    return _blank_samples(good(folder / "a.mp4"), 1, lambda n, count: n % 10 == 5)


@case("mp4_sound_undecodable", "partial", "damaged_packets", may=["lost_span", "broken_stream"], tone=None)
def _no_sound_left(folder: Path) -> Path:
    return _blank_samples(good(folder / "a.mp4"), 1, lambda n, count: True)


@case("mp4_picture_lost_at_the_end", "partial", "damaged_packets", may=["lost_span", "concealed_frames"], seconds=5.0)
def _end_lost(folder: Path) -> Path:
    return _blank_samples(good(folder / "a.mp4"), 0, lambda n, count: n > count * 0.72)


@case(
    "mp4_picture_lost_in_the_middle", "partial", "damaged_packets", may=["lost_span", "concealed_frames"], seconds=5.0
)
def _middle_lost(folder: Path) -> Path:
    return _blank_samples(good(folder / "a.mp4"), 0, lambda n, count: 70 <= n < 108)


def _blank_samples(path: Path, track: int, which: Callable[[int, int], bool]) -> Path:
    """Overwrites whole samples with 0xFF, which no decoder takes for anything."""

    def change(data: bytearray) -> None:
        samples = sample_sizes(bytes(data), track)
        for number, (at, size) in enumerate(samples):
            if which(number, len(samples)):
                data[at : at + size] = b"\xff" * size

    return patch(path, change)


@case("ts_packets_lost", **HURT)
def _packets_lost(folder: Path) -> Path:
    generator = random.Random(5)
    lost = {n for n in range(20, 400) if generator.random() < 0.02}
    return ts_packets(write(folder / "a.ts"), lambda n: n not in lost)


@case("ts_not_aligned", **HURT)
def _not_aligned(folder: Path) -> Path:
    """Starts in the middle of a packet, with a stray byte later."""
    path = write(folder / "a.ts", Video(seconds=6, flash=FLASH), Audio(seconds=6))
    return patch(path, lambda data: bytes(188 * 2 + 0) + bytes(data[: 188 * 9]) + b"\x47" + bytes(data[188 * 9 :]))


# --- cut short

case("cut_mp4_index_first", "partial", "lost_span", may=["damaged_packets", "concealed_frames"], **NOTHING)(
    lambda d: cut(good(d / "a.mp4"), 0.6)
)
case("cut_mp4_index_last", "error")(lambda d: cut(write(d / "a.mp4"), 0.9))
case("cut_mkv", "ok", "declared_duration_wrong", may=["damaged_container", "damaged_packets"], **NOTHING)(
    lambda d: cut(write(d / "a.mkv"), 0.6)
)
case("cut_mkv_index_first", "partial", "lost_span", may=["damaged_container", "damaged_packets"], **NOTHING)(
    lambda d: cut(write(d / "a.mkv", options={"reserve_index_space": "4096"}), 0.5)
)
case("cut_avi", "ok", may=["declared_duration_wrong", "damaged_container", "damaged_packets"], **NOTHING)(
    lambda d: cut(write(d / "a.avi", Video("mpeg4"), Audio("libmp3lame")), 0.6)
)
case("cut_ts", "ok", may=["damaged_packets", "concealed_frames"], **NOTHING)(lambda d: cut(write(d / "a.ts"), 0.9))
case("cut_fragmented", "ok", may=["declared_duration_wrong", "damaged_packets", "lost_span"], **NOTHING)(
    lambda d: cut(write(d / "a.mp4", options={"movflags": "frag_keyframe+empty_moov"}), 0.9)
)
case("cut_mp3", "ok", "no_video_stream", "declared_duration_wrong", may=["damaged_packets"], **NOTHING)(
    lambda d: cut(write(d / "a.mp3", Audio("libmp3lame")), 0.5)
)
case("cut_flac", "ok", "no_video_stream", "declared_duration_wrong", may=["damaged_packets", "lost_span"], **NOTHING)(
    lambda d: cut(write(d / "a.flac", Audio("flac")), 0.5)
)
case("cut_wav", "ok", "no_video_stream", may=["damaged_packets", "declared_duration_wrong"], **NOTHING)(
    lambda d: cut(write(d / "a.wav", Audio("pcm_s16le")), 0.5)
)
case("cut_in_the_header", "error")(lambda d: cut(write(d / "a.mkv"), 0.005))


# --- headers that lie

LIES: dict[str, Any] = {"seconds": 5.0}
case("mkv_claims_31_years", "ok", "declared_duration_wrong", **LIES)(lambda d: mkv_duration(write(d / "a.mkv"), 1e9))
case("mkv_claims_nothing", "ok", may=["declared_duration_wrong"], **LIES)(
    lambda d: mkv_duration(write(d / "a.mkv"), 0.0)
)
case("mkv_claims_not_a_number", "ok", may=["declared_duration_wrong"], **LIES)(
    lambda d: mkv_duration(write(d / "a.mkv"), float("nan"))
)
case("mkv_claims_too_little", "ok", "declared_duration_wrong", **LIES)(lambda d: mkv_duration(write(d / "a.mkv"), 1.0))


@case("mp4_claims_ten_times", "ok", may=["declared_duration_wrong"], **LIES)
def _mp4_claims(folder: Path) -> Path:
    """Movie, track and media headers all say 50 s; the sample table knows better."""
    path = good(folder / "a.mp4")

    def change(data: bytearray) -> None:
        at, _ = find(data, b"moov", b"mvhd")
        struct.pack_into(">I", data, at + 24, 50_000)
        for track in (0, 1):
            at, _ = find(data, b"moov", b"trak", b"tkhd", nth=track)
            struct.pack_into(">I", data, at + 28, 50_000)
            at, _ = find(data, b"moov", b"trak", b"mdia", b"mdhd", nth=track)
            struct.pack_into(">I", data, at + 24, 50 * struct.unpack_from(">I", data, at + 20)[0])

    return patch(path, change)


@case("flac_claims_two_weeks", "ok", "no_video_stream", "declared_duration_wrong", **SOUND_ONLY)
def _flac_claims(folder: Path) -> Path:
    path = write(folder / "a.flac", Audio("flac"))

    def change(data: bytearray) -> None:
        at = 4 + 4 + 13  # marker, block header, up to the 36 bits of total samples
        data[at] |= 0x0F
        data[at + 1 : at + 5] = b"\xff" * 4

    return patch(path, change)


@case("mp3_claims_an_hour", "ok", "no_video_stream", "declared_duration_wrong", **SOUND_ONLY)
def _mp3_claims(folder: Path) -> Path:
    path = write(folder / "a.mp3", Audio("libmp3lame", options={"compression_level": "9"}))

    def change(data: bytearray) -> None:
        at = max(data.find(b"Xing"), data.find(b"Info"))
        struct.pack_into(">I", data, at + 8, 138_000)

    return patch(path, change)


case("wav_claims_4_gb", "ok", "no_video_stream", may=["declared_duration_wrong", "damaged_packets"], **SOUND_ONLY)(
    lambda d: wav(d / "a.wav", sound(SECONDS, 16_000)[0], 16_000, claim=2**32 - 100)
)


@case("avi_claims_too_many_frames", "ok", "declared_duration_wrong", **LIES)
def _avi_claims(folder: Path) -> Path:
    path = write(folder / "a.avi", Video("mpeg4"), Audio("libmp3lame"))

    def change(data: bytearray) -> None:
        at = data.index(b"avih")
        struct.pack_into("<I", data, at + 8 + 16, 100_000)
        at = data.index(b"strh")
        struct.pack_into("<I", data, at + 8 + 32, 100_000)

    return patch(path, change)


@case("avi_claims_a_picture_a_day", "ok", "declared_duration_wrong", may=["timestamps_jump"], **NOTHING)
def _avi_rate(folder: Path) -> Path:
    path = write(folder / "a.avi", Video("mjpeg", pixel_format="yuvj420p"), Audio("pcm_s16le", 8000))

    def change(data: bytearray) -> None:
        at = data.index(b"strh")
        struct.pack_into("<II", data, at + 8 + 20, 25 * 86_400, 25)

    return patch(path, change)


# --- bombs

case("bomb_y4m", "error")(
    lambda d: _bytes(d / "a.y4m", b"YUV4MPEG2 W60000 H60000 F25:1 Ip C420\nFRAME\n" + bytes(1000))
)
case("bomb_gif", "error")(lambda d: _bytes(d / "a.gif", _gif(65_535, 65_535)))
case("bomb_png_in_mov", "error")(lambda d: _png_movie(d / "a.mov", (50_000, 50_000)))


@case("bomb_mkv_header", may=["damaged_packets"], **LIES)
def _bomb_mkv(folder: Path) -> Path:
    """The container claims 60000 x 60000, the pictures are small."""
    path = write(folder / "a.mkv")

    def change(data: bytearray) -> None:
        for tag, old in ((b"\xb0\x81", WIDTH), (b"\xba\x81", HEIGHT)):
            assert data.count(tag + bytes([old])) >= 1
        at = data.index(b"\xb0\x81" + bytes([WIDTH]))
        data[at + 2] = 255

    return patch(path, change)


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _gif(width: int, height: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return head + image * 3 + b"\x3b"


def _png_movie(path: Path, claim: tuple[int, int], from_frame: int = 0, frames: int = 10) -> Path:
    """PNG pictures in QuickTime; those from `from_frame` on lie about their size."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        for number in range(frames):
            packet = av.Packet(png(64, 64, claim if number >= from_frame else None))
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, FPS), stream, True
            out.mux(packet)
    return path


case("bomb_later", "partial", "damaged_packets", "no_audio_stream", may=["lost_span"], **NOTHING)(
    lambda d: _png_movie(d / "a.mov", (50_000, 50_000), from_frame=50, frames=125)
)
case("bomb_of_channels", "error")(lambda d: wav(d / "a.wav", np.zeros(200_000, np.int16), 48_000, 60_000))
case("sound_at_1_hz", "error")(lambda d: wav(d / "a.wav", np.zeros(1_000_000, np.int16), 1))
case("sound_at_4_ghz", may=["no_video_stream", "damaged_packets"], verdict="error")(
    lambda d: wav(d / "a.wav", np.zeros(100_000, np.int16), 2**32 - 1)
)


# --- not media

case("empty", "error")(lambda d: _bytes(d / "a.mp4", b""))
case("text", "error")(lambda d: _bytes(d / "a.mp4", b"This is not a film.\n" * 100))
case("html", "error")(lambda d: _bytes(d / "a.mp4", b"<!DOCTYPE html><html><body>404</body></html>"))
case("one_byte", "error")(lambda d: _bytes(d / "a.mp4", b"\0"))
case("noise", "error")(lambda d: _bytes(d / "a.mp4", random.Random(7).randbytes(100_000)))
case("zeros", "error")(lambda d: _bytes(d / "a.mp4", bytes(1_000_000)))
case("png_named_mp4", "error")(lambda d: _bytes(d / "a.mp4", png(64, 64)))
case("subtitles", "error")(lambda d: _bytes(d / "a.mp4", b"1\n00:00:00,000 --> 00:00:01,000\nHello\n"))
case("pdf", "error")(lambda d: _bytes(d / "a.mp4", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + bytes(5000)))
case("gzip", "error")(lambda d: _bytes(d / "a.mp4", gzip.compress(bytes(100_000))))
case("git_lfs_pointer", "error")(
    lambda d: _bytes(d / "a.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
)
case("mp4_without_index", "error")(lambda d: _bytes(d / "a.mp4", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(100)))
case("mp4_box_sizes_wrong", "error")(lambda d: patch(write(d / "a.mp4"), _wrong_sizes))
case("mp4_unknown_codecs", "error")(
    lambda d: patch(write(d / "a.mp4"), lambda b: _unknown(b, b"avc1", b"avcC", b"mp4a", b"esds"))
)
case("mp4_unknown_sound", "ok", "no_audio_stream", tone=None, seconds=5.0)(
    lambda d: patch(write(d / "a.mp4"), lambda b: _unknown(b, b"mp4a", b"esds"))
)
case("flv_header_only", "error")(lambda d: _bytes(d / "a.flv", b"FLV\x01\x05\0\0\0\x09\0\0\0\0"))
case("ts_null_packets", "error")(lambda d: _bytes(d / "a.ts", (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 500))
case("mkv_header_only", "error")(lambda d: patch(write(d / "a.mkv"), lambda b: b[: b.index(b"\x1f\x43\xb6\x75")]))
case("wav_header_only", "error")(lambda d: wav(d / "a.wav", np.zeros(0, np.int16), 48_000))
case("zip", "error")(lambda d: _zip(d / "a.mp4"))


def _unknown(data: bytearray, *kinds: bytes) -> bytes:
    """Renames boxes to something that nobody knows."""
    for kind in kinds:
        data = data.replace(kind, b"xyzq")
    return bytes(data)


def _wrong_sizes(data: bytearray) -> None:
    at, _ = find(bytes(data), b"moov")
    for number in range(12, 400, 4):
        if data[at + number + 4 : at + number + 8].isalpha():
            struct.pack_into(">I", data, at + number, 0x7FFFFFFF)


def _zip(path: Path) -> Path:
    memory = BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("a.mp4", bytes(1000))
    return _bytes(path, memory.getvalue())


# --- not files


def _made(path: Path, make: Callable[[Path], Any]) -> Path:
    make(path)
    return path


def _socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have 107 bytes
    try:
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


case("missing", "error")(lambda d: d / "a.mp4")
case("folder", "error")(lambda d: _made(d / "a.mp4", Path.mkdir))
case("fifo", "error")(lambda d: _made(d / "a.mp4", os.mkfifo))
case("socket", "error")(lambda d: _made(d / "a.mp4", _socket))
case("link_to_itself", "error")(lambda d: _made(d / "a.mp4", lambda p: p.symlink_to("a.mp4")))
case("link_to_nothing", "error")(lambda d: _made(d / "a.mp4", lambda p: p.symlink_to("b.mp4")))
case("link_to_endless_zeros", "error")(lambda d: _made(d / "a.mp4", lambda p: p.symlink_to("/dev/zero")))
case("link_to_null", "error")(lambda d: _made(d / "a.mp4", lambda p: p.symlink_to("/dev/null")))
case("link_to_a_film", seconds=5.0)(lambda d: _made(d / "a.mp4", lambda p: p.symlink_to(good(d / "b.mp4"))))
case("below_a_file", "error")(lambda d: good(d / "a.mp4") / "b.mp4")
case("name_too_long", "error")(lambda d: d / ("x" * 300 + ".mp4"))
case("sparse_zeros", "error")(lambda d: _made(d / "a.mp4", lambda p: (p.touch(), os.truncate(p, 1 << 33))))


# --- files that name other files


def _naming(file: str, text: str) -> Callable[[Path], Path]:
    """A text beside `secret.ts`, which must not be opened; {0} is its name, {1} its full path."""

    def make(folder: Path) -> Path:
        secret = write(folder / "secret.ts")
        return _bytes(folder / file, text.format(secret.name, secret).encode())

    return make


_M3U8 = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
for _file in ("a.mp4", "a.m3u8", "a.ts"):
    for _how, _target in (("sibling", "{0}"), ("full_path", "{1}"), ("file_url", "file://{1}")):
        case(f"playlist_{_how}_{_file[2:]}", "error")(_naming(_file, _M3U8.format(_target)))
    case(f"concat_list_{_file[2:]}", "error")(_naming(_file, "ffconcat version 1.0\nfile {0}\n"))
case("concat_list_ffconcat", "error")(_naming("a.ffconcat", "ffconcat version 1.0\nfile {0}\n"))
case("playlist_of_itself", "error")(_naming("a.m3u8", _M3U8.format("a.m3u8")))
case("playlist_http", "error")(_naming("a.m3u8", _M3U8.format("http://127.0.0.1:9/secret.ts")))
case("session_description", "error")(
    _naming(
        "a.sdp",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    )
)
case("dash_manifest", "error")(
    _naming(
        "a.mpd",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1" bandwidth="1"><BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    )
)


@case("mp4_data_elsewhere", may=["damaged_packets"], **LIES)
def _elsewhere(folder: Path) -> Path:
    """The data reference of the picture track names another file; the flag that it is this one is cleared."""
    write(folder / "secret.ts")
    path = good(folder / "a.mp4")

    def change(data: bytearray) -> None:
        at = data.index(b"url \0\0\0\x01")
        data[at : at + 4] = b"alis"

    return patch(path, change)


# --- names

NAMES = {
    "spaces": "a film  with spaces.mp4",
    "emoji": "a 🎬 film.mp4",
    "newline": "a\nfilm.mp4",
    "leading_dash": "-a.mp4",
    "option": "--help.mp4",
    "concat": "concat:a|b.mp4",
    "clock": "12:30:45.mp4",
    "url": "http:example.mp4",
    "file_colon": "file:a.mp4",
    "percent": "a%03d.mp4",
    "glob": "a*[b]?.mp4",
    "quotes": "a'b\"c`d$e.mp4",
    "escape_codes": "a\x1b[31mred.mp4",
    "right_to_left": "a\u202e4pm.mp4",
    "not_utf8": "a\udcff\udcfe.mp4",
    "two_hundred_fifty_bytes": "x" * 246 + ".mp4",
    "no_extension": "film",
    "wrong_extension": "film.txt",
    "playlist_extension": "film.m3u8",
    "picture_extension": "film.jpg",
    "backslash": "a\\b.mp4",
    "dots": "..a..mp4",
}

for _key, _named in NAMES.items():
    case(f"name_{_key}", seconds=5.0)(lambda d, n=_named: good(d / n))

case("name_with_nul", "error")(lambda d: d / "a\0b.mp4")

CASES: tuple[Case, ...] = tuple(CASES_BY_NAME.values())


# ---------------------------------------------------------------- material for other tests


def long_film(path: Path, seconds: float, width: int = 640, height: int = 360, format: str | None = None) -> Path:
    """A film of any length at low cost: ten seconds are encoded once and their packets repeated."""
    unit = 10.0
    tracks = (Video(seconds=unit, width=width, height=height, gop=250, options={"bf": "0"}), Audio(seconds=unit))
    with av.open(str(path), "w", format=format) as out:
        streams = [_add(out, track) for track in tracks]
        once = [p for s, t in zip(streams, tracks, strict=True) for p in _encode(s, t) if 0 <= _decode_time(p) < unit]
        blocks = [
            (bytes(p), p.pts, p.dts, p.duration, p.time_base, p.is_keyframe, p.stream)
            for p in sorted(once, key=_decode_time)
        ]
        for round_ in range(-(-int(seconds) // int(unit))):
            for data, pts, dts, duration, base, key, stream in blocks:
                step = round(round_ * unit / base)
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, base, key
                packet.pts, packet.dts, packet.duration = pts + step, dts + step, duration
                out.mux(packet)
    return path


def mutated(data: bytes, generator: random.Random) -> bytes:
    """A damaged copy of a file: bits flipped, fields set to extremes, parts cut, moved, repeated or blanked."""
    copy = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        size = len(copy)
        reach = min(size, 2000) if generator.random() < 0.6 else size  # headers are worth more
        at = generator.randrange(max(1, reach))
        length = generator.choice((1, 4, 188, 1000, size // 10 + 1))
        kind = generator.randrange(7)
        if kind == 0:
            copy[at : at + 1] = bytes([generator.randrange(256)])
        elif kind == 1:
            copy[at : at + 4] = generator.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0"))
        elif kind == 2:
            copy[at : at + length] = generator.randbytes(min(length, size - at))
        elif kind == 3:
            del copy[at : at + length]
        elif kind == 4:
            copy[at:at] = copy[at : at + length]
        elif kind == 5:
            copy[at : at + length] = bytes(min(length, size - at))
        else:
            copy[at : at + 2] = copy[at : at + 2][::-1]
        if not copy:
            copy = bytearray(b"\0")
    return bytes(copy)
