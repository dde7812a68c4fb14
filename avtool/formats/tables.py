"""Timelines as tables: CSV for spreadsheets and data frames, TSV in whole milliseconds."""

from __future__ import annotations

import csv as writer
import io
import unicodedata
from collections.abc import Iterable, Sequence

from avtool.formats.labels import harmless, plain
from avtool.timeline import Timeline


def csv(timeline: Timeline) -> str:
    """`file,start,end,label,score`, times in seconds; tables of several files can be joined as they are.

    A cell that a spreadsheet would run as a formula gets a leading apostrophe (OWASP, CSV injection).
    """
    file = cell(timeline.media.path)
    rows = ((file, f"{e.start:.3f}", f"{e.end:.3f}", cell(e.label), f"{e.score:.4f}") for e in timeline.events)
    return _table(("file", "start", "end", "label", "score"), rows, ",")


def tsv(timeline: Timeline) -> str:
    """`start, end, label, score` separated by tabs, times in whole milliseconds: nothing depends on a decimal sign."""
    rows = (
        (str(round(e.start * 1000)), str(round(e.end * 1000)), harmless(plain(e.label)), f"{e.score:.4f}")
        for e in timeline.events
    )
    return _table(("start", "end", "label", "score"), rows, "\t")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], delimiter: str) -> str:
    text = io.StringIO()
    table = writer.writer(text, delimiter=delimiter, lineterminator="\n")
    table.writerow(head)
    table.writerows(rows)
    return text.getvalue()


def cell(text: str) -> str:
    """Text as a cell may hold it: tabs and line ends stay, other control signs and lone surrogates do not."""
    kept = "".join(sign for sign in text if sign in "\t\n" or unicodedata.category(sign) not in ("Cc", "Cs"))
    return harmless(kept)
