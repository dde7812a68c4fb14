"""Ctrl-C and SIGTERM at any moment: exit 130 within two seconds, one line, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest

from avtool.timeline import from_json
from tests.cli.conftest import FAKED

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX knows them")

# The command is replaced by what is hard to stop; everything before and after it is avtool's own.
DRIVER = """
import avtool.cli.localize as localize

def stuck(names, settings, output):
    from pathlib import Path
    from avtool import interrupts
    from avtool.files import atomic_stream
    from avtool.session import Session
    session = Session(settings)
    session._decoder()
    kind, folder = names
    with atomic_stream(Path(folder) / "result.json") as stream:
        stream.write(b"half")
        stream.flush()
        Path(folder, "ready").touch()
        if kind == "c-call":
            import hashlib
            hashlib.pbkdf2_hmac("sha512", b"a", b"b", 10**9)  # minutes inside C, the GIL released
        elif kind == "python":
            while True:
                pass
        elif kind == "import":
            while True:
                for name in ("torch", "av", "decimal", "asyncio"):
                    import importlib, sys
                    for loaded in [m for m in sys.modules if m.split(".")[0] in ("decimal", "asyncio")]:
                        del sys.modules[loaded]
                    importlib.import_module(name)
        elif kind == "cleanup-hangs":
            import time
            interrupts.on_interrupt(lambda: time.sleep(60))
            time.sleep(60)

