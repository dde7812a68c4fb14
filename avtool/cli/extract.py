"""avtool extract-features: what the encoders make of files, for other programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtool.cli import console, inputs, options
from avtool.cli.console import clock
from avtool.errors import AvtoolError, OutputError, UsageError
from avtool.files import OutputPlan, printable
from avtool.settings import STDOUT, OutputSettings, Settings, resolve

if TYPE_CHECKING:
    from avtool.extraction import Extractor, Recipe

Visual = Annotated[
    str | None,
    typer.Option(
        "--visual",
        metavar="NAME",
        help="Encoder for pictures, with NAME:PROTOCOL where it has several. [default: the first installed]",
        show_default=False,
    ),
]
Audio = Annotated[
    str | None,
    typer.Option(
        "--audio",
        metavar="NAME",
        help="Encoder for sound, with NAME:PROTOCOL where it has several. [default: the first installed]",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Make what this localizer reads: its encoders and rows; a name from 'avtool models'.",
        show_default=False,
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="KIND",
        help="npz; ave: .h5 with the 10 rows of the AVE data set; unav: time-major .npy with a .json beside.",
    ),
]
Seconds = Annotated[
    str | None,
    typer.Option(
        "--segment", metavar="S", help="Seconds that a row covers. [default: the stride, else 0.5]", show_default=False
    ),
]
Stride = Annotated[
    str | None,
    typer.Option("--stride", metavar="S", help="Seconds between rows. [default: the segment]", show_default=False),
]
Fps = Annotated[
    str | None,
    typer.Option(
        "--fps",
        metavar="N",
        help="Pictures a second, averaged in each row. [default: one a row, from its middle]",
        show_default=False,
    ),
]
Pool = Annotated[
    str,
    typer.Option(
        "--pool",
        metavar="KIND",
        help="gap: a vector a row; none: the encoder's last map. [default: none for ave, else gap]",
        show_default=False,
    ),
]
Tags = Annotated[bool, typer.Option("--tags/--no-tags", help="Keep class scores too, where an encoder has them.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="KIND", help="Numbers in the file: float32 or float16.")]
Pack = Annotated[
    Path | None,
    typer.Option(
        "--pack",
        metavar="FILE",
        help="With --layout ave: gather all clips of the folder into visual_feature.h5 and audio_feature.h5, a row for "
        "each line of FILE (AVE's Annotations.txt, or a name a line).",
        show_default=False,
    ),
]
Precision = Annotated[str, typer.Option("--precision", metavar="KIND", help="Of the networks: float32 or bf16.")]


def command(
    context: typer.Context,
    inputs_: options.Videos,
    output: options.Folder = None,
    beside: options.Beside = None,
    visual: Visual = None,
    audio: Audio = None,
    model: Model = None,
    layout: Layout = "npz",
    segment: Seconds = None,
    stride: Stride = None,
    fps: Fps = None,
    pool: Pool = "",
    tags: Tags = True,
    dtype: Dtype = "float32",
    precision: Precision = "float32",
    pack: Pack = None,
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
    """Write the features of videos: a row of visual and one of audio features for each segment, and their times.

    Run it again and it does what is missing: a file that is whole and made by the same settings is left alone.
    """
    settings, wanted = resolve(context.params, config)
    console.configure(wanted.progress, wanted.quiet)
    from avtool.extraction import Recipe

    recipe = Recipe(
        layout=layout,
        segment=_fraction("segment", segment),
        stride=_fraction("stride", stride),
        fps=_fraction("fps", fps),
        pool=pool,
        precision=precision,
        dtype=dtype,
        tags=tags,
    )
    if pack is None:
        return extract_all(inputs_, settings, wanted, recipe)
    if layout != "ave" or wanted.beside:
        raise UsageError("--pack needs --layout ave and one folder", hint="-o DIR --layout ave --pack Annotations.txt")
    from avtool.features.pack import read_names

    names = read_names(pack)
    code = extract_all(inputs_, settings, wanted, recipe)
    _pack(names, Path(wanted.output or "."))
    return code


def _pack(names: Sequence[str], folder: Path) -> None:
    from avtool.features.pack import pack

    files, missing = pack(names, folder)
    if missing:
        text = f"{missing} of {len(names)} rows have no clip and are zero"
        console.current().warn(text, "clips_missing", str(folder))
    shown = ", ".join(map(printable, files))
    console.current().note(f"packed {shown}      {len(names)} rows", packed=[str(f) for f in files], rows=len(names))


def _fraction(name: str, text: str | None) -> Fraction | None:
    try:
        return None if text is None else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"--{name}: '{printable(text or '')}' is not a number", "such as 8, 0.96 or 30000/1001"
        ) from None


def extract_all(names: Sequence[str], settings: Settings, output: OutputSettings, recipe: Recipe) -> int:
    """Extracts every input, goes on after a failure, and returns the exit code."""
    from avtool.extraction import Extractor, target_of

    if output.output == STDOUT:
        raise UsageError("features are not written to standard output", hint="a folder with -o DIR")
    plans = inputs.plan(names, output, (target_of(recipe.layout),), kind="features")
    failures = inputs.Failures()
    with Extractor(settings, recipe) as extractor:
        ready = inputs.admit(names, plans, extractor.probe, _replacing(output), failures)
        if ready:
            extractor.load()
            console.current().announce(str(extractor.device), extractor.title)
        for one in ready:
            with failures.caught():
                if output.overwrite or not _is_done(one, extractor):
                    _extract_one(one, extractor)
    return failures.exit_code


def _replacing(output: OutputSettings) -> OutputSettings:
    """So that results which exist are admitted and looked at."""
    from dataclasses import replace

    return replace(output, overwrite=True)


def _is_done(one: OutputPlan, extractor: Extractor) -> bool:
    """True if the result is there, whole, and what would be made again.

    Raises:
        OutputError: something else is there.
    """
    from avtool.features.store import load_marked

    (target,) = one.files.values()
    if not os.path.lexists(target):
        return False
    why = "it was made by other settings, or from another state of the input"
    try:
        done = load_marked(target)[1] == extractor.fingerprint(extractor.probe(one.input))
    except AvtoolError as error:
        done, why = False, error.why or error.what
    if not done:
        what = f"{printable(target)} exists already"
        raise OutputError(what, why, "--overwrite, or another folder with -o DIR")
    console.current().note(f"{printable(target)} is there and whole", input=str(one.input), skipped=str(target))
    return True


def _extract_one(one: OutputPlan, extractor: Extractor) -> None:
    from avtool.extraction import save

    say = console.current()
    (target,) = one.files.values()
    with say.progress(str(one.input)) as progress:
        features = extractor.features(one.input, progress)
        written = save(features, target, extractor.recipe, extractor.fingerprint(features.media))
    for notice in features.notices:
        say.warn(notice.message, notice.code, str(one.input))
    shown = ", ".join(map(printable, written))
    text = f"wrote {shown}      {features.rows} rows, {clock(features.media.analysed_until)} analysed"
    say.note(text, input=str(one.input), wrote=[str(file) for file in written], rows=features.rows)
