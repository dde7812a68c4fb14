"""A corpus of a few tiny files with the same tables as the research corpus, for tests of what reads it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import encode_png

from avtool.features.encoders.catalog import Encoder
from avtool.media.request import PictureSpec
from avtool.training.compose import RATE, write_clip
from avtool.training.corpus import Corpus
from avtool.training.localizer import Pair
from tests.synth import wav

COLOURS = {"alpha": (220, 20, 20), "beta": (20, 20, 220), "gamma": (200, 200, 20), "ground": (20, 200, 20)}
PITCHES = {"alpha": 440.0, "beta": 1500.0, "gamma": 3000.0, "ground": 150.0}
SPLITS = ("train", "val", "test")


def tone(hertz: float, seconds: float, peak: float = 0.3) -> Any:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def picture(colour: Sequence[int], height: int = 60, width: int = 80, seed: int = 0) -> Any:
    """(H, W, 3) uint8 of one colour with a little texture."""
    noise = np.random.default_rng(seed).integers(-15, 16, (height, width, 1))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def _table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _put_sound(path: Path, name: str, seconds: float, peak: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wav(path, tone(PITCHES[name], seconds, peak), RATE)


def _put_picture(path: Path, name: str, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.from_numpy(picture(COLOURS[name], 60, 80, seed)).permute(2, 0, 1)
    path.write_bytes(bytes(encode_png(pixels).numpy()))


def corpus(root: Path) -> Corpus:
    """Two classes that can be composed (alpha's sounds are long and loud, beta's short and soft), gamma from clips."""
    rows = [
        {"event": "alpha_one", "sound_labels": "alpha", "picture_labels": "alpha", "enough": 50, "avepm_label": ""},
        {
            "event": "beta",
            "sound_labels": "beta,none",
            "picture_labels": "beta",
            "enough": 50,
            "avepm_label": "b label",
        },
        {"event": "gamma", "sound_labels": "", "picture_labels": "", "enough": 0, "avepm_label": "g label"},
        {"event": "delta", "sound_labels": "alpha", "picture_labels": "", "enough": 3, "avepm_label": ""},
    ]
    for row in rows:
        row["sounds_train"] = row["pictures_train"] = row.pop("enough")
    sounds, pictures = [], []
    for split in SPLITS:
        for name in ("alpha", "beta", "ground"):
            for k in range(3):
                sound, shown = f"audio/{name}/{split}{k}.wav", f"images/{name}/{split}{k}.png"
                sounds.append({"file": sound, "label": name, "split": split, "teacher_p": ["", "0.5", "0.001"][k]})
                pictures.append({"file": shown, "label": name, "split": split, "width": 120 if k else 64})
                _put_sound(root / "corpus" / sound, name, *((12.0, 0.4) if name == "alpha" else (0.7 + k, 0.02)))
                _put_picture(root / "corpus" / shown, name, k)
    _table(root / "corpus" / "vocabulary.csv", rows)
    _table(root / "corpus" / "audio.csv", sounds)
    _table(root / "corpus" / "images.csv", pictures)
    folder = root / "corpus" / "unlabelled"
    _put_sound(folder / "sounds" / "s.wav", "ground", 3.0, 0.1)
    _put_picture(folder / "photos" / "p.png", "ground", 0)
    _table(folder / "sounds.csv", [{"file": "sounds/s.wav"}])
    _table(folder / "photos.csv", [{"file": "photos/p.png"}])
    _clips(root / "clips" / "avepm")
    return Corpus(root)


def _clips(folder: Path) -> None:
    """Six clips of 10 s; the event fills the first of each class and the second half of the others."""
    folder.mkdir(parents=True)
    rows = []
    for k in range(6):
        name, label = (("beta", "b label"), ("gamma", "g label"))[k % 2]
        onset = 0.0 if k < 2 else 5.0
        times, wave = np.arange(100) / 10, tone(PITCHES[name], 10.0)
        wave[: round(onset * RATE)] = 1e-3 * tone(PITCHES["ground"], onset)
        frames = np.stack([picture(COLOURS[name if t >= onset else "ground"], 48, 64, k) for t in times])
        write_clip(folder / f"{k}.mp4", frames, wave)
        rows.append({"file": f"{k}.mp4", "label": label, "onset": onset, "offset": 10.0, "duration": 10.0})
    _table(folder / "clips.csv", rows)


def event_clip(path: Path, name: str, start: float, end: float, seed: int, seconds: float = 6.0) -> None:
    """A green picture and soft noise, but for the colour and the tone of `name` in [start, end)."""
    rng, times = np.random.default_rng(seed), np.arange(round(seconds * 10)) / 10
    frames = [picture(COLOURS[name if start <= t < end else "ground"], 96, 128, seed) for t in times]
    wave = (3e-3 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)
    first, last = round(start * RATE), round(end * RATE)
    wave[first:last] += tone(PITCHES[name], end - start)[: last - first]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, np.stack(frames), wave)


def encoders(name: str = "small") -> Pair:
    """Encoders that know nothing but colour and the energy around the corpus' pitches; no class scores."""

    def look(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        colour = pictures.float().mean((1, 2)) / 255
        return torch.cat([colour, colour.square(), colour.roll(1, 1) * colour], 1), None

    def listen(waves: Tensor) -> tuple[Tensor, Tensor | None]:
        power = torch.fft.rfft(waves).abs().square() / waves.shape[1]
        bins = [round(hertz * waves.shape[1] / RATE) for hertz in PITCHES.values()]
        bands = torch.stack([power[:, max(0, b - 40) : b + 40].sum(1) for b in bins], 1)
        return torch.log10(torch.cat([bands, bands.sum(1, keepdim=True)], 1) + 1e-3), None

    eye = Encoder(name, "visual", 9, 0, look, "e" * 64, PictureSpec(short=32))
    return Pair(name, eye, Encoder(name, "audio", 5, 0, listen, "a" * 64, rate=RATE, seconds=1.0))
