"""Composed test scenes in which no single medium can tell the truth: picture A or B with sound A or B.

The four clips of a quadruple share interval, loudness, size, codec and backgrounds; only what is shown and what sounds
changes. A localizer that listens alone, or looks alone, is right on half of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from avtool.training import compose
from avtool.training.compose import (
    PictureLaw,
    SoundLaw,
    Span,
    draw_span,
    labels,
    picture_scene,
    sound_scene,
    write_clip,
)
from avtool.training.corpus import Library, read_picture, read_sound, times
from avtool.training.localizer import GRID, Arrays, Pair, clip_features, encode_pictures, encode_sound
from avtool.training.views import Pixels, Wave

RATE = Fraction(10)  # pictures per second
SIZE = 240, 320  # pixels
SOUND = SoundLaw(event_level=(-22.0, -22.0), jitter=0.0, background_below=(12.0, 12.0), background=1.0, second=0.0)
PICTURE = PictureLaw(full=0.35)
LETTERS = "ab"


@dataclass(frozen=True)
class Quadruple:
    """Two classes, one interval, four files: `files[shown + sounding]` with letters "a" and "b"."""

    first: int
    second: int
    start: float
    end: float
    files: Mapping[str, Path]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A quadruple as features: `clips[shown + sounding]` holds visual (N, Dv), audio (N, Da), seen (N,), heard (N,).

    `sources` names the picture and the sound of both classes, where they are known.
    """

    first: int
    second: int
    start: float
    end: float
    clips: Mapping[str, Mapping[str, Any]]
    sources: Sequence[tuple[str, str]] = ()


def read(quadruples: Iterable[Quadruple], pair: Pair) -> Iterator[Encoded]:
    """Features of written quadruples, through the road that users' files take."""
    for q in quadruples:
        clips = {key: clip_features(path, pair) for key, path in q.files.items()}
        yield Encoded(q.first, q.second, q.start, q.end, clips)


def encode(corpus: Library, pair: Pair, split: str, per_class: int, seed: int) -> Iterator[Encoded]:
    """Quadruples of the same law that are never written: no codec between scene and encoder, ten times as fast."""
    short = pair.visual.pictures.short if pair.visual.pictures else None
    size = SIZE if short is None else (short, round(short * SIZE[1] / SIZE[0]))
    at = [float(GRID.centre(k)) for k in range(GRID.count(PICTURE.seconds))]
    every = np.ones(len(at), bool)
    for draw in _draws(corpus, split, per_class, seed):
        waves, frames = _scenes(draw, at, size)
        audio = [encode_sound(wave, pair.audio) for wave in waves]
        visual = [encode_pictures(pictures, pair.visual) for pictures in frames]
        clips = {
            a + b: {"visual": visual[i], "audio": audio[j], "seen": every, "heard": every}
            for i, a in enumerate(LETTERS)
            for j, b in enumerate(LETTERS)
        }
        sources = [(str(p.relative_to(corpus.root)), str(s.relative_to(corpus.root))) for s, p in draw.chosen]
        yield Encoded(draw.first, draw.second, draw.span.start, draw.span.end, clips, sources)


def scenes(quadruples: Sequence[Encoded], classes: int) -> tuple[Arrays, Arrays]:
    """Scenes of both media as `bank_items` takes them: two per quadruple, of the first and of the second class."""
    visual, audio, truth = [], [], []
    for q in quadruples:
        for letter, label in zip(LETTERS, (q.first, q.second), strict=True):
            clip = q.clips[letter * 2]
            visual.append(clip["visual"])
            audio.append(clip["audio"])
            truth.append(labels([Span(q.start, q.end, label)], len(clip["seen"]), classes))
    table = np.stack(truth)
    names = [[pair[side] for q in quadruples for pair in q.sources] for side in range(2)]
    return (
        {"x": np.stack(visual), "truth": table, "source": np.array(names[0])},
        {"x": np.stack(audio), "truth": table, "source": np.array(names[1])},
    )


def make(corpus: Library, split: str, per_class: int, folder: Path, seed: int) -> Iterator[Quadruple]:
    """Write quadruples, `per_class` for each class that can be composed, from files of one split only.

    Args:
        corpus: sounds and pictures.
        split: "val" to choose on, "test" to report on.
        per_class: quadruples in which a class is the first one.
        folder: where the clips go; clips that are there are kept.
        seed: of everything drawn.
    """
    for draw in _draws(corpus, split, per_class, seed):
        stem = folder / f"{split}{seed}-{draw.first:03d}-{draw.number}"
        files = {a + b: stem.with_name(f"{stem.name}-{a}{b}.mp4") for a in LETTERS for b in LETTERS}
        if not all(path.exists() for path in files.values()):
            stem.parent.mkdir(parents=True, exist_ok=True)
            waves, frames = _scenes(draw, list(times(PICTURE.seconds, RATE)), SIZE)
            for key, path in files.items():
                write_clip(path, frames[LETTERS.index(key[0])], waves[LETTERS.index(key[1])], RATE)
        yield Quadruple(draw.first, draw.second, draw.span.start, draw.span.end, files)


@dataclass(frozen=True)
class _Draw:
    """What chance decided about one quadruple: classes, interval, (sound, picture) of both classes, backgrounds."""

    first: int
    second: int
    number: int
    span: Span
    chosen: Sequence[tuple[Path, Path]]
    under: Path
    behind: Path
    seed: int


def _draws(corpus: Library, split: str, per_class: int, seed: int) -> Iterator[_Draw]:
    sounds, pictures = corpus.sounds(split), corpus.pictures(split)
    under, behind = corpus.backgrounds(split)
    classes = [i for i, c in enumerate(corpus.classes) if c.composed and i in sounds and i in pictures]
    for first in classes:
        for number in range(per_class):
            rng = np.random.default_rng((seed, first, number))
            second = int(rng.choice([c for c in classes if c != first]))
            span = draw_span(PICTURE.seconds, 3.0, PICTURE.full, first, rng)
            chosen = [(_pick(sounds[c], rng), _pick(pictures[c], rng)) for c in (first, second)]
            backgrounds = _pick(under, rng), _pick(behind, rng)
            yield _Draw(first, second, number, span, chosen, *backgrounds, int(rng.integers(2**31)))


def _pick(files: Sequence[Path], rng: np.random.Generator) -> Path:
    return files[int(rng.integers(len(files)))]


def _scenes(draw: _Draw, at: Sequence[float], size: tuple[int, int]) -> tuple[list[Wave], list[Pixels]]:
    """Both sounds and both picture tracks (N, H, W, 3); all that is not the event is drawn alike for both."""
    span, samples, behind = draw.span, round(SOUND.seconds * compose.RATE), read_picture(draw.behind)
    # cut to length here, so that all four clips have the same stretch of it underneath
    under = compose.fill(read_sound(draw.under), samples, np.random.default_rng(draw.seed))
    waves = [
        sound_scene([(span, read_sound(s))], under, SOUND, np.random.default_rng(draw.seed)) for s, _ in draw.chosen
    ]
    frames = [
        picture_scene([(span, read_picture(p))], behind, at, PICTURE, np.random.default_rng(draw.seed), size)
        for _, p in draw.chosen
    ]
    return waves, frames
