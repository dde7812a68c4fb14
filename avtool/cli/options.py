"""The options that several commands share; None means "not given", so that weaker sources can speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avtool.settings import DEFAULT_FORMATS, FORMATS


def _option(*names: str, help: str, metavar: str | None = None) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(*names, help=help, metavar=metavar, show_default=False)
    return info


Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Video files, or feature files (.npz, .h5) of avtool.", show_default=False),
]
Videos = Annotated[list[str], typer.Argument(metavar="INPUT", help="Video files.", show_default=False)]
Timelines = Annotated[
    list[str],
    typer.Argument(metavar="TIMELINE", help="Timelines that localize wrote (NAME.events.json).", show_default=False),
]
Output = Annotated[
    str | None,
    _option(
        "-o",
        "--output",
        metavar="DIR",
        help="Folder for the results; - for standard output. [default: the current folder]",
    ),
]
Folder = Annotated[
    str | None, _option("-o", "--output", metavar="DIR", help="Folder for the results. [default: the current folder]")
]
BatchOutput = Annotated[
    str | None, _option("-o", "--output", metavar="OUT", help="Folder for the results; it mirrors FOLDER. [required]")
]
Beside = Annotated[bool | None, _option("--beside", help="Write the results next to each input.")]
Formats = Annotated[
    list[str] | None,
    _option(
        "-f",
        "--formats",
        metavar="LIST",
        help=f"Formats, separated by commas: {', '.join(FORMATS)}. [default: {','.join(DEFAULT_FORMATS)}]",
    ),
]
OtherFormats = Annotated[
    list[str] | None,
    _option("-f", "--formats", metavar="LIST", help=f"Formats, separated by commas: {', '.join(FORMATS)}. [required]"),
]
Model = Annotated[
    str | None,
    _option(
        "--model",
        metavar="NAME",
        help="Localizer: a name from 'avtool models', or the path of one. [default: auto: the best that can run here]",
    ),
]
Visual = Annotated[
    str | None,
    _option(
        "--visual",
        metavar="NAME",
        help="Encoder for pictures, or the file of a tuned one. [default: the best installed that the model can read]",
    ),
]
Audio = Annotated[
    str | None,
    _option("--audio", metavar="NAME", help="Encoder for sound. [default: the best installed that the model can read]"),
]
Classes = Annotated[
    list[str] | None,
    _option(
        "--classes",
        metavar="LIST",
        help="'default' (the classes the model vouches for), 'all', or names separated by commas; may be repeated.",
    ),
]
Device = Annotated[
    str | None,
    _option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps. [default: auto: cuda, then mps, then cpu]"),
]
MinScore = Annotated[
    str | None,
    _option("--min-score", metavar="X", help="Lowest score of an event, 0 to 1. [default: each class's own threshold]"),
]
Nms = Annotated[
    str | None,
    _option("--nms", metavar="METHOD", help="Soft-NMS method: gaussian, linear, hard. [default: the model's]"),
]
Sigma = Annotated[
    str | None, _option("--sigma", metavar="X", help="Width of Gaussian Soft-NMS. [default: the model's]")
]
MaxEvents = Annotated[
    str | None,
    _option("--max-events", metavar="N", help="Keep at most the N strongest events of a file. [default: no limit]"),
]
Start = Annotated[
    str | None,
    _option("--start", metavar="TIME", help="Analyse from here on: seconds or [H:]MM:SS. [default: the beginning]"),
]
End = Annotated[
    str | None, _option("--end", metavar="TIME", help="Analyse up to here: seconds or [H:]MM:SS. [default: the end]")
]
AudioTrack = Annotated[
    str | None,
    _option("--audio-track", metavar="N", help="Sound track to listen to, from 0. [default: the file's default]"),
]
AllowPartial = Annotated[
    bool | None, _option("--allow-partial", help="Accept a file of which only a part can be decoded, with a warning.")
]
Explain = Annotated[
    bool | None,
    _option("--explain", help="Store what sound and picture say by themselves: why an event was kept, what was not."),
]
MaxPixels = Annotated[
    str | None, _option("--max-pixels", metavar="N", help="Refuse larger pictures. [default: 64000000]")
]
MaxSeconds = Annotated[
    str | None, _option("--max-seconds", metavar="X", help="Refuse longer files. [default: 172800, two days]")
]
Overwrite = Annotated[bool | None, _option("--overwrite", help="Replace results that exist.")]
Progress = Annotated[
    str | None,
    _option("--progress", metavar="KIND", help="auto, plain, json or none; always on standard error. [default: auto]"),
]
Quiet = Annotated[bool | None, _option("-q", "--quiet", help="Say nothing but errors.")]
Config = Annotated[
    Path | None,
    _option(
        "--config",
        metavar="FILE",
        help="TOML file of settings (min_score = 0.4); flags and AVTOOL_* variables beat it. [default: AVTOOL_CONFIG]",
    ),
]
