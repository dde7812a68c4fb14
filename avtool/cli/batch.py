"""avtool batch: a whole folder, again and again until everything is done."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtool import interrupts
from avtool.cli import console, options
from avtool.cli.console import clock
from avtool.errors import AvtoolError, InputError, UsageError
from avtool.files import printable
from avtool.settings import DEFAULT_FORMATS, STDOUT, OutputSettings, resolve

if TYPE_CHECKING:
    from avtool.batch.jobs import Hello, Outcome
    from avtool.batch.night import Closed, Outlook
    from avtool.batch.report import Tally

STATUS_SECONDS = 0.5  # between two status lines of a terminal
PLAIN_SECONDS = 30.0  # between two progress lines elsewhere
NAMED = 5  # files that failed before and are named in one line
_option = options._option


def command(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="Folders of videos, video files, addresses (s3://...), or - for a list of them on standard input.",
            show_default=False,
        ),
    ] = None,
    output: options.BatchOutput = None,
    list_: Annotated[
        Path | None,
        _option("--list", metavar="FILE", help="File that names inputs, one a line, or ended by NUL bytes."),
    ] = None,
    root: Annotated[
        Path | None,
        _option(
            "--root",
            metavar="DIR",
            help="Folder that OUT mirrors. [default: INPUT if it is one folder, else the nearest that holds all]",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Search the folders inside INPUT too.")
    ] = True,
    include: Annotated[
        list[str] | None,
        _option("--include", metavar="GLOB", help="Only such names or paths, e.g. 'cam1/*.mp4'; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, _option("--exclude", metavar="GLOB", help="None of such names or paths; may be repeated.")
    ] = None,
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="localize or features.")] = "localize",
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="local (processes) or ray (actors).")
    ] = "local",
    address: Annotated[
        str | None, _option("--address", metavar="ADDRESS", help="Ray cluster to use. [default: one started here]")
    ] = None,
    workers: Annotated[
        int | None,
        _option("--workers", metavar="N", help="How many. [default: one for each GPU, else for each processor]"),
    ] = None,
    threads: Annotated[
        int | None, _option("--threads", metavar="N", help="Of each worker. [default: the processors, shared out]")
    ] = None,
    shard: Annotated[
        str | None,
        _option(
            "--shard",
            metavar="I/N",
            help="Only the I-th of N parts, from 1 on, for N machines; 'slurm' for the numbers of a Slurm array.",
        ),
    ] = None,
    limit: Annotated[int | None, _option("--limit", metavar="N", help="At most N files that are to be done.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Begin nothing more after a failure.")] = False,
    timeout_floor: Annotated[
        float, typer.Option("--timeout-floor", metavar="SECONDS", help="What every file may take.")
    ] = 120.0,
    timeout_factor: Annotated[
        float, typer.Option("--timeout-factor", metavar="X", help="A file may take X times its duration.")
    ] = 5.0,
    stage_gb: Annotated[
        float, typer.Option("--stage-gb", metavar="GB", help="Refuse larger files behind addresses.")
    ] = 20.0,
    tables: Annotated[
        bool, typer.Option("--tables/--no-tables", help="Write OUT/events.csv, and .parquet with pyarrow, at the end.")
    ] = True,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page for each video, and OUT/index.html over all of them.")
    ] = False,
    formats: options.Formats = None,
    model: options.Model = None,
    visual: options.Visual = None,
    audio: options.Audio = None,
    classes: options.Classes = None,
    device: options.Device = None,
    min_score: options.MinScore = None,
    nms: options.Nms = None,
    sigma: options.Sigma = None,
    max_events: options.MaxEvents = None,
    start: options.Start = None,
    end: options.End = None,
    audio_track: options.AudioTrack = None,
    allow_partial: options.AllowPartial = None,
    explain: options.Explain = None,
    max_pixels: options.MaxPixels = None,
    max_seconds: options.MaxSeconds = None,
    overwrite: options.Overwrite = None,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
    config: options.Config = None,
) -> int:
    """Localize many videos into a mirrored tree of results; stop and start again at will.

    Finished results are skipped, and files that failed before as well. Bad files are reported and left out (exit 7).
    OUT/events.csv holds all events, OUT/.avtool a journal, summary.json and failures.csv. Ctrl-C once: files in hand
    are finished; twice: it stops.
    """
    from avtool.batch.inputs import Choice
    from avtool.batch.night import Night, run

    settings, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    names = all_names(inputs or [], list_)
    night = Night(
        names,
        out_folder(wanted, names),
        wanted.formats or DEFAULT_FORMATS,
        Choice(recursive, tuple(include or ()), tuple(exclude or ()), parse_shard(shard)),
        root,
        engine,
        workers,
        threads,
        address,
        task,
        limit,
        wanted.overwrite,
        dry_run,
        retry_failed,
        fail_fast,
        timeout_factor,
        timeout_floor,
        int(stage_gb * 1e9),
        tables,
        report,
    )
    stopping = threading.Event()
    view = View(task)
    with view.asking(stopping):
        closed = run(night, settings, view, stopping.is_set)
    view.closed(closed, night.out, dry_run, stopping.is_set())
    return closed.exit_code


def out_folder(output: OutputSettings, names: Sequence[str]) -> Path:
    """The folder of the results.

    Raises:
        UsageError: it was not given, or there are no inputs.
    """
    if not names:
        raise UsageError("no inputs", hint="avtool batch FOLDER -o OUT")
    if output.output in (None, STDOUT) or output.beside:
        raise UsageError("batch needs a folder for its results", hint=f"avtool batch {printable(names[0])} -o OUT")
    return Path(str(output.output))


def all_names(inputs: Sequence[str], list_: Path | None) -> list[str]:
    """The inputs that are named on the command line, in a list, and on standard input.

    Raises:
        UsageError: a list cannot be read.
        InputError: what is named on the command line does not exist.
    """
    names = [name for name in inputs if name != STDOUT]
    for name in names:
        if "://" not in name and not os.path.lexists(name):
            raise InputError(f"{printable(name)} does not exist")
    if list_ is not None and os.fspath(list_) != STDOUT:
        try:
            names += _lines(list_.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read the list {printable(list_)}", error.strerror or str(error)) from error
    if STDOUT in inputs or (list_ is not None and os.fspath(list_) == STDOUT):
        names += _lines(sys.stdin.buffer.read())
    return names


def _lines(data: bytes) -> list[str]:
    parts = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(part) for part in parts if part.strip()]


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """(i, n) of "i/n", or of the variables of a Slurm array.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    try:
        if text == "slurm":
            low, number, count = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "ID", "COUNT"))
            step = Fraction(int(os.environ["SLURM_ARRAY_TASK_MAX"]) - low, max(1, count - 1)) or Fraction(1)
            index = (number - low) / step + 1
        else:
            first, second = text.split("/")
            index, count = Fraction(int(first)), int(second)
    except KeyError as error:
        raise UsageError("this is no task of a Slurm array", f"{error.args[0]} is not set") from None
    except ValueError:
        raise UsageError(f"--shard {printable(text)} is not I/N", hint="--shard 3/8 is the third of eight") from None
    if index.denominator != 1 or not 1 <= index <= count:
        raise UsageError(f"--shard {printable(text)} is out of range", f"parts are counted from 1 to {count}")
    return int(index), count


