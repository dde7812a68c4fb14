"""What a run writes down about itself while it runs: one line per outcome, and who works on what."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from avtool.batch.finished import fingerprint_found
from avtool.batch.jobs import FAILED, PASSING, Job, Outcome
from avtool.files import LineFile, claim, clean_stale, process_has_ended, process_name, sign_of_life, take_away

FOLDER = ".avtool"
BEAT_SECONDS = 20.0
DEAD_SECONDS = 300.0  # without a beat, a run on another machine is taken for dead and its files are done again


class Journal:
    """One line per outcome in OUT/.avtool/journal-<run>.jsonl; each run has its own file, so runs never share one.

    Losing it loses only history, and what failed before: what is finished is read from the results.

    Args:
        out: folder of the results.
    """

    def __init__(self, out: Path) -> None:
        self.run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{process_name()}"
        self._file = LineFile(out / FOLDER / f"journal-{self.run}.jsonl")

    def add(self, outcome: Outcome) -> None:
        """Records one outcome on the disk.

        Raises:
            OutputError: it cannot be written.
        """
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **asdict(outcome)}
        self._file.add(json.dumps(line))

    def close(self) -> None:
        """Waits until all lines are on the disk.

        Raises:
            OutputError: they are not.
        """
        self._file.close()


def failed_before(out: Path) -> dict[tuple[str, str], Outcome]:
    """What earlier runs could not do for a reason that lies in the file: (name, fingerprint) -> how it ended."""
    known = {f.name for f in fields(Outcome)}
    found: dict[tuple[str, str], Outcome] = {}
    for record in _records(out):
        if record.get("state") in FAILED and record.get("kind") not in PASSING:
            with suppress(TypeError, KeyError):
                outcome = Outcome(**{name: value for name, value in record.items() if name in known})
                found[outcome.name, outcome.fingerprint] = outcome
    return found


def _records(out: Path) -> Iterator[Mapping[str, Any]]:
    """Lines of all journals about failures; a torn line counts for nothing."""
    for path in sorted((out / FOLDER).glob("journal-*.jsonl")):
        with suppress(OSError), path.open("rb") as file:
            for line in file:
                if b'"failed"' in line or b'"quarantined"' in line:
                    with suppress(ValueError):
                        record = json.loads(line)
                        if isinstance(record, dict):
                            yield record


class FolderClaims:
    """Files that are in hand, as small files in OUT/.avtool/claims, so that runs that share a folder share its work.

    A claim is made by creating a file, which only one of several can do, and holds as long as its run lives: on this
    machine as long as its process, elsewhere as long as the run touches OUT/.avtool/alive-<run>. Times are compared as
    the file system gives them, so the clocks of the machines do not matter.

    Args:
        out: folder of the results.
        run: name of this run.
    """

    def __init__(self, out: Path, run: str) -> None:
        self._out, self._folder = out, out / FOLDER
        self._run = run
        self._beaten = 0.0
        self._now = 0  # ns, by the clock of the file system
        self._held: set[Path] = set()

    def take(self, job: Job) -> str:
        """ "mine" from now on; "finished" meanwhile; or "taken" by another run.

        Raises:
            OutputError: a claim cannot be written.
        """
        self.beat()
        path = self._path(job)
        if path in self._held:
            return "mine"
        while not claim(path, self._run):
            if not path.exists():
                continue
            if (owner := self._dead_owner(path)) is None:
                return "taken"
            take_away(path, owner)
        self._held.add(path)
        if fingerprint_found(job.files) == job.fingerprint and all(path.is_file() for path in job.files.values()):
            self.release(job)
            return "finished"
        return "mine"

    def release(self, job: Job) -> None:
        """Gives a file back."""
        path = self._path(job)
        if path in self._held:
            self._held.discard(path)
            take_away(path, self._run)

    def beat(self) -> None:
        """Says that this run lives.

        Raises:
            OutputError: it cannot be said.
        """
        if time.monotonic() - self._beaten > BEAT_SECONDS or not self._beaten:
            self._beaten = time.monotonic()
            self._now = sign_of_life(self._alive(self._run))

    def close(self) -> None:
        """Gives everything back and removes what dead runs have left."""
        for path in list(self._held):
            take_away(path, self._run)
        self._held.clear()
        for path in self._folder.glob("claims/*"):
            if (owner := self._dead_owner(path)) is not None:
                take_away(path, owner)
        for path in self._folder.glob("alive-*"):
            run = path.name.removeprefix("alive-")
            if run == self._run or self._is_dead(run):
                take_away(path, "")
        with suppress(OSError):
            os.rmdir(self._folder / "claims")
        with suppress(OSError):
            clean_stale(self._folder)

    def _path(self, job: Job) -> Path:
        result = os.path.relpath(job.files.get("json") or job.files["npz"], self._out)
        return self._folder / "claims" / hashlib.sha256(os.fsencode(result)).hexdigest()[:32]

    def _alive(self, run: str) -> Path:
        return self._folder / f"alive-{run}"

    def _dead_owner(self, path: Path) -> str | None:
        """The run that made a claim, if it is dead."""
        try:
            owner = path.read_text(encoding="utf-8")
            if not owner:  # being made
                return "" if self._now - os.stat(path).st_mtime_ns > DEAD_SECONDS * 1e9 else None
        except OSError:
            return None  # given back: it is tried again
        return owner if self._is_dead(owner) else None

    def _is_dead(self, run: str) -> bool:
        if process_has_ended("-".join(run.split("-")[1:])):
            return True
        try:
            beaten = os.stat(self._alive(run)).st_mtime_ns
        except OSError:
            beaten = 0
        return self._now - beaten > DEAD_SECONDS * 1e9
