"""The formats a timeline can be written in: format name -> text."""

from __future__ import annotations

from pathlib import Path

from avtool.formats.subtitles import srt
from avtool.timeline import Timeline, to_json


def render(timeline: Timeline, name: str, folder: Path | None = None) -> str:
    """The text of one result file.

    Args:
        timeline: what was found.
        name: "json" or "srt".
        folder: where the file will lie; paths inside are relative to it.
    """
    return to_json(timeline, folder) if name == "json" else srt(timeline)
