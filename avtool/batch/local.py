"""A pool of one worker in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from avtool.batch.plan import Job
from avtool.batch.scheduler import Outcome, WorkerDied, WorkerSpec
from avtool.batch.worker import Worker
from avtool.session import OnProgress, Session

Show = Callable[[Job], AbstractContextManager[OnProgress]]


class InlinePool:
    """Runs each job when it is waited for.

    Args:
        session: loaded already, since planning needed it; closed by its owner.
        show: gives the progress display of a job.
    """

    slots = 1

    def __init__(self, session: Session, show: Show) -> None:
        self._session, self._show = session, show
        self._jobs: list[Job] = []

    def start(self, spec: WorkerSpec) -> None:
        """Makes the worker."""
        self._worker = Worker(spec, self._session)

    def submit(self, job: Job) -> None:
        """Takes one job."""
        self._jobs.append(job)

    def wait(self, timeout: float) -> list[Outcome | WorkerDied]:
        """Does the oldest job, however long it takes."""
        job = self._jobs.pop(0)
        with self._show(job) as progress:
            return [self._worker.run(job, progress)]

    def close(self) -> None:
        """Nothing: the session belongs to the caller."""
