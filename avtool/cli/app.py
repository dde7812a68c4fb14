"""The commands of avtool, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from avtool import __version__, interrupts
from avtool.cli import (
    batch,
    console,
    cut,
    evaluate,
    export,
    extract,
    import_model,
    inspect,
    localize,
    train,
    view,
    weights,
)
from avtool.errors import AvtoolError, DeviceError, Interrupted, OutputError, UsageError

app = typer.Typer(
    name="avtool",
    help="Says what happens in a video that can be both heard and seen, and when.",
    epilog="Exit codes: 0 success, 1 bug, 2 usage, 3 input unreadable or only partly decodable, 4 weights missing or "
    "damaged, 5 device or memory, 6 cannot write, 7 several inputs failed in different ways, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, function, summary in (
    ("localize", localize.command, "Find what can be both heard and seen in videos."),
    ("export", export.command, "Write timelines in other formats."),
    ("view", view.command, "Show a video or a timeline in the browser."),
    ("cut", cut.command, "Write the events of timelines as clips."),
    ("extract-features", extract.command, "Write the features of videos as .npz."),
    ("batch", batch.command, "Localize every video of a folder, resumably."),
    ("train", train.command, "Train a localizer."),
    ("import-model", import_model.command, "Make a model of an official CACE-Net checkpoint."),
    ("models", inspect.models, "List the models, their classes and licences."),
    ("info", inspect.info, "Show what is in videos, without analysing them."),
    ("doctor", inspect.doctor, "Check this installation."),
):
    app.command(name, short_help=summary)(function)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(weights.app, name="weights")


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print_result(f"avtool {__version__}\n")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Says what happens in a video that can be both heard and seen, and when."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        The exit code. Nothing is raised: every error has been said on standard error.
    """
    console.configure("auto", False)
    try:
        result = typer.main.get_command(app)(args=arguments, prog_name="avtool", standalone_mode=False)
        console.print_result("")
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, Interrupted):
        return interrupts.EXIT_CODE
    except SystemExit as leaving:  # Typer's answer to a closed standard output
        console.drop_stdout()
        return leaving.code if isinstance(leaving.code, int) else OutputError.exit_code
    except AvtoolError as error:
        return _say(error)
    except MemoryError:
        return _say(DeviceError("out of memory", hint="analyse a part of the file with --start and --end"))
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own error about the command line; its class is private
            return _say(_usage_error(error, sys.argv[1:] if arguments is None else arguments))
        return _report_bug(error)


def _say(error: AvtoolError) -> int:
    console.current().error(error)
    return error.exit_code


def _usage_error(error: Any, arguments: Sequence[str]) -> UsageError:
    if type(error).__name__ == "NoArgsIsHelpError":
        return UsageError("no command given", hint="avtool --help")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "avtool"
    what, _, possible = error.format_message().rstrip(".").partition(" (Possible options: ")
    hint = f"did you mean {possible.rstrip(')')}?" if possible else f"{path} --help"
    unknown = getattr(error, "option_name", None)
    dashed = [a for a in arguments if unknown and a.startswith(unknown) and os.path.lexists(a)]
    if dashed:
        hint = f"for the file of that name: ./{dashed[0]}"
    return UsageError(what[:1].lower() + what[1:], hint=hint)


def _report_bug(error: Exception) -> int:
    name = type(error).__name__
    code = _say(AvtoolError(f"{name}: a bug in avtool {__version__}", hint="report it with the lines below"))
    console.current().trace("".join(traceback.format_exception(error)).splitlines())
    return code
