"""What is said to the user: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from avtool import interrupts
from avtool.errors import AvtoolError, OutputError
from avtool.files import printable

PLAIN_STEP = 0.1  # of a stage, between two plain lines
QUIET_SECONDS = 5.0  # without a terminal, short runs pass without progress lines
REFRESH_SECONDS = 0.1
Show = Callable[[float], str]


class Console:
    """Says errors, warnings and notes in the form that `progress` asks for.

    Args:
        progress: "auto", "plain", "json" or "none".
        quiet: errors only.
    """

    def __init__(self, progress: str = "auto", quiet: bool = False) -> None:
        self.quiet = quiet
        self.as_json = progress == "json"
        self.kind = "none" if quiet else progress
        if self.kind == "auto" and sys.stderr is not None and sys.stderr.isatty():
            self.kind = "bars"
        self._announcement = ""
        self._hint: Callable[[], str] = str  # what goes with the announcement
        self._status = ""

    def error(self, error: AvtoolError, **more: Any) -> None:
        """One line what, one line why, one line what to try; programs get `more` besides."""
        if self.as_json:
            record = {"error": error.what, "why": error.why, "try": error.hint, "exit_code": error.exit_code, **more}
            return self._write(json.dumps(record))
        lines = [f"error: {error.what}", *([f"  why: {error.why}"] if error.why else [])]
        self._write(*lines, *([f"  try: {error.hint}"] if error.hint else []))

    def warn(self, message: str, code: str = "", file: str = "") -> None:
        """Something the reader of a result should know."""
        self._say({"warning": message, "code": code, "file": file}, f"warning: {file}: {message}" if file else message)

    def note(self, text: str, **record: Any) -> None:
        """A line for people; `record` is what programs get instead."""
        self._say(record or {"note": text}, text)

    def announce(self, device: str, model: str, hint: Callable[[], str] = str) -> None:
        """Which device and model run, and how to get a better one: at once with progress, else with the first note.

        Args:
            device, model: for people.
            hint: asked for when it is shown, and only then; "" for none.
        """
        self._announcement, self._hint = f"device  {device}      model  {model}", hint
        if self.kind in ("bars", "plain"):
            self._flush_announcement()
        elif self.as_json:
            self._announcement = ""
            advice = "" if self.quiet else hint()
            self._say({"device": device, "model": model, **({"hint": advice} if advice else {})}, "")

    def progress(self, name: str, show: Show | None = None) -> Progress:
        """A progress display for one file: a context manager that is also the hook `on_progress`.

        Args:
            name: of the file.
            show: how an amount is written; None: as seconds of media.
        """
        show = show or clock
        if self.kind == "bars":
            return Bars(show)
        if self.kind in ("plain", "auto"):
            return PlainLines(self, printable(name), 0.0 if self.kind == "plain" else QUIET_SECONDS, show)
        return JsonLines(self, name) if self.kind == "json" else Silence()

    def status(self, text: str) -> None:
        """A line at the bottom of a terminal that the next one replaces; nothing elsewhere, "" takes it away."""
        if self.kind == "bars" and text != self._status:
            width = max(20, shutil.get_terminal_size().columns)
            shown, self._status = printable(text)[: width - 1], text
            with suppress(OSError, AttributeError):
                sys.stderr.write(f"\r\x1b[K{shown}")
                sys.stderr.flush()

    def trace(self, lines: Sequence[str]) -> None:
        """The text of a bug report."""
        self._write(*([json.dumps({"trace": line}) for line in lines] if self.as_json else lines))

    def _flush_announcement(self) -> None:
        line, self._announcement = self._announcement, ""
        if line and not self.quiet:
            advice = self._hint()
            self._write(line, *([f"hint    {advice}"] if advice else []))

    def _say(self, record: Mapping[str, Any], line: str) -> None:
        if self.quiet:
            return
        if self.as_json:
            return self._write(json.dumps(record))
        self._flush_announcement()
        self._write(line)

    def _write(self, *lines: str) -> None:
        text = "".join(printable(line) + "\n" for line in lines)
        if self._status:
            text, self._status = f"\r\x1b[K{text}", ""
        with suppress(OSError, AttributeError):  # closed: there is nobody to tell
            sys.stderr.write(text)
            sys.stderr.flush()


class _LogLines(logging.Handler):
    """What the library logs as a warning, said by the console in use."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            current().warn(record.getMessage(), code="log")


_current = Console()


