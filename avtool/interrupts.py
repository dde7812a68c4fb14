"""Ends the process within two seconds of Ctrl-C, SIGTERM or a closed terminal, whatever the main thread is doing.

A Python signal handler runs only when the main thread comes back from C code, and an exception raised in the middle
of an import ends as a traceback. So the signal is read from a pipe by a thread of its own, which cleans up and leaves;
the handler in the main thread does nothing but hold it still, so that it cannot start anything new meanwhile.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False  # as in the package's __init__
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

EXIT_CODE = 130
_PARK_SECONDS = 0.2  # time for the main thread to come back to Python before cleaning starts without it
_POSTPONE_SECONDS = 0.8  # longest that `Postponed` is respected
_GRACE_SECONDS = 1.2  # cleaning that takes longer than this is given up
_CANNOT_WRITE = 6  # errors.OutputError
_MESSAGE = "interrupted: nothing half-written is left, finished files are kept\n"

_MAIN = _thread.get_ident()  # this module is loaded first of all
_cleanups: list[Callable[[], object]] = []
_parked = False
_stopping = False
_postponed = 0  # how many `Postponed` are open
_signalled = False  # the handler ran
_ask: Callable[[], object] | None = None  # what the first Ctrl-C does instead of ending the process
_asked_here = _asked_there = False  # it has come: as the main thread sees it, and as the watching thread does


def on_interrupt(cleanup: Callable[[], object]) -> Callable[[], None]:
    """Registers what must be undone before an interrupted process ends; the last registered runs first.

    Args:
        cleanup: quick, takes no locks, imports nothing; what it raises is ignored.

    Returns:
        A function that takes the registration back.
    """
    _cleanups.append(cleanup)

    def forget() -> None:
        if cleanup in _cleanups:
            _cleanups.remove(cleanup)

    return forget


class Postponed:
    """What the main thread does inside is finished before an interrupt holds it still: what must not stay half done.

    For moments like starting a process, which nobody could end before its number is known. In other threads it does
    nothing: an interrupt does not wait for them.
    """

    def __enter__(self) -> None:
        global _postponed
        _postponed += _thread.get_ident() == _MAIN

    def __exit__(self, *_: object) -> None:
        global _postponed
        if _thread.get_ident() != _MAIN:
            return
        _postponed -= 1
        if _signalled and not _postponed:
            _hold_still()


def on_first_ctrl_c(ask: Callable[[], object]) -> Callable[[], None]:
    """Lets the first Ctrl-C call `ask` instead of ending the process; the second, and any other signal, ends it.

    Args:
        ask: quick, called in another thread; tells the work to come to an end.

    Returns:
        A function that takes this back.
    """
    global _ask, _asked_here, _asked_there
    _ask, _asked_here, _asked_there = ask, False, False

    def forget() -> None:
        global _ask
        _ask = None

    return forget


def install() -> None:
    """Takes over SIGINT, SIGTERM and SIGHUP. Only for a process that is all avtool's, so never called on import."""
    if os.name != "posix":  # set_wakeup_fd wants a socket there; the plain handler is what is left
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: _stop())
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _park)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _park)
    _thread.start_new_thread(_watch, (read_end,))


def _park(signum: int, frame: object) -> None:
    """Holds the main thread until the process ends; a second signal ends it at once."""
    global _signalled, _asked_here
    if _signalled and _stopping:
        os._exit(EXIT_CODE)
    if signum == signal.SIGINT and _ask is not None and not _asked_here and not _stopping:
        _asked_here = True
        return
    _signalled = True
    if _stopping or not _postponed:
        _hold_still()


def _hold_still() -> NoReturn:
    global _parked
    _parked = True
    while True:
        time.sleep(60)


def _watch(read_end: int) -> None:
    global _asked_there
    while True:
        signum = os.read(read_end, 1)[0]
        ask = _ask
        if signum != signal.SIGINT or ask is None or _asked_there:
            break
        _asked_there = True
        ask()
    _thread.start_new_thread(_leave_after, (_GRACE_SECONDS,))
    begin = time.monotonic()
    while not _parked and time.monotonic() - begin < (_POSTPONE_SECONDS if _postponed else _PARK_SECONDS):
        time.sleep(0.005)
    _stop()


def _leave_after(seconds: float) -> None:
    time.sleep(seconds)
    _say_and_leave()


def _stop() -> None:
    """Runs the cleanups, says one line and ends the process without unwinding or finalising anything."""
    global _stopping
    _stopping = True
    for cleanup in reversed(_cleanups):
        try:
            cleanup()
        except BaseException:
            continue
    _say_and_leave()


def _say_and_leave() -> None:
    try:
        os.write(2, _MESSAGE.encode())
    finally:  # stderr may be closed
        os._exit(EXIT_CODE)


def leave(code: int) -> None:
    """Ends the process after flushing; skips the finalisation, in which a late signal would become a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            code = code or _CANNOT_WRITE
    os._exit(code)
