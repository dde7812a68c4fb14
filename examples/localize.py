"""Prints what can be both heard and seen in a video, and when.

python examples/localize.py [VIDEO]
"""

from __future__ import annotations

import sys
from pathlib import Path

import avtool

DEMO = Path(__file__).with_name("demo.mp4")


def main(video: str | Path = DEMO) -> avtool.Timeline:
    """Localize with the default model and print one event a line."""
    timeline = avtool.localize(video)
    for event in timeline.events:
        print(f"{event.start:6.1f} s  {event.end:6.1f} s  {event.score:.2f}  {event.label}")
    print(f"heard but not seen: {timeline.heard_only}, seen but not heard: {timeline.seen_only}")
    return timeline


if __name__ == "__main__":
    main(*sys.argv[1:2])
