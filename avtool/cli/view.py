"""avtool view: a video or a timeline as a page in the browser."""

from __future__ import annotations

import os
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtool.cli import console, inputs, localize, options, previews
from avtool.errors import InputError, OutputError, UsageError
from avtool.files import OutputPlan, printable
from avtool.settings import STDOUT, OutputSettings, Settings, resolve

if TYPE_CHECKING:
    from avtool.timeline import Timeline

OWN_MARK = b'<meta name="generator" content="avtool '  # near the top of every page that avtool writes
MARK_BYTES = 4096


def command(
    context: typer.Context,
    input_: Annotated[
        str, typer.Argument(metavar="INPUT", help="A video, or a timeline (NAME.events.json).", show_default=False)
    ],
    output: options.Folder = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    model: options.Model = None,
    classes: options.Classes = None,
    device: options.Device = None,
    min_score: options.MinScore = None,
    explain: options.Explain = None,
    overwrite: options.Overwrite = None,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
    config: options.Config = None,
) -> int:
    """Show a video or a timeline as a page in the browser.

    A video is localized first, unless its NAME.events.json lies in the folder already. Writes NAME.events.html: for a
    timeline beside it, for a video in the current folder. A page that avtool wrote is made anew each time.
    """
    settings, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    code, page = build_page(inputs.to_path(input_), settings, wanted)
    if page is not None and open_:
        address = page.resolve().as_uri()
        if not webbrowser.open(address):
            console.current().note(f"no browser could be started; open {address}")
    return code


def build_page(path: Path, settings: Settings, output: OutputSettings) -> tuple[int, Path | None]:
    """Writes the page of a video or a timeline, localizing what is not localized yet.

    Returns:
        The exit code, and the page if it was written.

    Raises:
        UsageError: there is nowhere to write it.
        InputError, OutputError: as `localize`; also where something else is in the way of the page.
    """
    if output.output == STDOUT or output.beside:
        raise UsageError("view writes a page to a folder", hint="-o DIR")
    is_timeline = path.suffix.lower() == ".json"
    folder = Path(output.output) if output.output else path.parent if is_timeline else Path(".")
    (one,) = inputs.plan([os.fspath(path)], replace(output, output=str(folder)), ("html",), kind="events")
    page = one.files["html"]
    _refuse_foreign(page, output.overwrite)
    found = path if is_timeline else page.with_suffix(".json")
    if not is_timeline and not _answers(found, path, settings):
        if os.path.lexists(found) and not output.overwrite:
            what = f"{printable(found)} is not what these settings find in {printable(path)} as it is now"
            raise OutputError(what, "results are not replaced unasked", "--overwrite, or another folder with -o DIR")
        new = replace(output, output=str(folder), formats=("json", "html"), overwrite=True)
        code = localize.localize_all([os.fspath(path)], settings, new)
        return code, page if code == 0 else None
    _write_page(one, found)
    return 0, page


def _refuse_foreign(page: Path, overwrite: bool) -> None:
    """A page is derived from a timeline, so one that avtool wrote may be replaced; nothing else may."""
    if not os.path.lexists(page) or overwrite:
        return
    try:
        with page.open("rb") as file:
            own = OWN_MARK in file.read(MARK_BYTES)
    except OSError:
        own = False
    if not own:
        raise OutputError(f"{printable(page)} exists already", "avtool did not write it", "-o DIR, or --overwrite")


def _answers(result: Path, video: Path, settings: Settings) -> bool:
    """Whether a result was made from this very file, and with what is set otherwise than by default."""
    from avtool.timeline import read_timeline

    try:
        timeline, status = read_timeline(result), video.stat()
    except (InputError, OSError):
        return False
    usual, run = Settings().record(), timeline.run.settings
    given = {name: value for name, value in settings.record().items() if value != usual[name] and name != "device"}
    same = (timeline.media.bytes, timeline.media.mtime_ns) == (status.st_size, status.st_mtime_ns)
    return same and all(run.get(name) == value for name, value in given.items())


def _write_page(one: OutputPlan, result: Path) -> None:
    from avtool.formats import write_all
    from avtool.timeline import read_timeline

    timeline: Timeline = read_timeline(result)
    with previews.decoder(("html",)) as session:
        write_all(timeline, one.files, previews.of(timeline, ("html",), session))
    page = one.files["html"]
    count = len(timeline.events)
    text = f"wrote {printable(page)}      {count} event{'s' * (count != 1)}"
    console.current().note(text, input=str(result), wrote=[str(page)], events=count)
