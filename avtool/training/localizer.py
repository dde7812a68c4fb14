"""Material for training a localizer: real clips and composed scenes as features, and the pairs that teach agreement."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avtool.features.encoders.catalog import Encoder
from avtool.features.extract import extract
from avtool.files import atomic_stream
from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest
from avtool.timegrid import Grid
from avtool.training.additive import Items
from avtool.training.compose import RATE, PictureLaw, SoundLaw, Span, draw_span, labels, picture_scene, sound_scene
from avtool.training.corpus import Corpus, LabelledClip, Library, read_picture, read_sound

log = logging.getLogger("avtool")
GRID = Grid()
CPU = torch.device("cpu")
VERIFYING = 600  # composed picture scenes that teach the verifier, evenly taken from all
EMPTY_EVERY = 12  # one scene in so many shows or sounds no class at all
Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Pair:
    """An encoder pair under the name that its cached features carry."""

    name: str
    visual: Encoder
    audio: Encoder


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Cache arrays, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_stream(path) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def clip_items(corpus: Corpus, pair: Pair, work: Path) -> tuple[Items, Items]:
    """Features of all labelled clips through the road that users' files take; cached in `work`."""
    clips, cache = corpus.clips(), work / f"{pair.name}-clips.npz"
    if not cache.exists():
        rows = [clip_features(clip.path, pair) for clip in clips]
        save_arrays(cache, _pad(rows))
    with np.load(cache) as archive:
        table = {k: archive[k] for k in archive.files}
    truth = clip_labels(clips, table["seen"], len(corpus.classes))
    weight, source = np.ones(len(clips), np.float32), np.arange(len(clips))
    return Items(table["visual"], table["seen"], truth & table["seen"][..., None], weight, source), Items(
        table["audio"], table["heard"], truth & table["heard"][..., None], weight, source
    )


def clip_features(path: Path, pair: Pair) -> dict[str, npt.NDArray[np.generic]]:
    """Embeddings and validity of one file."""
    request = DecodeRequest(pictures=pair.visual.pictures, sample_rate=pair.audio.rate, grid=GRID)
    found = extract(decode(path, request), pair.visual, pair.audio, GRID, CPU)
    rows = found.rows
    visual = found.visual if found.visual is not None else np.zeros((rows, pair.visual.dim), np.float32)
    audio = found.audio if found.audio is not None else np.zeros((rows, pair.audio.dim), np.float32)
    return {"visual": visual, "audio": audio, "seen": found.seen, "heard": found.heard}


def _pad(rows: Sequence[Mapping[str, npt.NDArray[np.generic]]]) -> dict[str, npt.NDArray[np.generic]]:
    length = max(len(r["seen"]) for r in rows)
    return {
        k: np.stack([np.pad(r[k], [(0, length - len(r[k])), *[(0, 0)] * (r[k].ndim - 1)]) for r in rows])
        for k in rows[0]
    }


def clip_labels(clips: Sequence[LabelledClip], valid: npt.NDArray[np.bool_], classes: int) -> npt.NDArray[np.bool_]:
    """(M, T, C): a row belongs to the event if its centre does; an event shorter than a row gets the row it lies in."""
    count, length = valid.shape
    centres = (np.arange(length) + 0.5) * float(GRID.stride)
    truth = np.zeros((count, length, classes), bool)
    for i, clip in enumerate(clips):
        inside = (centres >= clip.onset) & (centres < clip.offset)
        if not (inside & valid[i]).any():
            inside[min(int(valid[i].sum()) - 1, GRID.row((clip.onset + clip.offset) / 2))] = True
        truth[i, :, clip.label] = inside
    return truth


def bank_items(
    corpus: Library,
    pair: Pair,
    split: str,
    count: int,
    work: Path,
    length: int,
    more: tuple[Arrays, Arrays] | None = None,
) -> tuple[Items, Items]:
    """Features of `count` composed sound scenes and as many picture scenes; cached in `work`.

    Args:
        corpus: where sounds and pictures come from.
        pair: encoders.
        split: of the corpus.
        count: scenes of each kind.
        work: cache folder.
        length: rows that the items are padded to.
        more: scenes of both media that follow the drawn ones: x (M, N, D), truth (M, N, C), source (M,) names.
    """
    seed = ("train", "val", "test").index(split)
    sides: list[Items] = []
    for number, make in ((2, _picture_bank), (1, _sound_bank)):
        encoder = pair.visual if number == 2 else pair.audio
        cache = work / f"{pair.name}-{encoder.modality}-scenes-{split}-{count}.npz"
        if not cache.exists():
            save_arrays(cache, make(corpus, encoder, split, count, np.random.default_rng((seed, number))))
        with np.load(cache) as archive:
            found: list[Arrays] = [{k: archive[k] for k in ("x", "truth", "source")}]
        found += [more[len(sides)]] if more else []
        x, truth, source = (np.concatenate([part[k] for part in found]) for k in ("x", "truth", "source"))
        sides.append(_bank(x, truth, numbered(source.tolist()), length))
    return sides[0], sides[1]


