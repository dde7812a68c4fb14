"""Timelines for video editors: OpenTimelineIO, marker EDL, chapters."""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from avtool.formats.labels import plain, stem, url
from avtool.formats.subtitles import pieces, strongest
from avtool.timeline import Event, MediaInfo, Timeline

# Rates that editors count timecode in, frames a second.
RATES = (
    *(Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30)),
    *(Fraction(48), Fraction(50), Fraction(60000, 1001), Fraction(60)),
)
_SAME_RATE = Fraction(1, 10_000)  # containers round: 29.97 is 30000/1001
_EDL_COLOURS = ("Blue", "Green", "Yellow", "Red", "Cyan", "Pink", "Purple", "Mint", "Sand", "Lavender", "Sky", "Rose")
_OTIO_COLOURS = ("BLUE", "GREEN", "YELLOW", "RED", "CYAN", "PINK", "PURPLE", "ORANGE", "MAGENTA", "WHITE")
_FIRST_HOUR = 1  # editors start a timeline at 01:00:00:00
CHAPTER_SECONDS = 10  # YouTube ignores a list with a shorter chapter
NOTHING = "–"  # title of a chapter without events


# ---------------------------------------------------------------- frames


def frame_rate(media: MediaInfo) -> Fraction:
    """The rate that an editor will show the file at: the nearest that timecode knows, 25 without a picture.

    Times are seconds of presentation everywhere else, so a file of another or of a variable rate loses nothing but
    the fineness of a frame.
    """
    rate = _parse_rate(media.video.average_rate) if media.video is not None else None
    if rate is None:
        return Fraction(25)
    return min(RATES, key=lambda known: (abs(known - rate) > _SAME_RATE * known, abs(known - rate)))


def _parse_rate(text: str) -> Fraction | None:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
    return rate if rate > 0 else None


def frame(seconds: float, rate: Fraction) -> int:
    """Number of the frame nearest to a time."""
    return round(Fraction(seconds) * rate)


def is_drop(rate: Fraction) -> bool:
    """Whether timecode of this rate leaves numbers out to keep up with the clock: 29.97 and 59.94 alone."""
    return rate in (Fraction(30000, 1001), Fraction(60000, 1001))


def timecode(number: int, rate: Fraction) -> str:
    """Frame number as HH:MM:SS:FF, or HH:MM:SS;FF with drop-frame (SMPTE ST 12-1); it starts again after 24 hours.

    Drop-frame leaves out the numbers (not the frames) 0 and 1, at 59.94 also 2 and 3, of every minute but each tenth.
    """
    base = round(rate)
    if is_drop(rate):
        dropped = base // 15
        tens, rest = divmod(number, base * 600 - 9 * dropped)
        minutes = 0 if rest < base * 60 else 1 + (rest - base * 60) // (base * 60 - dropped)
        number += dropped * (9 * tens + minutes)
    seconds, frames = divmod(number % (24 * 3600 * base), base)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{';' if is_drop(rate) else ':'}{frames:02}"