def configure(progress: str, quiet: bool) -> Console:
    """Makes the console that the rest of the process uses."""
    global _current
    _current = Console(progress, quiet)
    logger = logging.getLogger("avtool")
    logger.handlers = [_LogLines()]
    logger.propagate = False
    return _current


def current() -> Console:
    """The console in use."""
    return _current


def clock(seconds: float, decimals: int = 0) -> str:
    """H:MM:SS with decimals, or M:SS without hours where there are none and no decimals are asked for."""
    units = round(max(0.0, seconds) * 10**decimals)
    whole, part = divmod(units, 10**decimals)
    tail = f".{part:0{decimals}}" if decimals else ""
    if decimals or whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}{tail}"
    return f"{whole // 60}:{whole % 60:02}"


def megabytes(size: float) -> str:
    """Bytes as MB of 1,000,000, with a decimal below 10."""
    return f"{size / 1e6:.{1 if size < 9.95e6 else 0}f} MB"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Rows as aligned columns with two spaces between and before; the columns in `right` are flush right."""
    shown = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    to_right = set(right)

    def line(row: Sequence[str]) -> str:
        cells = (c.rjust(w) if i in to_right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  " + "  ".join(cells).rstrip()

    return "\n".join(map(line, shown)) + "\n"


def print_result(text: str | bytes) -> None:
    """Writes a result to standard output, text as UTF-8, whatever the locale.

    Raises:
        OutputError: it is closed or full.
    """
    hint = "write to a folder with -o DIR"
    if sys.stdout is None:
        if text:
            raise OutputError("cannot write to standard output", "it is closed", hint)
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "replace") if isinstance(text, str) else text)
        sys.stdout.flush()
    except OSError as error:
        drop_stdout()
        raise OutputError("cannot write to standard output", error.strerror or str(error), hint) from error


def is_terminal() -> bool:
    """True where a person reads standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def drop_stdout() -> None:
    """Sends what is left in the buffer of a closed or full standard output nowhere, or it would raise again at exit."""
    if sys.stdout is None:
        return
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stdout.fileno())
    os.close(silent)


class Progress(Protocol):
    """Shows how far each stage of one file is; all figures in seconds of media."""

    def __call__(self, stage: str, done: float, total: float) -> None: ...
    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, stage: str, done: float, total: float) -> None:
        return None


class PlainLines(Silence):
    """One line every tenth of a stage, for logs."""

    def __init__(self, console: Console, name: str, silent_seconds: float, show: Show) -> None:
        self._console, self._name, self._show = console, name, show
        self._begin = time.monotonic() + silent_seconds
        self._next: dict[str, float] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        if total <= 0:  # not known before the end
            return
        share = min(1.0, done / total)
        if share + 1e-9 < self._next.get(stage, PLAIN_STEP):
            return
        self._next[stage] = (int(share / PLAIN_STEP + 1e-9) + 1) * PLAIN_STEP if share < 1 else float("inf")
        if time.monotonic() >= self._begin:
            percent = int(share / PLAIN_STEP + 1e-9) * 10
            self._console.note(f"{self._name}: {stage} {percent}%  {self._show(done)} of {self._show(total)}")


class JsonLines(Silence):
    """One JSON object a line for programs, at most ten a second and one at the end of every stage."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._last: dict[str, float] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        now = time.monotonic()
        if (done < total or total <= 0) and now - self._last.get(stage, float("-inf")) < REFRESH_SECONDS:
            return
        self._last[stage] = now
        record = {"file": self._name, "stage": stage, "done": round(done, 3), "total": round(total, 3)}
        self._console.note("", **record)


class Bars(Silence):
    """Bars on a terminal, one a stage. The caller refreshes them: no thread may write while the process is stopped."""

    def __init__(self, show: Show) -> None:
        self._show = show

    def __enter__(self) -> Bars:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("  {task.description:<9}"),
            BarColumn(30),
            TextColumn("{task.fields[clock]}"),
            TimeElapsedColumn(),
            console=RichConsole(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._last = 0.0
        self._forget: Callable[[], None] = interrupts.on_interrupt(_restore_terminal)
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self._forget()

    def __call__(self, stage: str, done: float, total: float) -> None:
        text = f"{self._show(done)} / {self._show(total)}" if total > 0 else self._show(done)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total or None, clock=text)
        self._bars.update(self._tasks[stage], completed=done, total=total or None, clock=text)
        if 0 < total <= done or time.monotonic() - self._last >= REFRESH_SECONDS:
            self._last = time.monotonic()
            self._bars.refresh()


def _restore_terminal() -> None:
    os.write(2, b"\x1b[?25h\n")  # shows the cursor again, below the bars
