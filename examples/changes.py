"""Finds the moments at which picture or sound changes most, from the features alone.

python examples/changes.py [VIDEO]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import avtool

DEMO = Path(__file__).with_name("demo.mp4")


def change(features: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """How much row k + 1 differs from row k: 1 - cosine, (N, ...) -> (N - 1,)."""
    rows = features.reshape(len(features), -1)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return np.asarray(1 - np.sum(rows[1:] * rows[:-1], axis=1))


def main(video: str | Path = DEMO) -> dict[str, list[float]]:
    """Print the times (seconds) of the four largest changes of each medium."""
    features = avtool.extract_features(video)
    found: dict[str, list[float]] = {}
    for name, rows in (("picture", features.visual), ("sound", features.audio)):
        if rows is not None:
            largest = np.sort(np.argsort(change(rows))[-4:])
            found[name] = [float(features.times[k + 1, 0]) for k in largest]
            print(f"{name}: {', '.join(f'{t:.1f} s' for t in found[name])}")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:2])
