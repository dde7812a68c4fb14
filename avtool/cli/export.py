"""avtool export: timelines in other formats, without analysing anything again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from avtool.cli import console, inputs, options, previews
from avtool.errors import UsageError
from avtool.files import OutputPlan, printable
from avtool.settings import FORMATS, STDOUT, OutputSettings, extensions, resolve

if TYPE_CHECKING:
    from avtool.session import Session

MinScore = Annotated[
    str | None,
    typer.Option(
        "--min-score",
        metavar="X",
        help="The events of this lowest score, 0.05 to 1, instead of those in the timeline.",
        show_default=False,
    ),
]


def command(
    context: typer.Context,
    inputs_: options.Timelines,
    formats: options.OtherFormats = None,
    output: options.Output = None,
    beside: options.Beside = None,
    min_score: MinScore = None,
    overwrite: options.Overwrite = None,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
    config: options.Config = None,
) -> int:
    """Write timelines in other formats: subtitles, tables, annotation tools, editors, a page to look at.

    NAME.events.json gives NAME.events.vtt and so on. Nothing is analysed again; html reads the video for its pictures.
    """
    settings, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    return export_all(inputs_, settings.min_score if min_score is not None else None, wanted)


def export_all(names: Sequence[str], min_score: float | None, output: OutputSettings) -> int:
    """Exports every timeline, goes on after a failure, and returns the exit code."""
    if not output.formats:
        raise UsageError("no format given", f"formats: {', '.join(FORMATS)}", f"avtool export {names[0]} -f vtt")
    if output.output == STDOUT and (len(output.formats) > 1 or len(names) > 1):
        raise UsageError("standard output takes one result", hint="one TIMELINE and one format, or -o DIR")
    if min_score is not None and "json" in output.formats:
        why = "what a JSON says of its run must stay true"
        raise UsageError("--min-score does not go with -f json", why, "avtool localize --min-score")
    plans = inputs.plan(names, output, extensions(output.formats), kind="events")
    failures = inputs.Failures()
    for name in names:
        with failures.caught():
            inputs.to_path(name)
    with previews.decoder(output.formats) as session:
        for one in plans:
            with failures.caught():
                inputs.refuse_existing(one, output)
                _export_one(one, min_score, output, session)
    return failures.exit_code


def _export_one(one: OutputPlan, min_score: float | None, output: OutputSettings, session: Session | None) -> None:
    from avtool.formats import render, write_all
    from avtool.timeline import at_score, read_timeline

    timeline = read_timeline(one.input)
    if min_score is not None:
        timeline = at_score(timeline, min_score)
    preview = previews.of(timeline, output.formats, session)
    if output.output == STDOUT:
        return console.print_result(render(timeline, output.formats[0], None, preview))
    write_all(timeline, one.files, preview)
    count = len(timeline.events)
    text = f"wrote {', '.join(printable(p) for p in one.files.values())}      {count} event{'s' * (count != 1)}"
    console.current().note(text, input=str(one.input), wrote=[str(p) for p in one.files.values()], events=count)
