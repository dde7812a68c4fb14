"""Many timelines as one HTML page: what failed on top, below a row for each file with its events in miniature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from avtool.formats import pages
from avtool.formats.labels import plain, url
from avtool.formats.pages import text
from avtool.formats.strips import clock, colour, miniature
from avtool.timeline import Event

LEGEND = 16  # classes that are named above the table, the most frequent first


@dataclass(frozen=True)
class Entry:
    """One finished file.

    Attributes:
        name: of the file, below the root.
        link: what to open, relative to the page: its report, or its JSON.
        duration: seconds.
        events: of the file.
        warnings: sentences.
    """

    name: str
    link: str
    duration: float
    events: tuple[Event, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One file that could not be done, and why."""

    name: str
    what: str
    why: str = ""


def index(entries: Sequence[Entry], failures: Sequence[Failure], title: str, tool: str) -> str:
    """The page over a folder of results.

    Args:
        entries: in the order of the rows.
        failures: shown on top.
        title: of the page.
        tool: what made it.
    """
    style, script = pages.asset("index.css"), pages.asset("index.js")
    frequent = Counter(event.label for entry in entries for event in entry.events)
    order = [label for label, _ in sorted(frequent.items(), key=lambda item: (-item[1], item[0]))]
    colours = {label: colour(number) for number, label in enumerate(order)}
    parts = {
        "policy": pages.policy(style, script),
        "tool": text(tool),
        "title": text(plain(title)),
        "style": style,
        "script": script,
        "facts": text(_facts(entries, failures, len(order))),
        "failures": _failures(failures),
        "legend": "".join(_chip(label, frequent[label], colours) for label in order[:LEGEND]),
        "rows": "\n".join(_row(entry, colours) for entry in entries),
    }
    return pages.fill(pages.asset("index.html"), parts)


def _facts(entries: Sequence[Entry], failures: Sequence[Failure], classes: int) -> str:
    events, seconds = sum(len(e.events) for e in entries), sum(e.duration for e in entries)
    parts = [f"{len(entries)} files", clock(seconds), f"{events} events of {classes} classes"]
    return " · ".join([*parts, *([f"{len(failures)} failed"] if failures else [])])


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    lines = (
        f"<li><b>{text(plain(f.name))}</b> – {text(f.what)}{text(': ' + f.why if f.why else '')}</li>" for f in failures
    )
    return f'<section class="failures"><h2>{len(failures)} failed</h2><ul>{"".join(lines)}</ul></section>'


def _chip(label: str, count: int, colours: dict[str, str]) -> str:
    square = f'<svg width="10" height="10"><rect width="10" height="10" rx="3" fill="{colours[label]}"/></svg>'
    return f"<span>{square}{text(plain(label))} ×{count}</span> "


def _row(entry: Entry, colours: dict[str, str]) -> str:
    own = Counter(plain(event.label) for event in entry.events)
    named = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in own.most_common())
    data = (
        f'data-name="{text(plain(entry.name))}" data-duration="{entry.duration:.3f}" data-events="{len(entry.events)}" '
        f'data-classes="{text(named)}" data-warnings="{len(entry.warnings)}"'
    )
    return (
        f'<tr {data}><td class="f"><a href="{text(url(entry.link))}">{text(plain(entry.name))}</a></td>'
        f'<td class="n">{clock(entry.duration)}</td><td class="n">{len(entry.events)}</td>'
        f'<td>{miniature(entry.events, entry.duration, colours)}</td><td class="c">{text(named)}</td>'
        f'<td class="w">{"<br>".join(text(w) for w in entry.warnings)}</td></tr>'
    )
