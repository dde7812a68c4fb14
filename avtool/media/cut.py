"""Parts of a media file as files of their own: copied from a key frame on, or encoded anew to the exact times."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from av.video.frame import VideoFrame

from avtool.errors import InputError
from avtool.files import printable
from avtool.media.probe import Media, open_media, prepare, reason, rotation
from avtool.media.request import Limits

# Suffix -> the muxer of FFmpeg that a copy is written with; anything else becomes Matroska, which holds every codec.
MUXERS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".ts": "mpegts",
    ".mts": "mpegts", ".m2ts": "mpegts",
}  # fmt: skip
EXACT_SUFFIX = ".mp4"
BACK_OFF = Fraction(10)  # seconds before the start where a second look for a key frame begins
TICK = Fraction(1, 90_000)  # seconds; of encoded pictures
VIDEO_OPTIONS = {"crf": "18", "preset": "veryfast"}
AUDIO_RATE_LIMIT = 48_000  # Hz
AUDIO_BITS = 160_000  # a second


@dataclass(frozen=True)
class Piece:
    """What a part holds, in seconds of the source; a copy begins at a key frame, so earlier than what was asked for."""

    start: float
    end: float


def suffix(path: str | os.PathLike[str], exact: bool) -> str:
    """The suffix of the parts of a file."""
    own = os.path.splitext(os.fspath(path))[1].lower()
    return EXACT_SUFFIX if exact else own if own in MUXERS else ".mkv"


def cut(
    path: str | os.PathLike[str],
    start: float,
    end: float,
    file: BinaryIO,
    *,
    exact: bool = False,
    audio_track: int | None = None,
    limits: Limits | None = None,
) -> Piece:
    """Writes [start, end) of a media file, sound and picture.

    Args:
        path: the source.
        start, end: seconds of the presentation.
        file: where the part is written to; must be seekable.
        exact: encode anew (H.264, AAC) to the exact frame and sample, instead of copying from the key frame before.
        audio_track: counts sound tracks from 0; None: the default track.
        limits: what the source may ask of the machine.

    Returns:
        What the part holds.

    Raises:
        InputError: the source cannot be read, or holds nothing there.
    """
    limits = limits or Limits()
    with open_media(path, limits, audio_track) as media:
        span = Fraction(start), Fraction(end)
        try:
            with av.open(file, "w", format=MUXERS[suffix(path, exact)]) as out:
                done = _encode(media, out, *span, limits) if exact else _copy(media, out, *span)
        except (av.error.FFmpegError, ValueError, IndexError, MemoryError) as error:
            if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
                raise
            what = f"{start:.1f} to {end:.1f} s of {printable(path)} cannot be cut"
            raise InputError(what, reason(error), "" if exact else "--exact encodes anew") from error
    if done is None:
        raise InputError(f"{printable(path)} holds nothing from {start:.1f} to {end:.1f} s", "it ends before")
    return done


# ---------------------------------------------------------------- copying


def _copy(media: Media, out: OutputContainer, start: Fraction, end: Fraction) -> Piece | None:
    """Packets from the last key frame at or before `start` to `end`, times counted from that key frame."""
    streams = [stream for stream in (media.video, media.audio) if stream is not None]
    written: dict[int, Any] = {stream.index: out.add_stream_from_template(stream) for stream in streams}
    first = _first_picture(media, Limits())
    if media.video is not None and first is not None and first.rotation:
        written[media.video.index].set_display_rotation(first.rotation)
    base = _key_time(media, start + media.origin)
    if base is None:
        return None
    _seek(media, base)
    reached, over = base, set[int]()
    top = {stream.index: base for stream in streams}  # the latest time written
    for packet in media.container.demux(streams):
        index = packet.stream_index
        if packet.pts is None or packet.dts is None or index in over:
            continue
        time, order = packet.pts * packet.time_base, packet.dts * packet.time_base
        # Pictures shown before one that is in already complete the part; any later one would begin a new gap.
        if order >= end + media.origin and time >= top[index]:
            over.add(index)
            if len(over) == len(streams):
                break
        elif time >= base:  # else sound before the key frame, or pictures that refer to what came before it
            top[index] = max(top[index], time)
            reached = max(reached, time + (packet.duration or 0) * packet.time_base)
            ticks = round(base / packet.time_base)
            packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
            packet.stream = written[index]
            out.mux(packet)
    if reached <= max(base, start + media.origin):
        return None
    return Piece(max(0.0, float(base - media.origin)), float(reached - media.origin))


def _key_time(media: Media, raw: Fraction) -> Fraction | None:
    """Raw seconds of the last key frame at or before a time, or the first one after it; of sound, of any packet."""
    stream = media.video or media.audio
    assert stream is not None
    for back in (Fraction(0), BACK_OFF, raw - media.origin):
        _seek(media, raw - back)
        found: Fraction | None = None
        for packet in media.container.demux(stream):
            if packet.pts is None or not packet.is_keyframe:
                continue
            time = packet.pts * packet.time_base
            if time > raw:
                found = found if found is not None or back < raw - media.origin else time
                break
            found = time
        if found is not None:
            return found
    return None


def _seek(media: Media, raw: Fraction) -> None:
    stream = media.video or media.audio
    assert stream is not None and stream.time_base is not None
    media.container.seek(int(raw // stream.time_base), stream=stream, backward=True, any_frame=False)


def _first_picture(media: Media, limits: Limits) -> VideoFrame | None:
    """The first picture that decodes: it knows the true size and how the file is to be turned."""
    if media.video is None:
        return None
    prepare(media.video, limits)
    frames = (frame for packet in media.container.demux(media.video) for frame in _decoded(packet))
    return next(frames, None)


# ---------------------------------------------------------------- encoding


def _encode(media: Media, out: OutputContainer, start: Fraction, end: Fraction, limits: Limits) -> Piece | None:
    """Decodes from the key frame before and encodes what lies in [start, end), pictures upright."""
    low, high = start + media.origin, end + media.origin
    first = _first_picture(media, limits)
    makers: dict[int, _Pictures | _Sounds] = {}
    if media.video is not None and first is not None:
        makers[media.video.index] = _Pictures(out, media.video, _upright(first), low, high)
    if media.audio is not None:
        prepare(media.audio, limits)
        makers[media.audio.index] = _Sounds(out, media.audio, low, high)
    if not makers:  # nothing decodes
        return None
    _seek(media, low if media.video is not None else max(media.origin, low - 1))
    streams = [stream for stream in (media.video, media.audio) if stream is not None and stream.index in makers]
    for packet in media.container.demux(streams):
        maker = makers[packet.stream_index]
        for frame in _decoded(packet):
            maker.feed(frame)
        if all(m.done for m in makers.values()):
            break
    for maker in makers.values():
        maker.finish()
    until = max((maker.until for maker in makers.values()), default=low)
    return Piece(float(start), float(until - media.origin)) if until > low else None


def _decoded(packet: Any) -> Iterator[Any]:
    """Frames of a packet; a damaged one gives none."""
    try:
        yield from packet.decode()
    except (av.error.FFmpegError, ValueError):
        return


class _Pictures:
    """Encodes the pictures on screen in [low, high), raw seconds; the one on screen at `low` begins the part."""

    def __init__(self, out: OutputContainer, source: Any, first: VideoFrame, low: Fraction, high: Fraction) -> None:
        self._out, self._low, self._high = out, low, high
        self._stream: Any = out.add_stream("libx264", rate=source.average_rate or 25, options=VIDEO_OPTIONS)
        self._stream.width, self._stream.height, self._stream.pix_fmt = first.width, first.height, "yuv420p"
        self._stream.codec_context.time_base = self._stream.time_base = TICK
        self._held: tuple[Fraction, VideoFrame] | None = None
        self.done = False
        self.until = low

    def feed(self, frame: Any) -> None:
        """One decoded picture, in the order of time."""
        if frame.pts is None or self.done:
            return
        time = frame.pts * frame.time_base
        if self._held is not None and time > self._low:
            self._write(*self._held)
        if time >= self._high:
            self.done, self._held = True, None
        else:
            self._held = (time, frame)

    def finish(self) -> None:
        """Writes the last picture and what the encoder still holds."""
        if self._held is not None:
            self._write(*self._held)
        self._out.mux(self._stream.encode(None))

    def _write(self, time: Fraction, frame: VideoFrame) -> None:
        same = _upright(frame).reformat(self._stream.width, self._stream.height, "yuv420p")
        same.pts, same.time_base = round(max(Fraction(0), time - self._low) / TICK), TICK
        self.until = min(self._high, max(self.until, time + Fraction(1, 25)))
        self._out.mux(self._stream.encode(same))


def _upright(frame: VideoFrame) -> VideoFrame:
    """Turned as the display matrix says, with even sides."""
    turn = rotation(frame)
    if not turn and frame.width % 2 == 0 and frame.height % 2 == 0:
        return frame
    pixels: Any = np.rot90(frame.to_ndarray(format="rgb24"), -turn // 90)  # numpy turns anticlockwise
    high, wide = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    return VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:high, :wide]), "rgb24")


class _Sounds:
    """Encodes the samples in [low, high), raw seconds; what is missing at the beginning is silence."""

    def __init__(self, out: OutputContainer, source: Any, low: Fraction, high: Fraction) -> None:
        self._out, self._low, self._high = out, low, high
        self._rate = min(AUDIO_RATE_LIMIT, source.rate)
        layout = "mono" if source.channels == 1 else "stereo"
        self._stream: Any = out.add_stream("aac", rate=self._rate, layout=layout)
        self._stream.bit_rate = AUDIO_BITS
        self._resampler = AudioResampler("fltp", layout, self._rate)
        self._fifo = AudioFifo()
        self._taken = 0  # samples written, from `low` on
        self.done = False
        self.until = low

    def feed(self, frame: Any) -> None:
        """One decoded frame, in the order of time."""
        if frame.pts is None or self.done:
            return
        for part in self._resampler.resample(frame):
            self._take(part)

    def _take(self, part: Any) -> None:
        if part.pts is None or part.time_base is None:
            return
        place = round((part.pts * part.time_base - self._low) * self._rate)
        stop = round((self._high - self._low) * self._rate)
        samples: Any = part.to_ndarray()
        samples = samples[:, max(0, self._taken - place) : max(0, stop - place)]
        gap = max(place, 0) - self._taken
        if samples.shape[1] and gap > 0:
            samples = np.pad(samples, ((0, 0), (gap, 0)))
        self.done = place + part.samples >= stop
        if samples.shape[1]:
            self._send(samples)

    def _send(self, samples: Any) -> None:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", self._stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._taken, Fraction(1, self._rate)
        self._taken += samples.shape[1]
        self.until = self._low + Fraction(self._taken, self._rate)
        self._fifo.write(frame)
        self._drain(partial=False)

    def _drain(self, partial: bool) -> None:
        size = self._stream.codec_context.frame_size or 1024
        while (frame := self._fifo.read(size, partial=partial)) is not None:
            self._out.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes what is left."""
        self._drain(partial=True)
        self._out.mux(self._stream.encode(None))
