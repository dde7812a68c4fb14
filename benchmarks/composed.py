"""Composed test scenes: does a localizer need both media? Prints the rates of the README's second accuracy table.

    python benchmarks/composed.py [--work DIR] [--per-class 3]

Quadruples of the `test` split (picture A or B with sound A or B, same interval, loudness, size and codec). Thresholds
are those stored in the model; the rows of one medium alone get thresholds chosen for them on `val`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from avtool.features.encoders import catalog
from avtool.models import zoo
from avtool.models.additive import AdditiveLocalizer
from avtool.training.corpus import Corpus
from avtool.training.localizer import Pair
from avtool.training.quadruples import encode, make, read
from avtool.training.recipe import ask_additive, choose_thresholds, rates, trials

SHARED = Path(os.environ.get("AVTOOL_SHARED", Path(__file__).parents[2] / "shared"))
CPU = torch.device("cpu")


def main() -> None:
    """Print kept and rejected shares, mean over classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--per-class", type=int, default=3)
    parser.add_argument("--model", default=zoo.DEFAULT)
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
        return
    corpus, localizer = Corpus(SHARED), zoo.load(options.model, CPU)
    assert isinstance(localizer, AdditiveLocalizer)
    pair = Pair("mini", catalog.VISUAL["mini"](CPU), catalog.AUDIO["mini"](CPU))
    folder = options.work / "quadruples"
    ask, count = ask_additive(localizer.network), len(corpus.classes)
    val = trials(ask, count, encode(corpus, pair, "val", 8, 1))
    test = trials(ask, count, read(make(corpus, "test", options.per_class, folder, 2), pair))
    print(f"{len(test)} questions about {len({t.label for t in test})} classes; mean over classes")
    print(f"{'row':16s}{'kept':>8s}{'heard only rejected':>22s}{'seen only rejected':>22s}")
    thresholds = np.array(localizer.info.vocabulary.thresholds)
    for which, name in enumerate(("audio+visual", "audio only", "visual only")):
        chosen = thresholds if which == 0 else choose_thresholds(val, which)
        r = rates(test, chosen, which)
        print(f"{name:16s}{100 * r['kept']:8.1f}{100 * r['heard only']:22.1f}{100 * r['seen only']:22.1f}")


if __name__ == "__main__":
    main()
