"""Ctrl-C and SIGTERM at any moment: exit 130 within two seconds, one line, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
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

PATIENCE = 10  # seconds; how fast it really is, is a figure of the benchmarks


def start(arguments: Sequence[str], cwd: Path, repo: Path) -> subprocess.Popen[str]:
    """A process in a session of its own, so that what it leaves behind can be found."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(repo)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_answer_signals,
    )


def _answer_signals() -> None:
    """Under nohup or as a shell's background job the tests themselves ignore signals, and children inherit that."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def of_session(session: int) -> list[str]:
    """Command lines of the processes of a session, zombies left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except (OSError, IndexError):
            continue
    return found


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def stop(process: subprocess.Popen[str], signum: int) -> tuple[float, str]:
    """Sends the signal; returns the seconds until the end and what was said."""
    if process.poll() == 0:
        pytest.skip("the work was done before the signal came")
    begin = time.monotonic()
    process.send_signal(signum)
    try:
        _, said = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return time.monotonic() - begin, said


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["c-call", "python", "import", "cleanup-hangs"])
def test_whatever_the_main_thread_does(kind: str, signum: int, tmp_path: Path, repo: Path) -> None:
    process = start(["-c", DRIVER, kind, str(tmp_path)], tmp_path, repo)
    wait_for(tmp_path / "ready", process)
    time.sleep(0.3)
    seconds, said = stop(process, signum)
    assert process.returncode == 130
    assert seconds < PATIENCE
    assert said.count("\n") == 1 and said.startswith("interrupted")
    if kind == "cleanup-hangs":
        time.sleep(0.5)  # nobody killed the decoder: it ends by itself when its pipe closes
    else:
        assert [p.name for p in tmp_path.iterdir()] == ["ready"]
    assert not of_session(process.pid)


def test_a_second_signal_ends_it_at_once(tmp_path: Path, repo: Path) -> None:
    process = start(["-c", DRIVER, "cleanup-hangs", str(tmp_path)], tmp_path, repo)
    wait_for(tmp_path / "ready", process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    seconds, _ = stop(process, signal.SIGINT)
    assert process.returncode == 130 and seconds < PATIENCE


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_from_the_first_line_on(delay_ms: int, signum: int, tmp_path: Path, repo: Path) -> None:
    """`doctor` imports all that is slow; the signal comes some milliseconds after the handlers are set."""
    code = (
        "import sys; sys.argv = ['avtool', 'doctor']; import avtool.__main__ as m; from avtool import interrupts as i;"
        "real = i.install; i.install = lambda: (real(), open('ready', 'x').close()); m.main()"
    )
    process = start(["-c", code], tmp_path, repo)
    wait_for(tmp_path / "ready", process)
    time.sleep(delay_ms / 1000)
    seconds, said = stop(process, signum)
    assert process.returncode == 130, said
    assert seconds < PATIENCE
    assert said.count("\n") == 1 and said.startswith("interrupted")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay_ms", [50, 200, 500, 900, 1200, 1500, 1800, 2200, 3000])
def test_in_the_middle_of_the_work(clip: Path, delay_ms: int, signum: int, tmp_path: Path, repo: Path) -> None:
    """Whatever was finished is whole, whatever was not is gone."""
    for i in range(60):
        os.link(clip, tmp_path / f"{i:02}.mp4")
    before = {p.name for p in tmp_path.iterdir()}
    code = FAKED.replace("install();", "install(); open('ready', 'x').close();", 1)
    process = start(["-c", code, "localize", "-o", "out", *sorted(before)], tmp_path, repo)
    wait_for(tmp_path / "ready", process)
    time.sleep(delay_ms / 1000)
    seconds, said = stop(process, signum)
    assert process.returncode == 130 and seconds < PATIENCE
    assert said.splitlines()[-1].startswith("interrupted") and "Traceback" not in said
    assert {p.name for p in tmp_path.iterdir()} - before <= {"ready", "out"}
    results = sorted(p.name for p in (tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert all(name.endswith((".events.json", ".events.srt")) for name in results)
    for name in results:
        if name.endswith(".json"):
            from_json((tmp_path / "out" / name).read_bytes())
    assert not of_session(process.pid)


def test_the_library_leaves_signals_alone(tmp_path: Path, repo: Path) -> None:
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM);"
        "import avtool, avtool.__main__, avtool.cli.app, avtool.pipeline;"
        "assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))"
    )
    process = start(["-c", code], tmp_path, repo)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
