"""A vocabulary that the embedded model does not know, from labelled pictures and sounds alone: does it find them?

    python benchmarks/new_classes.py [--work DIR] [--per-class 8] [--config additive-composed]

Five classes of ../shared/corpus outside the shipped vocabulary: those with the most training pictures among the ones
with at least 15 training sounds. Their `train` and `val` files become pictures/LABEL and sounds/LABEL, one command
trains, and quadruples of the `test` files (picture A or B with sound A or B), written as video files, are localized by
the result as any video is. Prints true pairs kept, heard-only and seen-only rejected; the aim is 80 % each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from avtool.models import zoo
from avtool.pipeline import localize
from avtool.session import Session
from avtool.settings import Settings
from avtool.training.corpus import Corpus, EventClass
from avtool.training.quadruples import make
from avtool.training.recipe import KINDS
from avtool.training.views import read_rows

SHARED = Path(os.environ.get("AVTOOL_SHARED", Path(__file__).parents[2] / "shared"))
CLASSES, SOUNDS = 5, 15
BACKGROUNDS = 300  # sounds and pictures of no class


class Chosen:
    """Files of a few labels of the corpus, split by split."""

    def __init__(self, corpus: Corpus, labels: list[str]) -> None:
        self.corpus, self.root, self.labels = corpus, corpus.root, labels
        self.classes = tuple(EventClass(label.replace("_", " "), "", composed=True) for label in labels)

    def files(self, table: str, split: str) -> Mapping[int, list[Path]]:
        rows = [r for r in read_rows(self.root / table) if r["split"] == split]
        return {k: [self.root / r["file"] for r in rows if r["label"] == label] for k, label in enumerate(self.labels)}

    def sounds(self, split: str) -> Mapping[int, list[Path]]:
        return self.files("audio.csv", split)

    def pictures(self, split: str) -> Mapping[int, list[Path]]:
        return self.files("images.csv", split)

    def backgrounds(self, split: str) -> tuple[list[Path], list[Path]]:
        return self.corpus.backgrounds(split)


def unknown_labels(corpus: Corpus) -> list[str]:
    """Labels that no shipped vocabulary has, those with most material first."""
    shipped = {name for info in zoo.available() if info.weights for name in info.vocabulary.names}
    rows = [
        r
        for r in read_rows(corpus.root / "vocabulary.csv")
        if r["event"].replace("_", " ") not in shipped and int(r["sounds_train"]) >= SOUNDS
    ]
    rows.sort(key=lambda r: -int(r["pictures_train"]))
    return sorted(r["event"] for r in rows[:CLASSES])


def lay_out(chosen: Chosen, folder: Path) -> None:
    """pictures/LABEL, sounds/LABEL and backgrounds as links."""
    for kind, table in (("sounds", "audio.csv"), ("pictures", "images.csv")):
        for split in ("train", "val"):
            for k, files in chosen.files(table, split).items():
                for file in files:
                    _link(file, folder / kind / chosen.classes[k].name / f"{split}-{file.name}")
    for kind, files in zip(("sounds", "pictures"), chosen.backgrounds("train"), strict=True):
        for file in files[:: max(1, len(files) // BACKGROUNDS)]:
            _link(file, folder / "backgrounds" / kind / file.name)


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(file.resolve())


def main() -> None:
    """Train, test, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/new-classes"))
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--config", default="additive-composed")
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
        return
    corpus = Corpus(SHARED)
    chosen = Chosen(corpus, unknown_labels(corpus))
    print("classes:", ", ".join(c.name for c in chosen.classes), flush=True)
    lay_out(chosen, options.work / "material")
    model = options.work / "model" / "five.safetensors"
    if not model.exists():
        command = ["train", options.config, "--set", f"data.path={options.work / 'material'}", "--set", "name=five"]
        print("avtool", *command, "-o", model.parent, flush=True)
        subprocess.run([sys.executable, "-m", "avtool", *command, "-o", str(model.parent)], check=True)
    right: dict[str, dict[int, list[bool]]] = {kind: {} for kind in KINDS}
    settings = replace(Settings(model=str(model)), classes=("all",))
    with Session(settings) as session:
        for quad in make(chosen, "test", options.per_class, options.work / "quadruples", 3):
            for key, file in quad.files.items():
                found = localize(file, None, None, session=session)
                for letter, label in zip("ab", (quad.first, quad.second), strict=True):
                    kind = {(True, True): KINDS[0], (False, True): KINDS[1], (True, False): KINDS[2]}.get(
                        (key[0] == letter, key[1] == letter)
                    )
                    if kind is None:
                        continue
                    name = chosen.classes[label].name
                    hit = any(e.label == name and e.start < quad.end and e.end > quad.start for e in found.events)
                    right[kind].setdefault(label, []).append(hit == (kind == KINDS[0]))
    for k, known in enumerate(chosen.classes):
        print(f"{known.name:14s}", *(f"{kind} {100 * np.mean(right[kind][k]):5.1f} %" for kind in KINDS))
    print(
        f"{'mean':14s}",
        *(f"{kind} {100 * np.mean([np.mean(v) for v in right[kind].values()]):5.1f} %" for kind in KINDS),
    )
    print(f"{sum(len(v) for v in right['kept'].values())} true pairs")


if __name__ == "__main__":
    main()
