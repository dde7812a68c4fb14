"""What a run leaves behind at its end: a summary, a list of failures, and one table of all events."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from avtool import __version__
from avtool.batch.jobs import FAILED, Outcome
from avtool.batch.journal import FOLDER
from avtool.errors import InputError
from avtool.files import atomic_stream, write_atomic
from avtool.timeline import Timeline, from_json

EVENT_COLUMNS = ("file", "start", "end", "label", "score")
ROWS_AT_ONCE = 50_000  # of a Parquet file's row groups
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # signs a spreadsheet would run (OWASP, CSV injection)
_RESULT = ".events.json"


@dataclass
class Tally:
    """Counts of a run; its size does not depend on the number of files, only on the number of failures.

    Attributes:
        states: files by how they ended.
        kinds: failures by kind.
        events: in the files done by this run.
        seconds: of media done by this run.
        worked: seconds of media in all files that workers had, also those that failed.
        failures: what failed, now or before.
    """

    states: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    events: int = 0
    seconds: float = 0.0
    worked: float = 0.0
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Counts one outcome."""
        self.states[_state(outcome)] += 1
        if outcome.kind:
            self.kinds[outcome.kind] += 1
            self.failures.append(outcome)
        self.worked += outcome.duration if outcome.state in ("done", *FAILED) else 0.0
        if outcome.state == "done":
            self.events += outcome.events
            self.seconds += outcome.duration

    @property
    def files(self) -> int:
        """How many have ended."""
        return sum(self.states.values())

    def counts(self) -> dict[str, int]:
        """Files by state; the states that every summary has come first."""
        always = dict.fromkeys(("done", "skipped", "failed", "quarantined"), 0)
        return {**always, **dict(sorted(self.states.items()))}


def _state(outcome: Outcome) -> str:
    return "failed_before" if outcome.state == "skipped" and outcome.kind else outcome.state


def write_summary(out: Path, tally: Tally, about: Mapping[str, Any], shard: tuple[int, int] | None) -> None:
    """Writes summary.json and failures.csv to OUT/.avtool; those of a shard carry its number.

    Raises:
        OutputError: they cannot be written.
    """
    mark = f"-{shard[0]}-of-{shard[1]}" if shard else ""
    record = {
        **tally.counts(),
        "events": tally.events,
        "media_seconds": round(tally.seconds, 3),
        "kinds": dict(sorted(tally.kinds.items())),
        **about,
    }
    write_atomic(out / FOLDER / f"summary{mark}.json", json.dumps(record, indent=1) + "\n")
    write_atomic(out / FOLDER / f"failures{mark}.csv", _failures_csv(tally.failures))


def _failures_csv(failures: Iterable[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(("file", "state", "kind", "attempts", "exit_code", "what", "why"))
    for f in sorted(failures, key=lambda f: f.name):
        cells = (f.name, _state(f), f.kind, str(f.attempt), str(f.exit_code), f.what, f.why)
        writer.writerow([_cell(value) for value in cells])
    return text.getvalue()


def _cell(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) else value


class Row(NamedTuple):
    """One event of one file; seconds."""

    file: str
    start: float
    end: float
    label: str
    score: float


def write_tables(out: Path) -> int:
    """Writes OUT/events.csv, and OUT/events.parquet if pyarrow is installed, from all results below OUT.

    Returns:
        The number of events.

    Raises:
        OutputError: they cannot be written.
    """
    count = 0
    with atomic_stream(out / "events.csv") as stream:
        stream.write(_csv_line(EVENT_COLUMNS))
        for row in event_rows(out):
            stream.write(
                _csv_line((_cell(row.file), f"{row.start:.3f}", f"{row.end:.3f}", _cell(row.label), row.score))
            )
            count += 1
    with suppress(ImportError):
        _write_parquet(out)
    return count


def load_parquet() -> None:
    """Loads pyarrow, if it is installed: it takes longer than writing a table, which says what is wrong with it."""
    with suppress(Exception):
        from pyarrow import parquet  # noqa: F401


def event_rows(out: Path) -> Iterator[Row]:
    """All events of all results below OUT, in the order of the files' names; `file` is the name below the root."""
    for _, file, timeline in results(out):
        for event in timeline.events:
            yield Row(file, event.start, event.end, event.label, event.score)


def results(out: Path) -> Iterator[tuple[Path, str, Timeline]]:
    """Every result below OUT by name: its file, the name of its video below the root, the timeline."""
    for place, folders, names in os.walk(out):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        above = os.path.relpath(place, out)
        for name in sorted(name for name in names if name.endswith(_RESULT)):
            path = Path(place, name)
            try:
                timeline = from_json(path.read_bytes())
            except (OSError, InputError):
                continue
            base = timeline.media.path.rpartition("/")[2]
            yield path, base if above == os.curdir else f"{Path(above).as_posix()}/{base}", timeline


def write_index(out: Path, failures: Iterable[Outcome]) -> None:
    """Writes OUT/index.html: what failed, and a row for every result below OUT.

    Raises:
        OutputError: it cannot be written.
    """
    from avtool.formats.index import Entry, Failure, index

    entries = []
    for path, file, timeline in results(out):
        page = path.with_name(path.name.removesuffix(_RESULT) + ".events.html")
        link = (page if page.exists() else path).relative_to(out).as_posix()
        warnings = tuple(notice.message for notice in timeline.warnings)
        entries.append(Entry(file, link, timeline.media.duration, timeline.events, warnings))
    failed = [Failure(f.name, f.what, f.why) for f in sorted(failures, key=lambda f: f.name)]
    write_atomic(out / "index.html", index(entries, failed, out.resolve().name or "results", f"avtool {__version__}"))


def _csv_line(cells: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode("utf-8", "replace")


def _write_parquet(out: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = (pa.string(), pa.float64(), pa.float64(), pa.string(), pa.float32())
    schema = pa.schema(list(zip(EVENT_COLUMNS, types, strict=True)))
    with atomic_stream(out / "events.parquet") as stream, parquet.ParquetWriter(stream, schema) as writer:
        for rows in _pieces(event_rows(out), ROWS_AT_ONCE):
            clean = [[_text(cell) for cell in column] for column in zip(*rows, strict=True)]
            arrays = [pa.array(column, type_) for column, type_ in zip(clean, types, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _text(cell: str | float) -> str | float:
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


def _pieces(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    piece: list[Row] = []
    for row in rows:
        piece.append(row)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece
