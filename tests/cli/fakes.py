"""Timelines made by hand, hostile texts, and stand-ins for what is slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from avtool.timeline import AudioInfo, Event, MediaInfo, RunInfo, Timeline, VideoInfo

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>",
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "a --> b",
    "blank\n\nline",
    "2\n00:00:00,000 --> 99:00:00,000",
    "{\\an8}<font>",
    "\x1b[31m",
    "\u202egnp",
    "\x00\x7f\x9b",
    "\udcff lone",
    "../../x",
    "C:\\x",
    "CON",
    "\u2028\u2029",
    "🎺 émoji",
    "x" * 1_000_000,
]


def make_timeline(path: str = "street.mp4", **changes: Any) -> Timeline:
    """A small timeline with one event and two candidates."""
    media = MediaInfo(
        path=path,
        bytes=48211034,
        mtime_ns=1763690000000000001,
        has_audio=True,
        has_video=True,
        duration=123.46,
        declared_duration=123.5,
        video=VideoInfo("h264", 1280, 720, "30000/1001", False),
        audio=AudioInfo("aac", 48000, 2),
        analysed_until=123.46,
    )
    run = RunInfo(
        tool="avtool 0.1.0",
        model="loco-mini",
        weights={"loco-mini": "ab"},
        settings={"min_score": 0.3},
        device="cpu",
        fingerprint="cd",
        details="encoders",
        encoders={"visual": "mini"},
    )
    events = (Event(12.34, 15.02, "dog bark", 0.91),)
    return replace(Timeline(media, events, (*events, Event(1.0, 2.0, "x", 0.06)), run), **changes)
