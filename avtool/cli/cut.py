"""avtool cut: the events of timelines as clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtool.cli import console, inputs, options
from avtool.cli.console import clock
from avtool.errors import OutputError, UsageError
from avtool.files import atomic_stream, check_writable, printable, short_stem
from avtool.settings import STDOUT, OutputSettings, resolve

if TYPE_CHECKING:
    from avtool.timeline import Event, Timeline

Exact = Annotated[
    bool,
    typer.Option("--exact", help="Encode anew to the exact times, instead of copying from the key frame before."),
]


def command(
    context: typer.Context,
    inputs_: options.Timelines,
    output: options.Folder = None,
    exact: Exact = False,
    overwrite: options.Overwrite = None,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
    config: options.Config = None,
) -> int:
    """Write the events of timelines as clips: NAME.001.dog-bark.mp4 and so on.

    Streams are copied, so a clip begins at the key frame before its event; --exact encodes anew.
    """
    _, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    return cut_all(inputs_, exact, wanted)


def cut_all(names: Sequence[str], exact: bool, output: OutputSettings) -> int:
    """Cuts every timeline's events, goes on after a failure, and returns the exit code."""
    if output.output == STDOUT:
        raise UsageError("clips are not written to standard output", hint="a folder with -o DIR")
    folder = Path(output.output or ".")
    check_writable(folder)
    failures = inputs.Failures()
    taken: set[Path] = set()
    for name in dict.fromkeys(names):
        with failures.caught():
            _cut_one(inputs.to_path(name), folder, exact, output.overwrite, taken, failures)
    return failures.exit_code


def _cut_one(
    path: Path, folder: Path, exact: bool, overwrite: bool, taken: set[Path], failures: inputs.Failures
) -> None:
    from avtool.timeline import read_timeline

    timeline = read_timeline(path)
    clips = clip_names(timeline, folder, exact)
    if twin := next((clip for clip in clips if clip in taken), None):
        raise UsageError(f"two timelines would both write {printable(twin)}", hint="run them with different -o DIR")
    taken.update(clips)
    existing = [clip for clip in clips if clip.exists()]
    if existing and not overwrite:
        why = "results are not replaced unasked"
        raise OutputError(f"{printable(existing[0])} exists already", why, "--overwrite, or another folder with -o DIR")
    if not clips:
        console.current().note(f"{printable(path)}      0 events, nothing to cut", input=str(path), events=0)
    for event, clip in zip(timeline.events, clips, strict=True):
        with failures.caught():
            _write(timeline, event, clip, exact)


def clip_names(timeline: Timeline, folder: Path, exact: bool) -> list[Path]:
    """The files of a timeline's events, in order; numbers keep them apart and in order."""
    from avtool.media.cut import suffix

    stem = short_stem(Path(timeline.media.path).stem)
    end = suffix(timeline.media.path, exact)
    wide = max(3, len(str(len(timeline.events))))
    return [
        folder / f"{stem}.{number:0{wide}}.{_slug(event.label)}{end}" for number, event in enumerate(timeline.events, 1)
    ]


def _slug(label: str) -> str:
    """A label as part of a file name on any system."""
    return re.sub(r"[^\w]+", "-", label).strip("-").lower()[:40] or "event"


def _write(timeline: Timeline, event: Event, clip: Path, exact: bool) -> None:
    from avtool.media.cut import cut

    track = timeline.media.audio.track if timeline.media.audio is not None else None
    with atomic_stream(clip) as file:
        piece = cut(timeline.media.path, event.start, event.end, file, exact=exact, audio_track=track)
    text = f"wrote {printable(clip)}      {clock(piece.start, 1)} to {clock(piece.end, 1)}"
    early = event.start - piece.start
    text += f", begins {early:.1f} s early" if early >= 0.05 else ""
    console.current().note(text, wrote=str(clip), start=piece.start, end=piece.end, label=event.label)