class View:
    """Says what happens in a run."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._said = time.monotonic()
        self._before: list[str] = []

    @contextmanager
    def asking(self, stopping: threading.Event) -> Iterator[None]:
        """While it runs, the first Ctrl-C sets `stopping`."""

        def ask() -> None:
            stopping.set()
            os.write(2, b"\nfinishing the files in hand; Ctrl-C again stops at once\n")

        forget = interrupts.on_first_ctrl_c(ask)
        try:
            yield
        finally:
            forget()
            console.current().status("")

    def started(self, hello: Hello, workers: int, files: int) -> None:
        """Which device and model run."""
        self._said = time.monotonic()
        many = f"{workers} worker{'s' * (workers != 1)}"
        console.current().announce(hello.device, f"{hello.model}      {many}      {files} file{'s' * (files != 1)}")

    def ended(self, outcome: Outcome, tally: Tally, outlook: Outlook) -> None:
        """One line for what was done and for what failed; what is finished already passes in silence."""
        say = console.current()
        for code, message in outcome.notices if outcome.state == "done" else ():
            say.warn(message, code, outcome.name)
        record = {"file": outcome.name, "state": outcome.state, "seconds": outcome.took}
        if outcome.state == "done":
            events = f"{outcome.events} event{'s' * (outcome.events != 1)}"
            say.note(
                f"{tally.files}/{outlook.files}  {outcome.name}      {events}",
                **record,
                events=outcome.events,
                media_seconds=outcome.duration,
            )
        elif outcome.state == "skipped":
            self._before += [outcome.name] if outcome.kind else []
        elif outcome.what:
            say.error(_one_line(outcome), **record, kind=outcome.kind, attempts=outcome.attempt)

    def tick(self, tally: Tally, outlook: Outlook) -> None:
        """How far it is, now and then."""
        say, now = console.current(), time.monotonic()
        wait = STATUS_SECONDS if say.kind in ("bars", "json") else PLAIN_SECONDS
        if now - self._said < wait:
            return
        self._said = now
        left = outlook.left(tally)
        rate = tally.seconds / outlook.seconds if outlook.seconds else 0.0
        failed = len(tally.failures)
        text = f"{tally.files}/{outlook.files} files, {clock(tally.seconds)} of video, {rate:.0f} times real time"
        text += f", {failed} failed" * bool(failed) + (f", {clock(left)} to go" if left is not None else "")
        if say.kind == "bars":
            say.status(text)
        elif say.kind != "none":
            record = {"files": tally.files, "of": outlook.files, "failed": failed, "media_seconds": tally.seconds}
            say.note(text, **record, rate=round(rate, 2), seconds_left=None if left is None else round(left, 1))

    def closed(self, closed: Closed, out: Path, dry_run: bool, interrupted: bool) -> None:
        """What a person reads in five seconds."""
        say, tally = console.current(), closed.tally
        if not closed.files:
            return say.warn("no videos were found", "no_videos")
        if dry_run:
            return self._dry(closed)
        if self._before:
            shown = ", ".join(self._before[:NAMED]) + ", ..." * (len(self._before) > NAMED)
            say.note(f"not tried again: {shown}      --retry-failed does", failed_before=self._before[:NAMED])
        if tally.seconds:
            rate = tally.seconds / max(closed.seconds, 1e-9)
            did = f"{clock(tally.seconds)} of video in {clock(closed.seconds)}, {rate:.1f} times real time"
            say.note(did if self._task == "features" else f"{did}, {_events(tally.events)}")
        if tally.failures:
            kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(tally.kinds.items()))
            say.note(f"failures: {kinds}      {out / '.avtool' / 'failures.csv'}", kinds=dict(tally.kinds))
        counts = {state: number for state, number in tally.counts().items() if number}
        text = ", ".join(f"{number} {state.replace('_', ' ')}" for state, number in counts.items()) or "nothing done"
        rest = closed.files - tally.files
        text += f", {rest} not begun" if interrupted and rest > 0 else ""
        say.note(text, **tally.counts(), events=tally.events, exit_code=closed.exit_code)

    def _dry(self, closed: Closed) -> None:
        counts = closed.tally.counts()
        record = {
            "new": closed.new,
            "stale": closed.stale,
            "done": counts["skipped"],
            "failed_before": counts.get("failed_before", 0),
            "unreadable": counts["failed"],
        }
        text = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in record.items())
        console.current().note(f"would do {closed.new + closed.stale} of {closed.files} files: {text}", **record)


def _events(count: int) -> str:
    return f"{count} event{'s' * (count != 1)}"


def _one_line(outcome: Outcome) -> AvtoolError:
    why = f": {outcome.why}" if outcome.why else ""
    error = AvtoolError(f"{outcome.what}{why}", hint=outcome.hint if console.current().as_json else "")
    error.exit_code = outcome.exit_code
    return error
