"""Workers as processes on this machine."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Protocol

import avtool.errors
from avtool import allocator, interrupts
from avtool.batch.crew import Crew, Death, Handle, Message
from avtool.batch.jobs import Hello, Job, WorkerSpec
from avtool.batch.nursery import Nursery, begin
from avtool.files import clean_stale

WORKER_BYTES = 1 << 30  # memory of one worker and its decoders, generously
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, either under WSL
END_SECONDS = 1.0  # for a killed process to be gone

_ROOT = str(Path(avtool.errors.__file__).parent.parent)


class LocalPool(Crew):
    """Processes of this machine: one for each GPU, or one for each processor.

    Args:
        workers: how many; None: as many as there are GPUs, or processors and memory for them.
    """

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(workers or default_workers())
        self._given = workers
        self._gpus = 0
        self._nursery: Nursery | None = None
        self._leaving: list[_Process] = []
        self._forget = interrupts.on_interrupt(self._kill_all)

    def dismiss(self) -> None:
        """As `Crew.dismiss`."""
        loaded = all(m.ready for m in self._members)
        self._leaving = [m.handle for m in self._members if m.job is None and isinstance(m.handle, _Process)]
        super().dismiss()
        if self._nursery is not None and loaded and not self._members:
            self._nursery.dismiss()

    def close(self) -> None:
        """Ends all workers."""
        for process in self._leaving if self._nursery is None else ():
            process.life.end(ready=True)
        self._leaving.clear()
        if self._nursery is not None and not all(m.ready for m in self._members):
            self._nursery.close()  # at once: while it loads, it ends no worker
        super().close()
        if self._nursery is not None:
            self._nursery.close()
        self._forget()

    def prepare(self, spec: WorkerSpec) -> None:
        """Starts the process that workers are forked from."""
        super().prepare(spec)
        if self._forks(spec):
            self._nursery = Nursery(spec, worker_environment(spec.threads))

    def _count(self, hello: Hello, wanted: int) -> int:
        self._gpus = hello.gpus
        return self._given or hello.gpus or wanted

    def _is_counted(self, spec: WorkerSpec) -> bool:
        return spec.settings.device == "cpu" or not _may_have_gpu()

    def _launch(self, spec: WorkerSpec, index: int) -> Handle:
        if not self._forks(spec):
            process = _Process(lambda pipe: _Own(pipe, self._environment(spec, index)))
            process.tell(spec)
            return process
        if self._nursery is None or not self._nursery.alive:
            if self._nursery is not None:
                self._nursery.close()
            self.prepare(spec)
        nursery = self._nursery
        assert nursery is not None
        return _Process(lambda pipe: _Forked(pipe, nursery))

    def _forks(self, spec: WorkerSpec) -> bool:
        return sys.platform == "linux" and self._is_counted(spec)

    def _environment(self, spec: WorkerSpec, index: int) -> dict[str, str]:
        environment = worker_environment(spec.threads)
        if self._gpus > 1:
            seen = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g] or list(
                map(str, range(self._gpus))
            )
            environment["CUDA_VISIBLE_DEVICES"] = seen[index % len(seen)]
        return environment

    def _poll(self, handles: Sequence[Handle], timeout: float) -> list[tuple[Handle, Message]]:
        processes = [h for h in handles if isinstance(h, _Process)]
        by_pipe = {id(p.pipe): p for p in processes}
        return [
            (by_pipe[id(pipe)], by_pipe[id(pipe)].hear()) for pipe in wait_for([p.pipe for p in processes], timeout)
        ]

    def _kill_all(self) -> None:
        """On an interrupt: ends the workers and removes what they were writing."""
        folders = {file.parent for m in self._members if m.job is not None for file in m.job.files.values()}
        processes = [m.handle for m in self._members if isinstance(m.handle, _Process)]
        for process in processes:
            process.life.strike()
        if self._nursery is not None:  # it may have no workers yet
            self._nursery.process.kill()
        for process in processes:
            process.wait(END_SECONDS)
        for folder in folders:
            with suppress(OSError):
                clean_stale(folder)


class _Life(Protocol):
    """A process that may be ended."""

    def strike(self) -> None:
        """Ends it without waiting; an interrupt handler may call it."""

    def end(self, ready: bool) -> Death:
        """Ends it, ready or not, if it has not ended; how it ended."""


class _Own:
    """A process of its own."""

    def __init__(self, pipe: socket.socket, environment: Mapping[str, str]) -> None:
        with interrupts.Postponed():  # an interrupt in the middle would not know whom to end
            self._process = begin("avtool.batch.worker", pipe, environment)

    def strike(self) -> None:
        self._process.kill()

    def end(self, ready: bool) -> Death:
        self._process.kill()
        return Death(_why(self._process.wait()))


class _Forked:
    """A child of the nursery."""

    def __init__(self, pipe: socket.socket, nursery: Nursery) -> None:
        self._nursery, self._number = nursery, nursery.fork(pipe)
        self._death: Death | None = None

    def strike(self) -> None:
        self._nursery.process.kill()

    def end(self, ready: bool) -> Death:
        if self._death is None:
            code = self._nursery.end(self._number)
            self._death = Death(_why(code)) if code is not None else self._lost(ready)
        return self._death

    def _lost(self, ready: bool) -> Death:
        """A death of the nursery is nobody's fault; if it cannot even load, that counts as one worker's that cannot."""
        blamed = not ready and not self._nursery.is_blamed
        self._nursery.is_blamed |= blamed
        return Death("the process died that all workers come from", node_lost=not blamed)


class _Process:
    """A worker's process and the pipe to it.

    Args:
        begin: starts it, given its end of the pipe.
    """

    def __init__(self, begin: Callable[[socket.socket], _Life]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.life = begin(theirs)
        self.pipe: Connection = Connection(ours.detach())
        self._folders: set[Path] = set()
        self._ready = False

    def run(self, job: Job) -> None:
        self._folders = {file.parent for file in job.files.values()}
        self.tell(("run", job))

    def ahead(self, job: Job) -> None:
        self.tell(("ahead", job))

    def drop(self, job: Job) -> None:
        self.tell(("drop", job))

    def dismiss(self) -> None:
        self.pipe.close()

    def kill(self) -> None:
        """Ends the process and removes what it was writing; its decoders end with it."""
        self.life.end(self._ready)
        self.wait(END_SECONDS)
        self.pipe.close()
        for folder in self._folders:
            with suppress(OSError):
                clean_stale(folder)

    def hear(self) -> Message:
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            return self.life.end(self._ready)
        self._ready = True
        return message

    def wait(self, seconds: float) -> None:
        """Until the worker has closed its end of the pipe, which its death does."""
        end = select.poll()
        end.register(self.pipe.fileno(), 0)
        end.poll(1000 * seconds)

    def tell(self, message: object) -> None:
        """Sends a message."""
        with suppress(OSError):  # it is dead, which the next `hear` says
            self.pipe.send(message)


def _why(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the worker was killed, most likely because memory ran out"
    if code < 0:
        return f"the worker crashed ({signal.Signals(-code).name})"
    return f"the worker ended (status {code})"


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a worker's process: where avtool is, and how many threads its libraries may use."""
    path = os.pathsep.join(p for p in (_ROOT, os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path, **thread_variables(threads)}


def thread_variables(threads: int) -> dict[str, str]:
    """What must be set before torch is loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "PASSIVE", **allocator.variables()}


def _may_have_gpu() -> bool:
    """False only where it is certain without loading torch: on Linux without a driver's device."""
    return not sys.platform.startswith("linux") or any(Path(name).exists() for name in GPU_DEVICES)


def processors() -> int:
    """Those that this process may use: by affinity and by the limit of a container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, round(int(quota) / int(period))))
    return count


def default_workers() -> int:
    """One for each processor, as far as the free memory allows."""
    count = processors()
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10
        count = min(count, max(1, free // WORKER_BYTES))
    return count
