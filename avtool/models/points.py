"""Points of the feature pyramid: the grid time and event lengths that each output row stands for (NumPy only)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

RANGE_BASE = 4.0  # grid steps: level 1 regresses distances up to this, each further level twice as far
RANGE_OPEN = 10_000.0  # grid steps: upper end of the last level, in effect infinity


def level_lengths(length: int, levels: int) -> tuple[int, ...]:
    """Output rows per level for an input of `length` rows: every second row survives a level, so ceil(length / 2^l)."""
    return tuple(-(-length // 2**level) for level in range(levels))


def regression_ranges(levels: int) -> NDArray[np.float32]:
    """Smallest and largest max(left, right) in grid steps that each level answers for, both ends inclusive.

    Args:
        levels: pyramid levels L.

    Returns:
        (L, 2): (0, 4) (4, 8) (8, 16) ... doubling, the last one open (dave.md section 3, "Points").
    """
    edges = [0.0] + [RANGE_BASE * 2**level for level in range(levels - 1)] + [RANGE_OPEN]
    return np.array(list(pairwise(edges)), dtype=np.float32)


def pyramid_points(length: int, levels: int) -> NDArray[np.float32]:
    """Points of all levels, level by level: the order of a localizer's concatenated outputs.

    Args:
        length: input rows T.
        levels: pyramid levels L.

    Returns:
        (N, 4), N = sum of `level_lengths`: grid time t = i * 2^l (no half-stride shift), range low, range high,
        stride 2^l (dave.md section 3, "Points").
    """
    ranges = regression_ranges(levels)
    blocks = []
    for level, rows in enumerate(level_lengths(length, levels)):
        stride = np.float32(2**level)
        block = np.empty((rows, 4), dtype=np.float32)
        block[:, 0] = np.arange(rows, dtype=np.float32) * stride
        block[:, 1:3] = ranges[level]
        block[:, 3] = stride
        blocks.append(block)
    return np.concatenate(blocks)


@dataclass(frozen=True, eq=False)
class PyramidLevel:
    """What a head says on one level of an anchor-free pyramid, for one video.

    Attributes:
        logits: (T, C) class logits.
        offsets: (T, C, 2) class-aware or (T, 2) class-agnostic distances from the point to the start and to the end,
            in strides of the level, not negative.
        mask: (T,) True where the point is inside the video.
        stride: segments between two points; point i lies at segment i * stride.
    """

    logits: NDArray[np.float32]
    offsets: NDArray[np.float32]
    mask: NDArray[np.bool_]
    stride: int