def _bank(x: Floats, truth: npt.NDArray[np.bool_], source: npt.NDArray[np.int64], length: int) -> Items:
    count, rows = truth.shape[:2]
    pad = ((0, 0), (0, length - rows), (0, 0))
    valid = np.zeros((count, length), bool)
    valid[:, :rows] = True
    per_class = truth.any(1).sum(0)
    weight = [
        rarest**-0.5
        for rarest in (max(1, int(per_class[t.any(0)].min())) if t.any() else count // EMPTY_EVERY for t in truth)
    ]
    return Items(np.pad(x, pad), valid, np.pad(truth, pad), np.asarray(weight, np.float32), source)


def numbered(files: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number per file; each "" gets one of its own."""
    numbers = {file: k for k, file in enumerate(sorted(set(files) - {""}))}
    return np.asarray([numbers.get(file, len(numbers) + i) for i, file in enumerate(files)], np.int64)


def _sound_bank(
    corpus: Library, encoder: Encoder, split: str, count: int, rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    files, backgrounds, law = corpus.sounds(split), corpus.backgrounds(split)[0], SoundLaw()
    classes = sorted(files)
    embeddings, truths, firsts = [], [], []
    for i in range(count):
        spans: list[Span] = []
        if i % EMPTY_EVERY != EMPTY_EVERY - 1:
            spans.append(draw_span(law.seconds, law.shortest, law.full, classes[i % len(classes)], rng))
            if rng.random() < law.second:
                spans.append(draw_span(law.seconds, law.shortest, 0.0, int(rng.choice(classes)), rng))
        chosen = [_any(files[span.label], rng) for span in spans]
        events = [(span, read_sound(file)) for span, file in zip(spans, chosen, strict=True)]
        under = read_sound(_any(backgrounds, rng)) if not spans or rng.random() < law.background else None
        embeddings.append(encode_sound(sound_scene(events, under, law, rng), encoder))
        truths.append(labels(spans, len(embeddings[-1]), len(corpus.classes)))
        firsts.append(str(chosen[0].relative_to(corpus.root)) if chosen else "")
    return {"x": np.stack(embeddings), "truth": np.stack(truths), "source": np.array(firsts)}


def encode_sound(wave: Floats, encoder: Encoder) -> Floats:
    """Embeddings (N, D) of a whole waveform, one window per row as in features.extract."""
    rows, length = GRID.count(len(wave) / RATE), round(encoder.seconds * RATE)
    centres = [round(GRID.centre(k) * RATE) for k in range(rows)]
    starts = [max(0, min(c - length // 2, len(wave) - length)) for c in centres]
    windows = torch.from_numpy(np.stack([wave[s : s + length] for s in starts]))
    with torch.inference_mode():
        return encoder.run(windows)[0].numpy()


def _picture_bank(
    corpus: Library, encoder: Encoder, split: str, count: int, rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    files, backgrounds, law = corpus.pictures(split), corpus.backgrounds(split)[1], PictureLaw()
    classes = sorted(files)
    times = [float(GRID.centre(k)) for k in range(GRID.count(law.seconds))]
    embeddings, truths, firsts = [], [], []
    for i in range(count):
        spans = (
            [draw_span(law.seconds, law.shortest, law.full, classes[i % len(classes)], rng)]
            if i % EMPTY_EVERY != EMPTY_EVERY - 1
            else []
        )
        chosen = [_any(files[span.label], rng) for span in spans]
        events = [(span, read_picture(file)) for span, file in zip(spans, chosen, strict=True)]
        frames = picture_scene(events, read_picture(_any(backgrounds, rng)), times, law, rng, _size(law, encoder, rng))
        embeddings.append(encode_pictures(frames, encoder))
        truths.append(labels(spans, len(times), len(corpus.classes)))
        firsts.append(str(chosen[0].relative_to(corpus.root)) if chosen else "")
    return {"x": np.stack(embeddings), "truth": np.stack(truths), "source": np.array(firsts)}


def _size(law: PictureLaw, encoder: Encoder, rng: np.random.Generator) -> tuple[int, int]:
    """A shape of the law, scaled so that its short side is what the encoder sees."""
    shares = np.array([share for _, share in law.shapes])
    height, width = law.shapes[int(rng.choice(len(law.shapes), p=shares / shares.sum()))][0]
    short = encoder.pictures.short if encoder.pictures and encoder.pictures.short else min(height, width)
    return round(height * short / min(height, width)), round(width * short / min(height, width))


def encode_pictures(frames: npt.NDArray[np.uint8], encoder: Encoder) -> Floats:
    """Embeddings (N, D) of pictures that have the encoder's size already."""
    with torch.inference_mode():
        return np.concatenate([encoder.run(piece)[0].numpy() for piece in torch.from_numpy(frames).split(10)])


def _any(files: Sequence[Path], rng: np.random.Generator) -> Path:
    return files[int(rng.integers(len(files)))]


def teaching_pairs(
    visual: Items, audio: Items, clips: int, rng: np.random.Generator, quadruples: int = 0
) -> list[tuple[int, int]]:
    """Pairs (visual item, audio item) for the verifier; the first `clips` items are real, the rest composed scenes.

    Every clip twice with its own sound and once with another's; VERIFYING composed picture scenes once with a sound of
    their class and once with any; some composed scenes crossed with real clips. The last items are `quadruples` pairs
    of scenes, the two of a pair alike in all but the class: all four crossings.
    """
    pairs = [(i, i) for i in range(clips)] * 2 + [(i, int(rng.integers(clips))) for i in range(clips)]
    scenes = len(visual.x) - clips
    shown, heard = np.asarray(visual.labels[clips:].any(1)), np.asarray(audio.labels[clips:].any(1))
    for i in range(0, scenes, max(1, scenes // VERIFYING)):
        for label in np.flatnonzero(shown[i])[:1]:
            if len(same := np.flatnonzero(heard[:, label])):
                pairs.append((clips + i, clips + int(rng.choice(same))))
        pairs.append((clips + i, clips + int(rng.integers(scenes))))
        if clips and rng.random() < 0.3:
            pairs += [(clips + i, int(rng.integers(clips))), (int(rng.integers(clips)), clips + i)]
    for k in range(len(visual.x) - 2 * quadruples, len(visual.x), 2):
        pairs += [(k + i, k + j) for i in range(2) for j in range(2)]
    return pairs
