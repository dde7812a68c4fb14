"""The tables at the end of a run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from avtool.batch.report import event_rows, write_tables
from avtool.files import write_atomic
from avtool.timeline import Event, to_json
from tests.cli.fakes import HOSTILE, make_timeline


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three results, hostile labels among them, and things that are no results."""
    folder = tmp_path / "out"
    hostile = tuple(Event(float(i), i + 1.0, label, 0.5) for i, label in enumerate(HOSTILE[:-1]))
    for name, events in (("b.mp4", ()), ("deep/=a.mp4", hostile), ("a.mp4", (Event(1.5, 2.0, "dog", 0.91),))):
        timeline = replace(make_timeline(str(tmp_path / "videos" / name)), events=events)
        path = folder / f"{name[:-4]}.events.json"
        write_atomic(path, to_json(timeline, path.parent))
    (folder / "torn.events.json").write_text("{")
    (folder / ".avtool").mkdir()
    (folder / ".avtool" / "x.events.json").write_text("{}")
    return folder


def test_csv(out: Path) -> None:
    count = write_tables(out)
    with (out / "events.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count == len(HOSTILE)
    assert rows[0] == {"file": "a.mp4", "start": "1.500", "end": "2.000", "label": "dog", "score": "0.91"}
    assert all(row["file"] == "deep/=a.mp4" for row in rows[1:])
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row.values())


def test_parquet(out: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet is an extra: pip install 'avtool[parquet]'")
    write_tables(out)
    table = parquet.read_table(out / "events.parquet").to_pylist()
    assert [row["start"] for row in table] == [row.start for row in event_rows(out)]
    assert table[0]["label"] == "dog" and table[0]["score"] == pytest.approx(0.91)
    assert [row["label"] for row in table[2:5]] == HOSTILE[1:4]  # no spreadsheet reads this


def test_the_same_bytes_again(out: Path) -> None:
    write_tables(out)
    first = {p.name: p.read_bytes() for p in out.glob("events.*")}
    write_tables(out)
    assert {p.name: p.read_bytes() for p in out.glob("events.*")} == first
