"""Runs jobs on a pool of workers and records how each ended; what a worker is, a pool decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from avtool.batch.plan import Job, longest_first
from avtool.settings import Settings

ATTEMPTS = 2  # a file whose worker died is tried once more; what kills two workers is the file
WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerSpec:
    """What every worker needs to know before its first job."""

    settings: Settings


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `state` is "done", "failed", "quarantined" or "skipped" (it was finished before)."""

    name: str
    state: str
    attempt: int = 1
    events: int = 0
    notices: tuple[tuple[str, str], ...] = ()  # (code, message)
    exit_code: int = 0
    what: str = ""
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class WorkerDied:
    """A worker ended in the middle of `job`; a lost machine does not count against the file."""

    job: Job
    why: str
    node_lost: bool = False


class Pool(Protocol):
    """Workers somewhere: in this process, in others, on other machines."""

    slots: int  # jobs that may be submitted and not yet returned

    def start(self, spec: WorkerSpec) -> None: ...
    def submit(self, job: Job) -> None: ...
    def wait(self, timeout: float) -> list[Outcome | WorkerDied]: ...
    def close(self) -> None: ...


def run(jobs: Sequence[Job], pool: Pool, record: Callable[[Outcome], None]) -> None:
    """Runs all jobs, the longest first; every job ends in exactly one record.

    Args:
        jobs: what is to be done.
        pool: started; closed by the caller.
        record: called in this thread when a job has ended. What it raises ends the run.
    """
    waiting, flying = deque(longest_first(jobs)), 0
    while waiting or flying:
        while waiting and flying < pool.slots:
            pool.submit(waiting.popleft())
            flying += 1
        for result in pool.wait(WAIT_SECONDS):
            flying -= 1
            if isinstance(result, Outcome):
                record(result)
            elif result.node_lost or result.job.attempt < ATTEMPTS:
                waiting.append(replace(result.job, attempt=result.job.attempt + (not result.node_lost)))
            else:
                record(_quarantined(result))


def _quarantined(death: WorkerDied) -> Outcome:
    return Outcome(
        death.job.name,
        "quarantined",
        death.job.attempt,
        exit_code=3,
        what=f"{death.job.name} ended its worker {ATTEMPTS} times",
        why=death.why,
        hint="avtool info shows what is in it",
    )
