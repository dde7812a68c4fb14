"""What people see of a file before they play it: small pictures and a waveform."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.codec.context import CodecContext
from av.video.frame import VideoFrame

from avtool.media.request import DecodeRequest, Item, Limits, Picture, PictureSpec, Progress, Sound
from avtool.timegrid import Grid
from avtool.timeline import MediaInfo, Preview

THUMBNAILS = 60  # at most, evenly spread
LEAST_STRIDE = Fraction(1, 2)  # seconds between two of them
HEIGHT = 96  # pixels
JPEG_BYTES = 6000  # a picture that stays larger at the coarsest quality is left out
QUALITIES = (6, 10, 16, 31)  # quantizer scales of MPEG, the finest first
PEAKS = 2000
RATE = 8000  # Hz, for the waveform

Decode = Callable[[str, DecodeRequest, Progress | None], Iterable[Item]]


def preview(
    media: MediaInfo,
    decode: Decode,
    on_progress: Progress | None = None,
    *,
    audio_track: int | None = None,
    limits: Limits | None = None,
) -> Preview:
    """One pass over a file.

    Args:
        media: what is known of the file; its `path` is opened, its `duration` is covered.
        decode: `media.decoding.decode`, or that of a child process.
        on_progress: called with ("decode", seconds done, seconds in all).
        audio_track: counts audio tracks from 0; None: the default track.
        limits: what the file may ask of the machine.

    Raises:
        InputError: the file cannot be read.
    """
    duration = Fraction(round(media.duration * 1000), 1000)  # as results keep it
    stride = max(LEAST_STRIDE, duration / THUMBNAILS)
    request = DecodeRequest(
        pictures=PictureSpec(short=_short_side(media)) if media.has_video else None,
        sample_rate=RATE if media.has_audio else None,
        grid=Grid(stride, stride),
        audio_track=audio_track,
        limits=limits or Limits(),
    )
    made = _Gathered(float(duration))
    for item in decode(media.path, request, on_progress):
        if isinstance(item, Picture):
            made.see(float(request.grid.centre(item.row)), item.pixels)
        elif isinstance(item, Sound):
            made.hear(item.start, item.samples)
    return made.preview(media.has_audio)


def _short_side(media: MediaInfo) -> int:
    """The short side of a picture that is HEIGHT pixels high."""
    if media.video is None or media.video.width >= media.video.height:
        return HEIGHT
    return max(16, round(HEIGHT * media.video.width / media.video.height))


@dataclass
class _Gathered:
    duration: float
    thumbnails: list[tuple[float, bytes]] = field(default_factory=list)
    peaks: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(PEAKS, np.float32))

    def see(self, time: float, pixels: npt.NDArray[np.uint8]) -> None:
        small = jpeg(pixels)
        if small and len(self.thumbnails) < THUMBNAILS:
            self.thumbnails.append((time, small))

    def hear(self, start: int, samples: npt.NDArray[np.float32]) -> None:
        """Keeps the largest amplitude of each part of the file."""
        if self.duration > 0:
            places = (start + np.arange(len(samples))) * (PEAKS / (self.duration * RATE))
            np.maximum.at(self.peaks, np.minimum(places.astype(np.int64), PEAKS - 1), np.abs(samples))

    def preview(self, has_audio: bool) -> Preview:
        peaks = np.clip(self.peaks, 0, 1) if has_audio else np.zeros(0, np.float32)
        return Preview(tuple(self.thumbnails), peaks)


def jpeg(pixels: npt.NDArray[np.uint8], limit: int = JPEG_BYTES) -> bytes:
    """A picture (H, W, 3) RGB as JPEG of at most `limit` bytes, as fine as that allows; empty if none is so small."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24").reformat(format="yuvj420p")
    for quality in QUALITIES:
        codec: Any = CodecContext.create("mjpeg", "w")
        codec.width, codec.height, codec.pix_fmt, codec.time_base = frame.width, frame.height, "yuvj420p", Fraction(1)
        codec.options = {"qmin": str(quality), "qmax": str(quality)}
        data = b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None)))
        if len(data) <= limit:
            return data
    return b""
