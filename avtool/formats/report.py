"""A timeline as one HTML page that needs no network: player, lanes, threshold, and a plain table for everybody else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from avtool.formats import pages
from avtool.formats.labels import plain, stem, url
from avtool.formats.pages import text
from avtool.formats.strips import COLOURS, class_order, clock, figure
from avtool.formats.tables import cell
from avtool.timeline import CANDIDATE_FLOOR, Curves, Event, Evidence, Preview, Timeline

NO_PREVIEW = Preview((), np.zeros(0, np.float32))


def html(timeline: Timeline, preview: Preview | None = None) -> str:
    """The report page.

    Args:
        timeline: what to show; the page looks for the video at `media.path` as seen from where the page lies.
        preview: small pictures and a waveform; None: the page is without them.
    """
    style, script = pages.asset("report.css"), pages.asset("report.js")
    name = PurePath(timeline.media.path).name or "timeline"
    preview = preview or NO_PREVIEW
    parts = {
        "policy": pages.policy(style, script),
        "tool": text(timeline.run.tool),
        "title": text(plain(name)),
        "style": style,
        "facts": text(_facts(timeline)),
        "notices": _notices(timeline),
        "source": text(url(timeline.media.path)),
        "figure": figure(timeline.events, timeline.media.duration) if timeline.events else "",
        "table": _table(timeline),
        "about": _about(timeline),
        "thumbnails": _thumbnails(preview),
        "data": pages.embedded(_data(timeline, preview)),
        "script": script,
    }
    return pages.fill(pages.asset("report.html"), parts)


def _facts(timeline: Timeline) -> str:
    count, classes = len(timeline.events), len({e.label for e in timeline.events})
    found = f"{count} event{'s' * (count != 1)}"
    if count:
        found += f" of {classes} class{'es' * (classes != 1)}"
    parts = [clock(timeline.media.duration), found, f"model {timeline.run.model}"]
    for number, what in ((timeline.heard_only, "heard only"), (timeline.seen_only, "seen only")):
        parts += [f"{number} {what}"] if number else []
    return " · ".join(parts)


def _notices(timeline: Timeline) -> str:
    if not timeline.warnings:
        return ""
    return '<ul class="notices">' + "".join(f"<li>{text(n.message)}</li>" for n in timeline.warnings) + "</ul>"


def _table(timeline: Timeline) -> str:
    if not timeline.events:
        return f"<p>{text(_why_empty(timeline))}</p>"
    rows = "".join(
        f'<tr><td class="n">{_time(e.start)}</td><td class="n">{_time(e.end)}</td><td>{text(plain(e.label))}</td>'
        f'<td class="n">{e.score:.2f}</td></tr>'
        for e in timeline.events
    )
    head = '<tr><th class="n">start</th><th class="n">end</th><th>event</th><th class="n">score</th></tr>'
    return f"<table>{head}{rows}</table>"


def _why_empty(timeline: Timeline) -> str:
    parts = ["No event was found."]
    if timeline.best_score is not None:
        parts.append(f"The highest score is {timeline.best_score:.2f}: a lower threshold shows weaker candidates.")
    if timeline.heard_only or timeline.seen_only:
        parts.append(f"{timeline.heard_only} stretches were heard only, {timeline.seen_only} seen only.")
    return " ".join(parts)


def _time(seconds: float) -> str:
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def _about(timeline: Timeline) -> str:
    """Where the result comes from, as a list of names and values."""
    run, media = timeline.run, timeline.media
    facts: list[tuple[str, object]] = [
        ("file", media.path),
        ("analysed", f"{media.analysed_until:.1f} s of {media.duration:.1f} s"),
        ("tool", run.tool),
        ("model", run.model),
        *((f"weights of {name}", digest) for name, digest in run.weights.items()),
        *((f"encoder ({modality})", name) for modality, name in run.encoders.items()),
        ("device", run.device),
        ("settings", _listed(run.settings)),
        ("fingerprint", run.fingerprint),
    ]
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts) + "</dl>"


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def _thumbnails(preview: Preview) -> str:
    images = (base64.b64encode(jpeg).decode() for _, jpeg in preview.thumbnails)
    return "".join(f'<img alt="" src="data:image/jpeg;base64,{image}">' for image in images)


# ---------------------------------------------------------------- data for the script


def _data(timeline: Timeline, preview: Preview) -> dict[str, Any]:
    """What the script works on. Labels are numbers: indices into `names`, which are in the order of the labels."""
    curves = timeline.curves
    shown = class_order(timeline.events, sorted(timeline.candidates, key=lambda c: -c.score))
    shown = list(dict.fromkeys([*shown, *(curves.labels if curves else ()), *_evidence_labels(timeline.evidence)]))
    labels = sorted(shown)
    number = {label: i for i, label in enumerate(labels)}
    settings = timeline.run.settings
    return {
        "source": url(timeline.media.path) if timeline.media.path else "",
        "file": cell(timeline.media.path),
        "stem": stem(timeline.media.path),
        "picture": timeline.media.has_video,
        "duration": round(timeline.media.duration, 3),
        "names": [plain(label) for label in labels],
        "cells": [cell(label) for label in labels],
        "ranks": [shown.index(label) for label in labels],  # place in the order of lanes and colours
        "colours": COLOURS,
        "events": _numbered(timeline.events, number),
        "candidates": _numbered(timeline.candidates, number),
        "floor": CANDIDATE_FLOOR,
        "least": settings.get("min_score"),
        "most": settings.get("max_events"),
        "best": timeline.best_score,
        "why": _why_empty(timeline),
        "curves": _curves(curves, number) if curves else None,
        "evidence": _evidence(timeline.evidence, number) if timeline.evidence else None,
        "thumbnails": [round(time, 3) for time, _ in preview.thumbnails],
        "peaks": _packed(np.round(255 * preview.peaks).astype(np.uint8)) if len(preview.peaks) else None,
    }


def _numbered(events: Sequence[Event], number: Mapping[str, int]) -> list[tuple[float, float, int, float]]:
    return sorted(
        ((round(e.start, 3), round(e.end, 3), number[e.label], round(e.score, 4)) for e in events),
        key=lambda e: (*e[:3], -e[3]),
    )


def _curves(curves: Curves, number: Mapping[str, int]) -> dict[str, Any]:
    labels = [number[label] for label in curves.labels]
    return {"labels": labels, "step": curves.step, "rows": len(curves.values), "values": _packed(curves.values)}


def _evidence_labels(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return []
    return [*evidence.audio.labels, *(e.label for e in (*evidence.heard_only, *evidence.seen_only))]


def _evidence(evidence: Evidence, number: Mapping[str, int]) -> dict[str, Any]:
    audio = _curves(evidence.audio, number)
    return {
        **{name: audio[name] for name in ("labels", "step", "rows")},
        "audio": audio["values"],
        "visual": _packed(evidence.visual.values),
        "heard": _numbered(evidence.heard_only, number),
        "seen": _numbered(evidence.seen_only, number),
    }


def _packed(values: np.typing.NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
