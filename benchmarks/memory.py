"""Memory and time of decoding a very long film: 3 hours of 360p25 with sound, made cheaply.

Prints the resident memory (RSS) over the file and its peak, in this process and, with --child, of parent and child
together (shared pages counted twice, so the sum is an upper bound).

    python benchmarks/memory.py [--hours 3] [--child] [--file FILE]
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avtool.media.child import DecodeChild
from avtool.media.decoding import decode
from avtool.media.request import DecodeReport, DecodeRequest, PictureSpec, Sound
from tests.synth import long_film

REPORT_SECONDS = 900  # of the film
RATE = 32_000


def resident(process: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


def run(path: Path, in_child: bool) -> None:
    """Decodes the film as feature extraction does and prints memory along the way."""
    request = DecodeRequest(PictureSpec(short=160), RATE)
    peak, next_report, begin = 0, 0.0, time.monotonic()
    with DecodeChild() as child:
        if not in_child:
            child.close()
        items = child.decode(path, request) if in_child else decode(path, request)
        for item in items:
            if isinstance(item, DecodeReport):
                notices = item.notices or "no notices"
                print(f"decoded until {item.decoded_until:.1f} s, lost {item.lost_seconds:.1f} s, {notices}")
            elif isinstance(item, Sound):
                now = resident(os.getpid())
                if in_child and child._process is not None:
                    now += resident(child._process.pid)
                peak = max(peak, now)
                if item.start >= next_report * RATE:
                    print(f"{item.start / RATE / 60:6.0f} min of the film: {now / 2**20:6.0f} MiB")
                    next_report += REPORT_SECONDS
    print(f"peak {peak / 2**20:.0f} MiB, {time.monotonic() - begin:.0f} s of wall time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or long_film(Path(folder) / "long.mp4", options.hours * 3600)
        print(f"{path.stat().st_size / 2**20:.0f} MiB of film")
        run(path, options.child)


if __name__ == "__main__":
    main()
