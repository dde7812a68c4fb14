"""The formats a timeline can be written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from avtool.files import write_atomic
from avtool.formats import annotate, editors, plot, report, subtitles, tables
from avtool.timeline import Preview, Timeline, from_json, relative_path, to_json

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
PICTURED: Mapping[str, Callable[[Timeline, Preview | None], str | bytes]] = {"html": report.html, "png": plot.png}


def render(timeline: Timeline, name: str, folder: Path | None = None, preview: Preview | None = None) -> str | bytes:
    """The content of one result file: text, or the bytes of a picture.

    Args:
        timeline: what was found.
        name: one of `settings.FORMATS`.
        folder: where the file will lie; paths inside are relative to it. None: `media.path` as it is.
        preview: for the formats in `PICTURED`; None: they are without pictures.

    Raises:
        UsageError: the format needs a package that is not installed.
    """
    if folder is not None:
        timeline = replace(timeline, media=replace(timeline.media, path=relative_path(timeline.media.path, folder)))
    if name == "eaf":
        return annotate.eaf(timeline, folder)
    return PICTURED[name](timeline, preview) if name in PICTURED else WRITERS[name](timeline)


def write_all(timeline: Timeline, files: Mapping[str, Path], preview: Preview | None = None) -> None:
    """Writes every format (name -> file), the JSON last: it says that all is there.

    Args:
        timeline: what was found.
        files: format name -> file.
        preview: for the formats in `PICTURED`.

    Raises:
        OutputError: one cannot be written.
    """
    kept = from_json(to_json(timeline))  # rounded as the JSON is, so that a later export gives the same bytes
    for name, path in sorted(files.items(), key=lambda item: item[0] == "json"):
        write_atomic(path, render(kept, name, path.parent, preview))
