"""Memory of a very long film: 3 hours of 360p25 with sound, made cheaply.

Prints memory over time and its peak: of the whole command `avtool localize`, all its processes together (PSS: a page
that several share counts once), or, with --decode, of decoding alone in this process (RSS). Exit code 1 where the peak
of the whole command is above 1.2 GB.

    python benchmarks/memory.py [--hours 3] [--file FILE] [--decode]
    python benchmarks/memory.py --hours 1 --pair resnet50-v2 cnn14 [--segment 1] [--no-tags]

With --pair it is `avtool extract-features` with these two encoders, their weights random and saved in the form of the
published files; the limit is 1.6 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avtool.media.decoding import decode
from avtool.media.request import DecodeReport, DecodeRequest, PictureSpec, Sound
from tests.synth import long_film

REPO = Path(__file__).resolve().parents[1]
LIMIT = 1.2e9  # bytes
PAIR_LIMIT = 1.6e9  # with two large encoders
EVERY = 0.5  # seconds between two looks
REPORT_SECONDS = 900  # of the film
RATE = 32_000


def tree(root: int) -> Iterator[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {root}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    yield from found


def pss(process: int) -> int:
    """Proportional set size in bytes; 0 where the process is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def localizing(path: Path, folder: Path) -> list[str]:
    """The command that users run."""
    return [sys.executable, "-m", "avtool", "localize", str(path), "-o", str(folder), "--progress", "json"]


# the hashes of the real weights are pinned, so the random ones pass under a manifest without hashes
PAIR = """
import sys
from avtool import weights
from tests.features.upstream import hashless
known = hashless()
weights.manifest = lambda: known
from avtool.cli.app import run
sys.exit(run(sys.argv[1:]))
"""
IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import features
features.make_weights(Path(sys.argv[2]), tuple(sys.argv[3:]))
"""


def extracting(path: Path, folder: Path, pair: list[str], segment: str) -> list[str]:
    """The command with two encoders, whose weights are made first, in a process of their own."""
    os.environ["AVTOOL_WEIGHTS"] = str(folder / "weights")
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    make = [sys.executable, "-W", "ignore", "-c", IMPORT, str(REPO / "benchmarks"), str(folder), *pair]
    subprocess.run(make, check=True, env=env)
    options = ["--visual", pair[0], "--audio", pair[1], "--segment", segment, "--fps", str(1 / Fraction(segment))]
    start = [sys.executable, "-W", "ignore", "-c", PAIR, "extract-features", str(path), "-o", str(folder / "out")]
    return [*start, *options, "--progress", "json"]


def whole(command: list[str], limit: float) -> int:
    """Runs a command, prints memory at steps of the film and the peak of each stage; returns the peak in bytes."""
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    begin = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        peaks: dict[str, int] = {}
        main = [0]
        stage = ["start"]

        def watch() -> None:
            while process.poll() is None:
                own = pss(process.pid)
                now = own + sum(pss(number) for number in tree(process.pid) if number != process.pid)
                main[0] = max(main[0], own)
                peaks[stage[0]] = max(peaks.get(stage[0], 0), now)
                time.sleep(EVERY)

        watcher = threading.Thread(target=watch)
        watcher.start()
        next_report = 0.0
        for line in process.stderr:
            record = json.loads(line)
            if "stage" not in record:
                print(record, flush=True)
                continue
            stage[0] = record["stage"]
            if stage[0] == "features" and record["done"] >= next_report:
                now = sum(pss(number) for number in tree(process.pid))
                print(f"{record['done'] / 60:6.0f} min of the film: {now / 1e6:6.0f} MB", flush=True)
                next_report += REPORT_SECONDS
        watcher.join()
    if process.returncode:
        raise SystemExit(f"avtool failed with exit code {process.returncode}")
    for name, value in peaks.items():
        print(f"peak while {name}: {value / 1e6:.0f} MB")
    print(f"peak of the main process {main[0] / 1e6:.0f} MB")
    peak = max(peaks.values())
    print(f"peak {peak / 1e6:.0f} MB of {limit / 1e6:.0f} MB (PSS, all processes), {time.monotonic() - begin:.0f} s")
    return peak


def decoding(path: Path) -> None:
    """Decodes the film as feature extraction does and prints this process's resident memory along the way."""
    next_report, peak = 0.0, 0
    for item in decode(path, DecodeRequest(PictureSpec(short=160), RATE)):
        if isinstance(item, DecodeReport):
            notices = item.notices or "no notices"
            print(f"decoded until {item.decoded_until:.1f} s, lost {item.lost_seconds:.1f} s, {notices}")
        elif isinstance(item, Sound):
            now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            peak = max(peak, now)
            if item.start >= next_report * RATE:
                print(f"{item.start / RATE / 60:6.0f} min of the film: {now / 1e6:6.0f} MB")
                next_report += REPORT_SECONDS
    print(f"peak {peak / 1e6:.0f} MB (RSS)")


def main() -> None:
    """Prints the figures; exit code 1 above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--pair", nargs=2, metavar=("VISUAL", "AUDIO"))
    parser.add_argument("--segment", default="1", help="seconds of a row, with --pair")
    parser.add_argument("--no-tags", action="store_true", help="no class scores, with --pair")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or long_film(Path(folder) / "long.mp4", options.hours * 3600)
        print(f"{path.stat().st_size / 1e6:.0f} MB of film", flush=True)
        if options.decode:
            return decoding(path)
        if options.pair:
            command, limit = extracting(path, Path(folder), options.pair, options.segment), PAIR_LIMIT
            command += ["--no-tags"] * options.no_tags
        else:
            command, limit = localizing(path, Path(folder) / "out"), LIMIT
        if whole(command, limit) > limit:
            sys.exit(1)


if __name__ == "__main__":
    main()
