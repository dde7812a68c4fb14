"""avtool localize: events of one or several files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import typer

from avtool.cli import console, hints, inputs, options, previews
from avtool.cli.console import clock
from avtool.errors import UsageError
from avtool.files import OutputPlan, printable
from avtool.settings import DEFAULT_FORMATS, STDOUT, OutputSettings, Settings, extensions, resolve

if TYPE_CHECKING:
    from avtool.session import Session
    from avtool.timeline import Timeline


def command(
    context: typer.Context,
    inputs_: options.Inputs,
    output: options.Output = None,
    beside: options.Beside = None,
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
    """Find what can be both heard and seen in videos, and when.

    Writes NAME.events.json and NAME.events.srt for every INPUT (-f chooses other formats), and prints a table on a
    terminal.
    """
    settings, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    return localize_all(inputs_, settings, wanted)


def localize_all(names: Sequence[str], settings: Settings, output: OutputSettings) -> int:
    """Localizes every input, goes on after a failure, and returns the exit code."""
    formats = output.formats or (DEFAULT_FORMATS if output.output != STDOUT else ("json",))
    if output.output == STDOUT and (len(formats) > 1 or (formats != ("json",) and len(names) > 1)):
        raise UsageError("standard output takes one result", hint="-f json, or a folder with -o DIR")
    plans = inputs.plan(names, output, extensions(formats), kind="events")
    failures = inputs.Failures()
    from avtool.session import Session, is_features

    with Session(settings) as session:
        ready = inputs.admit(names, plans, session.probe, output, failures)
        if ready:
            session.load(media=not all(is_features(one.input) for one in ready))
            console.current().announce(str(session.device), session.title, partial(hints.once, session.hint))
        for one in ready:
            with failures.caught():
                _localize_one(one, session, output, formats)
    return failures.exit_code


def _localize_one(one: OutputPlan, session: Session, output: OutputSettings, formats: Sequence[str]) -> None:
    from avtool.formats import render, write_all
    from avtool.pipeline import localize

    say = console.current()
    with say.progress(str(one.input)) as progress:
        timeline = localize(one.input, None, progress, session=session)
        preview = previews.of(timeline, formats, session)
        write_all(timeline, one.files, preview)
    for notice in timeline.warnings:
        say.warn(notice.message, notice.code, str(one.input))
    if output.output == STDOUT:
        console.print_result(render(timeline, formats[0], None, preview))
    else:
        show_table(timeline)
    say.note(summary(timeline, one), **_record(timeline, one))


def show_table(timeline: Timeline) -> None:
    """The events on standard output, where a person reads it."""
    if console.is_terminal() and timeline.events and not console.current().quiet:
        rows = [(clock(e.start, 1), clock(e.end, 1), f"{e.score:.2f}", e.label) for e in timeline.events]
        console.print_result(console.table(("start", "end", "score", "event"), rows, right=(0, 1, 2)))


def summary(timeline: Timeline, one: OutputPlan) -> str:
    """One line: what was written, how much was found, and, if nothing was, why."""
    media, count = timeline.media, len(timeline.events)
    wrote = f"wrote {', '.join(printable(p) for p in one.files.values())}" if one.files else printable(one.input)
    parts = [f"{count} event{'s' * (count != 1)}", f"{clock(media.analysed_until)} of {clock(media.duration)} analysed"]
    if not count and timeline.best_score is not None:
        parts.append(f"highest score {timeline.best_score:.2f}")
    for number, what in ((timeline.heard_only, "heard only"), (timeline.seen_only, "seen only")):
        parts += [f"{number} {what}"] if number else []
    return f"{wrote}      {', '.join(parts)}"


def _record(timeline: Timeline, one: OutputPlan) -> dict[str, object]:
    return {
        "input": str(one.input),
        "wrote": [str(path) for path in one.files.values()],
        "events": len(timeline.events),
        "best_score": timeline.best_score,
        "heard_only": timeline.heard_only,
        "seen_only": timeline.seen_only,
        "analysed_until": timeline.media.analysed_until,
    }
