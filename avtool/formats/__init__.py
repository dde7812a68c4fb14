"""The formats a timeline can be written in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from avtool.files import write_atomic
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


def write_all(timeline: Timeline, files: Mapping[str, Path]) -> None:
    """Writes every format (name -> file), the JSON last: it says that all is there.

    Raises:
        OutputError: one cannot be written.
    """
    for name, path in sorted(files.items(), key=lambda item: item[0] == "json"):
        write_atomic(path, render(timeline, name, path.parent))
