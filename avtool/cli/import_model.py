"""avtool import-model: a published checkpoint becomes a model that `localize --model` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avtool.cli import console
from avtool.errors import OutputError, UsageError
from avtool.files import check_writable, printable

DEFAULT_NAME = "cace-net"


def command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Official CACE-Net checkpoint (.pth.tar); its code is never run."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the model.")] = Path("."),
    name: Annotated[str, typer.Option("--name", help="Name of the model and of its files.")] = DEFAULT_NAME,
    guide: Annotated[
        str, typer.Option("--guide", help="How it was trained: co, audio, visual or none; no checkpoint tells.")
    ] = "co",
    psi: Annotated[float, typer.Option("--psi", help="Strength of audio calibration it was trained with.")] = 0.3,
    lambda_: Annotated[
        float, typer.Option("--lambda", help="Weight of the contrast-enhanced feature it was trained with.")
    ] = 0.6,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model of this name.")] = False,
) -> None:
    """Make a model of an official CACE-Net checkpoint: NAME.safetensors and NAME.toml, for 'localize --model'."""
    if not name or Path(name).name != name:
        raise UsageError(f"--name: '{printable(name)}' is no name of a file")
    target = output / f"{name}.safetensors"
    if not overwrite and (target.exists() or target.with_suffix(".toml").exists()):
        raise OutputError(f"{printable(target)} exists", hint="--overwrite, or another --name")
    check_writable(output)
    from avtool.models.release import cace_info, read_cace, write_model

    network = read_cace(file, guide=guide, psi=psi, **{"lambda": lambda_})
    info = cace_info(network, name)
    written = write_model(info, network.state_dict(), output)
    size = sum(p.numel() for p in network.parameters())
    console.current().note(f"imported {size / 1e6:.2f} M parameters; it reads {info.visual[0]} and {info.audio[0]}")
    console.print_result(f"{written}\n")
