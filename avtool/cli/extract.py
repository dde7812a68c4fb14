"""avtool extract-features: what the encoders make of a file, for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from avtool.cli import console, inputs, options
from avtool.cli.console import clock
from avtool.errors import UsageError
from avtool.files import OutputPlan, printable
from avtool.settings import STDOUT, OutputSettings, Settings, resolve

if TYPE_CHECKING:
    from avtool.session import Session


def command(
    context: typer.Context,
    inputs_: options.Videos,
    output: options.Folder = None,
    beside: options.Beside = None,
    model: options.Model = None,
    visual: options.Visual = None,
    audio: options.Audio = None,
    device: options.Device = None,
    start: options.Start = None,
    end: options.End = None,
    audio_track: options.AudioTrack = None,
    allow_partial: options.AllowPartial = None,
    max_pixels: options.MaxPixels = None,
    max_seconds: options.MaxSeconds = None,
    overwrite: options.Overwrite = None,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
    config: options.Config = None,
) -> int:
    """Write the features of videos: NAME.features.npz with visual, audio and times (start and end of each row)."""
    settings, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    return extract_all(inputs_, settings, wanted)


def extract_all(names: Sequence[str], settings: Settings, output: OutputSettings) -> int:
    """Extracts every input, goes on after a failure, and returns the exit code."""
    if output.output == STDOUT:
        raise UsageError("features are not written to standard output", hint="a folder with -o DIR")
    plans = inputs.plan(names, output, ("npz",), kind="features")
    failures = inputs.Failures()
    ready = inputs.admit(names, plans, settings, output, failures)
    if ready:
        from avtool.session import Session

        with Session(settings) as session:
            session.load()
            console.current().announce(str(session.device), session.encoder_title)
            for one in ready:
                with failures.caught():
                    _extract_one(one, session)
    return failures.exit_code


def _extract_one(one: OutputPlan, session: Session) -> None:
    from avtool.features.store import save_npz
    from avtool.session import fingerprint_of

    say = console.current()
    target = one.files["npz"]
    with say.progress(str(one.input)) as progress:
        features = session.features(one.input, progress)
        media = features.media
        identity = session.identity(task="features")
        save_npz(features, target, fingerprint_of(identity, media.bytes, media.mtime_ns))
    for notice in features.notices:
        say.warn(notice.message, notice.code, str(one.input))
    text = f"wrote {printable(target)}      {features.rows} rows, {clock(features.media.analysed_until)} analysed"
    say.note(text, input=str(one.input), wrote=[str(target)], rows=features.rows)
