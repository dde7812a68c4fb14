"""Timelines as subtitles that any player shows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from avtool.timeline import Event, Timeline

_KEPT_FORMAT_SIGNS = {"\u200c", "\u200d"}  # joiners: parts of words and emoji
_NO_NAME = "(no name)"


def srt(timeline: Timeline) -> str:
    """The events as SRT. Players show one of two cues that overlap, so cues never do (`cues`)."""
    blocks = [
        f"{number}\n{_clock(start)} --> {_clock(end)}\n" + "\n".join(lines) + "\n"
        for number, (start, end, lines) in enumerate(cues(timeline.events), 1)
    ]
    return "\n".join(blocks)


def cues(events: Sequence[Event]) -> list[tuple[int, int, list[str]]]:
    """Cuts the time line at every start and end.

    Returns:
        (start, end, lines) in milliseconds, without gaps inside an event, one line for every event that is active
        from start to end, the strongest first. A class that is active twice has one line.
    """
    spans = [(round(e.start * 1000), round(e.end * 1000), e) for e in events]
    spans = [(max(0, start), end, e) for start, end, e in spans if end > max(0, start)]
    opening: dict[int, list[int]] = {}
    closing: dict[int, list[int]] = {}
    for number, (start, end, _) in enumerate(spans):
        opening.setdefault(start, []).append(number)
        closing.setdefault(end, []).append(number)
    active: set[int] = set()
    result = []
    for start, end in pairwise(sorted({*opening, *closing})):
        active.difference_update(closing.get(start, ()))
        active.update(opening.get(start, ()))
        if active:
            result.append((start, end, _lines([spans[number][2] for number in active])))
    return result


def plain(label: str) -> str:
    """A label as one line of a cue: SRT has no escape, so what would end the line or start a cue is replaced."""
    spaced = re.sub(r"\s+", " ", label)
    kept = "".join(sign for sign in spaced if _is_shown(sign)).strip()
    while "-->" in kept:
        kept = kept.replace("-->", "→")
    return kept or _NO_NAME


def _is_shown(sign: str) -> bool:
    return unicodedata.category(sign) not in ("Cc", "Cf", "Cs") or sign in _KEPT_FORMAT_SIGNS


def _lines(events: Sequence[Event]) -> list[str]:
    best: dict[str, float] = {}
    for event in events:
        name = plain(event.label)
        best[name] = max(event.score, best.get(name, 0.0))
    return [f"{name} ({score:.2f})" for name, score in sorted(best.items(), key=lambda item: (-item[1], item[0]))]


def _clock(ms: int) -> str:
    """HH:MM:SS,mmm; hours take as many digits as they need."""
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"
