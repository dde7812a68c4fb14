"""The nouns of a batch: a job, what a worker must know, how a job ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avtool.settings import Settings

WORKER = "avtool.batch.worker:Worker"  # tests put a stand-in here


@dataclass(frozen=True)
class Job:
    """One file to be done.

    Attributes:
        path: the input; of an address only its name.
        name: what it is called below the root of the inputs, as shown and recorded.
        duration: seconds, as far as known before decoding; longer jobs go first.
        fingerprint: what its result will carry, see `session.fingerprint_of`.
        files: format name -> result.
        url: the address, if it is not a file of this machine.
        bytes, mtime_ns: of the input.
        stale: there is a result already, of other settings, weights or contents.
        attempt: workers that have had it, with this one.
        tries: how often it was fetched, with this time.
    """

    path: Path
    name: str
    duration: float
    fingerprint: str
    files: Mapping[str, Path]
    url: str = ""
    bytes: int = 0
    mtime_ns: int = 0
    stale: bool = False
    attempt: int = 1
    tries: int = 1


@dataclass(frozen=True)
class WorkerSpec:
    """What every worker needs to know before its first job.

    Attributes:
        settings: of the results.
        task: "localize" or "features".
        threads: for networks, of each worker.
        timeout_floor, timeout_factor: a job may take so many seconds, or so many times its duration if that is more.
        stage_bytes: a file that is not on a file system may be so large.
        factory: "module:class" of the worker.
    """

    settings: Settings
    task: str = "localize"
    threads: int = 1
    timeout_floor: float = 120.0
    timeout_factor: float = 5.0
    stage_bytes: int = 20 << 30
    factory: str = WORKER

    def deadline(self, job: Job) -> float:
        """Seconds a job may take. What must be fetched first and is of unknown length: 1 MB a second at least."""
        return max(self.timeout_floor, self.timeout_factor * max(job.duration, job.bytes / 1e6 if job.url else 0.0))


@dataclass(frozen=True)
class Hello:
    """What a worker says when it is ready.

    Attributes:
        identity: what results depend on besides the input, see `Session.identity` and `Extractor.identity`.
        device, model: for people.
        gpus: how many GPUs its process sees, if it uses them.
    """

    identity: Mapping[str, Any]
    device: str = "cpu"
    model: str = ""
    gpus: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: of the file, below the root of the inputs.
        state: "done", "failed", "quarantined" (it ended or blocked its workers), "skipped" (finished before, or failed
            before and not tried again: then `kind` says how) or "elsewhere" (another run has it in hand).
        kind: of a failure, see KINDS.
        attempt: workers it has had.
        duration: seconds of media.
        took: seconds of work.
        fingerprint: of the result that was to be made.
        notices: (code, message).
        exit_code, what, why, hint: of the error.
    """

    name: str
    state: str
    kind: str = ""
    attempt: int = 1
    events: int = 0
    duration: float = 0.0
    took: float = 0.0
    fingerprint: str = ""
    notices: tuple[tuple[str, str], ...] = ()
    exit_code: int = 0
    what: str = ""
    why: str = ""
    hint: str = ""


UNREACHABLE = "unreachable"
CANNOT_WRITE = "cannot write"
KINDS = ("unreadable", "partial", "crash", "timeout", "memory", "bug", "usage", UNREACHABLE, CANNOT_WRITE)
PASSING = (UNREACHABLE, CANNOT_WRITE)  # no property of the file: tried again by the next run
FAILED = ("failed", "quarantined")


@dataclass(frozen=True)
class Ended:
    """A job has ended by itself, well or not."""

    job: Job
    outcome: Outcome


@dataclass(frozen=True)
class WorkerDied:
    """A worker ended in the middle of `job`, or was stopped at its deadline; a lost machine is not the file's fault."""

    job: Job
    why: str
    node_lost: bool = False
    timed_out: bool = False


Result = Ended | WorkerDied
