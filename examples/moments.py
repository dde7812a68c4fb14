"""Cuts a video's timeline down to the moments of one class, with settings of one's own.

python examples/moments.py [VIDEO [CLASS]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import avtool

DEMO = Path(__file__).with_name("demo.mp4")


def main(video: str | Path = DEMO, label: str = "siren") -> list[avtool.Event]:
    """Print the candidates of one class that score at least 0.2, the best first."""
    settings = avtool.Settings(classes=(label,), min_score=0.2, device="cpu")
    timeline = avtool.localize(video, settings)
    best_first = sorted(timeline.events, key=lambda event: -event.score)
    for event in best_first:
        print(f"{label}: {event.start:.1f} to {event.end:.1f} s, score {event.score:.2f}")
    return best_first


if __name__ == "__main__":
    main(*sys.argv[1:3])
