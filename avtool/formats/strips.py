"""Timelines as small drawings in SVG, for pages that must do without a script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from avtool.formats.labels import classes, plain
from avtool.timeline import Event

# Okabe and Ito's colours (jfly.uni-koeln.de/color) and two more: told apart by the colour-blind, readable on light and
# dark. No information is in the colour alone.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
_LANE, _BAR, _WIDTH, _NAME = 20, 14, 1000, 180  # pixels
_MINI = (320, 24)  # pixels
MOST_LANES = 40


def colour(number: int) -> str:
    """The colour of a class by its number."""
    return COLOURS[number % len(COLOURS)]


def class_order(events: Iterable[Event], others: Iterable[Event] = ()) -> list[str]:
    """Classes by their first event, then those of `others`."""
    return list(dict.fromkeys([*(e.label for e in events), *(e.label for e in others)]))


def figure(events: Sequence[Event], duration: float) -> str:
    """A named lane per class with a bar per event, and the time below."""
    found = list(classes(events).items())[:MOST_LANES]
    height = _LANE * len(found) + 18
    scale = (_WIDTH - _NAME) / max(duration, 1e-3)
    parts = [
        f'<svg class="figure" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Timeline of the events" '
        'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12">'
    ]
    for row, (label, spans) in enumerate(found):
        top = row * _LANE
        name = escape(shorten(label))
        parts.append(f'<text x="{_NAME - 8}" y="{top + 14}" text-anchor="end" fill="currentColor">{name}</text>')
        parts.append(
            f'<line x1="{_NAME}" x2="{_WIDTH}" y1="{top + _LANE - 1}" y2="{top + _LANE - 1}" '
            'stroke="currentColor" stroke-opacity="0.15"/>'
        )
        parts += [_bar(_NAME, top + 3, start, end, scale, colour(row), _BAR) for start, end, _ in spans]
    parts += [
        f'<text x="{_NAME + share * (_WIDTH - _NAME):.0f}" y="{height - 4}" text-anchor="{anchor}" fill="currentColor">'
        f"{clock(share * duration)}</text>"
        for share, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    ]
    return "".join([*parts, "</svg>"])


def miniature(events: Sequence[Event], duration: float, colours: Mapping[str, str]) -> str:
    """All events of a file in one thin strip, a row per class; a few hundred bytes, for pages with thousands of them.

    Args:
        events: of one file.
        duration: seconds.
        colours: label -> colour.
    """
    found = classes(events)
    row = max(2, _MINI[1] // max(1, len(found)))
    scale = _MINI[0] / max(duration, 1e-3) / 1000
    paths = []
    for number, (label, spans) in enumerate(found.items()):
        y = number * row + row / 2
        bars = "".join(dict.fromkeys(f"M{a * scale:.0f} {y:g}h{max(1.0, (b - a) * scale):.0f}" for a, b, _ in spans))
        paths.append(f'<path d="{bars}" stroke="{colours[label]}" stroke-width="{row}"/>')
    count = f"{len(events)} event{'s' * (len(events) != 1)}"
    return (
        f'<svg class="mini" viewBox="0 0 {_MINI[0]} {max(_MINI[1], row * len(found))}" preserveAspectRatio="none" '
        f'role="img" aria-label="{count}">{"".join(paths)}</svg>'
    )


def clock(seconds: float) -> str:
    """M:SS, or H:MM:SS from an hour on."""
    whole = round(max(0.0, seconds))
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}"


def _bar(left: int, top: int, start: int, end: int, scale: float, fill: str, height: int) -> str:
    x, width = left + start / 1000 * scale, max(1.0, (end - start) / 1000 * scale)
    return f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}" rx="2" fill="{fill}"/>'


def shorten(label: str, most: int = 26) -> str:
    """A label as plain text of at most `most` signs."""
    shown = plain(label)
    return shown if len(shown) <= most else shown[: most - 1] + "…"
