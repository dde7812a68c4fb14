"""What `avtool batch` gains and costs.

    python benchmarks/batch.py throughput [--files 60] [--ray]    against a shell loop, one worker, what ffmpeg gains
    python benchmarks/batch.py driver [--files 100000]            memory of the driver, rate of planning, fake worker
    python benchmarks/batch.py kill [--kills 20] [--engine ray]   kill -9 of the driver at random moments

Each prints the ratio it promises. Without a word: the first with 60 files and the second with 6,000.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join([str(Path(__file__).resolve().parent), str(ROOT)])  # workers find `Nothing` and `Slow` here
SECONDS_EACH = 10.0  # of a short clip: as long as those of AVE and VGGSound
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PINNED = ["taskset", "-c", "0"]  # a worker of one thread and its decoder take turns, as ffmpeg's one thread does all
NO_LOOK_AHEAD = """
from avtool.batch.local import _Process
_Process.ahead = _Process.drop = lambda self, job: None
from avtool.__main__ import main
main()
"""


class Nothing:
    """A worker that does nothing at all, in no time."""

    def __init__(self, spec: Any) -> None: ...

    def hello(self) -> Any:
        from avtool.batch.jobs import Hello

        return Hello({"nothing": 1})

    def begin(self) -> None: ...

    def ahead(self, job: Any) -> None: ...

    def drop(self, job: Any) -> None: ...

    def run(self, job: Any) -> Any:
        from avtool.batch.jobs import Outcome

        return Outcome(job.name, "done", duration=job.duration)


class Slow(Nothing):
    """A worker that takes a little while and writes a file."""

    def run(self, job: Any) -> Any:
        from avtool.files import write_atomic

        time.sleep(0.05)
        write_atomic(job.files["json"], timeline(job))
        return super().run(job)


def timeline(job: Any) -> str:
    """An empty result."""
    from avtool.timeline import MediaInfo, RunInfo, Timeline, to_json

    media = MediaInfo(os.path.abspath(job.path), job.bytes, job.mtime_ns, True, True, 1.0, 1.0, None, None, 1.0)
    run = RunInfo("avtool", "none", {}, {}, "cpu", job.fingerprint, "", {})
    return to_json(Timeline(media, (), (), run), job.files["json"].parent)


def clips(folder: Path, count: int, seconds: float = SECONDS_EACH, per_folder: int = 1000) -> Path:
    """Copies of a short clip of moving noise with sound."""
    import numpy as np

    from avtool.training.compose import write_clip

    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (45, 80, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    frames = np.stack([np.roll(base, 2 * k, 1) for k in range(round(25 * seconds))])
    source = folder / "source.mp4"
    write_clip(source, frames, (0.1 * rng.standard_normal(round(32_000 * seconds))).astype(np.float32), 25)
    for i in range(count):
        place = folder / "videos" / f"{i // per_folder:04}"
        place.mkdir(parents=True, exist_ok=True)
        if i % 10_000 == 0:  # a file has no more than 65,000 names
            shutil.copy(source, first := place / f"{i:07}.mp4")
        else:
            os.link(first, place / f"{i:07}.mp4")
    return folder / "videos"


def timed(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds on the wall and of processors."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, used


def throughput(options: argparse.Namespace) -> None:
    """Seconds for the same short files, several ways, one after the other and again."""
    one = {**os.environ, **ONE_THREAD}
    python = [sys.executable, "-m", "avtool"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = clips(folder, options.files)
        files = [str(path) for path in sorted(videos.rglob("*.mp4"))]
        loop = files[: max(4, options.files // 5)]  # a part is enough: every file costs the same
        out = iter(range(10**6))

        def batch(*arguments: str, program: list[str] = python) -> list[str]:
            return [*program, "batch", str(videos), "-o", str(folder / f"out{next(out)}"), "-q", *arguments]

        def shell_loop() -> tuple[float, float]:
            parts = [timed([*python, "localize", f, "-o", str(folder / f"out{next(out)}"), "-q"]) for f in loop]
            scale = len(files) / len(loop)
            return scale * sum(p[0] for p in parts), scale * sum(p[1] for p in parts)

        single, double = ("--workers", "1", "--threads", "1"), ("--workers", "2", "--threads", "1")
        plain = [sys.executable, "-c", NO_LOOK_AHEAD]
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            "shell loop of avtool localize": shell_loop,
            "1 worker, no look-ahead, 1 processor": lambda: timed([*PINNED, *batch(*single, program=plain)]),
            "1 worker, 1 thread, no look-ahead": lambda: timed(batch(*single, program=plain)),
            "1 worker, 1 thread": lambda: timed(batch(*single)),
            "2 workers": lambda: timed(batch(*double)),
        }
        if options.ray:
            ways["2 Ray actors"] = lambda: timed(batch(*double, "--engine", "ray"))
        if shutil.which("ffmpeg"):
            ways |= {"ffmpeg, one": lambda: ffmpeg(files, 1, one), "ffmpeg, two at once": lambda: ffmpeg(files, 2, one)}
        measured: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        steady: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.runs):
            for way, run in ways.items():
                subprocess.run([sys.executable, "-c", "import av, torch"], check=True)  # their files are in memory
                measured[way].append(run())
                steady[way].append(between(max(folder.glob("out*"), key=lambda made: int(made.name[3:]))))
        report(measured, len(files))
        running = {way: statistics.median(seconds) for way, seconds in steady.items()}
        alone = running["1 worker, no look-ahead, 1 processor"] / running["2 workers"]
        print(f"one processor / 2, first to last      {alone:.2f}")
        if options.ray:
            apart = running["2 Ray actors"] / running["2 workers"]
            print(f"Ray / local, first to last result     {apart:.2f}   (promised: 1.15)")


def between(out: Path) -> float:
    """Seconds from the first result to the last one."""
    made = [result.stat().st_mtime for result in out.rglob("*.events.json")]
    return max(made) - min(made)


def ffmpeg(files: list[str], at_once: int, environment: dict[str, str]) -> tuple[float, float]:
    """Decoding of all files, single-threaded, by so many processes."""
    script = 'for f in "$@"; do ffmpeg -nostdin -v error -threads 1 -i "$f" -f null - ; done'
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    many = files * 4
    running = [subprocess.Popen(["sh", "-c", script, "sh", *many[k::at_once]], env=environment) for k in range(at_once)]
    for process in running:
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begin, after.ru_utime - before.ru_utime


def report(measured: dict[str, list[tuple[float, float]]], files: int) -> None:
    """The table and the ratios."""
    wall = {way: statistics.median(run[0] for run in runs) for way, runs in measured.items()}
    for way, runs in measured.items():
        used = statistics.median(run[1] for run in runs)
        print(f"{way:36} {wall[way]:8.1f} s wall {used:8.1f} s of processors {files / wall[way]:7.2f} files/s")
    two = wall["2 workers"]
    print(f"shell loop / 2 workers                {wall['shell loop of avtool localize'] / two:.2f}   (promised: 3)")
    print(f"1 worker without look-ahead / 2       {wall['1 worker, 1 thread, no look-ahead'] / two:.2f}")
    gain = wall["1 worker, no look-ahead, 1 processor"] / two
    print(f"the same on one processor / 2         {gain:.2f}")
    if "ffmpeg, one" in wall:
        possible = wall["ffmpeg, one"] / wall["ffmpeg, two at once"]
        print(f"ffmpeg: one / two at once             {possible:.2f}")
        print(f"our share of that gain                {gain / possible:.2f}   (promised: 0.85)")
    if "2 Ray actors" in wall:
        print(f"Ray / local, start and end included   {wall['2 Ray actors'] / two:.2f}")


def memory() -> float:
    """MB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def driver(options: argparse.Namespace) -> None:
    """Plans many files for a worker that does nothing, and watches the memory of this process."""
    os.environ["PYTHONPATH"] = PATHS
    from avtool.batch import jobs, night
    from avtool.settings import Settings

    jobs.WORKER = "batch:Nothing"
    seen: list[tuple[int, float, float]] = []
    step = max(1, options.files // 10)

    class Watch:
        def started(self, hello: Any, workers: int, files: int) -> None:
            self.begin = time.perf_counter()

        def ended(self, outcome: Any, tally: Any, outlook: Any) -> None:
            if tally.files % step == 0:
                seen.append((tally.files, memory(), time.perf_counter() - self.begin))

        def tick(self, tally: Any, outlook: Any) -> None: ...

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        making = f"import batch, pathlib; batch.clips(pathlib.Path({name!r}), {options.files}, 0.4)"  # loads torch
        subprocess.run([sys.executable, "-c", making], check=True, env={**os.environ, "PYTHONPATH": PATHS})
        videos, before = folder / "videos", time.perf_counter()
        closed = night.run(night.Night([str(videos)], folder / "out", workers=2, tables=False), Settings(), Watch())
        assert closed.tally.states == {"done": options.files}
        wall = time.perf_counter() - before
    for files, size, seconds in seen:
        print(f"{files:8} files  {size:7.1f} MB  {files / seconds:7.0f} files/s planned, claimed, handed out, recorded")
    used = resource.getrusage(resource.RUSAGE_SELF)
    each = 1e3 * (used.ru_utime + used.ru_stime) / options.files
    print(f"processor time of the driver: {each:.2f} ms a file; {wall:.0f} s in all")
    print(f"memory from the first tenth to the last: {seen[-1][1] - seen[0][1]:+.1f} MB")


def kill(options: argparse.Namespace) -> None:
    """Kills the driver at random moments and starts it again, until everything is done."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = clips(folder, options.files, 0.4)
        code = "from avtool.batch import jobs; jobs.WORKER = 'batch:Slow'; from avtool.__main__ import main; main()"
        environment = {**os.environ, "PYTHONPATH": PATHS}

        def start(out: str) -> subprocess.Popen[bytes]:
            arguments = ["batch", str(videos), "-o", str(folder / out), "--workers", "2", "--engine", options.engine]
            return subprocess.Popen([sys.executable, "-c", code, *arguments, "-q", "-f", "json"], env=environment)

        assert start("calm").wait() == 0
        generator, seen = random.Random(0), dict[Path, int]()
        twice = 0
        for _ in range(options.kills):
            process = start("killed")
            before = len(list((folder / "killed").rglob("*.events.json")))
            while process.poll() is None and len(list((folder / "killed").rglob("*.events.json"))) <= before:
                time.sleep(0.02)
            time.sleep(generator.uniform(0, 0.5))
            process.kill()
            process.wait()
            for result in (folder / "killed").rglob("*.events.json"):
                made = result.stat().st_mtime_ns
                twice += seen.setdefault(result, made) != made
        assert start("killed").wait() == 0
        same = contents(folder / "killed") == contents(folder / "calm")
        left = [p.name for p in (folder / "killed").rglob("*.avtmp")]
        print(f"{options.kills} kills: same bytes {same}, done again once complete {twice}, temporaries left {left}")
        if not same or twice or left:
            sys.exit(1)


def contents(out: Path) -> dict[str, bytes]:
    """All results."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.events.json"))}


def main() -> None:
    """Prints one part, or the two that need no preparation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("throughput", "driver", "kill"))
    parser.add_argument("--files", type=int)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    parts = {"throughput": (throughput, 60), "driver": (driver, 6_000), "kill": (kill, 100)}
    for part in (options.part,) if options.part else ("throughput", "driver"):
        function, files = parts[part]
        function(argparse.Namespace(**{**vars(options), "files": options.files or files}))


if __name__ == "__main__":
    main()
