"""The formats a timeline can be written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from avtool.files import write_atomic
from avtool.formats import annotate, editors, subtitles, tables
from avtool.timeline import Timeline, relative_path, to_json

WRITERS: Mapping[str, Callable[[Timeline], str]] = {
    "json": to_json,
    "srt": subtitles.srt,
    "vtt": subtitles.vtt,
    "csv": tables.csv,
    "tsv": tables.tsv,
    "audacity": annotate.audacity,
    "eaf": annotate.eaf,
    "otio": editors.otio,
    "edl": editors.edl,
    "textgrid": annotate.textgrid,
    "chapters": editors.chapters,
    "ffmetadata": editors.ffmetadata,
}


def render(timeline: Timeline, name: str, folder: Path | None = None) -> str:
    """The text of one result file.

    Args:
        timeline: what was found.
        name: one of `settings.FORMATS`.
        folder: where the file will lie; paths inside are relative to it. None: `media.path` as it is.
    """
    if folder is None:
        return WRITERS[name](timeline)
    placed = replace(timeline, media=replace(timeline.media, path=relative_path(timeline.media.path, folder)))
    return annotate.eaf(placed, folder) if name == "eaf" else WRITERS[name](placed)


def write_all(timeline: Timeline, files: Mapping[str, Path]) -> None:
    """Writes every format (name -> file), the JSON last: it says that all is there.

    Raises:
        OutputError: one cannot be written.
    """
    for name, path in sorted(files.items(), key=lambda item: item[0] == "json"):
        write_atomic(path, render(timeline, name, path.parent))
