"""Composed test scenes in which no single medium can tell the truth: picture A or B with sound A or B.

The four clips of a quadruple share interval, loudness, size, codec and backgrounds; only what is shown and what sounds
changes. A localizer that listens alone, or looks alone, is right on half of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from avtool.training import compose
from avtool.training.compose import PictureLaw, SoundLaw, Span, draw_span, picture_scene, sound_scene, write_clip
from avtool.training.corpus import Corpus, read_picture, read_sound, times

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


def make(corpus: Corpus, split: str, per_class: int, folder: Path, seed: int) -> Iterator[Quadruple]:
    """Write quadruples, `per_class` for each class that can be composed, from files of one split only.

    Args:
        corpus: sounds and pictures.
        split: "val" to choose on, "test" to report on.
        per_class: quadruples in which a class is the first one.
        folder: where the clips go; clips that are there are kept.
        seed: of everything drawn.
    """
    sounds, pictures = corpus.sounds(split), corpus.pictures(split)
    under, behind = corpus.backgrounds(split)
    classes = [i for i, c in enumerate(corpus.classes) if c.composed and i in sounds and i in pictures]
    for first in classes:
        for number in range(per_class):
            rng = np.random.default_rng((seed, first, number))
            second = int(rng.choice([c for c in classes if c != first]))
            span = draw_span(PICTURE.seconds, 3.0, PICTURE.full, first, rng)
            stem = folder / f"{split}{seed}-{first:03d}-{number}"
            chosen = [(_pick(sounds[c], rng), _pick(pictures[c], rng)) for c in (first, second)]
            backgrounds = _pick(under, rng), _pick(behind, rng)
            files = _write(stem, span, chosen, backgrounds, int(rng.integers(2**31)))
            yield Quadruple(first, second, span.start, span.end, files)


def _pick(files: Sequence[Path], rng: np.random.Generator) -> Path:
    return files[int(rng.integers(len(files)))]


def _write(
    stem: Path, span: Span, chosen: Sequence[tuple[Path, Path]], backgrounds: tuple[Path, Path], seed: int
) -> dict[str, Path]:
    files = {
        shown + sounding: stem.with_name(f"{stem.name}-{shown}{sounding}.mp4")
        for shown in LETTERS
        for sounding in LETTERS
    }
    if all(path.exists() for path in files.values()):
        return files
    stem.parent.mkdir(parents=True, exist_ok=True)
    samples, behind = round(SOUND.seconds * compose.RATE), read_picture(backgrounds[1])
    # cut to length here, so that all four clips have the same stretch of it underneath
    under = compose.fill(read_sound(backgrounds[0]), samples, np.random.default_rng(seed))
    at = list(times(PICTURE.seconds, RATE))
    waves = [sound_scene([(span, read_sound(s))], under, SOUND, np.random.default_rng(seed)) for s, _ in chosen]
    frames = [
        picture_scene([(span, read_picture(p))], behind, at, PICTURE, np.random.default_rng(seed), SIZE)
        for _, p in chosen
    ]
    for key, path in files.items():
        write_clip(path, frames[LETTERS.index(key[0])], waves[LETTERS.index(key[1])], RATE)
    return files
