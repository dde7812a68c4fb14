"""One run from its inputs to its summary: start the workers, plan, work, close."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from avtool.batch import jobs
from avtool.batch.crew import Crew
from avtool.batch.inputs import Choice, Inputs, check_names
from avtool.batch.jobs import CANNOT_WRITE, FAILED, Hello, Job, Outcome, WorkerSpec
from avtool.batch.journal import FolderClaims, Journal, failed_before
from avtool.batch.local import LocalPool, processors
from avtool.batch.report import Tally, load_parquet, write_index, write_summary, write_tables
from avtool.errors import BatchFailures, Interrupted, UsageError
from avtool.files import check_writable
from avtool.settings import Settings, extensions

if TYPE_CHECKING:
    from avtool.batch.plan import PlanFeed

ENGINES = ("local", "ray")
TASKS = {"localize": "events", "features": "features"}  # -> middle part of the results' names
SETTLE_SECONDS = 1.0  # the plan may run ahead so long before the first job is chosen


@dataclass(frozen=True)
class Night:
    """What is asked of a run.

    Attributes:
        names: folders, files, addresses.
        out: folder of the results.
        formats: of the results, without the one that says what is finished.
        choice, root: see `Inputs`.
        engine, workers, threads, address: see `LocalPool` and `RayPool`; threads None: the processors, shared out.
        task: one of TASKS.
        limit: jobs at most.
        overwrite: see `Planner`.
        dry_run: plan only, write nothing.
        retry_failed: also what failed before.
        fail_fast: begin nothing more after a failure.
        timeout_factor, timeout_floor, stage_bytes: see `WorkerSpec`.
        tables: write the tables of all events at the end.
        report: write a page for each file, and one over all of them at the end.
    """

    names: Sequence[str]
    out: Path
    formats: Sequence[str] = ()
    choice: Choice = field(default_factory=Choice)
    root: Path | None = None
    engine: str = "local"
    workers: int | None = None
    threads: int | None = None
    address: str | None = None
    task: str = "localize"
    limit: int | None = None
    overwrite: bool = False
    dry_run: bool = False
    retry_failed: bool = False
    fail_fast: bool = False
    timeout_factor: float = WorkerSpec.timeout_factor
    timeout_floor: float = WorkerSpec.timeout_floor
    stage_bytes: int = WorkerSpec.stage_bytes
    tables: bool = True
    report: bool = False

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("threads", self.threads), ("limit", self.limit)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} is out of range", "it must be a whole number from 1 on")
        if self.engine not in ENGINES or self.task not in TASKS:
            known = f"engines: {', '.join(ENGINES)}; tasks: {', '.join(TASKS)}"
            raise UsageError("no such engine or task", known)
        if self.address and self.engine != "ray":
            raise UsageError("--address is of a Ray cluster", hint="--engine ray")
        if min(self.timeout_factor, self.timeout_floor) < 0 or self.stage_bytes < 1:
            raise UsageError("--timeout-factor, --timeout-floor or --stage-gb is out of range", "it must be above 0")

    @property
    def all_formats(self) -> dict[str, str]:
        """The format that says what is finished, and the others: name -> extension."""
        pages = ("html",) if self.report else ()
        return {"npz": "npz"} if self.task == "features" else extensions(dict.fromkeys(("json", *self.formats, *pages)))

    @property
    def has_tables(self) -> bool:
        """Whether there will be tables of all events."""
        return self.tables and self.task == "localize" and not self.dry_run


@dataclass(frozen=True)
class Outlook:
    """How far a run is.

    Attributes:
        files: found.
        judged: files that the plan has looked at.
        planned_seconds: of media in those that are to be done.
        seconds: since the workers began.
    """

    files: int
    judged: int
    planned_seconds: float
    seconds: float

    def left(self, tally: Tally) -> float | None:
        """Seconds until everything is done, if the rest is as what was judged so far; None while it is not known."""
        if not tally.worked or not self.judged or not self.seconds:
            return None
        in_all = self.planned_seconds * self.files / self.judged
        return max(0.0, in_all - tally.worked) * self.seconds / tally.worked


class Watcher(Protocol):
    """Who is told what happens."""

    def started(self, hello: Hello, workers: int, files: int) -> None: ...
    def ended(self, outcome: Outcome, tally: Tally, outlook: Outlook) -> None: ...
    def tick(self, tally: Tally, outlook: Outlook) -> None: ...


@dataclass
class Closed:
    """How a run ended.

    Attributes:
        tally: counts and failures.
        exit_code: of the command line.
        seconds: of the whole run.
        files: that were found.
        new, stale: jobs, for a dry run.
    """

    tally: Tally
    exit_code: int
    seconds: float = 0.0
    files: int = 0
    new: int = 0
    stale: int = 0


def run(night: Night, settings: Settings, watcher: Watcher, stop: Callable[[], bool] = lambda: False) -> Closed:
    """Does what is asked; one bad file never ends it.

    Args:
        night: what is asked.
        settings: of the results.
        watcher: told what happens, in this thread.
        stop: True as soon as no new file may be begun.

    Raises:
        UsageError, InputError: the inputs are not as they should be; nothing was done.
        WeightsError, DeviceError: the workers cannot start.
        Interrupted: `stop` said so before a file was begun.
        OutputError: results cannot be written; what is finished is kept, and the next run goes on from there.
    """
    begun = time.monotonic()
    inputs = Inputs(night.names, night.choice, night.root)
    closed = Closed(Tally(), 0)
    pool, spec = _pool(night, settings)
    try:
        pool.prepare(spec)
        closed.files = check_names(inputs, night.out, night.all_formats, TASKS[night.task])
        check_writable(night.out)
        if closed.files:
            _run(night, settings, inputs, pool, spec, watcher, stop, closed)
        closed.seconds = time.monotonic() - begun
        if closed.files and not night.dry_run:
            _close(night, closed)
    finally:
        pool.close()
    return closed


def _run(
    night: Night,
    settings: Settings,
    inputs: Inputs,
    pool: Crew,
    spec: WorkerSpec,
    watcher: Watcher,
    stop: Callable[[], bool],
    closed: Closed,
) -> None:
    from avtool.batch.plan import PROBERS, PlanFeed, Planner  # NumPy, while the workers load torch
    from avtool.session import limits

    identity: Future[Mapping[str, Any]] = Future()
    planner = Planner(
        inputs,
        night.out,
        night.all_formats,
        TASKS[night.task],
        identity,
        limits(settings),
        settings.audio_track,
        night.overwrite,
        {} if night.retry_failed else failed_before(night.out),
        night.limit,
        night.dry_run,
        min(PROBERS, processors()),
    )
    feed = PlanFeed(planner.items())  # finds and probes while the workers start
    try:
        if night.has_tables:  # beside, so that an interrupt need not wait for it
            threading.Thread(target=load_parquet, daemon=True).start()
        hello = pool.start(spec, closed.files, stop)
        identity.set_result(hello.identity)
        watcher.started(hello, pool.workers, closed.files)
        if night.dry_run:
            _count(feed, closed)
        else:
            _work(night, feed, pool, watcher, stop, closed)
    finally:
        identity.cancel()
        feed.close()


def _pool(night: Night, settings: Settings) -> tuple[Crew, WorkerSpec]:
    pool: Crew
    if night.engine == "ray":
        from avtool.batch.ray import RayPool

        pool, threads = RayPool(night.workers, night.address), night.threads or 1
    else:
        pool = LocalPool(night.workers)
        threads = night.threads or max(1, processors() // pool.workers)
    return pool, WorkerSpec(
        settings, night.task, threads, night.timeout_floor, night.timeout_factor, night.stage_bytes, jobs.WORKER
    )


def _count(feed: PlanFeed, closed: Closed) -> None:
    for item in feed:
        if isinstance(item, Job):
            closed.stale += item.stale
            closed.new += not item.stale
        else:
            closed.tally.add(item)


def _work(night: Night, feed: PlanFeed, pool: Crew, watcher: Watcher, stop: Callable[[], bool], closed: Closed) -> None:
    from avtool.batch.scheduler import Scheduler

    journal, tally = Journal(night.out), closed.tally
    claims = FolderClaims(night.out, journal.run)
    begun = time.monotonic()

    def outlook() -> Outlook:
        return Outlook(closed.files, feed.files, feed.seconds, time.monotonic() - begun)

    def record(outcome: Outcome) -> None:
        tally.add(outcome)
        if outcome.state != "skipped":
            journal.add(outcome)
        watcher.ended(outcome, tally, outlook())
        if outcome.kind == CANNOT_WRITE:
            check_writable(night.out)  # a full disk would fail every other file as well

    def is_over() -> bool:
        return stop() or (night.fail_fast and any(tally.states[state] for state in FAILED))

    try:
        Scheduler(feed, pool, record, claims, is_over, lambda: watcher.tick(tally, outlook()), SETTLE_SECONDS).run()
    except BaseException:
        pool.close()  # nobody writes any more, so the claims may be given up
        raise
    else:
        pool.dismiss()
    finally:
        claims.close()
        journal.close()
    closed.exit_code = Interrupted.exit_code if stop() else BatchFailures.exit_code if tally.failures else 0


def _close(night: Night, closed: Closed) -> None:
    """Summary, failures and tables; the tables are made again only if something has changed."""
    about = {
        "files": closed.files,
        "seconds": round(closed.seconds, 3),
        "exit_code": closed.exit_code,
        "task": night.task,
        "engine": night.engine,
    }
    write_summary(night.out, closed.tally, about, night.choice.shard)
    changed = closed.tally.states["done"] or not (night.out / "events.csv").exists()
    if night.has_tables and changed:
        write_tables(night.out)
    if night.report and night.task == "localize":
        write_index(night.out, closed.tally.failures)
