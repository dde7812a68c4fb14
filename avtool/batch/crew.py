"""What all engines have in common: who does what, who looks ahead, who is late, who must be replaced."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from avtool.batch.jobs import Ended, Hello, Job, Outcome, Result, WorkerDied, WorkerSpec
from avtool.errors import AvtoolError, DeviceError, Interrupted

STILLBORN = 3  # workers in a row that ended before they were ready: the next ones will as well
START_SECONDS = 0.1  # between two looks whether the run is to end before it has begun


class Handle(Protocol):
    """One worker as its engine reaches it; no call waits for the worker."""

    def run(self, job: Job) -> None: ...
    def ahead(self, job: Job) -> None: ...
    def drop(self, job: Job) -> None: ...
    def dismiss(self) -> None: ...  # it has nothing to do and may end by itself
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Death:
    """A worker has ended."""

    why: str
    node_lost: bool = False


Message = Hello | Outcome | Death | AvtoolError  # the error: it cannot start, and no other would


@dataclass(eq=False)
class Member:
    """One place in the crew and the worker that fills it."""

    index: int
    handle: Handle
    ready: bool = False
    done: int = 0  # jobs begun
    job: Job | None = None
    since: float = 0.0  # when it began
    next: Job | None = None  # looked ahead at


class Crew(ABC):
    """A pool of equal workers: one job each, and a look ahead at the next one.

    A job that has lost a worker is given to a fresh one, alone: nobody else's decoding shares its process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = max(1, workers)
        self._members: list[Member] = []
        self._backlog: deque[Job] = deque()
        self._stillborn = 0
        self._spec: WorkerSpec | None = None
        self.hello: Hello | None = None

    @abstractmethod
    def _launch(self, spec: WorkerSpec, index: int) -> Handle:
        """Starts a worker and returns at once."""

    @abstractmethod
    def _poll(self, handles: Sequence[Handle], timeout: float) -> list[tuple[Handle, Message]]:
        """What the workers have said within `timeout` seconds; returns with the first."""

    def prepare(self, spec: WorkerSpec) -> None:
        """Begins what takes its time, before it is known whether there is work; `start` comes later, or `close`."""
        self._spec = spec

    def _count(self, hello: Hello, wanted: int) -> int:
        """How many workers there shall be, once the first has said what it sees."""
        return wanted

    def _is_counted(self, spec: WorkerSpec) -> bool:
        """Whether it is known how many workers there shall be before one has said what it sees."""
        return False

    # ---------------------------------------------------------------- the protocol of a pool

    def start(self, spec: WorkerSpec, files: int = 1, stop: Callable[[], bool] = lambda: False) -> Hello:
        """Starts workers and waits for the first; where their number is not known yet, one, the others on demand.

        Args:
            spec: what they do.
            files: that there may be work for.
            stop: True when nothing shall be begun any more.

        Raises:
            AvtoolError: none can start, with the reason that one gave.
            Interrupted: `stop` said so.
        """
        self._spec = spec
        for index in range(min(self.workers, max(1, files)) if self._is_counted(spec) else 1):
            self._members.append(Member(index, self._launch(spec, index)))
        while self.hello is None:
            if stop():
                raise Interrupted("nothing was begun")
            self._hear(START_SECONDS)
        self.workers = self._count(self.hello, self.workers)
        return self.hello

    def room(self) -> int:
        """How many jobs may be submitted: one for each idle worker and one for each to look ahead at."""
        busy = sum((m.job is not None) + (m.next is not None) for m in self._members)
        return 2 * self.workers - busy - len(self._backlog)

    def submit(self, job: Job) -> None:
        """Takes one job."""
        assert self._spec is not None
        self._backlog.append(job)
        free = sum(m.job is None for m in self._members)
        if free < len(self._backlog) and len(self._members) < self.workers:
            index = len(self._members)
            self._members.append(Member(index, self._launch(self._spec, index)))

    def recall(self) -> list[Job]:
        """Gives back what no worker has begun."""
        back = list(self._backlog)
        self._backlog.clear()
        for member in self._members:
            if member.next is not None:
                member.handle.drop(member.next)
                back.append(member.next)
                member.next = None
        return back

    def wait(self, timeout: float) -> list[Result]:
        """Hands out work, and returns what has ended within `timeout` seconds."""
        self._assign()
        results = self._hear(timeout)
        results += self._stop_the_late()
        self._assign()
        return results

    def dismiss(self) -> None:
        """Lets idle workers end by themselves, beside whatever comes next; `close` comes later."""
        for member in [m for m in self._members if m.job is None]:
            member.handle.dismiss()
            self._members.remove(member)

    def close(self) -> None:
        """Ends all workers."""
        for member in self._members:
            member.handle.kill()
        self._members.clear()

    # ---------------------------------------------------------------- who does what

    def _assign(self) -> None:
        idle = [m for m in self._members if m.ready and m.job is None]
        for member in idle:
            if member.next is not None:
                job, member.next = member.next, None
                self._give(member, job)
            elif (chosen := self._choose(member)) is not None:
                self._give(member, chosen)
        for member in self._members:
            if member.job is not None and member.next is None and member.job.attempt == 1:
                following = next((j for j in self._backlog if j.attempt == 1), None)
                if following is not None:
                    self._backlog.remove(following)
                    member.next = following
                    member.handle.ahead(following)

    def _choose(self, member: Member) -> Job | None:
        """The next job for an idle worker: none that needs a fresh one, unless it is; or another's next one."""
        for job in self._backlog:
            if job.attempt == 1 or member.done == 0:
                self._backlog.remove(job)
                return job
        if self._backlog:  # all of them need a fresh worker
            if not any(m.done == 0 for m in self._members):
                self._replace(member)
            return None
        rich = next((m for m in self._members if m.job is not None and m.next is not None), None)
        if rich is None:
            return None
        assert rich.next is not None
        job, rich.next = rich.next, None
        rich.handle.drop(job)
        return job

    def _give(self, member: Member, job: Job) -> None:
        member.job, member.since = job, time.monotonic()
        member.done += 1
        member.handle.run(job)

    def _hear(self, timeout: float) -> list[Result]:
        by_handle = {id(m.handle): m for m in self._members}
        results: list[Result] = []
        for handle, message in self._poll([m.handle for m in self._members], timeout):
            member = by_handle[id(handle)]
            if isinstance(message, Hello):
                member.ready, self._stillborn = True, 0
                self.hello = self.hello or message
            elif isinstance(message, Outcome):
                assert member.job is not None
                results.append(Ended(member.job, message))
                member.job = None
            elif isinstance(message, Death):
                results += self._bury(member, message)
            else:
                raise message
        return results

    def _bury(self, member: Member, death: Death) -> list[Result]:
        """Replaces a dead worker; what it looked ahead at goes to another."""
        job = member.job
        if not member.ready:
            self._stillborn += not death.node_lost
            if self._stillborn >= STILLBORN:
                raise DeviceError(
                    "the workers end before they are ready", death.why, "fewer --workers need less memory"
                )
        self._replace(member)
        return [] if job is None else [WorkerDied(job, death.why, death.node_lost)]

    def _stop_the_late(self) -> list[Result]:
        assert self._spec is not None
        late: list[Result] = []
        for member in self._members:
            job = member.job
            if job is not None and time.monotonic() - member.since > self._spec.deadline(job):
                why = f"it took more than {self._spec.deadline(job):.0f} s (--timeout-floor, --timeout-factor)"
                self._replace(member)
                late.append(WorkerDied(job, why, timed_out=True))
        return late

    def _replace(self, member: Member) -> None:
        assert self._spec is not None
        member.handle.kill()
        if member.next is not None:
            self._backlog.appendleft(member.next)
        member.handle = self._launch(self._spec, member.index)
        member.ready, member.done, member.job, member.next = False, 0, None, None