def first_frame(rate: Fraction) -> int:
    """Number of the frame that has the timecode 01:00:00:00."""
    base = round(rate)
    return _FIRST_HOUR * (6 * (base * 600 - 9 * (base // 15)) if is_drop(rate) else 3600 * base)


# ---------------------------------------------------------------- EDL and OTIO


def edl(timeline: Timeline) -> str:
    """Markers as an EDL of DaVinci Resolve: events of one frame, each with colour, name and length in frames.

    The note before the first bar begins with a letter: a digit there would make the line look like an event.
    """
    rate = frame_rate(timeline.media)
    colours = _colours(timeline.events, _EDL_COLOURS)
    lines = [f"TITLE: {stem(timeline.media.path)}", f"FCM: {'' if is_drop(rate) else 'NON-'}DROP FRAME", ""]
    for number, event in enumerate(timeline.events, 1):
        start, length = _frames(event, rate)
        begin, end = (timecode(first_frame(rate) + start + i, rate) for i in (0, 1))
        lines += [
            f"{number:03}  001      V     C        {begin} {end} {begin} {end}  ",
            f"score {event.score:.2f} |C:ResolveColor{colours[event.label]} |M:{_unbarred(event.label)} |D:{length}",
            "",
        ]
    return "\n".join(lines)


def _frames(event: Event, rate: Fraction) -> tuple[int, int]:
    """First frame and number of frames, at least one."""
    start = frame(event.start, rate)
    return start, max(1, frame(event.end, rate) - start)


def _unbarred(label: str) -> str:
    return plain(label).replace("|", "/")


def _colours(events: Sequence[Event], colours: Sequence[str]) -> dict[str, str]:
    """A colour for every class, in the order of their first events."""
    labels = dict.fromkeys(event.label for event in events)
    return {label: colours[number % len(colours)] for number, label in enumerate(labels)}


def otio(timeline: Timeline) -> str:
    """An OpenTimelineIO document: the whole file as one clip with its sound, every event a marker on the clip."""
    rate = frame_rate(timeline.media)
    length = max(1, frame(timeline.media.duration, rate))
    markers = _markers(timeline.events, rate)
    kinds = [("Video", timeline.media.has_video), ("Audio", timeline.media.has_audio)]
    tracks = []
    for kind in [kind for kind, there in kinds if there] or ["Video"]:
        tracks.append(_track(kind, _clip(timeline, length, rate, markers)))
        markers = []  # once
    document = {
        "OTIO_SCHEMA": "Timeline.1",
        "name": stem(timeline.media.path),
        "metadata": {"avtool": {"tool": timeline.run.tool, "model": timeline.run.model}},
        "global_start_time": None,
        "tracks": {"OTIO_SCHEMA": "Stack.1", "name": "tracks", "children": tracks},
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _track(kind: str, clip: dict[str, Any]) -> dict[str, Any]:
    return {"OTIO_SCHEMA": "Track.1", "name": kind, "kind": kind, "children": [clip]}


def _clip(timeline: Timeline, length: int, rate: Fraction, markers: list[dict[str, Any]]) -> dict[str, Any]:
    whole = _range(0, length, rate)
    address = url(timeline.media.path)
    media = {"OTIO_SCHEMA": "ExternalReference.1", "target_url": address, "available_range": whole}
    name = stem(timeline.media.path)
    return {
        "OTIO_SCHEMA": "Clip.1", "name": name, "source_range": whole, "media_reference": media, "markers": markers,
    }  # fmt: skip


def _markers(events: Sequence[Event], rate: Fraction) -> list[dict[str, Any]]:
    colours = _colours(events, _OTIO_COLOURS)
    return [
        {
            "OTIO_SCHEMA": "Marker.2",
            "name": plain(event.label),
            "color": colours[event.label],
            "comment": f"score {event.score:.2f}",
            "marked_range": _range(*_frames(event, rate), rate),
            "metadata": {"avtool": {"score": round(event.score, 4), "start": event.start, "end": event.end}},
        }
        for event in events
    ]


def _range(start: int, length: int, rate: Fraction) -> dict[str, Any]:
    def time(value: int) -> dict[str, Any]:
        return {"OTIO_SCHEMA": "RationalTime.1", "value": float(value), "rate": float(rate)}

    return {"OTIO_SCHEMA": "TimeRange.1", "start_time": time(start), "duration": time(length)}


# ---------------------------------------------------------------- chapters


def chapters(timeline: Timeline) -> str:
    """A list of chapters as video sites read it from a description: `M:SS title`, the first at 0:00.

    A chapter begins where an event does, or where nothing is left of those before. YouTube wants at least three, in
    order, each at least 10 s long: what would begin closer than that to the chapter before or to the end is named in
    the chapter it falls into. Three cannot be promised.
    """
    duration = timeline.media.duration
    active = pieces(timeline.events)
    begins = [0]
    for moment in _changes(timeline.events, active):
        if moment - begins[-1] >= CHAPTER_SECONDS and duration - moment >= CHAPTER_SECONDS:
            begins.append(moment)
    ends = [*begins[1:], float("inf")]
    lines = []
    for begin, end in zip(begins, ends, strict=True):
        first = bisect_right(active, begin * 1000, key=lambda piece: piece[1])
        stop = bisect_left(active, end * 1000, key=lambda piece: piece[0])
        inside = [event for _, _, events in active[first:stop] for event in events]
        names = [name for name, _ in strongest(inside)]
        lines.append(f"{_short_clock(begin, duration)} {', '.join(names) or NOTHING}")
    return "\n".join(lines) + "\n"


def _changes(events: Sequence[Event], active: Sequence[tuple[int, int, list[Event]]]) -> list[int]:
    """Whole seconds at which an event begins, or nothing is left of those before (rounded up)."""
    gaps = {end for (_, end, _), (start, _, _) in pairwise([*active, (1 << 62, 0, [])]) if start > end}
    return sorted({max(0, int(event.start)) for event in events} | {-(-end // 1000) for end in gaps})


def _short_clock(seconds: int, duration: float) -> str:
    minutes = f"{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{seconds // 3600}:{minutes}" if duration >= 3600 else f"{seconds // 60}:{seconds % 60:02}"


def ffmetadata(timeline: Timeline) -> str:
    """Chapters as FFmpeg puts them into a file: `ffmpeg -i VIDEO -i THIS -map_metadata 1 -codec copy OUT`."""
    blocks = [";FFMETADATA1\n"]
    for start, end, events in pieces(timeline.events):
        title = ", ".join(name for name, _ in strongest(events))
        escaped = re.sub(r"([=;#\\])", r"\\\1", title)
        blocks.append(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={end}\ntitle={escaped}\n")
    return "\n".join(blocks)
