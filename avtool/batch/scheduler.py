"""Runs jobs on a pool of workers and records how each ended; what a worker is, a pool decides."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from avtool.batch.jobs import UNREACHABLE, Ended, Hello, Job, Outcome, Result, WorkerDied, WorkerSpec
from avtool.files import printable

ATTEMPTS = 2  # a file whose worker died is tried once more, alone; what kills two workers is the file
TRIES = 4  # a file that cannot be reached is tried so often in all ...
BACK_OFF = 2.0  # ... the second time after so many seconds, then after four times as many, and again
WAIT_SECONDS = 0.2
WINDOW = 2000  # jobs known ahead; the longest of them goes first


class Pool(Protocol):
    """Workers somewhere: in other processes, on other machines."""

    def start(self, spec: WorkerSpec, files: int = 1, stop: Callable[[], bool] = ...) -> Hello: ...
    def room(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def recall(self) -> list[Job]: ...
    def wait(self, timeout: float) -> list[Result]: ...
    def close(self) -> None: ...


class Feed(Protocol):
    """Where jobs come from while the run goes on; what planning itself decided comes as an outcome."""

    def take(self, most: int) -> list[Job | Outcome]: ...
    def settle(self, seconds: float) -> None: ...
    @property
    def ended(self) -> bool: ...


class Claims(Protocol):
    """Who works on what, where several runs share a folder."""

    def take(self, job: Job) -> str: ...
    def release(self, job: Job) -> None: ...
    def beat(self) -> None: ...


class NoClaims:
    """For a run that is alone."""

    def take(self, job: Job) -> str:
        """Always this run's."""
        return "mine"

    def release(self, job: Job) -> None:
        """Nothing."""

    def beat(self) -> None:
        """Nothing."""


@dataclass
class Scheduler:
    """Runs all jobs of a feed, the longest of those known first; every job ends in exactly one record.

    Attributes:
        feed: the jobs, and what planning decided.
        pool: started; closed by the caller.
        record: called in this thread when a job has ended. What it raises ends the run.
        claims: asked before a job is given out.
        stop: True when no new job may begin; jobs in flight end as usual.
        tick: called several times a second.
        settle: seconds to wait for the plan before the first job is chosen.
    """

    feed: Feed
    pool: Pool
    record: Callable[[Outcome], None]
    claims: Claims = field(default_factory=NoClaims)
    stop: Callable[[], bool] = lambda: False
    tick: Callable[[], None] = lambda: None
    settle: float = 0.0
    back_off: float = BACK_OFF
    _waiting: list[tuple[bool, float, str, Job]] = field(default_factory=list)
    _later: list[tuple[float, str, Job]] = field(default_factory=list)  # (when, name, job)
    _elsewhere: list[Job] = field(default_factory=list)
    _flying: int = 0

    def run(self) -> None:
        """Works until everything is recorded, or until what is in flight is, once `stop` says so."""
        self.feed.settle(self.settle)
        while True:
            stopping = self.stop()
            if stopping:
                for job in self.pool.recall():
                    self._flying -= 1
                    self.claims.release(job)
            else:
                self._fill()
                self._submit()
            if not self._flying and (stopping or self._is_over()):
                return
            for result in self.pool.wait(WAIT_SECONDS if self._flying else 0.01):
                self._flying -= 1
                self._settle(result)
            self.claims.beat()
            self.tick()

    def _is_over(self) -> bool:
        if self._waiting or self._later or not self.feed.ended:
            return False
        for job in self._elsewhere:
            self._look_again(job)
        self._elsewhere.clear()
        return not self._waiting

    def _look_again(self, job: Job) -> None:
        """What another run had in hand when its turn came: finished by now, free again, or still in its hands."""
        state = self.claims.take(job)
        if state == "mine":
            self.claims.release(job)
            self._push(job)
        else:
            self.record(_without_work(job, state))

    def _fill(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._push(heapq.heappop(self._later)[2])
        if len(self._waiting) >= WINDOW:
            return
        for item in self.feed.take(WINDOW - len(self._waiting)):
            if isinstance(item, Outcome):
                self.record(item)
            else:
                self._push(item)

    def _push(self, job: Job) -> None:
        heapq.heappush(self._waiting, (job.attempt == 1, -job.duration, job.name, job))

    def _submit(self) -> None:
        while self._waiting and self.pool.room() > 0:
            job = heapq.heappop(self._waiting)[3]
            state = self.claims.take(job)
            if state == "mine":
                self.pool.submit(job)
                self._flying += 1
            elif state == "finished":
                self.record(_without_work(job, state))
            else:
                self._elsewhere.append(job)

    def _settle(self, result: Result) -> None:
        """A record, or another try."""
        job = result.job
        if isinstance(result, WorkerDied) and result.node_lost:
            self._push(job)
        elif isinstance(result, WorkerDied) and job.attempt < ATTEMPTS:
            self._push(replace(job, attempt=job.attempt + 1))
        elif isinstance(result, Ended) and result.outcome.kind == UNREACHABLE and job.tries < TRIES:
            when = time.monotonic() + self.back_off * 4 ** (job.tries - 1)
            heapq.heappush(self._later, (when, job.name, replace(job, tries=job.tries + 1)))
        else:
            self.record(quarantined(result) if isinstance(result, WorkerDied) else result.outcome)
            self.claims.release(job)


def quarantined(death: WorkerDied) -> Outcome:
    """The record of a file that its workers did not survive."""
    job = death.job
    did = "was not done in time" if death.timed_out else "ended its worker"
    return Outcome(
        job.name,
        "quarantined",
        "timeout" if death.timed_out else "crash",
        job.attempt,
        duration=job.duration,
        fingerprint=job.fingerprint,
        exit_code=3,
        what=f"{printable(job.name)} {did}, {ATTEMPTS} times",
        why=death.why,
        hint="avtool info shows what is in it; --retry-failed tries it again",
    )


def _without_work(job: Job, state: str) -> Outcome:
    done = "skipped" if state == "finished" else "elsewhere"
    return Outcome(job.name, done, duration=job.duration, fingerprint=job.fingerprint)
