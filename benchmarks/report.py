"""The page of an hour with 12 classes, and 1,000 events in every format.

Prints the size of the page; how long it takes in headless Chromium from its first byte until it answers (the least of
ROUNDS, at most 1 s is promised); and the seconds of a processor that writing every format takes (at most 1 s),
imports not counted.

    python benchmarks/report.py [--events 1000]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from avtool.formats import PICTURED, WRITERS, render
from avtool.media.preview import HEIGHT, THUMBNAILS, jpeg
from avtool.timeline import Preview
from tests.formats import browser
from tests.formats.timelines import full, thousand

ROUNDS = 5


def an_hour_of_pictures() -> Preview:
    """As many pictures as a page has, each of smooth noise, and a waveform."""
    source = np.random.default_rng(1)
    coarse = source.integers(0, 256, (THUMBNAILS, 12, 21, 3), dtype=np.uint8)
    pictures = [jpeg(np.kron(c, np.ones((HEIGHT // 12, 8, 1), np.uint8))) for c in coarse]
    times = [(i + 0.5) * 3600 / THUMBNAILS for i in range(THUMBNAILS)]
    return Preview(tuple(zip(times, pictures, strict=True)), source.random(2000, np.float32))


def page(events: int) -> None:
    text = render(thousand(events), "html", None, an_hour_of_pictures())
    print(f"page of one hour, 12 classes, {events} candidates: {len(text) / 1e6:.2f} MB (promised: below 3)")
    if browser.PROGRAM is None:
        print("no Chromium here: how soon the page answers is not measured")
        return
    ready, worked = [], []
    with tempfile.TemporaryDirectory() as folder, browser.chromium() as tab:
        path = Path(folder) / "x.html"
        path.write_text(str(text), encoding="utf-8")
        one = tab()
        one.call("Performance.enable", timeDomain="threadTicks")  # seconds of a processor, whatever else runs
        for _ in range(ROUNDS):
            one.load(path)
            metrics = {m["name"]: m["value"] for m in one.call("Performance.getMetrics")["metrics"]}
            worked.append(metrics["TaskDuration"])
            ready.append(float(one.run("performance.getEntriesByName('avtool-ready')[0].startTime")) / 1000)
    print(f"answers after {min(ready):.2f} s, at worst {max(ready):.2f} s (promised: below 1)")
    print(f"until all is drawn, the page's thread works {min(worked):.2f} s of a processor")


def export() -> None:
    timeline = full()
    formats = [*WRITERS, *PICTURED]
    render(timeline, "png")  # imports matplotlib, reads its fonts
    spent = dict.fromkeys(formats, 0.0)
    for name in formats:
        begun = time.process_time()
        render(timeline, name)
        spent[name] = time.process_time() - begun
    print("1,000 events, milliseconds: " + ", ".join(f"{name} {1000 * s:.0f}" for name, s in spent.items()))
    print(f"every format together: {sum(spent.values()):.2f} s of a processor (promised: below 1)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000)
    events = parser.parse_args().events
    page(events)
    export()


if __name__ == "__main__":
    main()