localize.localize_all = stuck
import sys
sys.argv = ["avtool", "localize", *sys.argv[1:]]
import avtool.__main__
avtool.__main__.main()
"""

# Touches the file `ready` as soon as avtool has taken over the signals.
MARKED = (
    "from avtool import interrupts; take_over = interrupts.install;"
    "interrupts.install = lambda: (take_over(), open('ready', 'x').close());"
)

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # in turns: one handler serves them all
PATIENCE = 10  # seconds, on a machine that does other things too; benchmarks/interrupts.py holds avtool to two


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, repo: Path) -> Iterator[Start]:
    """Starts Python in a session of its own, so that what it leaves behind can be found, and is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(repo)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_answer_signals,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        with process:  # closes its pipes and waits for it
            for number in of_session(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def _answer_signals() -> None:
    """Under nohup or as a shell's background job the tests themselves ignore signals, and children inherit that."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def of_session(session: int) -> dict[int, str]:
    """Numbers and command lines of the processes of a session, zombies left out."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, IndexError):
            continue
    return found


def left_over(process: subprocess.Popen[str]) -> dict[int, str]:
    """What of its session does not end within a few seconds; the kernel takes a moment to clear away the killed."""
    deadline = time.monotonic() + PATIENCE
    while (found := of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Returns when the process has made `path`, which is only a matter of time."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it does not come so far"
        time.sleep(0.002)


def stop(process: subprocess.Popen[str], signum: int) -> tuple[float, str]:
    """Sends the signal; returns the seconds until the end and what was said."""
    begin = time.monotonic()
    process.send_signal(signum)
    _, said = process.communicate(timeout=30)
    return time.monotonic() - begin, said


@pytest.mark.parametrize(
    ("kind", "signum"),
    [
        ("c-call", signal.SIGINT),
        ("c-call", signal.SIGTERM),
        ("c-call", signal.SIGHUP),
        ("python", signal.SIGINT),
        ("import", signal.SIGTERM),
        ("cleanup-hangs", signal.SIGHUP),
    ],
)
def test_whatever_the_main_thread_does(start: Start, kind: str, signum: int, tmp_path: Path) -> None:
    process = start("-c", DRIVER, kind, str(tmp_path))
    wait_for(tmp_path / "ready", process)
    time.sleep(0.3)
    seconds, said = stop(process, signum)
    assert process.returncode == 130
    assert seconds < PATIENCE
    assert said.count("\n") == 1 and said.startswith("interrupted")
    if kind != "cleanup-hangs":
        assert [p.name for p in tmp_path.iterdir()] == ["ready"]
    assert not left_over(process)


def test_a_second_signal_ends_it_at_once(start: Start, tmp_path: Path) -> None:
    process = start("-c", DRIVER, "cleanup-hangs", str(tmp_path))
    wait_for(tmp_path / "ready", process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    seconds, _ = stop(process, signal.SIGINT)
    assert process.returncode == 130 and seconds < PATIENCE


@pytest.mark.parametrize(
    ("delay_ms", "signum"), list(zip([0, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280], cycle(SIGNALS), strict=False))
)
def test_from_the_first_line_on(start: Start, delay_ms: int, signum: int, tmp_path: Path) -> None:
    """`doctor` imports all that is slow; the signal comes some milliseconds after the handlers are set."""
    process = start("-c", MARKED + "import avtool.__main__ as m; m.main()", "doctor")
    wait_for(tmp_path / "ready", process)
    time.sleep(delay_ms / 1000)
    seconds, said = stop(process, signum)
    assert seconds < PATIENCE
    if process.returncode == 0:  # the signal came after the work was done
        assert not said and delay_ms > 300
        return
    assert process.returncode == 130, said
    assert said.count("\n") == 1 and said.startswith("interrupted")


@pytest.mark.parametrize(
    ("after", "delay_ms", "signum"),
    [("ready", d, s) for d, s in zip((20, 50, 100, 200, 500, 900), cycle(SIGNALS), strict=False)]
    + [("out/00.events.json", d, s) for d, s in zip((0, 5, 20, 100), cycle(SIGNALS), strict=False)],
)
def test_in_the_middle_of_the_work(
    start: Start, clip: Path, after: str, delay_ms: int, signum: int, tmp_path: Path
) -> None:
    """Whatever was finished is whole, whatever was not is gone."""
    for i in range(100):
        os.link(clip, tmp_path / f"{i:02}.mp4")
    before = {p.name for p in tmp_path.iterdir()}
    process = start("-c", MARKED + FAKED, "localize", "-o", "out", *sorted(before))
    wait_for(tmp_path / after, process)
    time.sleep(delay_ms / 1000)
    seconds, said = stop(process, signum)
    out = tmp_path / "out"
    results = sorted(p.name for p in out.iterdir()) if out.exists() else []
    if process.returncode == 0 and len(results) == 2 * len(before):
        pytest.skip("the work was done before the signal came")
    assert process.returncode == 130 and seconds < PATIENCE
    assert said.splitlines()[-1].startswith("interrupted") and "Traceback" not in said
    assert {p.name for p in tmp_path.iterdir()} - before <= {"ready", "out"}
    assert all(name.endswith((".events.json", ".events.srt")) for name in results)
    for name in results:
        if name.endswith(".json"):
            from_json((out / name).read_bytes())
    assert not left_over(process)


# The signal comes while the decoder's process is being started, when nobody knows its number yet.
STARTING = """
import pathlib, subprocess, time

class Slow(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        pathlib.Path("ready").touch()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            time.sleep(0.01)

subprocess.Popen = Slow
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_while_the_decoder_is_started(start: Start, clip: Path, signum: int, tmp_path: Path) -> None:
    """A decoder that is busy would go on until it looks at its pipe; it is ended before avtool says goodbye."""
    process = start("-c", STARTING + FAKED, "localize", "-o", "out", clip.name)
    wait_for(tmp_path / "ready", process)
    (decoder,) = (number for number in of_session(process.pid) if number != process.pid)
    os.kill(decoder, signal.SIGSTOP)
    _, said = stop(process, signum)
    assert process.returncode == 130 and said.startswith("interrupted")
    assert not left_over(process)


def test_the_library_leaves_signals_alone(start: Start) -> None:
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM);"
        "import avtool, avtool.__main__, avtool.cli.app, avtool.pipeline;"
        "assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))"
    )
    process = start("-c", code)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
