"""Composed training material from two folders: `pictures/LABEL/*` and `sounds/LABEL/*`, no labelled video needed."""

from __future__ import annotations

import hashlib
import io
import wave
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from avtool.errors import InputError
from avtool.files import printable, write_atomic
from avtool.training.compose import RATE
from avtool.training.corpus import EventClass, LabelledClip

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
SOUNDS = (".wav", ".ogg", ".flac", ".mp3", ".m4a", ".aac", ".opus")
VALIDATION = 4  # one file in so many, at least one, is kept for choosing thresholds and epochs
FEWEST = 3  # pictures, and sounds, of a class
MADE_UP = 12  # backgrounds of each medium where none are given


class FolderLibrary:
    """Labelled pictures and sounds under one folder, in the form that composed scenes are drawn from.

    A folder `backgrounds` beside the two may hold `pictures` and `sounds` of no class; else grey textures and noise
    are made up. Every fourth file of a class, by the hash of its content, is of the split "val".

    Args:
        root: with `pictures/LABEL/*` and `sounds/LABEL/*`.
        work: where made-up backgrounds go.

    Raises:
        InputError: a folder is missing, or a class has too few files.
    """

    def __init__(self, root: Path, work: Path) -> None:
        self.root, self.work = root, work
        shown, heard = _labels(root / "pictures"), _labels(root / "sounds")
        self.lonely = tuple(sorted(shown ^ heard))  # labels of one medium alone, which cannot be composed
        self.names = tuple(sorted(shown & heard))
        if not self.names:
            why = "no label has both pictures and sounds"
            hint = "pictures/LABEL/*.jpg and sounds/LABEL/*.wav, the same LABELs"
            raise InputError(f"nothing can be composed from {printable(root)}", why, hint)
        self.classes = tuple(EventClass(name, "", composed=True) for name in self.names)
        for kind, endings in (("pictures", PICTURES), ("sounds", SOUNDS)):
            for name in self.names:
                found = len(_files(root / kind / name, endings))
                if found < FEWEST:
                    what = f"{printable(root / kind / name)} has {found} files"
                    raise InputError(what, f"at least {FEWEST} {kind} of a class are needed")

    def sounds(self, split: str) -> Mapping[int, list[Path]]:
        """Class index -> sound files of "train" or "val"."""
        return self._split("sounds", SOUNDS)[split]

    def pictures(self, split: str) -> Mapping[int, list[Path]]:
        """Class index -> picture files of "train" or "val"."""
        return self._split("pictures", PICTURES)[split]

    def backgrounds(self, split: str) -> tuple[list[Path], list[Path]]:
        """Sounds and pictures of no class."""
        sounds, pictures = self._backgrounds
        return [f for k, f in enumerate(sounds) if (k % VALIDATION == 0) == (split == "val")] or sounds, [
            f for k, f in enumerate(pictures) if (k % VALIDATION == 0) == (split == "val")
        ] or pictures

    def clips(self) -> list[LabelledClip]:
        """None: all is composed."""
        return []

    @cached_property
    def identity(self) -> dict[str, str]:
        """Path below the root -> size and time of change, of all files."""
        files = sorted(f for kind in ("pictures", "sounds", "backgrounds") for f in (self.root / kind).rglob("*"))
        return {
            str(f.relative_to(self.root)): f"{f.stat().st_size} {f.stat().st_mtime_ns}" for f in files if f.is_file()
        }

    def _split(self, kind: str, endings: tuple[str, ...]) -> dict[str, dict[int, list[Path]]]:
        out: dict[str, dict[int, list[Path]]] = {"train": {}, "val": {}}
        for index, name in enumerate(self.names):
            files = sorted(_files(self.root / kind / name, endings), key=_digest)
            kept = max(1, len(files) // VALIDATION)
            out["val"][index], out["train"][index] = files[:kept], files[kept:]
        return out

    @cached_property
    def _backgrounds(self) -> tuple[list[Path], list[Path]]:
        folder = self.root / "backgrounds"
        sounds, pictures = _files(folder / "sounds", SOUNDS), _files(folder / "pictures", PICTURES)
        return sounds or _made_sounds(self.work / "backgrounds"), pictures or _made_pictures(self.work / "backgrounds")


def _labels(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {printable(folder)}", hint=f"it holds a folder for each label: {folder}/dog"
        )
    return {f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")}


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in endings) if folder.is_dir() else []


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _made_sounds(folder: Path) -> list[Path]:
    """Noise of several colours, 10 s each."""
    files = []
    for k in range(MADE_UP):
        rng = np.random.default_rng((7, k))
        spectrum = np.fft.rfft(rng.standard_normal(10 * RATE))
        slope = np.maximum(np.arange(len(spectrum)), 1.0) ** -rng.uniform(0.2, 1.0)
        sound = np.fft.irfft(spectrum * slope)
        pcm = (sound / np.abs(sound).max() * 16_000).astype("<i2")
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE)
            out.writeframes(pcm.tobytes())
        files.append(folder / f"noise{k}.wav")
        if not files[-1].exists():
            write_atomic(files[-1], buffer.getvalue())
    return files


def _made_pictures(folder: Path) -> list[Path]:
    """Soft blobs of muted colours."""
    from torchvision.io import encode_png

    files = []
    for k in range(MADE_UP):
        generator = torch.Generator().manual_seed(k)
        coarse = torch.rand(1, 3, int(3 + k % 4), 4, generator=generator) * 140 + 50
        picture = torch.nn.functional.interpolate(coarse, (192, 256), mode="bicubic").clamp(0, 255)[0]
        noisy = (picture + 6 * torch.randn(picture.shape, generator=generator)).clamp(0, 255)
        files.append(folder / f"blobs{k}.png")
        if not files[-1].exists():
            write_atomic(files[-1], bytes(encode_png(noisy.to(torch.uint8)).numpy()))
    return files
