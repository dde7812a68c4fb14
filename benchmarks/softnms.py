"""Soft-NMS over many classes: the lazy exact algorithm against a plain loop over every class, same result.

Run: python benchmarks/softnms.py
Promise: 2,000 segments scored for 100 classes, best 200 of all: at least 50 times faster than the plain loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from avtool.detect.softnms import Kept, soft_nms

PROMISE = 50.0
SIGMA, FLOOR, LIMIT = np.float32(0.4), np.float32(0.001), 200
ROUNDS = 5


def plain(starts: Any, ends: Any, scores: Any, labels: Any) -> Any:
    """Textbook Gaussian Soft-NMS: each class to its end, one vectorised step per pick; scores (K,) of the best."""
    picked = []
    for label in np.unique(labels):
        member = labels == label
        s, e, x = starts[member], ends[member], scores[member]
        length = e - s + np.float32(1e-6)
        while len(x):
            best = x.argmax()
            picked.append(x[best])
            overlap = np.maximum(np.minimum(e, e[best]) - np.maximum(s, s[best]), 0)
            iou = overlap / (length + length[best] - overlap)
            x = x * np.exp(-iou * iou / SIGMA)
            x[best] = 0
            stays = x >= FLOOR
            s, e, x, length = s[stays], e[stays], x[stays], length[stays]
    return np.sort(np.array(picked))[::-1][:LIMIT]


def lazy(starts: Any, ends: Any, scores: Any, labels: Any) -> Kept:
    """The same by avtool."""
    return soft_nms(starts, ends, scores, labels, sigma=float(SIGMA), min_score=float(FLOOR), max_segments=LIMIT)


def problem(segments: int, classes: int, kind: str) -> tuple[Any, Any, Any, Any]:
    """Columns (P,) float32 and labels.

    "dense": each segment has an even score for every class. "trained": most scores are low, as a trained network's.
    "total": each segment belongs to one class, so that `segments` is the number of all candidates together.
    """
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 56, segments).astype(np.float32)
    ends = starts + rng.lognormal(1.0, 0.8, segments).astype(np.float32)
    if kind == "total":
        return starts, ends, rng.uniform(0.001, 1, segments).astype(np.float32), rng.integers(0, classes, segments)
    low, high = (1, 1) if kind == "dense" else (0.4, 4)
    scores = rng.beta(low, high, (segments, classes)).astype(np.float32)
    labels = np.tile(np.arange(classes), segments)
    return starts.repeat(classes), ends.repeat(classes), scores.ravel(), labels


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one run."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(segments: int, classes: int, kind: str) -> float:
    """Prints one row and returns how many times faster the lazy one is: medians of interleaved runs."""
    columns = problem(segments, classes, kind)
    np.testing.assert_allclose(lazy(*columns).scores, plain(*columns), rtol=1e-5)
    times = np.array(
        [(seconds(lambda: plain(*columns)), seconds(lambda: lazy(*columns))) for _ in range(ROUNDS)]
    )  # (ROUNDS, 2)
    slow, fast = np.median(times, axis=0)
    ratios = np.sort(times[:, 0] / times[:, 1])
    print(
        f"{segments:6,} x {classes:3}  {kind:8} {1000 * slow:9.1f} ms {1000 * fast:8.2f} ms"
        f"  {slow / fast:6.1f} times ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    )
    return float(slow / fast)


def main() -> int:
    """Prints the table; status 1 if the promise is broken."""
    print(f"segments x classes, best {LIMIT}: plain loop, lazy, ratio of medians of {ROUNDS} interleaved runs")
    kept = compare(2000, 100, "dense")
    for segments, classes, kind in ((2000, 100, "trained"), (2000, 25, "dense"), (2000, 100, "total")):
        compare(segments, classes, kind)
    print(f"promised at least {PROMISE:.0f} times on 2,000 x 100 dense: {kept:.1f}")
    return 0 if kept >= PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
