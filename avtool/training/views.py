"""Distillation views: random crops and mixed sounds with the teachers' answers, as chunks on disk.

A view is what the student will see, already at its input size; a chunk holds a few thousand views of one shape with
the teacher's embedding and logits for exactly the same crop (pictures) or the same two seconds (sounds).
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.features import logmel
from avtool.files import atomic_stream

log = logging.getLogger("avtool")
Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Wave = npt.NDArray[np.float32]  # (samples,) mono


@dataclass(frozen=True)
class Shape:
    """One family of picture views: student size and teacher size in pixels (height, width)."""

    name: str
    student: tuple[int, int]
    teacher: tuple[int, int]


SQUARE = Shape("square", (128, 128), (176, 176))
TALL = Shape("tall", (228, 128), (320, 180))
WIDE = Shape("wide", (128, 228), (180, 320))
SHAPES = {shape.name: shape for shape in (SQUARE, TALL, WIDE)}


def crop_box(
    height: int, width: int, aspect: float, scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Random box (top, left, height, width) of `aspect` = width / height with `scale` of the largest one's area."""
    full_h = min(height, width / aspect)
    box_h = min(height, max(8, round(full_h * scale**0.5)))
    box_w = min(width, max(8, round(box_h * aspect)))
    return int(rng.integers(0, height - box_h + 1)), int(rng.integers(0, width - box_w + 1)), box_h, box_w


def picture_view(pixels: Pixels, shape: Shape, smallest: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One random crop at student and at teacher size, both uint8 (3, h, w), mirrored half of the time."""
    stretch = float(np.exp(rng.uniform(-0.25, 0.25)))
    aspect = shape.student[1] / shape.student[0] * stretch
    source = pixels.shape[0], pixels.shape[1]
    top, left, height, width = crop_box(*source, aspect, float(rng.uniform(smallest, 1.0)), rng)
    crop = torch.from_numpy(pixels[top : top + height, left : left + width].copy()).permute(2, 0, 1)[None]
    if rng.random() < 0.5:
        crop = crop.flip(3)
    return resize(crop, shape.student)[0], resize(crop, shape.teacher)[0]


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize of uint8 pictures (B, 3, H, W)."""
    return F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)


def mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Blend two uint8 pictures, `share` of the first."""
    return (first.float() * share + second.float() * (1 - share)).round().to(torch.uint8)


Teacher = Callable[[Tensor], tuple[Tensor, Tensor]]  # input batch -> logits, embedding


def answers(teacher: Teacher, batch: Tensor, size: int = 16) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Teacher logits and embeddings of a batch, in float16."""
    with torch.inference_mode():
        parts = [teacher(piece) for piece in batch.split(size)]
    logits, embedding = (torch.cat(list(column)) for column in zip(*parts, strict=True))
    return logits.half().numpy(), embedding.half().numpy()


