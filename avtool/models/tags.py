"""`tags`: finds events without any training, where AudioSet's and ImageNet's words name the same thing."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError
from avtool.features.store import Features
from avtool.models.zoo import ModelInfo, WindowOutput
from avtool.vocabulary import AUDIOSET, IMAGENET, Vocabulary

Floats = npt.NDArray[np.float32]
SMOOTH = np.array([1.0, 2.0, 1.0], np.float32) / 4  # over neighbouring segments
FULL_SOUND = 0.5  # a tagger's probability that counts as certain: one word of several is rarely above it
FULL_PICTURE = 0.4  # a classifier's share that counts as certain: it was trained on one centred object


@cache
def table() -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Event -> (AudioSet indices, ImageNet indices), from data/tags.toml."""
    rows = tomllib.loads((files("avtool") / "data" / "tags.toml").read_text(encoding="utf-8"))
    return {
        event: (tuple(AUDIOSET.index(n) for n in row["heard"]), tuple(i for n in row["seen"] for i in _range(n)))
        for event, row in rows.items()
    }


def _range(name: str) -> Sequence[int]:
    first, _, last = name.partition(" .. ")
    start = IMAGENET.index(first)
    return range(start, (IMAGENET.index(last) if last else start) + 1)


def tags_info() -> ModelInfo:
    """The record of this localizer."""
    names = tuple(table())
    return ModelInfo(
        name="tags",
        kind="tags",
        vocabulary=Vocabulary(names, ("default",) * len(names), (0.4,) * len(names)),
        visual=("mobilenetv2-coral", "mini", "*"),
        audio=("mn04", "mini", "*"),
        settings={"nms": "gaussian", "sigma": 0.4},
        licence="Apache-2.0 (a table of words, no weights); the encoders' own terms apply",
        commercial="yes",
        summary=f"no training: {len(names)} events that AudioSet and ImageNet both name",
        details="no training; class scores of the encoders, matched by a hand-written table of words",
    )


class TagsLocalizer:
    """Scores an event by the geometric mean of its strongest AudioSet word and the sum of its ImageNet words."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    def run(self, features: Features, start: int, stop: int) -> WindowOutput:
        """See zoo.Localizer.

        Raises:
            UsageError: the features hold no class scores.
        """
        part = features.part(start, stop)
        if part.audio_tags is None or part.visual_tags is None:
            raise UsageError(
                "the localizer 'tags' needs class scores", f"{part.visual_encoder} + {part.audio_encoder} gave none"
            )
        heard = _gather(_sigmoid(part.audio_tags), [a for a, _ in table().values()], np.max) / FULL_SOUND
        seen = _gather(_softmax(part.visual_tags), [v for _, v in table().values()], np.sum) / FULL_PICTURE
        audio = smooth(np.clip(heard, 0, 1), part.heard)
        visual = smooth(np.clip(seen, 0, 1), part.seen)
        return WindowOutput(start, stop, np.sqrt(audio * visual), audio, visual)


def _gather(values: Floats, groups: Sequence[Sequence[int]], reduce: np.ufunc | object) -> Floats:
    return np.stack([reduce(values[:, list(g)], axis=1) for g in groups], 1).astype(np.float32)  # type: ignore[operator]


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)


def _softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max(1, keepdims=True))
    total: Floats = powers.sum(1, keepdims=True)
    return powers / total


def smooth(curve: Floats, valid: npt.NDArray[np.bool_]) -> Floats:
    """Weighted mean over three neighbouring segments.

    Args:
        curve: (N, C).
        valid: (N,) segments that say something: the others do not count, and are 0 in the result.

    Returns:
        (N, C).
    """
    known = valid[:, None].astype(np.float32)
    sums, total = (_three(values) for values in (curve * known, known))
    return np.asarray(np.divide(sums, total, out=np.zeros_like(sums), where=known > 0), np.float32)


def _three(values: Floats) -> Floats:
    """Sum over three neighbours with the weights SMOOTH, (N, C) -> (N, C); nothing lies beside the ends."""
    padded = np.pad(values, ((1, 1), (0, 0)))
    return np.asarray(SMOOTH[0] * padded[:-2] + SMOOTH[1] * padded[1:-1] + SMOOTH[2] * padded[2:], np.float32)
