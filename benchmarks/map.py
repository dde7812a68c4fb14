"""Mean average precision: avtool against a row-by-row evaluator, same numbers.

Run: python benchmarks/map.py
Promise: 200 videos with 100 detections each: at least 20 times faster.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from avtool.evaluation.map import TIOUS, Segments, mean_ap

PROMISE = 20.0
ROUNDS = 3


def row_by_row(truth: Segments, found: Segments) -> Any:
    """The evaluator as it is usually written: one detection after the other, its video's events looked up each time."""
    return np.array([one_class(truth, found, label) for label in np.unique(truth.labels)]).mean(axis=0)


def one_class(truth: Segments, found: Segments, label: int) -> Any:
    """(T,) AP of one class."""
    events = truth.take(truth.labels == label)
    own = found.take(found.labels == label)
    order = np.argsort(-own.scores, kind="stable")
    taken = np.zeros((len(TIOUS), len(events)), bool)
    hits = np.zeros((len(TIOUS), len(own)), bool)
    for i, k in enumerate(order):
        place = np.flatnonzero(events.videos == own.videos[k])
        if not len(place):
            continue
        overlap = np.minimum(own.ends[k], events.ends[place]) - np.maximum(own.starts[k], events.starts[place])
        overlap = np.maximum(overlap, 0)
        union = own.ends[k] - own.starts[k] + events.ends[place] - events.starts[place] - overlap
        iou = overlap / union
        for t, threshold in enumerate(TIOUS):
            for j in np.argsort(-iou):
                if iou[j] < threshold:
                    break
                if not taken[t, place[j]]:
                    taken[t, place[j]] = hits[t, i] = True
                    break
    return [interpolated(row, len(events)) for row in hits]


def interpolated(hits: Any, events: int) -> float:
    """Area under the precision envelope."""
    right = np.cumsum(hits)
    precision = np.concatenate([[0], right / np.arange(1, len(hits) + 1), [0]])
    recall = np.concatenate([[0], right / events, [1]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = np.flatnonzero(np.diff(recall)) + 1
    return float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum())


def problem(videos: int = 200, each: int = 100, classes: int = 25) -> tuple[Segments, Segments]:
    """Events of 2.8 per video as in UnAV-100; half of the detections lie near one."""
    rng = np.random.default_rng(0)
    count = rng.poisson(1.8, videos) + 1
    video = np.repeat(np.arange(videos), count)
    starts = rng.uniform(0, 40, len(video))
    truth = Segments(video, starts, starts + rng.lognormal(1.5, 1, len(video)), rng.integers(0, classes, len(video)))
    owner = np.repeat(np.arange(videos), each)
    event = np.array([rng.choice(np.flatnonzero(video == v)) for v in owner])
    near = rng.random(len(owner)) < 0.5
    length = (truth.ends - truth.starts)[event]
    begin = np.where(
        near, truth.starts[event] + rng.normal(0, 0.2, len(owner)) * length, rng.uniform(0, 40, len(owner))
    )
    end = begin + np.where(near, length * rng.lognormal(0, 0.2, len(owner)), rng.lognormal(1.5, 1, len(owner)))
    labels = np.where(near, truth.labels[event], rng.integers(0, classes, len(owner)))
    return truth, Segments(owner, begin, end, labels, rng.random(len(owner)))


def main() -> int:
    """Prints both times and their ratio; status 1 if the promise is broken."""
    truth, found = problem()
    times = []
    for _ in range(ROUNDS):
        marks = [time.process_time()]
        expected = row_by_row(truth, found)
        marks.append(time.process_time())
        result = mean_ap(truth, found)
        marks.append(time.process_time())
        times.append(np.diff(marks))
    slow, fast = np.median(times, axis=0)
    ratios = sorted(a / b for a, b in times)
    print(f"200 videos x 100 detections, 25 classes, 9 thresholds; medians of {ROUNDS} interleaved runs")
    print(f"row by row {1000 * slow:.0f} ms, avtool {1000 * fast:.1f} ms: {slow / fast:.0f} times", end=" ")
    print(f"({ratios[0]:.0f} to {ratios[-1]:.0f}); largest difference {np.abs(expected - result.by_tiou).max():.1e}")
    return 0 if slow / fast >= PROMISE and np.allclose(expected, result.by_tiou, atol=1e-12) else 1


if __name__ == "__main__":
    sys.exit(main())