def save_chunk(
    folder: Path, name: str, inputs: npt.NDArray[Any], logits: npt.NDArray[Any], embedding: npt.NDArray[Any]
) -> None:
    """Write one chunk as three .npy files; `<name>.logits.npy` comes last and marks the chunk as whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, array in (("inputs", inputs), ("embedding", embedding), ("logits", logits)):
        with atomic_stream(folder / f"{name}.{part}.npy") as stream:
            np.save(stream, array)


@dataclass(frozen=True)
class Chunk:
    """One chunk, memory-mapped: inputs (N, ...), logits (N, K), embedding (N, E)."""

    name: str
    inputs: npt.NDArray[Any]
    logits: npt.NDArray[np.float16]
    embedding: npt.NDArray[np.float16]


def chunks(folder: Path, prefix: str) -> list[Chunk]:
    """All whole chunks of a folder whose name starts with `prefix`, in name order."""
    names = sorted(p.name.removesuffix(".logits.npy") for p in folder.glob(f"{prefix}*.logits.npy"))
    return [
        Chunk(n, *(np.load(folder / f"{n}.{part}.npy", mmap_mode="r") for part in ("inputs", "logits", "embedding")))
        for n in names
    ]


def picture_chunks(
    folder: Path,
    shape: Shape,
    load: Callable[[int], Pixels],
    picks: Sequence[int],
    teacher: Teacher,
    *,
    smallest: float,
    mixed: float,
    seed: int,
    prefix: str,
    size: int = 2048,
) -> None:
    """Make the chunks of one family of picture views; chunks that are there are kept.

    Args:
        folder: where the chunks go.
        shape: student and teacher size.
        load: gives the picture of an index in `picks`.
        picks: one index per view, in the order in which views are made.
        teacher: answers for uint8 (B, 3, h, w) at teacher size.
        smallest: smallest share of the picture's area that a crop keeps.
        mixed: share of the views that are blends of two.
        seed: of the crops; chunk i uses (seed, i).
        prefix: start of the chunk names.
    """
    for number, start in enumerate(range(0, len(picks), size)):
        name = f"{prefix}-{number:03d}"
        if (folder / f"{name}.logits.npy").exists():
            continue
        rng = np.random.default_rng((seed, number))
        pairs = [picture_view(load(index), shape, smallest, rng) for index in picks[start : start + size]]
        partners = rng.permutation(len(pairs))
        students, teachers = [p[0] for p in pairs], [p[1] for p in pairs]
        for i in np.flatnonzero(rng.random(len(pairs)) < mixed):
            j, share = int(partners[i]), float(rng.uniform(0.4, 0.9))
            students[i], teachers[i] = mix(pairs[i][0], pairs[j][0], share), mix(pairs[i][1], pairs[j][1], share)
        logits, embedding = answers(teacher, torch.stack(teachers))
        save_chunk(folder, name, torch.stack(students).permute(0, 2, 3, 1).numpy(), logits, embedding)
        log.info("%s: %d views", name, len(pairs))


SOUND_SECONDS = 2.0


def cut(wave: Wave, seconds: float, rng: np.random.Generator) -> Wave:
    """A random stretch of `seconds`; a shorter sound is placed in silence, or repeated, half the time each."""
    samples = round(seconds * logmel.MN04.rate)
    if len(wave) >= samples:
        start = int(rng.integers(0, len(wave) - samples + 1))
        return wave[start : start + samples].copy()
    if rng.random() < 0.5:
        return np.resize(wave, samples).astype(np.float32)
    out = np.zeros(samples, np.float32)
    start = int(rng.integers(0, samples - len(wave) + 1))
    out[start : start + len(wave)] = wave
    return out


def level(wave: Wave, decibels: float) -> Wave:
    """Scale to a root mean square of `decibels` re full scale; silence stays silence."""
    rms = float(np.sqrt(np.mean(wave**2)))
    return wave if rms < 1e-6 else (wave * (10 ** (decibels / 20) / rms)).astype(np.float32)


def sound_view(first: Wave, second: Wave | None, rng: np.random.Generator) -> Wave:
    """Two seconds of one sound or of two at different levels, with a random spectral tilt and a noise floor."""
    wave = level(cut(first, SOUND_SECONDS, rng), float(rng.uniform(-38, -12)))
    if second is not None:
        rms = 10 * np.log10(np.mean(wave**2) + 1e-12)
        wave = wave + level(cut(second, SOUND_SECONDS, rng), float(rms - rng.uniform(0, 18)))
    if rng.random() < 0.3:
        wave = tilt(wave, rng)
    wave = wave + rng.standard_normal(len(wave)).astype(np.float32) * 10 ** (rng.uniform(-85, -50) / 20)
    return np.clip(wave, -1, 1).astype(np.float32)


def tilt(wave: Wave, rng: np.random.Generator) -> Wave:
    """Cheap equaliser: a random gain of +-9 dB per octave band, as phones and codecs do."""
    spectrum = np.fft.rfft(wave)
    octave = np.log2(np.maximum(np.arange(len(spectrum)) * logmel.MN04.rate / len(wave), 30) / 30)  # 0 .. 9
    gains = np.interp(octave, np.arange(10), rng.uniform(-9, 9, 10))
    return np.fft.irfft(spectrum * 10 ** (gains / 20), len(wave)).astype(np.float32)


def sound_chunks(
    folder: Path,
    load: Callable[[int], Wave],
    picks: Sequence[int],
    teacher: Teacher,
    *,
    mixed: float,
    seed: int,
    prefix: str,
    size: int = 2048,
) -> None:
    """Make the chunks of sound views, log-mels (N, 128, T) float16; arguments as in picture_chunks."""
    for number, start in enumerate(range(0, len(picks), size)):
        name = f"{prefix}-{number:03d}"
        if (folder / f"{name}.logits.npy").exists():
            continue
        rng = np.random.default_rng((seed, number))
        part = picks[start : start + size]
        seconds = [load(int(rng.choice(np.asarray(picks)))) if rng.random() < mixed else None for _ in part]
        waves = np.stack([sound_view(load(i), other, rng) for i, other in zip(part, seconds, strict=True)])
        mels = torch.cat([logmel.MN04(piece) for piece in torch.from_numpy(waves).split(64)])
        logits, embedding = answers(teacher, mels[:, None])
        save_chunk(folder, name, mels.half().numpy(), logits, embedding)
        log.info("%s: %d views", name, len(part))


def read_rows(table: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file as dictionaries."""
    with table.open(newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)
