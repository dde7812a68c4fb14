"""Does one job at a time with everything loaded once; an error of a file ends the job, never the worker."""

from __future__ import annotations

import traceback

from avtool.batch.plan import Job
from avtool.batch.scheduler import Outcome, WorkerSpec
from avtool.errors import AvtoolError, DeviceError
from avtool.files import printable
from avtool.formats import write_all
from avtool.pipeline import localize
from avtool.session import OnProgress, Session


class Worker:
    """A session and the jobs it does.

    Args:
        spec: what to do.
        session: one that exists already; None: makes its own.
    """

    def __init__(self, spec: WorkerSpec, session: Session | None = None) -> None:
        self._session = session or Session(spec.settings)

    def run(self, job: Job, on_progress: OnProgress | None = None) -> Outcome:
        """Localizes one file and writes its results, the JSON last."""
        try:
            timeline = localize(job.path, None, on_progress, session=self._session)
            write_all(timeline, job.files)
        except AvtoolError as error:
            return _failed(job, error)
        except MemoryError:
            return _failed(job, DeviceError(f"out of memory at {printable(job.name)}"))
        except Exception as error:  # one file must not end the night
            return _failed(job, _bug(job, error))
        notices = tuple((notice.code, notice.message) for notice in timeline.warnings)
        return Outcome(job.name, "done", job.attempt, len(timeline.events), notices)

    def close(self) -> None:
        """Ends the session."""
        self._session.close()


def _failed(job: Job, error: AvtoolError) -> Outcome:
    return Outcome(
        job.name,
        "failed",
        job.attempt,
        exit_code=error.exit_code,
        what=error.what,
        why=error.why,
        hint=error.hint,
    )


def _bug(job: Job, error: Exception) -> AvtoolError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = f"report it; avtool localize {printable(job.name)} shows more"
    return AvtoolError(f"a bug in avtool at {printable(job.name)}", f"{why} ({place.name}, line {place.lineno})", hint)
