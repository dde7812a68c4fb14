"""Made-up features of AVE's shape, to see in a minute whether a network learns at all (avel.md 10.4).

Every class has a prototype in each medium. In an event segment both media show the clip's class; in a background
segment one of them, by turns, shows another class, or both show none. A clip's prototypes are shifted by noise of its
own, so that one medium alone often takes its class for another; only both together know it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avtool.training.segments import SegmentData

SEGMENTS = 10
LENGTHS = {10: 2750, 3: 220, 4: 217, 2: 214, 6: 200, 5: 196, 7: 139, 8: 111, 9: 95}  # of AVE's events (avel.md 1.3)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SyntheticLaw:
    """What is drawn.

    Attributes:
        classes: event classes.
        clips: of the splits train, val and test.
        empty: clips without events beside them, for weak training.
        visual, audio: dimensions.
        positions: of the visual map; 0: none, a vector a segment.
        own: length of a clip's own shift, and
        noise: of a segment's, relative to a prototype's.
        whole: share of clips that their event fills; None: AVE's.
        seed: of everything.
    """

    classes: int = 8
    clips: tuple[int, int, int] = (600, 150, 150)
    empty: int = 0
    visual: int = 32
    audio: int = 24
    positions: int = 0
    own: float = 1.2
    noise: float = 0.4
    whole: float | None = None
    seed: int = 0


def synthetic(law: SyntheticLaw) -> SegmentData:
    """Clips of a law; the last `empty` ones have no event."""
    rng = np.random.default_rng(law.seed)
    count = sum(law.clips) + law.empty
    own, labels = _labels(law, count, rng)
    shown, heard = _contents(labels, own, law, rng)
    visual, audio = (
        _features(content, own, dim, law, rng) for content, dim in ((shown, law.visual), (heard, law.audio))
    )
    if law.positions:
        visual = _placed(visual, law, rng)
    ends = np.cumsum(law.clips)
    names = ("train", "val", "test")
    splits = {name: np.arange(end - n, end) for name, end, n in zip(names, ends, law.clips, strict=True)}
    clip_classes = np.where(np.arange(count) < ends[-1], own, law.classes)
    return SegmentData(
        tuple(f"class {k}" for k in range(law.classes)),
        lambda index: visual[index],
        lambda index: audio[index],
        labels,
        clip_classes,
        np.ones(labels.shape, bool),
        splits,
        (law.visual, law.audio),
        np.arange(ends[-1], count),
    )


def _labels(
    law: SyntheticLaw, count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Class of every clip (M,) and labels of its segments (M, T)."""
    own = rng.integers(law.classes, size=count)
    lengths = np.array(list(LENGTHS))
    shares = np.array(list(LENGTHS.values()), float)
    if law.whole is not None:
        shares[1:] *= (1 - law.whole) / shares[1:].sum()
        shares[0] = law.whole
    labels = np.full((count, SEGMENTS), law.classes)
    for i, length in enumerate(rng.choice(lengths, count, p=shares / shares.sum())):
        if i < sum(law.clips):
            start = int(rng.integers(SEGMENTS - length + 1))
            labels[i, start : start + length] = own[i]
    return own, labels


def _contents(
    labels: npt.NDArray[np.int64], own: npt.NDArray[np.int64], law: SyntheticLaw, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What is shown and what sounds, (M, T) each, -1 for nothing."""
    both = np.repeat(own[:, None], SEGMENTS, 1)
    shown, heard = both.copy(), both.copy()
    background = labels == law.classes
    other = (both + rng.integers(1, max(2, law.classes), both.shape)) % law.classes
    kind = rng.integers(5, size=both.shape)
    for content, kinds in ((shown, (0, 1)), (heard, (2, 3))):
        content[background & np.isin(kind, kinds)] = other[background & np.isin(kind, kinds)]
        content[background & (kind == 4)] = -1
    return shown, heard


def _features(
    content: npt.NDArray[np.int64], own: npt.NDArray[np.int64], dim: int, law: SyntheticLaw, rng: np.random.Generator
) -> Floats:
    """(M, T, dim), not negative like those of the usual encoders."""
    prototypes = rng.standard_normal((law.classes + 1, dim)) / dim**0.5
    prototypes[-1] = 0  # nothing
    wrong = (own + rng.integers(1, max(2, law.classes), len(own))) % law.classes
    shift = law.own * rng.random((len(own), 1)) * prototypes[wrong]  # towards another class, all clip long
    x = prototypes[content] + shift[:, None] * (content >= 0)[..., None]
    x = x + law.noise * rng.standard_normal(x.shape) / dim**0.5
    return np.asarray(np.maximum(x * dim**0.5 + 0.5, 0), np.float32)


def _placed(visual: Floats, law: SyntheticLaw, rng: np.random.Generator) -> Floats:
    """(M, T, C) -> (M, T, N, C): the content at one position of each clip, noise at the others."""
    count, length, dim = visual.shape
    out = np.maximum(law.noise * rng.standard_normal((count, length, law.positions, dim)), 0).astype(np.float32)
    place = rng.integers(law.positions, size=count)
    out[np.arange(count), :, place] = visual
    return out
