"""avtool weights: which weight files are known, where they lie, and whether they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avtool.cli import console
from avtool.errors import WeightsError

app = typer.Typer(help="See, check and import weight files.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the weights, from 'avtool weights list'.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--weights-dir",
        metavar="DIR",
        help="Folder of imported weights. [default: AVTOOL_WEIGHTS, else the cache folder]",
        show_default=False,
    ),
]
Unpinned = Annotated[
    bool,
    typer.Option(
        "--accept-unpinned", help="Take the file although its hash is not known beforehand; the hash is recorded."
    ),
]


@app.command("list")
def list_(weights_dir: Folder = None) -> None:
    """List the known weights: whether they are here, their size, licence and commercial use."""
    from avtool import weights

    rows = []
    for name, entry in weights.manifest().items():
        here = "ships with avtool" if entry.file else "imported" if _find(name, weights_dir) else "not here"
        rows.append((name, here, f"{entry.bytes / 1e6:.1f} MB", commercial(entry.commercial), entry.licence))
    console.print_result(console.table(("name", "state", "size", "commercial use", "licence"), rows, right=(2,)))


@app.command()
def verify(weights_dir: Folder = None) -> int:
    """Hash every weight file again; exit 4 if one is damaged."""
    from avtool import weights

    checks = weights.verify(weights_dir)
    console.print_result(console.table(("name", "state", "detail"), [(c.name, c.state, c.detail) for c in checks]))
    return WeightsError.exit_code if any(check.state == "damaged" for check in checks) else 0


@app.command()
def path(name: Name, weights_dir: Folder = None) -> None:
    """Print where the file of some weights lies."""
    from avtool import weights

    console.print_result(f"{weights.path(name, weights_dir)}\n")


@app.command("import")
def import_(
    name: Name,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Checkpoint as its authors publish it: PyTorch or safetensors.")
    ],
    accept_unpinned: Unpinned = False,
    weights_dir: Folder = None,
) -> None:
    """Check a checkpoint, convert it to safetensors and keep it in the cache; its code is never run."""
    from avtool import weights

    kept = weights.import_weights(file, name, accept_unpinned, weights_dir)
    console.current().note(f"imported {name}")
    console.print_result(f"{kept}\n")


def commercial(answer: bool | str) -> str:
    """May it be used commercially, in a word or two."""
    return {True: "yes", False: "no", "ask": "unclear: see the licence"}.get(answer, str(answer))


def _find(name: str, weights_dir: Path | None) -> Path | None:
    from avtool import weights

    try:
        return weights.path(name, weights_dir)
    except WeightsError:
        return None
