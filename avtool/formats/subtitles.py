"""Timelines as subtitles: SRT for any player, WebVTT for the web."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from avtool.formats.labels import plain, spans
from avtool.timeline import Event, Timeline


def srt(timeline: Timeline) -> str:
    """The events as SRT. Players show one of two cues that overlap, so cues never do (`cues`)."""
    blocks = [
        f"{number}\n{clock(start, ',')} --> {clock(end, ',')}\n" + "\n".join(lines) + "\n"
        for number, (start, end, lines) in enumerate(cues(timeline.events), 1)
    ]
    return "\n".join(blocks)


def vtt(timeline: Timeline) -> str:
    """The events as WebVTT: a cue each, overlapping as they do, the class as `<c.class>` for style sheets."""
    blocks = [
        f"{number}\n{clock(start, '.')} --> {clock(end, '.')}\n"
        f"<c.{_css_class(event.label)}>{escape(plain(event.label), quote=False)}</c> ({event.score:.2f})\n"
        for number, (start, end, event) in enumerate(spans(timeline.events), 1)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def cues(events: Sequence[Event]) -> list[tuple[int, int, list[str]]]:
    """Cuts the time line at every start and end.

    Returns:
        (start, end, lines) in milliseconds, without gaps inside an event, one line for every event that is active
        from start to end, the strongest first. A class that is active twice has one line.
    """
    return [(start, end, _lines(active)) for start, end, active in pieces(events)]


def pieces(events: Sequence[Event]) -> list[tuple[int, int, list[Event]]]:
    """(start, end, events active all the time from start to end) in milliseconds, in order, where any is."""
    found = spans(events)
    opening: dict[int, list[int]] = {}
    closing: dict[int, list[int]] = {}
    for number, (start, end, _) in enumerate(found):
        opening.setdefault(start, []).append(number)
        closing.setdefault(end, []).append(number)
    active: set[int] = set()
    result = []
    for start, end in pairwise(sorted({*opening, *closing})):
        active.difference_update(closing.get(start, ()))
        active.update(opening.get(start, ()))
        if active:
            result.append((start, end, [found[number][2] for number in sorted(active)]))
    return result


def strongest(events: Sequence[Event]) -> list[tuple[str, float]]:
    """The classes of some events with their highest score, the strongest first."""
    best: dict[str, float] = {}
    for event in events:
        name = plain(event.label)
        best[name] = max(event.score, best.get(name, 0.0))
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))


def clock(ms: int, point: str) -> str:
    """HH:MM:SS, `point`, milliseconds; hours take as many digits as they need."""
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _lines(events: Sequence[Event]) -> list[str]:
    return [f"{name} ({score:.2f})" for name, score in strongest(events)]


def _css_class(label: str) -> str:
    """A name that needs no escape in a style sheet: words joined by hyphens."""
    return re.sub(r"[^\w]+", "-", plain(label)).strip("-").lower() or "event"
