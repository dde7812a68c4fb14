"""What all formats share: labels as plain text, classes as lanes, paths as addresses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import quote

from avtool.timeline import Event

NO_NAME = "(no name)"
_JOINERS = {"\u200c", "\u200d"}  # parts of words and emoji
_NO_SIGNS = {"\ufffe", "\uffff"}  # XML may not hold them
_CLOCK = re.compile(r"(\d):(\d+):(\d+[.,]\d)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # signs a spreadsheet would run (OWASP, CSV injection)


@dataclass(frozen=True)
class Lane:
    """Events of one class that do not overlap, in order; a class whose events overlap has several lanes."""

    name: str  # unique among the lanes of a timeline
    label: str
    spans: tuple[tuple[int, int, Event], ...]  # start and end in milliseconds


def plain(label: str) -> str:
    """A label as one line of text: no control or direction signs, no lone surrogates, single spaces.

    What a reader of subtitles could take for the head of a cue has no escape there: `-->` becomes an arrow, and the
    colons of a clock time (01:02:03,4) become ratio signs.
    """
    spaced = re.sub(r"\s+", " ", label)
    kept = "".join(sign for sign in spaced if _is_shown(sign)).strip()
    while "-->" in kept:
        kept = kept.replace("-->", "→")
    return _CLOCK.sub("\\1∶\\2∶\\3", kept) or NO_NAME


def caption(event: Event) -> str:
    """What a format without a place for scores says of an event."""
    return f"{plain(event.label)} ({event.score:.2f})"


def harmless(cell: str) -> str:
    """A table cell that no spreadsheet takes for a formula: such a cell gets a leading apostrophe."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def spans(events: Sequence[Event]) -> list[tuple[int, int, Event]]:
    """Start, end (milliseconds) and event, in order of time, without what lies before 0 or rounds to no length."""
    rounded = ((max(0, round(e.start * 1000)), round(e.end * 1000), e) for e in events)
    return sorted((s for s in rounded if s[1] > s[0]), key=lambda s: (s[0], s[1], s[2]))


def lanes(events: Sequence[Event]) -> list[Lane]:
    """Events by class, classes by their first event; an event that overlaps another of its class opens a new lane."""
    rows: dict[str, list[list[tuple[int, int, Event]]]] = {}
    for span in spans(events):
        own = rows.setdefault(span[2].label, [])
        free = next((row for row in own if row[-1][1] <= span[0]), None)
        if free is None:
            own.append([span])
        else:
            free.append(span)
    taken: set[str] = set()
    return [Lane(_unique(plain(label), taken), label, tuple(row)) for label, found in rows.items() for row in found]


def classes(events: Sequence[Event]) -> dict[str, list[tuple[int, int, Event]]]:
    """Label -> `spans` of the class, in the order of the first events."""
    found: dict[str, list[tuple[int, int, Event]]] = {}
    for span in spans(events):
        found.setdefault(span[2].label, []).append(span)
    return found


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or `name 2` and so on where it is taken; the answer is then taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    taken.add(free)
    return free


def url(path: str) -> str:
    """A path as an address: relative paths stay relative, absolute ones begin with file://."""
    raw = path.encode("utf-8", "surrogateescape" if _only_bytes(path) else "replace")
    coded = quote(raw, safe="/")
    if path.startswith("/"):
        return f"file://{coded}"
    if re.match(r"[A-Za-z]:/", path):  # a drive
        return f"file:///{path[0]}:{quote(raw[2:], safe='/')}"
    return coded if coded.startswith("../") else f"./{coded}"


def stem(path: str) -> str:
    """The name of a media file without folder and suffix, as plain text."""
    return plain(PurePath(path).stem)


def _only_bytes(text: str) -> bool:
    """True if the only surrogates are stray bytes of a file name."""
    return not any(0xD800 <= ord(sign) < 0xDC80 or 0xDCFF < ord(sign) < 0xE000 for sign in text)


def _is_shown(sign: str) -> bool:
    if sign in _JOINERS:
        return True
    return unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in _NO_SIGNS
