"""Where the time of `avtool localize` goes: a 10 s 360p clip, embedded model, each step in seconds.

    python benchmarks/speed.py [--runs 5]

Makes the clip, then runs fresh processes: `--help`, and the whole command with a clock in it. Prints medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

PROGRAM = """
import json, sys, time
clock = {}
def lap(name, since):
    now = time.perf_counter(); clock[name] = now - since; return now
t = time.perf_counter()
from avtool.media.child import DecodeChild
from avtool.session import Session
from avtool.settings import Settings
session = Session(Settings())
session._decoder()
import torch
from avtool import pipeline
t = lap("import", t)
session.load()
t = lap("load", t)
from pathlib import Path
from avtool.media.request import DecodeRequest
request = DecodeRequest(session.visual.pictures, session.audio.rate, session.info.grid)
start = time.perf_counter()
for item in session._decoder().decode(sys.argv[1], request):
    pass
start = lap("decode alone", start)
features = session.features(sys.argv[1], lambda *a: None, pair=True)
t = lap("decode + features", start)
clock["features, beyond decoding"] = clock["decode + features"] - clock["decode alone"]
session.features = lambda *a, **k: features
timeline = pipeline.localize(sys.argv[1], session=session)
t = lap("localizer", t)
from avtool.files import write_atomic
from avtool.formats.subtitles import srt
from avtool.timeline import to_json
write_atomic(Path(sys.argv[2]) / "x.json", to_json(timeline, Path(sys.argv[2])))
write_atomic(Path(sys.argv[2]) / "x.srt", srt(timeline))
lap("write", t)
print(json.dumps(clock))
session.close()
"""


def make_clip(path: Path) -> None:
    """Ten seconds of moving noise, 640 x 360 at 25 pictures a second, with sound."""
    import numpy as np

    from avtool.training.compose import write_clip

    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (45, 80, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    frames = np.stack([np.roll(base, 2 * k, 1) for k in range(250)])
    write_clip(path, frames, (0.1 * rng.standard_normal(320_000)).astype(np.float32), Fraction(25))


def wall(command: list[str]) -> float:
    """Seconds of one run."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clip(clip := folder / "clip.mp4")
        program = [sys.executable, "-m", "avtool"]
        help_time = statistics.median(wall([*program, "--help"]) for _ in range(options.runs))
        localize = [*program, "localize", str(clip), "-o", name, "--overwrite", "--progress", "none"]
        total = statistics.median(wall(localize) for _ in range(options.runs))
        laps = [
            json.loads(subprocess.check_output([sys.executable, "-c", PROGRAM, str(clip), name]))
            for _ in range(options.runs)
        ]
    print(f"avtool --help                       {help_time:6.2f} s")
    print(f"avtool localize, 10 s of 360p, all  {total:6.2f} s")
    for step in laps[0]:
        print(f"  {step:33s} {statistics.median(lap[step] for lap in laps):6.2f} s")
    after = statistics.median(
        sum(v for k, v in lap.items() if k in ("decode + features", "localizer", "write")) for lap in laps
    )
    print(f"after imports and loading: {10 / after:.1f} x real time")


if __name__ == "__main__":
    main()
