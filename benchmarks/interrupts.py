"""How long avtool takes to end after Ctrl-C (SIGINT) or SIGTERM, at moments spread over a whole run.

A run of `avtool localize` is timed once; then the same command is started for every moment between its first line and
its end, once for each signal, and interrupted there. Prints the median and the worst time, how many ended late (more
than 2 s) and what else went wrong: another exit code, half a result, a process left over.

    python benchmarks/interrupts.py [FILE] [--moments 24]      without a file: a clip is made
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avtool.timeline import from_json
from tests.synth import good

REPO = Path(__file__).resolve().parents[1]
LIMIT = 2.0  # seconds
# The command line as it is, which says when it has taken over the signals.
DRIVER = """
import os, sys
from avtool import interrupts
real = interrupts.install
interrupts.install = lambda: (real(), os.close(os.open("ready", os.O_CREAT)))
import avtool.__main__
avtool.__main__.main()
"""


@dataclass(frozen=True)
class Ended:
    """What became of one run.

    Attributes:
        seconds: from the signal to the end.
        code: exit code.
        wrong: what must not be, or "".
    """

    seconds: float
    code: int
    wrong: str


def start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The command in a session of its own, up to the moment in which it takes over the signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "localize", str(file), "-o", "out"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (folder / "ready").exists() and process.poll() is None:
        time.sleep(0.001)
    return process


def whole_run(file: Path) -> float:
    """Seconds from the first line to the end of a run that nobody interrupts."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(file, Path(folder))
        begin = time.monotonic()
        if process.wait():
            raise SystemExit(f"avtool localize failed with exit code {process.returncode}")
        return time.monotonic() - begin


def interrupted(file: Path, moment: float, signum: int) -> Ended:
    """A run that gets a signal `moment` seconds after its first line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(file, folder)
        time.sleep(moment)
        begin = time.monotonic()
        process.send_signal(signum)
        code = process.wait()
        return Ended(time.monotonic() - begin, code, wrong(process.pid, code, folder, begin))


def wrong(session: int, code: int, folder: Path, begin: float) -> str:
    """What an interrupted run must not leave behind; a process may take what is left of LIMIT to disappear."""
    while (left := in_session(session)) and time.monotonic() - begin < LIMIT:
        time.sleep(0.005)
    out = folder / "out"
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    partial = {name for name in names if not name.endswith((".events.json", ".events.srt"))}
    for path in out.glob("*.json"):
        from_json(path.read_bytes())
    faults = [f"exit code {code}"] if code not in (0, 130) else []
    faults += [f"{left} processes left"] if left else []
    return ", ".join([*faults, *sorted(partial)])


def in_session(session: int) -> int:
    """How many processes of a session there are; zombies do not count."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        count += int(fields[3]) == session and fields[0] != "Z"
    return count


def main() -> None:
    """Prints the figures; exit code 1 if anything was late or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--moments", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = options.file.resolve() if options.file else good(Path(folder) / "clip.mp4")
        length = whole_run(file)
        moments = [length * k / options.moments for k in range(options.moments)]
        runs = {(m, s): interrupted(file, m, s) for m in moments for s in (signal.SIGINT, signal.SIGTERM)}
    ended = [r for r in runs.values() if r.code != 0]
    late = [r for r in ended if r.seconds > LIMIT]
    faults = [f"{m:.2f} s, {signal.Signals(s).name}: {r.wrong}" for (m, s), r in runs.items() if r.wrong]
    print(f"{len(runs)} runs of {length:.1f} s, {len(runs) - len(ended)} of them over before the signal came")
    times = [r.seconds for r in ended]
    print(
        f"to the end: median {statistics.median(times):.3f} s, worst {max(times):.3f} s, {len(late)} over {LIMIT:g} s"
    )
    print("\n".join(faults) or "every exit code 130, no half result, no process left")
    sys.exit(bool(late or faults))


if __name__ == "__main__":
    main()
