"""Workers for tests, with a stand-in for the model or without any; both misbehave if a file's name says so."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from avtool.batch.jobs import Hello, Job, Outcome, WorkerSpec
from avtool.batch.worker import Worker, _bug, _failed
from avtool.errors import AvtoolError, OutputError
from avtool.formats import write_all
from tests.cli import fakes


def misbehave(job: Job) -> None:
    """What the name of the file says."""
    name = Path(job.name).name
    if name.startswith("raise"):
        raise IndexError("a bug")
    if name.startswith("full"):
        raise OutputError("cannot write", "no space left on the device")
    if name.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hang"):
        time.sleep(1000)
    if name.startswith("slow"):
        time.sleep(float(name.split("-")[1]))


class Fake(Worker):
    """The real worker with the stand-in for the model."""

    def __init__(self, spec: WorkerSpec) -> None:
        fakes.install()
        super().__init__(spec)

    def _localize(self, job: Job, path: Path) -> Outcome:
        misbehave(job)
        return super()._localize(job, path)


class Stub:
    """Writes the same timeline for every file, at once and without torch.

    What the setting `model` names is a file that gets a line for every job that is begun, and when it is done.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec

    def hello(self) -> Hello:
        return Hello({"stub": self._spec.settings.min_score, "task": self._spec.task}, "cpu", "stub")

    def begin(self) -> None: ...

    def ahead(self, job: Job) -> None:
        self._log("ahead", job)

    def drop(self, job: Job) -> None:
        self._log("drop", job)

    def run(self, job: Job) -> Outcome:
        self._log("begin", job)
        try:
            misbehave(job)
            write_all(timeline(job), job.files)
        except AvtoolError as error:
            return _failed(job, error)
        except IndexError as error:
            return _failed(job, _bug(job, error))
        self._log("done", job)
        return Outcome(job.name, "done", attempt=job.attempt, events=1, duration=job.duration, took=0.0)

    def _log(self, what: str, job: Job) -> None:
        if self._spec.settings.model:
            descriptor = os.open(self._spec.settings.model, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{what} {job.name} {os.getpid()}\n".encode())
            os.close(descriptor)


class Late(Stub):
    """Takes a minute to start."""

    def hello(self) -> Hello:
        time.sleep(60)
        return super().hello()


def timeline(job: Job) -> Any:
    """What `Stub` writes."""
    from dataclasses import replace

    plain = fakes.make_timeline(os.path.abspath(job.path))
    return replace(plain, run=replace(plain.run, fingerprint=job.fingerprint))
