"""Composes labelled clips from pictures and sounds that were never filmed together.

A sound scene says what is audible in each segment, a picture scene what is visible; an event exists where both say the
same. Scenes of the two kinds are drawn and encoded separately, so that any pair of them is a training clip with a known
answer: matching, heard but not seen, seen but not heard, or overlapping.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch

from avtool.files import write_atomic
from avtool.training.views import Pixels, Wave, level, resize

RATE = 32_000  # Hz
Labels = npt.NDArray[np.bool_]  # (N, C)
Loader = Callable[[int], Any]  # index of a file -> Wave or Pixels


@dataclass(frozen=True)
class Span:
    """A stretch of a scene in seconds with the class that fills it."""

    start: float
    end: float
    label: int


@dataclass(frozen=True)
class SoundLaw:
    """How sound scenes are drawn. Levels are decibels of root mean square re full scale."""

    seconds: float = 10.0
    event_level: tuple[float, float] = (-32.0, -14.0)
    jitter: float = 4.0  # decibels by which each event may differ from the level of its scene
    background_below: tuple[float, float] = (3.0, 28.0)  # decibels under the event
    background: float = 0.75  # chance of something underneath
    second: float = 0.25  # chance of a second, overlapping event
    full: float = 0.35  # chance that an event lasts the whole scene
    shortest: float = 1.0  # seconds


@dataclass(frozen=True)
class PictureLaw:
    """How picture scenes are drawn. `shapes` are (height, width) in pixels with their shares."""

    seconds: float = 10.0
    shapes: tuple[tuple[tuple[int, int], float], ...] = (((128, 128), 0.4), ((228, 128), 0.35), ((128, 228), 0.25))
    full: float = 0.55
    shortest: float = 1.0
    smallest: float = 0.35  # smallest share of the picture that a crop keeps
    drift: float = 0.25  # how far the crop moves over a scene, share of the free room


def draw_span(seconds: float, shortest: float, full: float, label: int, rng: np.random.Generator) -> Span:
    """A random stretch, or the whole scene."""
    if rng.random() < full:
        return Span(0.0, seconds, label)
    length = float(rng.uniform(shortest, 0.85 * seconds))
    start = float(rng.uniform(0, seconds - length))
    return Span(start, start + length, label)


def fill(wave: Wave, samples: int, rng: np.random.Generator) -> Wave:
    """A stretch of exactly `samples`: cut from a long sound; a short one is repeated with small gaps, as barks are."""
    if len(wave) >= samples:
        start = int(rng.integers(0, len(wave) - samples + 1))
        return wave[start : start + samples].copy()
    out = np.zeros(samples, np.float32)
    position = 0
    while position < samples:
        piece = wave[: samples - position]
        out[position : position + len(piece)] = piece
        position += len(wave) + round(float(rng.uniform(0.02, 0.5)) * RATE)
    return out


def sound_scene(
    events: Sequence[tuple[Span, Wave]], background: Wave | None, law: SoundLaw, rng: np.random.Generator
) -> Wave:
    """Mix events into a scene of `law.seconds`.

    Args:
        events: stretches with the sound that fills each.
        background: laid underneath over the whole scene, or None.
        law: levels.
        rng: source of chance.

    Returns:
        (samples,) float32 mono at 32 kHz.
    """
    samples = round(law.seconds * RATE)
    loudness = float(rng.uniform(*law.event_level))
    out = (rng.standard_normal(samples) * 10 ** (rng.uniform(-90, -60) / 20)).astype(np.float32)
    for span, wave in events:
        first, last = round(span.start * RATE), round(span.end * RATE)
        piece = level(fill(wave, last - first, rng), loudness + float(rng.uniform(-law.jitter, law.jitter)))
        fade = min(len(piece) // 2, RATE // 50)  # 20 ms, no clicks
        piece[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
        piece[len(piece) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        out[first:last] += piece
    if background is not None:
        out += level(fill(background, samples, rng), loudness - float(rng.uniform(*law.background_below)))
    return np.clip(out, -1, 1)


@dataclass(frozen=True)
class _Path:
    """A crop that moves slowly over one picture: boxes are (top, left, height, width) at the start and at the end."""

    pixels: Pixels
    first: tuple[float, float, float, float]
    last: tuple[float, float, float, float]
    mirrored: bool

    def at(self, share: float, size: tuple[int, int]) -> Pixels:
        top, left, height, width = (a + (b - a) * share for a, b in zip(self.first, self.last, strict=True))
        y, x = int(top), int(left)
        crop = self.pixels[y : max(y + 8, int(top + height)), x : max(x + 8, int(left + width))]
        crop = crop[:, ::-1] if self.mirrored else crop
        out = resize(torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None], size)[0]
        return out.permute(1, 2, 0).numpy()


def _moving_crop(pixels: Pixels, size: tuple[int, int], law: PictureLaw, rng: np.random.Generator) -> _Path:
    height, width = pixels.shape[:2]
    aspect = size[1] / size[0]
    full = min(height, width / aspect)

    def box(scale: float, y: float, x: float) -> tuple[float, float, float, float]:
        h = full * scale**0.5
        return (height - h) * y, (width - h * aspect) * x, h, h * aspect

    scale, y, x = float(rng.uniform(law.smallest, 1.0)), float(rng.random()), float(rng.random())
    step = rng.uniform(-law.drift, law.drift, 3)
    end = (
        float(np.clip(scale + 0.3 * step[0], law.smallest, 1)),
        float(np.clip(y + step[1], 0, 1)),
        float(np.clip(x + step[2], 0, 1)),
    )
    return _Path(pixels, box(scale, y, x), box(*end), bool(rng.random() < 0.5))


def picture_scene(
    events: Sequence[tuple[Span, Pixels]],
    background: Pixels,
    times: Sequence[float],
    law: PictureLaw,
    rng: np.random.Generator,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Show pictures in their stretches and a background elsewhere, each under a slowly moving crop.

    Args:
        events: stretches with the picture that fills each; the last one that covers a time wins.
        background: shown where no event is.
        times: seconds at which the scene is looked at.
        law: crops and shapes.
        rng: source of chance.
        size: (height, width) in pixels; drawn from the law if None.

    Returns:
        (len(times), height, width, 3) uint8.
    """
    if size is None:
        shares = np.array([share for _, share in law.shapes])
        size = law.shapes[int(rng.choice(len(law.shapes), p=shares / shares.sum()))][0]
    paths = [(Span(-1.0, law.seconds + 1, -1), _moving_crop(background, size, law, rng))]
    paths += [(span, _moving_crop(pixels, size, law, rng)) for span, pixels in events]
    gain, offset = float(rng.uniform(0.75, 1.2)), float(rng.uniform(-20, 20))
    frames = []
    for time in times:
        span, path = [p for p in paths if p[0].start <= time < p[0].end][-1]
        frame = path.at((time - span.start) / (span.end - span.start), size)
        frames.append(np.clip(frame * gain + offset, 0, 255).astype(np.uint8))
    return np.stack(frames)


