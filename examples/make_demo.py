"""Makes the demo clip: everything in it is drawn and synthesised here, nothing is fetched.

    python examples/make_demo.py [PATH [SEED]]

The clip has two things that are both seen and heard (a siren, a clock), one that is only seen (an accordion
that nobody plays) and one that is only heard (birds). What happens when is known exactly and written beside the clip
as PATH with the ending .truth.json. The same seed makes the same clip; another seed changes colours, sizes, positions,
the camera, pitches, tempi, noise and the times of the cuts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import demo_pictures as pictures
import demo_sounds as sounds
import numpy as np
import numpy.typing as npt

RATE, FPS = sounds.RATE, 15  # Hz, pictures a second
PEAK = 0.9
H264 = {"crf": "27", "preset": "medium", "flags": "+bitexact", "x264-params": "asm=0"}


@dataclass(frozen=True)
class Part:
    """What happens from `start` to `end` (seconds, half open): the thing seen and the thing heard, "" for none."""

    start: float
    end: float
    seen: str
    heard: str


@dataclass(frozen=True)
class Truth:
    """What is in a demo clip, in order."""

    seed: int
    duration: float
    parts: tuple[Part, ...]

    @property
    def events(self) -> tuple[Part, ...]:
        """What is both seen and heard."""
        return tuple(p for p in self.parts if p.seen and p.seen == p.heard)

    @property
    def seen_only(self) -> tuple[Part, ...]:
        """What is seen and not heard."""
        return tuple(p for p in self.parts if p.seen and p.seen != p.heard)

    @property
    def heard_only(self) -> tuple[Part, ...]:
        """What is heard and not seen."""
        return tuple(p for p in self.parts if p.heard and p.seen != p.heard)

    def to_json(self) -> str:
        """Readable JSON."""
        record = {name: [asdict(p) for p in getattr(self, name)] for name in ("events", "seen_only", "heard_only")}
        return json.dumps({"seed": self.seed, "duration": self.duration, **record}, indent=1) + "\n"


@dataclass(frozen=True)
class Shot:
    """A part and how to make it: `draw` gives its scene, `play` its sound of so many seconds."""

    number: int
    part: Part
    draw: Callable[[np.random.Generator], pictures.Scene]
    play: Callable[[np.random.Generator, float], sounds.Wave]


def script(seed: int) -> tuple[Truth, tuple[Shot, ...]]:
    """What happens in the clip of a seed; cuts lie on multiples of 0.2 s."""
    rng = np.random.default_rng([seed, 0])
    pace, kind, beats = rng.uniform(1.0, 1.05), int(rng.integers(3)), rng.choice([2.0, 2.5, 4.0])
    plan: tuple[tuple[str, str, float, Any, Any], ...] = (
        # seen, heard, seconds at least, scene, sound
        ("accordion", "", 3.6, pictures.Accordion, sounds.quiet),
        ("siren", "siren", 5.0, pictures.Van, lambda r, s: sounds.siren(r, s, kind)),
        ("", "bird", 3.6, pictures.Room, sounds.birds),
        ("clock", "clock", 5.0, lambda r: pictures.Clock(r, beats), lambda r, s: sounds.ticking(r, s, beats)),
    )
    shots: list[Shot] = []
    now = 0.0
    for seen, heard, least, draw, play in plan:
        end = round(now + round(5 * least * pace) / 5 + 0.2 * int(rng.integers(0, 4)), 3)
        shots.append(Shot(len(shots) + 1, Part(now, end, seen, heard), draw, play))
        now = end
    return Truth(seed, now, tuple(s.part for s in shots)), tuple(shots)


def soundtrack(seed: int, truth: Truth, shots: tuple[Shot, ...]) -> npt.NDArray[np.float32]:
    """The whole sound, (samples,) in [-1, 1]: each part's own, over the quiet of a room."""
    total = sounds.quiet(np.random.default_rng([seed, 1]), truth.duration)
    for shot in shots:
        wave = shot.play(np.random.default_rng([seed, 2, shot.number]), shot.part.end - shot.part.start)
        first = round(shot.part.start * RATE)
        total[first : first + len(wave)] += wave[: len(total) - first]
    return np.asarray(total * min(1.0, PEAK / np.abs(total).max()), np.float32)


def film(seed: int, shots: tuple[Shot, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """Every picture in order, (height, width, 3) RGB."""
    for shot in shots:
        rng = np.random.default_rng([seed, 3, shot.number])
        scene, camera = shot.draw(rng), pictures.Camera(rng)
        length = shot.part.end - shot.part.start
        for index in range(round(shot.part.start * FPS), round(shot.part.end * FPS)):
            seconds = index / FPS - shot.part.start
            yield camera.picture(scene.draw(seconds, seconds / length), seconds, seconds / length)


def write(path: Path, film: Iterator[npt.NDArray[np.uint8]], sound: npt.NDArray[np.float32]) -> None:
    """Encode pictures and sound as H.264 and AAC in MP4.

    One thread and no assembly, so that the same pictures give the same bytes: x264's fast paths depend on how the
    memory of a picture happens to be aligned.
    """
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as out:
        video = out.add_stream("libx264", FPS, options=H264)
        video.width, video.height, video.pix_fmt = pictures.WIDTH, pictures.HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1
        audio = out.add_stream("aac", RATE, options={"flags": "+bitexact"})
        audio.bit_rate, audio.layout = 56_000, "mono"
        for index, pixels in enumerate(film):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            out.mux(video.encode(frame))
            _mux_sound(out, audio, sound, index * RATE // FPS, (index + 1) * RATE // FPS)
        out.mux(video.encode())
        out.mux(audio.encode())


def _mux_sound(out: Any, stream: Any, sound: npt.NDArray[np.float32], first: int, last: int) -> None:
    """Encode the samples [first, last)."""
    frame = av.AudioFrame.from_ndarray(sound[None, first:last], "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
    out.mux(stream.encode(frame))


def make(path: str | Path, seed: int = 0) -> Truth:
    """Make the clip of a seed at `path` (.mp4), and its truth beside it.

    Args:
        path: where the clip goes; NAME.truth.json lies beside NAME.mp4.
        seed: 0 is the clip that is committed.

    Returns:
        What happens in it, and when.
    """
    path = Path(path)
    truth, shots = script(seed)
    write(path, film(seed, shots), soundtrack(seed, truth, shots))
    path.with_suffix(".truth.json").write_text(truth.to_json(), encoding="utf-8")
    return truth


def main(arguments: list[str]) -> None:
    """PATH and SEED, both optional."""
    path = Path(arguments[0]) if arguments else Path(__file__).with_name("demo.mp4")
    print(make(path, int(arguments[1]) if len(arguments) > 1 else 0).to_json(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
