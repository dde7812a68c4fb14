"""Cross-modality localization: where in one modality does what is heard or seen in the other happen (avel.md 8.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError

Floats = npt.NDArray[np.floating]
Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class Matches:
    """Result of one direction.

    Attributes:
        starts: (K,) predicted start of each query's event in the other modality.
        truth: (K,) true start.
        clips: (K,) which of the clips given; those without an event, and those that are event throughout, are left out.
        accuracy: share of exact starts, the field's figure; NaN without clips.
        skipped: clips left out.
    """

    starts: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    clips: npt.NDArray[np.int64]
    accuracy: float
    skipped: int


@dataclass(frozen=True)
class CML:
    """Both directions: sound asks picture, picture asks sound."""

    a2v: Matches
    v2a: Matches


def match(query: Floats, target: Floats, events: npt.ArrayLike, distance: Distance = "euclidean") -> Matches:
    """Slides the event segments of one modality along the other; the first start with the least summed distance wins.

    A hit is the exact start alone.

    Args:
        query: (V, T, d) embeddings of the asking modality.
        target: (V, T, d) embeddings of the modality that is searched.
        events: (V, T) whether a segment is an event; one contiguous stretch per clip.
        distance: between embeddings; euclidean as sqrt(max(squared, 1e-7)), cosine as 1 - cos.

    Raises:
        UsageError: shapes or the distance do not fit.
    """
    q, t, active = np.asarray(query, np.float64), np.asarray(target, np.float64), np.asarray(events, bool)
    if q.shape != t.shape or q.ndim != 3 or active.shape != q.shape[:2]:
        why = f"shapes are {q.shape}, {t.shape} and {active.shape}"
        raise UsageError("two sets of embeddings (clips, segments, width) and their events are needed", why)
    lengths = active.sum(axis=1)
    clips = np.flatnonzero((lengths > 0) & (lengths < q.shape[1]))
    truth = active.argmax(axis=1)[clips]
    starts = np.array([_best_start(_distances(q[i], t[i], distance), active[i]) for i in clips], np.int64)
    accuracy = float((starts == truth).mean()) if len(clips) else float("nan")
    return Matches(starts, truth, clips, accuracy, len(q) - len(clips))


def evaluate(visual: Floats, audio: Floats, events: npt.ArrayLike, distance: Distance = "euclidean") -> CML:
    """Both directions of `match`, for embeddings (V, T, d) of both modalities."""
    return CML(a2v=match(audio, visual, events, distance), v2a=match(visual, audio, events, distance))


def random_accuracy(events: npt.ArrayLike) -> float:
    """What guessing the start hits on average: the mean of 1 / (T - length + 1) over the clips that count."""
    active = np.asarray(events, bool)
    lengths = active.sum(axis=1)
    counted = lengths[(lengths > 0) & (lengths < active.shape[1])]
    return float((1 / (active.shape[1] - counted + 1)).mean()) if len(counted) else float("nan")


def _distances(query: Floats, target: Floats, distance: str) -> Floats:
    """(T, T) from every query segment to every target segment."""
    if distance == "euclidean":
        squared = ((query[:, None] - target[None]) ** 2).sum(axis=-1)
        return np.asarray(np.sqrt(np.maximum(squared, 1e-7)))
    if distance == "cosine":
        lengths = np.linalg.norm(query, axis=-1)[:, None] * np.linalg.norm(target, axis=-1)
        return np.asarray(1 - np.divide(query @ target.T, lengths, out=np.zeros_like(lengths), where=lengths > 0))
    raise UsageError(f"no distance {distance!r}", hint="euclidean or cosine")


def _best_start(cost: Floats, active: npt.NDArray[np.bool_]) -> int:
    """First start with the least cost; cost (T, T), active (T,)."""
    asked = np.flatnonzero(active)
    rows = np.arange(len(asked))
    totals = [cost[asked, start + rows].sum() for start in range(len(active) - len(asked) + 1)]
    return int(np.argmin(totals))
