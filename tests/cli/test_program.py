"""avtool as a process: its streams, a terminal, and what it needs from the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import FAKED, Run

posix = pytest.mark.skipif(os.name != "posix", reason="streams as POSIX knows them")


def shell(line: str, repo: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a shell line in which $AVTOOL is the program with the stand-in for the model."""
    env = {**os.environ, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    script = f'AVTOOL() {{ "{sys.executable}" -c "{FAKED}" "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_module_and_package_are_one_program(program: Run) -> None:
    assert program("--version").out.startswith("avtool ")


@posix
def test_a_reader_that_stops_reading(clip: Path, repo: Path, tmp_path: Path) -> None:
    done = shell("AVTOOL localize clip.mp4 -o - | true; echo ${PIPESTATUS[0]}", repo, tmp_path)
    assert done.stdout == "6\n" and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-3].startswith("error: cannot write to standard output")


@posix
def test_help_into_a_reader_that_stops_reading(repo: Path, tmp_path: Path) -> None:
    done = shell("AVTOOL localize --help | true", repo, tmp_path)
    assert done.stderr == ""


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_standard_output(clip: Path, repo: Path, tmp_path: Path) -> None:
    done = shell("AVTOOL localize clip.mp4 -o - > /dev/full", repo, tmp_path)
    assert done.returncode == 6 and "No space left" in done.stderr and "Traceback" not in done.stderr


@posix
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams(clip: Path, repo: Path, tmp_path: Path, closed: str) -> None:
    done = shell(f"AVTOOL localize clip.mp4 {closed}", repo, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clip.events.json").read_text().startswith("{") and "wrote" not in done.stdout


@posix
def test_a_closed_standard_output_is_no_success(clip: Path, repo: Path, tmp_path: Path) -> None:
    assert shell("AVTOOL localize clip.mp4 -o - 1>&-", repo, tmp_path).returncode == 6


@posix
def test_a_terminal_gets_a_table_and_bars_that_go_away(clip: Path, repo: Path, tmp_path: Path) -> None:
    import pty

    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", FAKED, "localize", "clip.mp4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repo), "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        stdin=side,
        stdout=side,
        stderr=side,
    )
    os.close(side)
    shown = b""
    while True:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other side is closed
            break
    os.close(main)
    assert process.wait(60) == 0
    text = shown.decode()
    assert re.search(r"start +end +score +event", text) and re.search(
        r"0:00:0[12]\.\d  0:00:02\.\d   [01]\.\d\d  flash", text
    )
    assert "features" in text and text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


@posix
def test_a_locale_without_unicode(clip: Path, repo: Path, tmp_path: Path) -> None:
    os.rename(clip, tmp_path / "clip é🎬.mp4")
    done = shell("export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; AVTOOL localize clip*.mp4", repo, tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "clip é🎬.events.srt").is_file()


def test_an_unexpected_error_is_called_a_bug(program: Run, clip: Path) -> None:
    code = (
        "import avtool.cli.localize as l; from avtool.__main__ import main; import sys\n"
        "def broken(*_): raise ZeroDivisionError('x')\n"
        "l.localize_all = broken; sys.argv = ['avtool', 'localize', 'a']; main()"
    )
    ran = program(code=code)
    assert ran.code == 1
    assert ran.lines[0].startswith("error: ZeroDivisionError: a bug in avtool") and "Traceback" in ran.err
