"""The 47 real clips of ../shared/corpus/clips, never trained on: every false alarm and every miss at default settings.

python benchmarks/check_clips.py [--classes all]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from avtool.models import zoo
from avtool.pipeline import localize
from avtool.session import Session
from avtool.settings import Settings
from avtool.training.views import read_rows

SHARED = Path(os.environ.get("AVTOOL_SHARED", Path(__file__).parents[2] / "shared"))


def main() -> None:
    """Print one line per clip and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", default="default")
    parser.add_argument("--model", default=zoo.DEFAULT)
    options = parser.parse_args()
    folder = SHARED / "corpus"
    if not folder.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
        return
    counts = dict.fromkeys(("found", "missed", "false alarms", "not in the vocabulary or tier"), 0)
    with Session(Settings(model=options.model, classes=(options.classes,))) as session:
        vocabulary = session.info.vocabulary
        shown = {vocabulary.names[i] for i in vocabulary.select(options.classes)}
        print(f"{'clip':30s} {'found':34s} {'missed':26s} false alarms")
        for row in read_rows(folder / "clips" / "clips.csv"):
            true = {label.replace("_", " ") for label in row["labels"].split(",") if label}
            events = localize(folder / "clips" / Path(row["file"]).name, session=session).events
            best = {e.label: max(o.score for o in events if o.label == e.label) for e in events}
            hits, alarms = sorted(true & set(best)), sorted(set(best) - true)
            misses = sorted((true & shown) - set(best))
            for key, group in zip(counts, (hits, misses, alarms, true - shown), strict=True):
                counts[key] += len(group)
            cells = [
                ", ".join(f"{n} {best[n]:.2f}" for n in hits),
                ", ".join(misses),
                ", ".join(f"{n} {best[n]:.2f}" for n in alarms),
            ]
            print(f"{Path(row['file']).stem:30s} {cells[0]:34s} {cells[1]:26s} {cells[2]}")
    print(", ".join(f"{value} {key}" for key, value in counts.items()))


if __name__ == "__main__":
    main()
