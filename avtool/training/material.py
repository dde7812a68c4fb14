"""What the embedded encoders are distilled on: which files give how many views of which shape.

    python -m avtool.training.material --shared ../shared --work DIR      makes the views (20 minutes)
    python -m avtool.training.distill --work DIR --out weights            trains on them

Test and validation files of the corpus and the clips of `corpus/clips` are never read.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avtool import weights
from avtool.features.encoders import mn04, mobilenet
from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest, Picture, PictureSpec
from avtool.timegrid import Grid
from avtool.training.corpus import Corpus, folds, read_picture, read_sound
from avtool.training.views import (
    SQUARE,
    TALL,
    WIDE,
    Pixels,
    Shape,
    Teacher,
    Wave,
    picture_chunks,
    read_rows,
    sound_chunks,
)

SMALL = 64  # pixels; pictures of this width say little and get fewer views
FRAMES = 20  # of each clip, two a second
SOUND_VIEWS = 3.0  # per second of a labelled or unlabelled sound, at least 5 and at most 40 a file
CLIP_SOUND_VIEWS = 50  # per clip


def picture_teacher() -> Teacher:
    """MobileNetV2's logits and embedding of uint8 pictures (B, 3, h, w)."""
    state = weights.load(weights.path("mobilenetv2-coral"))
    model = mobilenet.load_state(mobilenet.MobileNetV2Coral(), state).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def teach(pictures: Tensor) -> tuple[Tensor, Tensor]:
        return model(mobilenet.prepare(pictures).contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    return teach


def sound_teacher() -> Teacher:
    """mn04's logits and embedding of log-mels (B, 1, 128, T)."""
    model = mn04.Mn04()
    model.load_state_dict(weights.load(weights.path("mn04")), strict=False)
    return model.eval()


def picture_views(shared: Path, folder: Path) -> None:
    """All picture chunks; those that are there are kept."""
    corpus, teacher = shared / "corpus", picture_teacher()
    rows = [r for r in read_rows(corpus / "images.csv") if r["split"] == "train"]
    photos = [corpus / "unlabelled" / r["file"] for r in read_rows(corpus / "unlabelled" / "photos.csv")]
    paths = [corpus / r["file"] for r in rows] + photos
    small = [i for i, r in enumerate(rows) if int(r["width"]) <= SMALL]
    large = [i for i, r in enumerate(rows) if int(r["width"]) > SMALL]
    photo = list(range(len(rows), len(paths)))

    def still(shape: Shape, picks: list[int], prefix: str, seed: int, smallest: float, mixed: float) -> None:
        order = [int(i) for i in np.random.default_rng(seed).permutation(picks)]
        picture_chunks(
            folder,
            shape,
            lambda i: read_picture(paths[i]),
            order,
            teacher,
            smallest=smallest,
            mixed=mixed,
            seed=seed,
            prefix=prefix,
        )

    clip_pictures(shared, folder, teacher, TALL, "tall-avepm", 100, 0.6)
    clip_pictures(shared, folder, teacher, TALL, "tall-avepmb", 150, 0.35)
    clip_pictures(shared, folder, teacher, SQUARE, "square-avepm", 200, 0.3)
    still(SQUARE, photo * 4, "square-photo", 11, 0.2, 0.2)
    still(SQUARE, large * 6, "square-big", 12, 0.3, 0.25)
    still(TALL, [*photo, *large][::2], "tall-photo", 14, 0.5, 0.1)
    still(WIDE, photo, "wide-photo", 15, 0.4, 0.1)
    still(SQUARE, small[::2], "square-small", 16, 0.6, 0.3)


def clip_pictures(
    shared: Path, folder: Path, teacher: Teacher, shape: Shape, prefix: str, seed: int, smallest: float
) -> None:
    """Chunks of the clips' frames, one set per fold, so that a fold can be left out."""
    clips = Corpus(shared).clips()
    fold = folds(clips, 0)

    @lru_cache(maxsize=4)
    def frames(clip: int) -> list[Pixels]:
        request = DecodeRequest(pictures=PictureSpec(), sample_rate=None, grid=Grid())
        return [item.pixels for item in decode(clips[clip].path, request) if isinstance(item, Picture)]

    def load(pick: int) -> Pixels:
        shown = frames(pick // FRAMES)
        return shown[min(pick % FRAMES, len(shown) - 1)]

    for number in range(3):
        picks = [i * FRAMES + k for i in range(len(clips)) if fold[i] == number for k in range(FRAMES)]
        name = f"{prefix}-f{number}"
        picture_chunks(
            folder, shape, load, picks, teacher, smallest=smallest, mixed=0.15, seed=seed + number, prefix=name
        )


def sound_views(shared: Path, folder: Path) -> None:
    """All sound chunks; those that are there are kept."""
    corpus, teacher = shared / "corpus", sound_teacher()
    files = [corpus / r["file"] for r in read_rows(corpus / "audio.csv") if r["split"] == "train"]
    files += [corpus / "unlabelled" / r["file"] for r in read_rows(corpus / "unlabelled" / "sounds.csv")]
    sounds = [_small(read_sound(f)) for f in files]
    counts = [int(min(40, max(5, round(len(s) / mn04.RATE * SOUND_VIEWS)))) for s in sounds]
    picks = [i for i, count in enumerate(counts) for _ in range(count)]
    clips = Corpus(shared).clips()
    tracks, fold = [_small(read_sound(c.path)) for c in clips], folds(clips, 0)

    def make(load: Callable[[int], Wave], chosen: list[int], mixed: float, seed: int, prefix: str) -> None:
        order = [int(i) for i in np.random.default_rng(seed).permutation(chosen)]
        sound_chunks(folder, load, order, teacher, mixed=mixed, seed=seed, prefix=prefix)

    for number in range(3):
        chosen = [i for i in range(len(clips)) if fold[i] == number] * CLIP_SOUND_VIEWS
        make(lambda i: tracks[i].astype(np.float32), chosen, 0.35, 300 + number, f"sound-avepm-f{number}")
    make(lambda i: sounds[i].astype(np.float32), picks, 0.5, 310, "sound-corpus")


def _small(wave: Wave) -> np.ndarray[tuple[int], np.dtype[np.float16]]:
    """Half the memory for hours of sound."""
    return wave.astype(np.float16)


def main() -> None:
    """Make all views."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    picture_views(options.shared, options.work / "views")
    sound_views(options.shared, options.work / "views")


if __name__ == "__main__":
    main()
