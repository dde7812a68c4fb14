"""Class scores of any tagger and any ImageNet classifier on one common scale: the label space.

Every AudioSet tagger says the same 527 words and every ImageNet classifier the same 1,000, each in its own tone of
voice. What is left of a score here is what such encoders have in common. Design and table: labelspace.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

WORDS = 527  # AudioSet's, in index order
THINGS = 1000  # ImageNet's, in torchvision's order
ORIGIN = "mn04"  # the tagger whose logits of 2 s windows are the scale

# share of all logits of mn04 (all words, all segments of 261 clips) that lie below each level
SHARES: Doubles = np.array(
    [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0]
)
LEVELS: Doubles = np.array(
    [-12.55, -10.53, -9.54, -8.45, -7.21, -5.85, -4.92, -3.80, -2.96, -1.97, 0.21, 1.21, 1.68, 2.28, 3.48]
)
CERTAIN = 1e-9, 1 - 1e-7  # probabilities are clipped to these
LIFT = 3.0  # logits that the scale may add to a score at most ...
QUIET = -6.0  # ... above this level, which is next to nothing: half a video of silence must not become words
LONG = 1.0  # seconds; scores of shorter windows are averaged over three neighbours
FLOOR = 0.001  # of a classifier's shares: below it lies each network's own tail


def logits(probabilities: Floats) -> Floats:
    """ln(p / (1 - p)) for taggers that give probabilities, of any shape."""
    p = np.clip(np.asarray(probabilities, np.float64), *CERTAIN)
    return np.asarray(np.log(p / (1 - p)), np.float32)


@dataclass(frozen=True, eq=False)
class Scale:
    """A monotone curve from one tagger's logits to the common scale: piecewise linear, flat beyond its ends.

    Attributes:
        given: (K,) ascending logits of the tagger.
        common: (K,) where they lie on the common scale.
    """

    given: Doubles
    common: Doubles

    @classmethod
    def of(cls, pool: Floats) -> Scale | None:
        """The curve that gives a pool of logits, of all words together, the quantiles of the table.

        Args:
            pool: (N, WORDS) logits, NaN where the tagger lacks a word; segments with sound, of a whole file or of
                reference clips.

        Returns:
            The curve; None if the pool is empty, which has no scale.
        """
        known = pool[np.isfinite(pool)]
        if not len(known):
            return None
        given = np.quantile(known.astype(np.float64), SHARES)
        kept = np.concatenate([np.diff(given) > 0, [True]])  # of equal quantiles the highest: a clipped tail is a tail
        return cls(given[kept], LEVELS[kept])

    def __call__(self, scores: Floats) -> Floats:
        """Logits on the common scale, of any shape; what is next to nothing is not lifted by more than LIFT."""
        mapped = np.interp(scores, self.given, self.common)
        return np.asarray(np.minimum(mapped, np.maximum(scores + LIFT, QUIET)), np.float32)


def averaged(scores: Floats, valid: Bools) -> Floats:
    """Logits of the mean probability over each segment and its neighbours, (N, WORDS), for windows below LONG.

    Args:
        scores: (N, WORDS) logits on the common scale.
        valid: (N,) segments that count.
    """
    known = valid[:, None] & np.isfinite(scores)
    p = np.where(known, _sigmoid(np.nan_to_num(scores)), 0.0)
    sums, counts = _three(p), _three(known.astype(np.float64))
    mean = sums / np.maximum(counts, 1)
    return np.where(known, logits(np.asarray(mean, np.float32)), scores)


def _three(values: Doubles) -> Doubles:
    padded = np.pad(values, ((1, 1), (0, 0)))
    total: Doubles = padded[:-2] + padded[1:-1] + padded[2:]
    return total


def _sigmoid(scores: Floats) -> Doubles:
    return np.asarray(1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -40, 40))))


def heard_words(scores: Floats) -> Floats:
    """Inputs of sound, (..., WORDS): the root of the probability lifts the middle and leaves the tail at 0.

    Args:
        scores: logits on the common scale; NaN stays NaN.
    """
    return np.asarray(np.sqrt(_sigmoid(scores)), np.float32)


def seen_things(scores: Floats) -> Floats:
    """Inputs of pictures, (..., THINGS): ln(softmax + FLOOR).

    Args:
        scores: logits of a classifier.
    """
    powers = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return np.asarray(np.log(powers / powers.sum(-1, keepdims=True) + FLOOR), np.float32)


def scale_of(encoder: str, scores: Floats, heard: Bools) -> Scale | None:
    """The scale of a tagger within one file; None for the tagger that is the scale, or where nothing is heard.

    Args:
        encoder: its name.
        scores: (N, WORDS) logits of the whole file.
        heard: (N,) segments with sound; the others would pass for its quiet ones.
    """
    return None if encoder == ORIGIN else Scale.of(scores[heard])


def words(scores: Floats, heard: Bools, scale: Scale | None, seconds: float = 2.0) -> Floats:
    """What a localizer in label space reads of sound.

    Args:
        scores: (N, WORDS) logits, NaN where the tagger lacks a word.
        heard: (N,) segments with sound.
        scale: of this tagger, see `scale_of`.
        seconds: length of the windows that the tagger heard.

    Returns:
        (N, WORDS), NaN where the tagger lacks a word.
    """
    common = scores if scale is None else scale(scores)
    return heard_words(averaged(common, heard) if seconds < LONG else common)
