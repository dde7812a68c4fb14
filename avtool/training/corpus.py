"""The research corpus and the labelled clips as readers: which files show or sound which event, in which split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest, Sound
from avtool.timegrid import Grid
from avtool.training.compose import RATE
from avtool.training.views import Pixels, Wave, read_rows

SOUNDS_NEEDED, PICTURES_NEEDED = 20, 30  # training examples from which an event without clips joins the vocabulary
DOUBTFUL = 0.02  # the audio teacher's probability of a sound's own label below which it is left out of training
ENOUGH = 15  # ... where at least so many sounds remain


@dataclass(frozen=True)
class EventClass:
    """One row of the corpus' vocabulary."""

    name: str
    clip_label: str  # label in clips/avepm, or ""
    composed: bool  # enough training sounds and pictures to compose clips from


@dataclass(frozen=True)
class LabelledClip:
    """A real clip with its one event, seconds."""

    path: Path
    label: int
    onset: float
    offset: float
    duration: float

    @property
    def fills(self) -> bool:
        """The event fills at least 0.8 of the clip."""
        return self.offset - self.onset >= 0.8 * self.duration


class Library(Protocol):
    """Labelled sounds and pictures that scenes can be composed of; `root` is the folder that holds them all."""

    root: Path

    @property
    def classes(self) -> tuple[EventClass, ...]:
        """In the order of their indices."""
        ...

    def sounds(self, split: str) -> Mapping[int, list[Path]]:
        """Class index -> sound files of a split."""
        ...

    def pictures(self, split: str) -> Mapping[int, list[Path]]:
        """Class index -> picture files of a split."""
        ...

    def backgrounds(self, split: str) -> tuple[list[Path], list[Path]]:
        """Sounds and pictures of no class."""
        ...


class Corpus:
    """Files of `corpus/` and `clips/avepm/` under one folder, by event.

    Raises:
        FileNotFoundError: the folder is not that material.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "corpus"
        self._clips = root / "clips" / "avepm"
        self._rows = {r["event"].replace("_", " "): r for r in read_rows(self.root / "vocabulary.csv")}
        self.classes = tuple(
            c
            for c in sorted((_event(n, r) for n, r in self._rows.items()), key=lambda c: c.name)
            if c.clip_label or c.composed
        )
        self._sounds = list(read_rows(self.root / "audio.csv"))
        self._pictures = list(read_rows(self.root / "images.csv"))

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in vocabulary order."""
        return tuple(c.name for c in self.classes)

    def sounds(self, split: str) -> Mapping[int, list[Path]]:
        """Class index -> sound files of a split; of the training split without those that the teacher doubts."""
        found = {}
        for index, event in enumerate(self.classes):
            rows = [
                r
                for r in self._sounds
                if r["split"] == split and r["label"] in _labels(self._rows[event.name], "sound")
            ]
            sure = [r for r in rows if float(r["teacher_p"] or 1) > DOUBTFUL]
            found[index] = [self.root / r["file"] for r in (sure if split == "train" and len(sure) >= ENOUGH else rows)]
        return {i: f for i, f in found.items() if f}

    def pictures(self, split: str) -> Mapping[int, list[Path]]:
        """Class index -> picture files of a split."""
        found = {
            i: [
                self.root / r["file"]
                for r in self._pictures
                if r["split"] == split and r["label"] in _labels(self._rows[e.name], "picture")
            ]
            for i, e in enumerate(self.classes)
        }
        return {i: f for i, f in found.items() if f}

    def backgrounds(self, split: str) -> tuple[list[Path], list[Path]]:
        """Sounds and pictures of no class: unlabelled material for training, foreign labels of the split else."""
        if split == "train":
            folder = self.root / "unlabelled"
            return [folder / r["file"] for r in read_rows(folder / "sounds.csv")], [
                folder / r["file"] for r in read_rows(folder / "photos.csv")
            ]
        heard = {label for row in self._rows.values() for label in _labels(row, "sound")}
        shown = {label for row in self._rows.values() for label in _labels(row, "picture")}
        sounds = [self.root / r["file"] for r in self._sounds if r["split"] == split and r["label"] not in heard]
        pictures = [
            self.root / r["file"]
            for r in self._pictures
            if r["split"] == split and r["label"] not in shown and int(r["width"]) >= 100
        ]
        return sounds, pictures

    def clips(self) -> list[LabelledClip]:
        """The labelled real clips, in the order of their table."""
        index = {c.clip_label: i for i, c in enumerate(self.classes) if c.clip_label}
        return [
            LabelledClip(
                self._clips / r["file"], index[r["label"]], float(r["onset"]), float(r["offset"]), float(r["duration"])
            )
            for r in read_rows(self._clips / "clips.csv")
        ]


def _event(name: str, row: Mapping[str, str]) -> EventClass:
    enough = int(row["sounds_train"]) >= SOUNDS_NEEDED and int(row["pictures_train"]) >= PICTURES_NEEDED
    return EventClass(name, row["avepm_label"], enough)


def _labels(row: Mapping[str, str], kind: str) -> list[str]:
    return [label for label in row[f"{kind}_labels"].replace(";", ",").split(",") if label]


def folds(clips: list[LabelledClip], seed: int, count: int = 3) -> list[int]:
    """Fold of each clip: within each class the clips are dealt out in turn, in file order (seed 0) or shuffled."""
    order = np.random.default_rng(seed).permutation(len(clips)) if seed else np.arange(len(clips))
    dealt: dict[int, int] = {}
    out = [0] * len(clips)
    for i in order:
        label = clips[int(i)].label
        out[int(i)] = dealt.get(label, 0) % count
        dealt[label] = dealt.get(label, 0) + 1
    return out


def read_sound(path: Path) -> Wave:
    """A whole sound file as mono float32 at 32 kHz."""
    request = DecodeRequest(pictures=None, sample_rate=RATE, grid=Grid())
    parts = [item.samples for item in decode(path, request) if isinstance(item, Sound)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def read_picture(path: Path) -> Pixels:
    """A picture file as RGB (H, W, 3) uint8."""
    from torchvision.io import ImageReadMode, decode_image

    pixels: torch.Tensor = decode_image(str(path), ImageReadMode.RGB)
    return pixels.permute(1, 2, 0).numpy()


def times(seconds: float, rate: Fraction) -> Iterator[float]:
    """Times of the frames of a composed clip."""
    return (float(Fraction(k) / rate) for k in range(int(seconds * rate)))
