"""Seconds, segments and windows: the grid every feature row and every localizer lives on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil


@dataclass(frozen=True)
class Grid:
    """Segments of `segment` seconds, one every `stride` seconds, starting at 0.

    Row k covers [k * stride, k * stride + segment) seconds. With stride == segment (the
    default of every embedded model) the rows tile the file.
    """

    segment: Fraction = Fraction(1, 2)
    stride: Fraction = Fraction(1, 2)

    def count(self, duration: float | Fraction) -> int:
        """Rows of a file of `duration` seconds: half a stride at the end gets a row, as does any file with content."""
        if duration <= 0:
            return 0
        rows = (Fraction(duration) - self.segment) / self.stride + 1
        return max(1, ceil(rows - Fraction(1, 2)))

    def start(self, row: int) -> Fraction:
        """Start of a row in seconds."""
        return row * self.stride

    def centre(self, row: int) -> Fraction:
        """Centre of a row in seconds: where its picture is taken and its sound window is centred."""
        return row * self.stride + self.segment / 2

    def row(self, seconds: float | Fraction) -> int:
        """Row whose centre is nearest to `seconds`, not below 0."""
        return max(0, round((Fraction(seconds) - self.segment / 2) / self.stride))


@dataclass(frozen=True)
class Window:
    """Rows [start, stop) seen at once; scores inside [keep_start, keep_stop) are trusted most."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def windows(rows: int, size: int, hop: int) -> Iterator[Window]:
    """Overlapping windows over `rows` segments, the last one moved back to end with the file.

    The kept parts tile [0, rows): each boundary lies in the middle of an overlap.

    Args:
        rows: segments of the file.
        size: segments per window.
        hop: segments between window starts, 0 < hop <= size.
    """
    if rows <= 0:
        return
    starts = list(range(0, max(1, rows - size + 1), hop))
    if starts[-1] + size < rows:
        starts.append(rows - size)
    stops = [min(s + size, rows) for s in starts]
    cuts = [0] + [(a + b) // 2 for a, b in zip(starts[1:], stops[:-1], strict=True)] + [rows]
    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        yield Window(start, stop, cuts[i], cuts[i + 1])
