"""Every command and option is documented, and asking costs next to nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from avtool.cli.app import app
from tests.cli.conftest import Run


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    group = group or typer.main.get_command(app)
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


EVERY = list(commands())
IDS = [" ".join(("avtool", *path)) for path, _ in EVERY]


def test_the_commands_are_these() -> None:
    assert [" ".join(path) for path, _ in EVERY] == [
        "", "localize", "export", "view", "cut", "extract-features", "batch", "train", "import-model", "models", "info",
        "doctor",
        "evaluate", "evaluate ave", "evaluate cml", "evaluate detections", "evaluate dense", "evaluate clips",
        "evaluate cost", "evaluate pictures",
        "weights", "weights list", "weights fetch", "weights verify", "weights path", "weights import",
    ]  # fmt: skip


@pytest.mark.parametrize(("path", "command"), EVERY, ids=IDS)
def test_every_command_and_option_has_help(path: tuple[str, ...], command: Any) -> None:
    assert (command.help or "").strip()
    for parameter in command.params:
        assert (parameter.help or "").strip(), f"{' '.join(path)}: {parameter.name}"
        assert parameter.help.endswith((".", "]")), parameter.help


@pytest.mark.parametrize(("path", "command"), EVERY, ids=IDS)
def test_help_goes_to_standard_output(avtool: Run, path: tuple[str, ...], command: Any) -> None:
    ran = avtool(*path, "--help")
    assert ran.code == 0 and ran.err == "" and ran.out.startswith("Usage: avtool")
    for parameter in command.params:
        assert all(name in ran.out for name in parameter.opts if name.startswith("-"))


def test_settings_that_can_be_set_have_a_flag() -> None:
    from avtool.settings import _CONVERTERS

    options = {parameter.name for path, command in EVERY if path == ("localize",) for parameter in command.params}
    assert set(_CONVERTERS) <= options


def test_version(avtool: Run) -> None:
    from avtool import __version__

    assert avtool("--version").out == f"avtool {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command"),
        (["lokalize"], "'localize'"),
        (["localize"], "INPUT"),
        (["weights", "verfy"], "'verify'"),
        (["info", "--jsn", "x"], "--json"),
    ],
)
def test_slips_are_two_and_say_what_was_meant(avtool: Run, arguments: list[str], said: str) -> None:
    ran = avtool(*arguments)
    assert ran.code == 2 and said in ran.err and ran.out == ""
    assert ran.lines[0].startswith("error: ") and len(ran.lines) <= 3


def test_help_is_quick(program: Run) -> None:
    """Under 0.3 s; in seconds of processor time, which a busy machine stretches least. The disk is warm."""

    def seconds() -> float:
        before = os.times()
        assert program("--help").code == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.3


def test_help_loads_nothing_heavy(program: Run) -> None:
    code = (
        "import sys; from avtool.cli.app import run; code = run(['--help']);"
        "heavy = {'torch', 'av', 'numpy', 'rich', 'ray', 'matplotlib'} & set(sys.modules);"
        "print(code, heavy, file=sys.stderr)"
    )
    assert program(code=code).err == "0 set()\n"


def test_the_readme_lists_the_exit_codes_and_commands(repo: Path) -> None:
    from avtool import errors

    text = (repo / "README.md").read_text(encoding="utf-8")
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == sorted(codes | {0})
    assert all(f"avtool {path[0]}" in text for path, _ in EVERY if path)
