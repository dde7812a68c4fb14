"""Forks workers from one that has loaded torch and the networks: they are ready at once and share its memory.

On Linux and without GPUs, whose drivers do not survive a fork; nor do threads, so the nursery starts none. Its death is
its workers' death, whatever they are doing.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NoReturn

from avtool import interrupts
from avtool.batch.jobs import WorkerSpec
from avtool.batch.worker import AnyWorker, make, serve

SPEC_BYTES = 100_000  # at most; the settings of one run
NUMBER = struct.Struct("<i")  # request: end this worker; answer: its exit code, negative for a signal
ANSWER_SECONDS = 20.0  # it may be importing still
PATIENCE_SECONDS = 2  # for workers to tidy up after the driver's death
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def begin(module: str, pipe: socket.socket, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a module as a process that has this end of a pipe."""
    return subprocess.Popen(
        # -P: the working folder may hold a file called numpy.py
        [sys.executable, "-P", "-m", module, str(pipe.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("AVTOOL_DEBUG") else subprocess.DEVNULL,
        env=environment,
        pass_fds=[pipe.fileno()],
        process_group=0,  # Ctrl-C is the driver's to handle
    )


class Nursery:
    """The driver's end.

    Args:
        spec: of the workers.
        environment: of all of them.
    """

    def __init__(self, spec: WorkerSpec, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(ANSWER_SECONDS)
        self.is_blamed = False  # for a worker that it could not start
        self._count = 0
        self._socket.send(pickle.dumps(spec))
        with theirs, interrupts.Postponed():  # an interrupt in the middle would not know whom to end
            self.process = begin("avtool.batch.nursery", theirs, environment)

    @property
    def alive(self) -> bool:
        """Whether it can start workers."""
        return self.process.poll() is None

    def fork(self, pipe: socket.socket) -> int:
        """Starts a worker that serves the other end of `pipe`, and returns its number at once."""
        with suppress(OSError):  # it is dead, which the worker's end of the pipe says
            socket.send_fds(self._socket, [b"fork"], [pipe.fileno()])
        self._count += 1
        return self._count - 1

    def end(self, number: int) -> int | None:
        """Ends a worker if it has not ended, once; its exit code, negative for a signal, or None: all have ended."""
        try:
            self._socket.send(NUMBER.pack(number))
            code: int = NUMBER.unpack(self._socket.recv(NUMBER.size))[0]
        except (OSError, struct.error):
            self.process.kill()
            return None
        return code

    def dismiss(self) -> None:
        """Lets it end as soon as its workers have ended, which is theirs to do."""
        self._socket.close()

    def close(self) -> None:
        """Ends it, and with it whatever workers are left; who was dismissed gets a moment."""
        if self._socket.fileno() < 0:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE_SECONDS)
        self.process.kill()
        self.process.wait()
        self._socket.close()


def run(control: socket.socket, worker: AnyWorker) -> NoReturn:
    """Starts and ends workers as the driver says, until its end of the socket is closed."""
    hello = worker.hello()
    gc.freeze()  # what is here already is never garbage, and stays shared
    gc.enable()
    workers: list[int] = []
    own = os.getpid()
    while True:
        message, (*pipes,), _, _ = socket.recv_fds(control, NUMBER.size, 1)
        if pipes:
            workers.append(os.fork())
            if not workers[-1]:
                control.close()
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != own:
                    os._exit(1)
                serve(Connection(pipes[0]), worker, hello)
            os.close(pipes[0])
        elif message:
            pid = workers[NUMBER.unpack(message)[0]]
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            control.send(NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        else:
            _leave()


def _leave() -> NoReturn:
    """The driver is gone: the workers tidy up and end by themselves; who does not, ends with this process."""
    signal.alarm(PATIENCE_SECONDS)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)


def main(arguments: list[str]) -> NoReturn:
    """Entry point: the descriptor of the socket, which says what kind of workers first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    control = socket.socket(fileno=int(arguments[0]))
    run(control, make(pickle.loads(control.recv(SPEC_BYTES))))


if __name__ == "__main__":
    main(sys.argv[1:])
