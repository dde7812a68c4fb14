"""Does one job at a time with everything loaded once; an error of a file ends the job, never the worker."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from avtool.batch.jobs import CANNOT_WRITE, UNREACHABLE, Hello, Job, Outcome, WorkerSpec
from avtool.batch.staging import Staging, Unreachable
from avtool.errors import AvtoolError, DeviceError, InputError, OutputError, PartialInputError, UsageError
from avtool.files import clean_temporaries, printable

if TYPE_CHECKING:
    from avtool.extraction import Extractor
    from avtool.session import Session
    from avtool.timeline import MediaInfo, Notice


class AnyWorker(Protocol):
    """What an engine needs of a worker.

    `hello` may come before a fork, so it starts neither threads nor processes; `begin` comes in the process that works.
    """

    def hello(self) -> Hello | AvtoolError: ...
    def begin(self) -> None: ...
    def ahead(self, job: Job) -> None: ...
    def drop(self, job: Job) -> None: ...
    def run(self, job: Job) -> Outcome: ...


def make(spec: WorkerSpec) -> AnyWorker:
    """The worker that a specification names."""
    module, _, name = spec.factory.partition(":")
    worker: AnyWorker = getattr(importlib.import_module(module), name)(spec)
    return worker


class Worker:
    """The jobs of one kind, with everything for them loaded once.

    Args:
        spec: what to do.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        from avtool.extraction import Extractor, Recipe
        from avtool.session import Session

        self._spec = spec
        self._tool: Session | Extractor
        self._tool = Extractor(spec.settings, Recipe()) if spec.task == "features" else Session(spec.settings)
        self._staging = Staging(spec.stage_bytes)

    def hello(self) -> Hello | AvtoolError:
        """Loads everything; an error is one that every worker would meet."""
        import torch

        import avtool.features.extract
        import avtool.formats
        import avtool.pipeline  # noqa: F401  ready before the first job

        torch.set_num_threads(1)  # a fork has no use for threads that wait
        try:
            self._tool.load(decoder=False)
            device = self._tool.device
            identity = self._tool.identity()
        except AvtoolError as error:
            return error
        gpus = torch.cuda.device_count() if str(device) == "cuda" else 0
        return Hello(identity, str(device), self._tool.title, gpus)

    def begin(self) -> None:
        """Starts the first file's decoder. The next file's is the same one where there is one processor."""
        self._tool.prepare(self._spec.threads)

    def ahead(self, job: Job) -> None:
        """Begins to fetch and decode a file; returns at once."""
        if job.url:
            self._staging.begin(job)
        else:
            self._tool.look_ahead(job.path)

    def drop(self, job: Job) -> None:
        """Takes an `ahead` back."""
        if job.url:
            self._staging.drop(job)
        else:
            self._tool.give_up(job.path)

    def run(self, job: Job) -> Outcome:
        """Does one file and writes its results, the one that says it is finished last."""
        import torch

        torch.set_num_threads(self._spec.threads)
        began = time.monotonic()
        try:
            with self._staging.file_of(job) as path:
                self._tool.look_ahead(path)
                done = self._features(job, path) if self._spec.task == "features" else self._localize(job, path)
        except AvtoolError as error:
            done = _failed(job, error)
        except MemoryError:
            done = _failed(job, DeviceError(f"out of memory at {printable(job.name)}"))
        except Exception as error:  # one file must not end the night
            done = _failed(job, _bug(job, error))
        finally:
            self.drop(job)
        return replace(done, took=round(time.monotonic() - began, 3))

    def close(self) -> None:
        """Ends the decoders' processes."""
        self._tool.close()

    def _localize(self, job: Job, path: Path) -> Outcome:
        from avtool.formats import PICTURED, write_all
        from avtool.pipeline import localize
        from avtool.session import Session

        assert isinstance(self._tool, Session)
        timeline = localize(path, None, session=self._tool)
        preview = self._tool.preview(timeline.media) if PICTURED.keys() & job.files.keys() else None
        if job.url:
            timeline = replace(timeline, media=replace(timeline.media, path=job.url))
        write_all(timeline, job.files, preview)
        return _done(job, timeline.media, timeline.warnings, len(timeline.events))

    def _features(self, job: Job, path: Path) -> Outcome:
        from avtool.extraction import Extractor, save

        assert isinstance(self._tool, Extractor)
        features = self._tool.features(path, _nothing)
        if job.url:
            features = replace(features, media=replace(features.media, path=job.url))
        save(features, job.files["npz"], self._tool.recipe, job.fingerprint)
        return _done(job, features.media, features.notices)


