"""avtool weights: which weight files are known, where they lie, whether they are whole, and how others get here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avtool.cli import console, inputs, options
from avtool.errors import UsageError, WeightsError
from avtool.files import printable
from avtool.settings import PROGRESS, did_you_mean

if TYPE_CHECKING:
    from avtool.weights import Check, WeightsFile

app = typer.Typer(help="See, fetch, check and import weight files.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the weights, from 'avtool weights list'.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]", help="Names of weights, from 'avtool weights list'.", show_default=False),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--weights-dir",
        metavar="DIR",
        help="Folder of fetched and imported weights. [default: AVTOOL_WEIGHTS, else the cache folder]",
        show_default=False,
    ),
]
Unpinned = Annotated[
    bool,
    typer.Option(
        "--accept-unpinned", help="Take a file although its hash is not known beforehand; the hash is recorded."
    ),
]


@app.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show all about these weights.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    weights_dir: Folder = None,
) -> None:
    """List the known weights: whether they are here, their size, and whether commercial use is allowed."""
    from avtool import weights

    known = weights.manifest()
    if name is not None and name not in known:
        raise UsageError(f"no weights are called '{printable(name)}'", hint=did_you_mean(name, list(known)))
    chosen = [known[name]] if name is not None else list(known.values())
    if as_json:
        records = [{**asdict(e), "path": _text(weights.find(e, weights_dir))} for e in chosen]
        console.print_result(json.dumps(records, indent=1) + "\n")
    elif name is not None:
        console.print_result(_page(chosen[0], weights_dir))
    else:
        rows = [(e.name, _state(e, weights_dir), _size(e), _short(e.commercial), e.kind.split(":")[0]) for e in chosen]
        console.print_result(console.table(("name", "state", "size", "commercial", "what"), rows, right=(2,)))
        console.current().note("avtool weights list NAME shows the licence, the hash and where a file comes from")


@app.command()
def fetch(
    names: Names = None,
    every: Annotated[bool, typer.Option("--all", help="All that are published as files.")] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Make a folder to carry to a machine without a network; set AVTOOL_WEIGHTS to it there.",
            show_default=False,
        ),
    ] = None,
    accept_unpinned: Unpinned = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no connection, say how to get them by hand; or AVTOOL_OFFLINE=1.")
    ] = False,
    mirror: Annotated[
        str | None,
        typer.Option("--mirror", metavar="URL", help="Address of a folder to try first.", show_default=False),
    ] = None,
    weights_dir: Folder = None,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
) -> int:
    """Download weights, check and convert them; run it again after an interruption and it goes on."""
    if progress not in (None, *PROGRESS):
        raise UsageError(f"--progress: '{printable(progress)}' is not known", f"one of {', '.join(PROGRESS)}")
    if to is not None and weights_dir is not None:
        raise UsageError("--to and --weights-dir contradict each other", hint="give only one of the two")
    console.configure(progress or "auto", bool(quiet))
    failures = inputs.Failures()
    for name in _wanted(names or [], every):
        with failures.caught():
            _fetch_one(name, accept_unpinned, offline, mirror, to or weights_dir)
    return failures.exit_code


def _wanted(names: list[str], every: bool) -> list[str]:
    """The names given, or all that can be fetched."""
    from avtool import weights

    if bool(names) == every:
        raise UsageError("give names of weights, or --all", hint="avtool weights list")
    return [e.name for e in weights.manifest().values() if e.urls] if every else list(dict.fromkeys(names))


def _fetch_one(name: str, accept_unpinned: bool, offline: bool, mirror: str | None, folder: Path | None) -> None:
    from avtool import weights

    with console.current().progress(name, console.megabytes) as progress:
        path = weights.fetch(
            name,
            accept_unpinned=accept_unpinned,
            offline=offline,
            mirror=mirror,
            weights_dir=folder,
            on_progress=progress,
        )
    console.current().note(f"{name} is here", name=name, path=str(path))
    console.print_result(f"{path}\n")


@app.command()
def verify(names: Names = None, weights_dir: Folder = None) -> int:
    """Hash weight files again; exit 4 if one is damaged, or if one that is named is missing."""
    from avtool import weights

    checks = weights.verify(weights_dir, names or None)
    console.print_result(console.table(("name", "state", "detail"), [(c.name, c.state, _detail(c)) for c in checks]))
    bad = [c for c in checks if c.state == "damaged" or (names and c.state != "ok")]
    for check in bad:
        console.current().error(WeightsError(f"weights '{check.name}' are {check.state}", check.detail, _remedy(check)))
    return WeightsError.exit_code if bad else 0


@app.command()
def path(name: Name, weights_dir: Folder = None) -> None:
    """Print where the file of some weights lies."""
    from avtool import weights

    console.print_result(f"{weights.path(name, weights_dir)}\n")


@app.command("import")
def import_(
    name: Name,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Checkpoint as its authors publish it: PyTorch, safetensors or Keras .h5."),
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


def _short(answer: bool | str) -> str:
    return commercial(answer).partition(":")[0]


def _size(entry: WeightsFile) -> str:
    return console.megabytes(entry.size) if entry.size else "unknown"


def _state(entry: WeightsFile, weights_dir: Path | None) -> str:
    from avtool import weights

    if entry.file:
        return "ships"
    if weights.find(entry, weights_dir):
        return "here"
    begun = weights.fetched_bytes(entry, weights_dir)
    return f"{min(99, 100 * begun // entry.size)}% here" if begun and entry.size else "not here"


def _page(entry: WeightsFile, weights_dir: Path | None) -> str:
    """All that is known about one file."""
    from avtool import weights

    found = weights.find(entry, weights_dir)
    facts: list[tuple[str, Any]] = [
        ("name", entry.name),
        ("what it is", entry.kind),
        ("state", f"{_state(entry, weights_dir)}{f', {found}' if found else ''}"),
        ("size", _size(entry)),
        ("licence", entry.licence),
        ("commercial use", commercial(entry.commercial)),
        ("source", entry.source),
        *(("address", url) for url in entry.urls),
        *(("sha256", digest) for digest in entry.hashes),
        *([("md5", entry.md5)] if entry.md5 else []),
        *([] if entry.pinned else [("hash", "not known: loads only with --accept-unpinned")]),
    ]
    return "".join(f"  {name:<15} {printable(str(value))}\n" for name, value in facts)


def _detail(check: Check) -> str:
    """What fits on a line."""
    return {"ok": f"sha256 {check.detail[:16]}...", "missing": ""}.get(check.state, "see below")


def _remedy(check: Check) -> str:
    from avtool import weights

    entry = weights.manifest().get(check.name)
    if entry and entry.file:
        return "install avtool again"
    return f"avtool weights fetch {check.name}" if entry and entry.urls else "avtool weights import NAME FILE"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
