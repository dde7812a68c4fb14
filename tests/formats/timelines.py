"""The same timelines for every format: none, one, overlapping, a thousand events, labels that are hard to write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from avtool.timeline import Curves, Event, Timeline
from tests.cli.fakes import HOSTILE, make_timeline

HARD_LABELS = [
    'a "quoted" word',
    "a --> b",
    "<script>alert(1)</script>",
    "tab\there",
    "line\nbreak",
    "🎺 émoji 👩‍👩‍👧",
    "צפצוף אזעקה",
    "=1+1",
    "a | b",
    "x; y # z = \\",
    "it's, a comma",
    "&amp; <b>",
    *(label for label in HOSTILE if len(label) < 1000),
]


def hard() -> Timeline:
    """One event for each hard label, a second apart."""
    events = tuple(Event(float(i), i + 0.5, label, 0.5 + i / 100) for i, label in enumerate(HARD_LABELS))
    return make_timeline(events=events, candidates=events)


def overlapping() -> Timeline:
    """Two classes at once, and one class twice at once."""
    events = (
        Event(0.0, 9.0, "speech", 0.45),
        Event(2.0, 3.0, "speech", 0.9),
        Event(2.5, 12.25, "dog bark", 0.8123),
        Event(12.25, 13.0, "dog bark", 0.7),
    )
    return make_timeline(events=events, candidates=events)


def thousand(events: int = 1000, classes: int = 12, seconds: float = 3600.0) -> Timeline:
    """A long file full of events, some overlapping, with curves on a grid of half a second; the same at every call."""
    source = np.random.default_rng(8)
    labels = [f"class {number}" for number in range(classes)]
    starts = np.sort(source.uniform(0, seconds - 10, events))
    found = tuple(
        Event(round(float(s), 3), round(float(s + length), 3), labels[label], round(float(score), 4))
        for s, length, label, score in zip(
            starts,
            source.uniform(0.4, 10, events),
            source.integers(0, classes, events),
            source.uniform(0.05, 1, events),
            strict=True,
        )
    )
    values = source.integers(0, 256, (round(2 * seconds), classes), dtype=np.uint8)
    media = replace(make_timeline().media, duration=seconds, declared_duration=seconds, analysed_until=seconds)
    return make_timeline(
        media=media,
        events=tuple(e for e in found if e.score >= 0.3),
        candidates=found,
        curves=Curves(tuple(labels), 0.5, values),
    )


def full() -> Timeline:
    """A thousand events, not only candidates."""
    timeline = thousand()
    return replace(timeline, events=timeline.candidates)


TIMELINES = {
    "empty": make_timeline(events=(), candidates=()),
    "one": make_timeline(),
    "overlapping": overlapping(),
    "thousand": full(),
    "hard labels": hard(),
}