def _nothing(stage: str, done: float, total: float) -> None:
    """The progress of one file is of no interest."""


def _done(job: Job, media: MediaInfo, notices: tuple[Notice, ...], events: int = 0) -> Outcome:
    told = tuple((notice.code, notice.message) for notice in notices)
    return Outcome(
        job.name,
        "done",
        attempt=job.attempt,
        events=events,
        duration=round(media.duration, 3),
        fingerprint=job.fingerprint,
        notices=told,
    )


def _failed(job: Job, error: AvtoolError) -> Outcome:
    return Outcome(
        job.name,
        "failed",
        kind_of(error, job),
        job.attempt,
        duration=job.duration,
        fingerprint=job.fingerprint,
        exit_code=error.exit_code,
        what=error.what,
        why=error.why,
        hint=error.hint,
    )


def kind_of(error: AvtoolError, job: Job) -> str:
    """Which of `jobs.KINDS` an error is. One about an input that cannot even be read is the storage's."""
    if isinstance(error, InputError):
        if isinstance(error, Unreachable) or (not job.url and not _can_be_read(job.path)):
            return UNREACHABLE
        return "partial" if isinstance(error, PartialInputError) else "unreadable"
    kinds = ((OutputError, CANNOT_WRITE), (DeviceError, "memory"), (UsageError, "usage"))
    return next((kind for type_, kind in kinds if isinstance(error, type_)), "bug")


def _can_be_read(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.read(4096)
    except OSError:
        return False
    return True


def _bug(job: Job, error: Exception) -> AvtoolError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = f"report it; avtool localize {printable(job.name)} shows more"
    return AvtoolError(f"a bug in avtool at {printable(job.name)}", f"{why} ({place.name}, line {place.lineno})", hint)


# ---------------------------------------------------------------- as a process of its own


def serve(pipe: Connection, worker: AnyWorker, hello: Hello | AvtoolError | None = None) -> NoReturn:
    """Does what the driver says until the driver's end of the pipe is closed, which ends the process at once.

    Args:
        pipe: to the driver.
        worker: does it.
        hello: what it said when it was loaded; None: it is loaded here.
    """
    try:
        worker.begin()
        pipe.send(hello or worker.hello())
        _work(pipe, worker)
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _work(pipe: Connection, worker: AnyWorker) -> NoReturn:
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, worker, jobs), daemon=True).start()
    while True:
        pipe.send(worker.run(jobs.get()))


def _listen(pipe: Connection, worker: AnyWorker, jobs: queue.SimpleQueue[Job]) -> NoReturn:
    try:
        while True:
            what, job = pipe.recv()
            if what == "run":
                jobs.put(job)
            elif what == "ahead":
                worker.ahead(job)
            else:
                worker.drop(job)
    except (EOFError, OSError):
        clean_temporaries()
        os._exit(0)  # the decoders' pipes close with it


def main(arguments: list[str]) -> NoReturn:
    """Entry point of a worker: the descriptor of its pipe, which says what kind of worker first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(arguments[0]))
    try:
        spec = pipe.recv()
    except EOFError:
        os._exit(0)
    serve(pipe, make(spec))


if __name__ == "__main__":
    main(sys.argv[1:])
