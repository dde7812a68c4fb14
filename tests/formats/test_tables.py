"""CSV and TSV, read back with pandas and the csv module."""

from __future__ import annotations

import csv as reader
import io

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtool.formats.labels import plain
from avtool.formats.tables import csv, tsv
from avtool.timeline import Event, Timeline
from tests.cli.fakes import HOSTILE, make_timeline
from tests.formats.timelines import HARD_LABELS, TIMELINES

FORMULA = tuple("=+-@\t\r")


def unguarded(cell: str) -> str:
    """The label of a cell: an apostrophe before a sign that a spreadsheet would run is not part of it."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in FORMULA else cell


def shown(label: str) -> str:
    return "".join(s for s in label if s in "\t\n" or not (s < " " or "\x7f" <= s < "\xa0" or "\ud800" <= s < "\ue000"))


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_pandas_reads_the_same_events_from_csv(timeline: Timeline) -> None:
    frame = pandas.read_csv(io.StringIO(csv(timeline)), keep_default_na=False, dtype={"label": str})
    assert list(frame.columns) == ["file", "start", "end", "label", "score"]
    assert [unguarded(label) for label in frame.label] == [shown(e.label) for e in timeline.events]
    assert list(frame.start) == [e.start for e in timeline.events]
    assert list(frame.end) == [e.end for e in timeline.events]
    assert list(frame.score) == [round(e.score, 4) for e in timeline.events]
    assert set(frame.file) <= {"street.mp4"}


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_pandas_reads_the_same_events_from_tsv(timeline: Timeline) -> None:
    text = tsv(timeline)
    frame = pandas.read_csv(io.StringIO(text), sep="\t", keep_default_na=False, dtype={"label": str})
    assert [unguarded(label) for label in frame.label] == [plain(e.label) for e in timeline.events]
    assert list(frame.start) == [round(e.start * 1000) for e in timeline.events]
    assert list(frame.end) == [round(e.end * 1000) for e in timeline.events]
    assert all(line.count("\t") == 3 for line in text.splitlines())  # also for those who split at tabs


@pytest.mark.parametrize("write", [csv, tsv])
@pytest.mark.parametrize("label", HARD_LABELS)
def test_no_cell_is_a_formula(write: object, label: str) -> None:
    timeline = make_timeline(path=label, events=(Event(0.0, 1.0, label, 0.5),))
    delimiter = "," if write is csv else "\t"
    (_, cells) = reader.reader(io.StringIO(write(timeline)), delimiter=delimiter)  # type: ignore[operator]
    assert not any(cell.startswith(FORMULA) for cell in cells)


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=4))
def test_any_text_stays_in_its_cell(labels: list[str]) -> None:
    timeline = make_timeline(events=tuple(Event(0.0, 1.0, label, 0.5) for label in labels))
    for text, delimiter, width in ((csv(timeline), ",", 5), (tsv(timeline), "\t", 4)):
        rows = list(reader.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        assert len(rows) == len(labels) + 1 and {len(row) for row in rows} == {width}


def test_the_exact_bytes() -> None:
    assert csv(make_timeline()) == "file,start,end,label,score\nstreet.mp4,12.340,15.020,dog bark,0.9100\n"
    assert tsv(make_timeline()) == "start\tend\tlabel\tscore\n12340\t15020\tdog bark\t0.9100\n"


def test_a_label_of_a_megabyte() -> None:
    assert HOSTILE[-1] in csv(make_timeline(events=(Event(0.0, 1.0, HOSTILE[-1], 0.5),)))
