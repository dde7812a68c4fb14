"""What decoding in a child process costs beyond decoding in this one.

Prints, for small pictures (224 pixels) and full-size ones, the CPU time of parent and child together divided by the
CPU time of decoding in this process; the start of the child is not counted, it is paid once for many files.

    python benchmarks/decode_child.py [FILE ...]      without files: 10 s of 1080p25 and 60 s of 360p25 with sound are
                                                      made; several files add up
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avtool.media.child import DecodeChild
from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest, PictureSpec
from avtool.timegrid import Grid

ROUNDS = 5
REQUESTS = {
    "224 pixels, 2 a second": DecodeRequest(PictureSpec(short=224), 32_000),
    "full size, 1 a second": DecodeRequest(PictureSpec(), 32_000, Grid(Fraction(1), Fraction(1))),
    "full size, 2 a second": DecodeRequest(PictureSpec(), 32_000),
}


def cpu_of(process: int) -> float:
    """Seconds on a processor of all threads of a running process; /proc/PID/stat counts in steps of 10 ms only."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def consume(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def cost(run: Callable[[], Any], child: int | None) -> float:
    """CPU seconds of this process and the child while `run` runs."""
    before = time.process_time() + (cpu_of(child) if child else 0.0)
    run()
    return time.process_time() + (cpu_of(child) if child else 0.0) - before


def measure(paths: list[Path], request: DecodeRequest) -> tuple[float, float]:
    """Median CPU seconds for all files in this process and with the child, taken in turns."""
    here, there = [], []
    with DecodeChild() as child:
        for path in paths:
            consume(child.decode(path, request))
            consume(decode(path, request))
        assert child._process is not None
        for _ in range(ROUNDS):
            here.append(cost(lambda: [consume(decode(p, request)) for p in paths], None))
            there.append(cost(lambda: [consume(child.decode(p, request)) for p in paths], child._process.pid))
    return statistics.median(here), statistics.median(there)


def start_cost() -> float:
    """Seconds until a fresh child has answered its first question."""
    begin = time.perf_counter()
    with DecodeChild() as child:
        try:
            child.probe("/")
        except Exception:
            return time.perf_counter() - begin
    return 0.0


def film(folder: Path, width: int, height: int, seconds: float) -> Path:
    """Moving noise at 25 pictures a second, that costs a decoder about what real material does, and noise as sound."""
    import av
    import numpy as np

    path = folder / f"{height}p.mp4"
    still = np.random.default_rng(0).integers(0, 255, (height // 8 + 64, width // 8 + 64, 3), np.uint8)
    still = still.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        track = out.add_stream("aac", rate=44_100, layout="mono")
        hiss = np.random.default_rng(1).normal(0, 0.1, (1, 44_100 // 25)).astype(np.float32)
        for number in range(round(seconds * 25)):
            sound = av.AudioFrame.from_ndarray(hiss, "fltp", "mono")
            sound.sample_rate, sound.pts = 44_100, number * hiss.shape[1]
            out.mux(track.encode(sound))
            shift = number * 3 % 256
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(still[shift : shift + height, :width]), "rgb24")
            for packet in stream.encode(frame):
                out.mux(packet)
        for last in (stream, track):
            out.mux(last.encode(None))
    return path


def main(files: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = [] if files else [film(Path(folder), 1920, 1080, 10), film(Path(folder), 640, 360, 60)]
        groups = [[Path(f) for f in files]] if files else [[path] for path in made]
        print(f"start of a child: {start_cost():.2f} s")
        for paths in groups:
            title = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
            for name, request in REQUESTS.items():
                here, there = measure(paths, request)
                print(f"{title:12s} {name:24s} in-process {here:.3f} s  child {there:.3f} s  ratio {there / here:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
