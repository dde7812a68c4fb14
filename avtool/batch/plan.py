"""Which files are to be done: leaves out what is finished, and probes the rest, as a stream."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from avtool.batch.finished import complete, fingerprint_found, finished_timeline
from avtool.batch.inputs import Inputs, Source, name_results
from avtool.batch.jobs import CANNOT_WRITE, UNREACHABLE, Job, Outcome
from avtool.batch.staging import look_up
from avtool.errors import AvtoolError, InputError
from avtool.files import OutputPlan, printable
from avtool.media.child import DecodeChild
from avtool.media.request import Limits
from avtool.session import fingerprint_of

PROBERS = 4  # files that are probed at once: what waits for a disk or a network waits beside the others
CHUNK = 64  # files whose probing is handed out together
ALONE_SECONDS = 1.0  # one child probes alone at first: a few files are done before a second one has started


@dataclass
class Planner:
    """Turns inputs into jobs, and says at once what needs none.

    Attributes:
        inputs: what was given.
        out: folder of the results.
        formats: of the results, name -> extension; with "json", or "npz" for features, which says what is finished.
        kind: "events" or "features", the middle part of the names of results.
        identity: what the results depend on besides the inputs; files without any result are probed before it is known.
        limits, audio_track: for probing.
        overwrite: replace what is in the way and is no result.
        failed: what failed before and is not to be tried again: (name, fingerprint) -> how.
        limit: jobs at most; None: no limit.
        look_only: write nothing.
        probers: files probed at once.
    """

    inputs: Inputs
    out: Path
    formats: Mapping[str, str]
    kind: str
    identity: Future[Mapping[str, Any]]
    limits: Limits = field(default_factory=Limits)
    audio_track: int | None = None
    overwrite: bool = False
    failed: Mapping[tuple[str, str], Outcome] = field(default_factory=dict)
    limit: int | None = None
    look_only: bool = False
    probers: int = PROBERS

    def items(self) -> Generator[Job | Outcome]:
        """Jobs, and the outcomes of what is finished, failed before or unreadable.

        Raises:
            InputError: a folder that was given cannot be listed.
            UsageError: two inputs would write the same result.
        """
        named = name_results(self.inputs.groups(), self.out, self.formats, self.kind)
        judged = (self._judge(source, one) for source, one in named)
        with _Probers(self.probers, self.limits, self.audio_track) as probers:
            jobs = 0
            while chunk := list(islice(judged, CHUNK)):
                for judgement, found in probers.probe(chunk):
                    item = self._with_probe(judgement, found)
                    if isinstance(item, Job):
                        if jobs == self.limit:
                            return
                        jobs += 1
                    yield item

    @cached_property
    def _pictured(self) -> frozenset[str]:
        """Formats that need the video besides the timeline."""
        from avtool.formats import PICTURED

        return frozenset(PICTURED)

    @cached_property
    def _failed_names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.failed)

    def _fingerprint(self, size: int, mtime_ns: int) -> str:
        """Waits until the identity is known."""
        return fingerprint_of(self.identity.result(), size, mtime_ns)

    def _judge(self, source: Source, one: OutputPlan) -> Job | Outcome:
        """A job that is not probed yet and has no fingerprint, or why there is none."""
        fingerprint = ""
        try:
            size, mtime_ns = _size_and_change(source)
            if one.files[self._main].exists() or source.name in self._failed_names:
                fingerprint = self._fingerprint(size, mtime_ns)
            state = self._state(one, fingerprint)
        except AvtoolError as error:
            kind = UNREACHABLE if isinstance(error, InputError) else CANNOT_WRITE
            return failed_outcome(source.name, fingerprint, kind, error)
        if state == "done":
            return Outcome(source.name, "skipped", fingerprint=fingerprint)
        if (before := self.failed.get((source.name, fingerprint))) is not None:
            return replace(before, state="skipped")
        stale = state == "stale"
        return Job(source.path, source.name, 0.0, "", one.files, source.url, size, mtime_ns, stale)

    @property
    def _main(self) -> str:
        """The format that says what is finished."""
        return "npz" if "npz" in self.formats else "json"

    def _state(self, one: OutputPlan, fingerprint: str) -> str:
        """ "done", "stale" or "new"; only without a result the fingerprint may be empty."""
        if "npz" in one.files:
            found = fingerprint_found(one.files)
            exists = one.files["npz"].exists()
            return "stale" if exists and found != fingerprint else "done" if exists else "new"
        timeline = finished_timeline(one, self.overwrite)
        if timeline is None:
            return "new"
        missing = [name for name, path in one.files.items() if not path.is_file()]
        if timeline.run.fingerprint != fingerprint or not self._pictured.isdisjoint(missing):
            return "stale"
        if not self.look_only:
            complete(one, timeline)
        return "done"

    def _with_probe(self, judgement: Job | Outcome, found: float | AvtoolError) -> Job | Outcome:
        """The judgement with what probing has found: seconds, or why there are none."""
        if isinstance(judgement, Outcome):
            return judgement
        fingerprint = self._fingerprint(judgement.bytes, judgement.mtime_ns)
        if isinstance(found, AvtoolError):
            return failed_outcome(judgement.name, fingerprint, "unreadable", found)
        return replace(judgement, fingerprint=fingerprint, duration=found)


def _size_and_change(source: Source) -> tuple[int, int]:
    if source.url:
        remote = look_up(source.url)
        return remote.bytes, remote.mtime_ns
    try:
        status = os.stat(source.path)
    except OSError as error:
        raise InputError(f"{printable(source.path)} cannot be read", error.strerror or str(error)) from error
    return status.st_size, status.st_mtime_ns


def failed_outcome(name: str, fingerprint: str, kind: str, error: AvtoolError) -> Outcome:
    """The record of a file that failed before it became a job."""
    return Outcome(
        name,
        "failed",
        kind,
        fingerprint=fingerprint,
        exit_code=error.exit_code,
        what=error.what,
        why=error.why,
        hint=error.hint,
    )


class _Probers:
    """Threads with a decode child each: a file that crashes its child is one unreadable file."""

    def __init__(self, count: int, limits: Limits, audio_track: int | None) -> None:
        self._threads = ThreadPoolExecutor(count, "prober")
        self._free: queue.SimpleQueue[DecodeChild] = queue.SimpleQueue()
        self._children: list[DecodeChild] = []
        self._lock = threading.Lock()
        self._begun = 0.0
        self._limits, self._audio_track = limits, audio_track

    def __enter__(self) -> _Probers:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()  # whoever leaves early does not wait for a file that answers slowly
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.close()

    def probe(self, items: Sequence[Job | Outcome]) -> Iterator[tuple[Job | Outcome, float | AvtoolError]]:
        """The items in their order, jobs with their seconds, or why there are none; an address is not opened."""
        return zip(items, self._threads.map(self._one, items), strict=True)

    def _one(self, item: Job | Outcome) -> float | AvtoolError:
        if isinstance(item, Outcome) or item.url:
            return 0.0
        child = self._take()
        try:
            media = child.probe(item.path, self._limits, self._audio_track)
        except AvtoolError as error:
            return error
        finally:
            self._free.put(child)
        return float(media.duration)

    def _take(self) -> DecodeChild:
        """A child that is free, or another one: as many as there are threads, but only one in the first second."""
        with suppress(queue.Empty):
            return self._free.get_nowait()
        with self._lock:
            if not self._children:
                self._begun = time.monotonic()
                return self._another()
        with suppress(queue.Empty):
            return self._free.get(timeout=max(0.0, self._begun + ALONE_SECONDS - time.monotonic()))
        with self._lock:
            return self._another()

    def _another(self) -> DecodeChild:
        self._children.append(DecodeChild())
        return self._children[-1]


class _End:
    """The last thing in a feed."""


class PlanFeed:
    """A plan that runs ahead of the work in a thread of its own, so far and no further.

    Args:
        items: see `Planner.items`.
        size: how many may wait.
    """

    def __init__(self, items: Generator[Job | Outcome], size: int = 256) -> None:
        self._items = items
        self._queue: queue.Queue[Job | Outcome | _End] = queue.Queue(size)
        self._error: BaseException | None = None
        self._given_up = False
        self.ended = False
        self.files = self.jobs = 0  # judged so far, and how many of them are to be done
        self.seconds = 0.0  # of media in those
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def take(self, most: int) -> list[Job | Outcome]:
        """What is there, up to so many items; does not wait.

        Raises:
            AvtoolError: planning has failed.
        """
        taken: list[Job | Outcome] = []
        with suppress(queue.Empty):
            while len(taken) < most and not self.ended:
                taken += self._opened(self._queue.get_nowait())
        return taken

    def __iter__(self) -> Iterator[Job | Outcome]:
        """All items, as they come.

        Raises:
            AvtoolError: planning has failed.
        """
        while not self.ended:
            yield from self._opened(self._queue.get())

    def _opened(self, item: Job | Outcome | _End) -> list[Job | Outcome]:
        if not isinstance(item, _End):
            return [item]
        self.ended = True
        if self._error is not None:
            raise self._error
        return []

    def settle(self, seconds: float) -> None:
        """Waits for the whole plan, so that the longest job is known; no longer than this, or than it may run ahead."""
        self._thread.join(seconds)

    def close(self) -> None:
        """Ends the planning."""
        self._given_up = True
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)

    def _work(self) -> None:
        try:
            for item in self._items:
                if self._given_up:
                    self._items.close()
                    return
                self.files += 1
                if isinstance(item, Job):
                    self.jobs += 1
                    self.seconds += item.duration
                self._queue.put(item)
        except BaseException as error:
            self._error = error
        finally:
            self._queue.put(_End())
