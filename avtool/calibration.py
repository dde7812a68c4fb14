"""Scores as probabilities: for each class a rising map from what a localizer computes to how often that is right."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1  # of the maps in a model's description
KIND = "beta"
PROBABLE = 1e-4, 1 - 1e-4  # scores are clipped to these first
STEEPEST, FARTHEST = 100.0, 100.0  # limits of what a description may hold
ROWS = 4096  # of a curve at a time
Map = tuple[float, float, float]


@dataclass(frozen=True)
class Calibration:
    """One beta map per class: a score s becomes sigmoid(a ln s - b ln(1 - s) + c); a score of 0 stays 0.

    With a = b this is Platt's scaling of the log-odds. No map falls, so the order of a class's scores stays.
    Source: Kull, Silva Filho, Flach, Beta calibration (2017).

    Attributes:
        maps: (a, b, c) of each class, in the order of the vocabulary.

    Raises:
        ValueError: a map is not three finite numbers, falls, or is level.
    """

    maps: tuple[Map, ...]

    def __post_init__(self) -> None:
        for number, given in enumerate(self.maps):
            if not _is_rising(given):
                raise ValueError(f"the calibration of class {number} is no rising map: {str(given)[:60]}")

    @classmethod
    def read(cls, header: Any, maps: Iterable[Any]) -> Calibration | None:
        """What a model's description says; None where it says nothing.

        Args:
            header: its table `calibration`, or None.
            maps: `calibration` of each class, or None.

        Raises:
            ValueError: it is of an unknown version or kind, incomplete, or has a bad map.
        """
        given = list(maps)
        if header is None and all(m is None for m in given):
            return None
        if not isinstance(header, dict) or any(not isinstance(m, list) for m in given):
            raise ValueError("its calibration is incomplete")
        if (header.get("version"), header.get("kind")) != (VERSION, KIND):
            raise ValueError(f"its calibration is not of version {VERSION}, kind {KIND}")
        return cls(tuple(tuple(m) for m in given))

    def __call__(self, scores: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Probability of being right, (P,).

        Args:
            scores: (P,) in [0, 1].
            labels: (P,) classes.
        """
        a, b, c = np.asarray(self.maps, np.float64).reshape(-1, 3)[np.asarray(labels, np.int64)].T
        return _mapped(np.asarray(scores, np.float64), a, b, c).astype(np.float32)

    def apply(self, curve: npt.NDArray[np.float32]) -> None:
        """The same for a curve (N, C), in place and a stretch at a time, since long films have large ones."""
        a, b, c = np.asarray(self.maps, np.float64).reshape(-1, 3).T
        for first in range(0, len(curve), ROWS):
            part = curve[first : first + ROWS]
            part[:] = _mapped(part.astype(np.float64), a, b, c)


def _is_rising(given: Any) -> bool:
    numbers = isinstance(given, tuple) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in given)
    if not numbers or len(given) != 3 or not all(math.isfinite(x) for x in given):
        return False
    a, b, c = given
    return bool(min(a, b) >= 0 < max(a, b) <= STEEPEST and abs(c) <= FARTHEST)


def _mapped(scores: npt.NDArray[np.float64], a: Any, b: Any, c: Any) -> npt.NDArray[np.float64]:
    p = np.clip(scores, *PROBABLE)
    logit = a * np.log(p) - b * np.log1p(-p) + c
    return np.where(scores > 0, 1 / (1 + np.exp(-logit)), 0.0)
