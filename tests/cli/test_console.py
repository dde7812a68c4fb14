"""How times, tables and messages look."""

from __future__ import annotations

import pytest

from avtool.cli.console import Console, clock, table
from avtool.errors import InputError


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [
        (0, 0, "0:00"), (59.6, 0, "1:00"), (123.46, 0, "2:03"), (3725, 0, "1:02:05"), (12.34, 1, "0:00:12.3"),
        (59.96, 1, "0:01:00.0"), (360000.0, 1, "100:00:00.0"), (-1, 0, "0:00"), (1.0005, 3, "0:00:01.000"),
    ],
)  # fmt: skip
def test_clock(seconds: float, decimals: int, text: str) -> None:
    assert clock(seconds, decimals) == text


def test_table() -> None:
    assert table(("a", "long"), [("1", "x\x1b[31m"), ("22", "y")], right=(0,)) == (
        "   a  long\n   1  x\\x1b[31m\n  22  y\n"
    )


def test_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Console("none").error(InputError("a\nb", "c\x1bd", ""))
    assert capsys.readouterr().err == "error: a\\nb\n  why: c\\x1bd\n"


def test_plain_lines_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Console("plain").progress("a.mp4") as progress:
        for done in range(0, 1001, 7):
            progress("decode", done, 1000)
        progress("decode", 1000, 1000)
        progress("features", 5, 0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == [f"{p}%" for p in range(10, 101, 10)]


def test_without_a_terminal_short_runs_pass_without_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Console("auto").progress("a.mp4") as progress:
        progress("decode", 1, 1)
    assert capsys.readouterr().err == ""