def labels(spans: Sequence[Span], rows: int, classes: int, step: float = 0.5) -> Labels:
    """Which class fills which segment: (rows, classes); a segment belongs to the span that covers its centre."""
    out = np.zeros((rows, classes), bool)
    centres = (np.arange(rows) + 0.5) * step
    for span in spans:
        if span.label >= 0:
            out[(centres >= span.start) & (centres < span.end), span.label] = True
    return out


def write_clip(
    path: Path, frames: npt.NDArray[np.uint8], wave: Wave, rate: Fraction = Fraction(10), crf: int = 26
) -> None:
    """Encode a composed clip as MP4 (H.264, AAC), atomically.

    Args:
        path: where it goes.
        frames: (N, H, W, 3) uint8, H and W even.
        wave: (samples,) mono float32 at 32 kHz.
        rate: pictures per second.
        crf: x264's quality, higher is worse.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream(
            "libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast", "threads": "1"}
        )
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono", bit_rate=64_000)
        for pixels in frames:
            for packet in video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)
        sound = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
        sound.sample_rate, sound.time_base, sound.pts = RATE, Fraction(1, RATE), 0  # so that AAC's priming is cut off
        fifo = av.AudioFifo()
        fifo.write(sound)
        for piece in fifo.read_many(1024, partial=True):
            for packet in audio.encode(piece):
                container.mux(packet)
        for packet in audio.encode():
            container.mux(packet)
    write_atomic(path, buffer.getvalue())
