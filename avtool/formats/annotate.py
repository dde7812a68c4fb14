"""Timelines for annotation tools: Audacity labels, ELAN, Praat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from xml.sax.saxutils import escape, quoteattr

from avtool.formats.labels import Lane, caption, lanes, plain, spans, url
from avtool.timeline import Timeline

_MIME = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".webm": "video/webm",
}
_NO_TIER = '    <TIER LINGUISTIC_TYPE_REF="event" TIER_ID="event"/>\n'
_EPOCH = "1970-01-01T00:00:00+00:00"  # ELAN wants a date; nothing in a result depends on when it was made


def audacity(timeline: Timeline) -> str:
    """A label track of Audacity: start, end (seconds) and text, separated by tabs."""
    return "".join(f"{e.start:.6f}\t{e.end:.6f}\t{caption(e)}\n" for e in timeline.events)


def eaf(timeline: Timeline, folder: Path | None = None) -> str:
    """An ELAN document (EAF 3.0): a tier per class, and beneath each one a tier with the scores.

    Args:
        timeline: what to write; a relative `media.path` is taken as seen from `folder`.
        folder: where the file will lie; None: the media is linked by `media.path` alone.
    """
    found = lanes(timeline.events)
    ids = iter(range(1, 1 << 62))
    slots = sorted({moment for lane in found for start, end, _ in lane.spans for moment in (start, end)})
    slot = {moment: f"ts{number}" for number, moment in enumerate(slots, 1)}
    tiers = (
        "".join(_tier(lane, slot, ids) for lane in found) or '    <TIER LINGUISTIC_TYPE_REF="event" TIER_ID="event"/>\n'
    )
    order = "".join(f'        <TIME_SLOT TIME_SLOT_ID="{slot[moment]}" TIME_VALUE="{moment}"/>\n' for moment in slots)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<ANNOTATION_DOCUMENT AUTHOR={_attribute(timeline.run.tool)} DATE="{_EPOCH}" FORMAT="3.0" VERSION="3.0" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">\n'
        f'    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">\n{_media(timeline.media.path, folder)}    </HEADER>\n'
        f"    <TIME_ORDER>\n{order}    </TIME_ORDER>\n{tiers or _NO_TIER}"
        '    <LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="event" TIME_ALIGNABLE="true" GRAPHIC_REFERENCES="false"/>\n'
        '    <LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="score" TIME_ALIGNABLE="false" GRAPHIC_REFERENCES="false" '
        'CONSTRAINTS="Symbolic_Association"/>\n'
        '    <CONSTRAINT STEREOTYPE="Symbolic_Association" '
        'DESCRIPTION="1-1 association with a parent annotation"/>\n'
        "</ANNOTATION_DOCUMENT>\n"
    )


def _tier(lane: Lane, slot: dict[int, str], ids: Iterator[int]) -> str:
    """One class as a tier of times and, as its child, a tier of scores."""
    name = _attribute(lane.name)
    events, scores = [], []
    for start, end, event in lane.spans:
        own, child = f"a{next(ids)}", f"a{next(ids)}"
        events.append(
            f'        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{own}" TIME_SLOT_REF1="{slot[start]}" '
            f'TIME_SLOT_REF2="{slot[end]}"><ANNOTATION_VALUE>{escape(plain(event.label))}</ANNOTATION_VALUE>'
            "</ALIGNABLE_ANNOTATION></ANNOTATION>\n"
        )
        scores.append(
            f'        <ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{child}" ANNOTATION_REF="{own}">'
            f"<ANNOTATION_VALUE>{event.score:.4f}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>\n"
        )
    return (
        f'    <TIER LINGUISTIC_TYPE_REF="event" TIER_ID={name}>\n{"".join(events)}    </TIER>\n'
        f'    <TIER LINGUISTIC_TYPE_REF="score" PARENT_REF={name} TIER_ID={_attribute("score@" + lane.name)}>\n'
        f"{''.join(scores)}    </TIER>\n"
    )


def _media(path: str, folder: Path | None) -> str:
    near = url(path)
    far = url(str((folder / path).absolute())) if folder is not None else near
    mime = _MIME.get(PurePath(path).suffix.lower(), "unknown")
    return f'        <MEDIA_DESCRIPTOR MEDIA_URL="{far}" MIME_TYPE="{mime}" RELATIVE_MEDIA_URL="{near}"/>\n'


def _attribute(text: str) -> str:
    return quoteattr(plain(text))


@dataclass(frozen=True)
class _Tier:
    name: str
    intervals: list[tuple[int, int, str]]  # milliseconds; they tile the tier


def textgrid(timeline: Timeline) -> str:
    """A Praat TextGrid (long form): an interval tier per class, the stretches between events with empty marks."""
    found = lanes(timeline.events)
    longest = max((end for _, end, _ in spans(timeline.events)), default=0)
    total = max(1, round(timeline.media.duration * 1000), longest)  # Praat wants a span above 0
    tiers = [_Tier(lane.name, list(_tiled(lane, total))) for lane in found] or [_Tier("event", [(0, total, "")])]
    head = (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
        f"xmin = 0\nxmax = {_seconds(total)}\ntiers? <exists>\nsize = {len(tiers)}\nitem []:\n"
    )
    return head + "".join(_interval_tier(number, tier, total) for number, tier in enumerate(tiers, 1))


def _tiled(lane: Lane, total: int) -> Iterator[tuple[int, int, str]]:
    reached = 0
    for start, end, event in lane.spans:
        if start > reached:
            yield reached, start, ""
        yield start, end, caption(event)
        reached = end
    if reached < total:
        yield reached, total, ""


def _interval_tier(number: int, tier: _Tier, total: int) -> str:
    lines = [
        f"    item [{number}]:",
        '        class = "IntervalTier"',
        f"        name = {_quoted(tier.name)}",
        "        xmin = 0",
        f"        xmax = {_seconds(total)}",
        f"        intervals: size = {len(tier.intervals)}",
    ]
    for place, (start, end, mark) in enumerate(tier.intervals, 1):
        lines += [
            f"        intervals [{place}]:",
            f"            xmin = {_seconds(start)}",
            f"            xmax = {_seconds(end)}",
            f"            text = {_quoted(mark)}",
        ]
    return "\n".join(lines) + "\n"


def _seconds(ms: int) -> str:
    """Seconds without needless zeros: Praat compares the ends of tiers as numbers."""
    return f"{ms / 1000:.3f}".rstrip("0").rstrip(".")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
