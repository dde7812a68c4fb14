"""What a batch leaves behind about itself: a journal while it runs, a summary and a list of failures at the end."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from avtool.batch.scheduler import Outcome
from avtool.files import append_line, write_atomic

FOLDER = ".avtool"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # signs a spreadsheet would run (OWASP, CSV injection)


class Journal:
    """One line per outcome in OUT/.avtool/journal-<run>.jsonl; each run has its own file, so runs never share one.

    Losing it loses only history: what is finished is read from the results.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / FOLDER
        self._file = self._folder / f"journal-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.jsonl"
        self.outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Records one outcome on the disk.

        Raises:
            OutputError: it cannot be written.
        """
        self.outcomes.append(outcome)
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(outcome)}
        append_line(self._file, json.dumps(line))

    @property
    def failures(self) -> list[Outcome]:
        """What did not end well."""
        return [outcome for outcome in self.outcomes if outcome.state in ("failed", "quarantined")]

    def close(self) -> dict[str, int]:
        """Writes summary.json and failures.csv; returns how many ended in each state.

        Raises:
            OutputError: they cannot be written.
        """
        counts = dict.fromkeys(("done", "skipped", "failed", "quarantined"), 0)
        counts.update(Counter(outcome.state for outcome in self.outcomes))
        events = sum(outcome.events for outcome in self.outcomes)
        write_atomic(self._folder / "summary.json", json.dumps({**counts, "events": events}) + "\n")
        write_atomic(self._folder / "failures.csv", _as_csv(self.failures))
        return counts


def _as_csv(failures: list[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "state", "exit_code", "what", "why"))
    for f in sorted(failures, key=lambda f: f.name):
        writer.writerow([_cell(value) for value in (f.name, f.state, str(f.exit_code), f.what, f.why)])
    return text.getvalue()


def _cell(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) else value
