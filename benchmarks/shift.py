"""Long videos: how much a timeline depends on where the windows happen to lie.

    python benchmarks/shift.py [--clips 40]

Joins the features of real clips to one long file, drops the first 0 to 19 segments, localizes each version with the
default model, and counts the events (at least two windows away from the cut) that return within one segment and 0.05
of score.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from avtool.features.store import Features, save_npz
from avtool.pipeline import localize
from avtool.session import Session
from avtool.settings import Settings
from avtool.timeline import Event
from avtool.training.corpus import Corpus

SHARED = Path(os.environ.get("AVTOOL_SHARED", Path(__file__).parents[2] / "shared"))
SEGMENT = 0.5  # seconds
SCORE = 0.05


def joined(parts: list[Features]) -> Features:
    """One long file after the other."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in ("visual", "audio", "visual_tags", "audio_tags", "seen", "heard")
    }
    starts = np.arange(len(arrays["seen"])) * SEGMENT
    media = replace(parts[0].media, duration=float(starts[-1] + SEGMENT), analysed_until=float(starts[-1] + SEGMENT))
    return replace(parts[0], **arrays, times=np.stack([starts, starts + SEGMENT], 1), media=media)


def shifted(features: Features, rows: int) -> Features:
    """Without the first rows."""
    part = features.part(rows, features.rows)
    length = part.rows * SEGMENT
    times = part.times - part.times[0, 0]
    return replace(part, times=times, media=replace(part.media, duration=length, analysed_until=length))


def kept(first: list[Event], second: list[Event]) -> float:
    """Share of the events of the first that the second has too."""
    near = [
        any(
            o.label == e.label
            and abs(o.start - e.start) <= SEGMENT + 1e-6
            and abs(o.end - e.end) <= SEGMENT + 1e-6
            and abs(o.score - e.score) <= SCORE
            for o in second
        )
        for e in first
    ]
    return float(np.mean(near)) if near else 1.0


def main() -> None:
    """Print the share for every shift, the mean and the worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=40)
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
        return
    with Session(Settings(classes=("all",))) as session, tempfile.TemporaryDirectory() as folder:
        info = session.info
        margin = 2 * info.window * SEGMENT
        clips = Corpus(SHARED).clips()[:: max(1, 261 // options.clips)][: options.clips]
        whole = joined([session.features(c.path, lambda *_: None) for c in clips])
        timelines = []
        for rows in range(info.window):
            save_npz(shifted(whole, rows), path := Path(folder) / f"{rows}.npz")
            events = localize(path, session=session).events
            timelines.append([replace(e, start=e.start + rows * SEGMENT, end=e.end + rows * SEGMENT) for e in events])
    far = [[e for e in events if e.start >= margin] for events in timelines]
    shares = [kept(far[0], other) for other in far[1:]]
    print(f"{info.name}: {whole.rows * SEGMENT:.0f} s, {len(far[0])} events; window {info.window}, hop {info.hop} rows")
    print("kept at each shift, %:", *(f"{100 * s:.0f}" for s in shares))
    print(f"mean {100 * np.mean(shares):.1f} %, worst {100 * min(shares):.1f} %")


if __name__ == "__main__":
    main()
