"""What runs write about themselves: lines that survive, failures that are remembered, claims that outlive nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from avtool.batch import journal
from avtool.batch.jobs import Job, Outcome
from avtool.batch.journal import FOLDER, FolderClaims, Journal, failed_before
from avtool.files import process_name, write_atomic
from avtool.timeline import to_json
from tests.batch.workers import timeline


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "a.mp4", "a.mp4", 1.0, "f", {"json": tmp_path / "out" / "a.events.json"})


def dead_run() -> str:
    """The name of a run whose process has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"20260101T000000Z-{process_name().partition('-')[0]}-{ended.pid:x}"


def test_failures_are_remembered_by_what_they_are(tmp_path: Path) -> None:
    one = Journal(tmp_path)
    one.add(Outcome("a", "failed", "unreadable", fingerprint="1", what="first"))
    one.add(Outcome("a", "failed", "unreadable", fingerprint="1", what="second", notices=(("code", "text"),)))
    one.add(Outcome("b", "quarantined", "crash", fingerprint="2"))
    one.add(Outcome("c", "failed", "unreachable", fingerprint="3"))
    one.add(Outcome("d", "failed", "cannot write", fingerprint="4"))
    one.add(Outcome("e", "done", fingerprint="5", what='says "failed"'))
    one.close()
    (path,) = (tmp_path / FOLDER).iterdir()
    with path.open("ab") as file:
        file.write(b'{"name": "f", "state": "failed", "kind"')  # the power went
    (tmp_path / FOLDER / "journal-x.jsonl").write_text('["failed"]\n{"state": "failed"}\n\xff"failed"\n')
    found = failed_before(tmp_path)
    assert set(found) == {("a", "1"), ("b", "2")} and found["a", "1"].what == "second"


def test_a_claim_is_exclusive_and_given_back(tmp_path: Path, job: Job) -> None:
    out = tmp_path / "out"
    one, two = FolderClaims(out, "t-1-1"), FolderClaims(out, "t-2-2")
    assert (one.take(job), two.take(job), one.take(job)) == ("mine", "taken", "mine")
    one.release(job)
    assert two.take(job) == "mine"
    write_atomic(job.files["json"], to_json(timeline(job)))
    assert one.take(job) == "taken"
    two.release(job)
    assert one.take(job) == "finished"
    assert one.take(replace(job, fingerprint="other")) == "mine"
    one.close()
    two.close()
    assert list((out / FOLDER).iterdir()) == []


def test_claims_of_dead_processes_are_taken_over(tmp_path: Path, job: Job) -> None:
    out = tmp_path / "out"
    assert FolderClaims(out, dead_run()).take(job) == "mine"
    assert FolderClaims(out, "t-1-1").take(job) == "mine"


def test_runs_elsewhere_live_as_long_as_they_give_a_sign(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    far, near = FolderClaims(out, "t-ffffffff-1"), FolderClaims(out, "t-1-1")
    assert (far.take(job), near.take(job)) == ("mine", "taken")
    alive = out / FOLDER / "alive-t-ffffffff-1"
    late = alive.stat().st_mtime_ns - int(1e9 * (journal.DEAD_SECONDS + 1))
    os.utime(alive, ns=(late, late))
    assert near.take(job) == "mine"
    far.release(job)  # it comes back and finds that it has lost
    assert FolderClaims(out, "t-2-2").take(job) == "taken"


def test_a_claim_in_the_making_is_respected(tmp_path: Path, job: Job) -> None:
    claims = FolderClaims(tmp_path / "out", "t-1-1")
    path = claims._path(job)
    path.parent.mkdir(parents=True)
    path.touch()
    assert claims.take(job) == "taken"
