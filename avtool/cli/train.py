"""avtool train: a localizer of one's own, or a network of the papers by their recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avtool.cli import console, options
from avtool.errors import UsageError
from avtool.files import check_writable, printable

if TYPE_CHECKING:
    from avtool.training.experiment import Experiment, Result

CONFIG = "CONFIG.toml, or the name of a configuration that comes with avtool (see --list)."


def command(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help=CONFIG, show_default=False)] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the model, its curves and the cache.")
    ] = Path("."),
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value, e.g. training.epochs=20; may be repeated.",
            show_default=False,
        ),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(
            "--row", metavar="NAME", help="A published row of the configuration (see --list).", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would be trained, and what follows from the data's durations.")
    ] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="List the configurations that come with avtool; with CONFIG its rows.")
    ] = False,
    device: options.Device = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, replacing the model of that name.")
    ] = False,
    progress: options.Progress = None,
    quiet: options.Quiet = None,
) -> None:
    """Train a localizer.

    The result is NAME.safetensors beside NAME.toml, which 'avtool localize --model NAME.safetensors' takes. Training
    that is stopped or killed goes on where it was when the same command is given again.

    CONFIG has a name, a network (cace, ccln, loco-segments, loco, unav or additive; encoder tunes one for --visual,
    towers match seconds) and the tables data, settings (of the network) and training. Its key 'base' names a
    configuration that it changes.

    Examples:

      avtool train additive-composed --set data.path=MATERIAL -o mine

      avtool train loco-folder --set data.path=VIDEOS --set data.table=events.csv --check
    """
    if progress is not None or quiet:
        from avtool.settings import OutputSettings

        console.configure(OutputSettings(progress=progress or "auto", quiet=bool(quiet)).progress, bool(quiet))
    if listed:
        return console.print_result(_rows(config) if config else _configurations())
    if config is None:
        raise UsageError("no configuration given", hint="avtool train --list, or avtool train CONFIG.toml")
    from avtool.training.experiment import check as checked
    from avtool.training.experiment import experiment, parse_change, read_table

    work = experiment(read_table(config), row, dict(parse_change(text) for text in settings or ()))
    if check:
        return console.print_result("".join(f"{line}\n" for line in checked(work)))
    check_writable(output)
    _told(_trained(work, output, device, overwrite), work)


def _trained(work: Experiment, output: Path, device: str | None, overwrite: bool) -> Result:
    from avtool.session import choose_device
    from avtool.training.experiment import Hooks, train

    said = console.current()
    with said.progress(work.name, show=lambda amount: f"{amount:.0f}") as progress:
        hooks = Hooks(progress, _each_epoch(work), _can_draw(), _tensorboard(output / f"{work.name}.tensorboard"))
        return train(work, output, choose_device(device or "auto"), hooks, overwrite)


def _each_epoch(work: Experiment) -> Callable[[Mapping[str, Any]], None]:
    def say(record: Mapping[str, Any]) -> None:
        figures = [f"{name.removeprefix('train/')} {value:.4g}" for name, value in record.items() if _is_shown(name)]
        text = f"epoch {record['epoch']} of {work.training.epochs}: {', '.join(figures)}"
        console.current().note(text, **record)

    return say


def _is_shown(name: str) -> bool:
    return name == "train/loss" or name.startswith(("val/", "test/"))


def _can_draw() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def _tensorboard(folder: Path) -> list[Callable[[Mapping[str, Any]], None]]:
    """A writer for TensorBoard, where it is installed."""
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return []
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            writer.add_scalar(name, value, record["epoch"])
        writer.flush()

    return [write]


def _told(result: Result, work: Experiment) -> None:
    said = console.current()
    for note in result.notes:
        said.warn(note, code="training")
    figures = ", ".join(f"{name} {value:.3f}" for name, value in result.figures.items())
    when = f"epoch {result.best} of {result.epochs}: " if result.epochs else ""
    console.print_result(f"{result.model}\n")
    said.note(f"{work.name}: {when}{figures}", model=str(result.model), figures=dict(result.figures))


def _configurations() -> str:
    from avtool.training.experiment import read_table, rows_of, shipped

    tables = {name: read_table(name) for name in shipped()}
    rows = [(name, str(len(rows_of(t)) or ""), str(t.get("about", ""))) for name, t in tables.items()]
    return console.table(("name", "rows", "what"), rows, right=(1,))


def _rows(config: str) -> str:
    import json

    from avtool.training.experiment import read_table, rows_of

    rows = rows_of(read_table(config))
    if not rows:
        return f"{printable(config)} has no rows\n"
    shown = [(r.name, " ".join(f"{k}={json.dumps(v)}" for k, v in r.changes.items()), r.paper) for r in rows.values()]
    return console.table(("row", "--set", "published"), shown)
