"""Composed test scenes: does a localizer need both media? Prints the rates of the README's second accuracy table.

    python benchmarks/composed.py [--work DIR] [--per-class 3]

Quadruples of the `test` split (picture A or B with sound A or B, same interval, loudness, size and codec). Thresholds
are those stored in the model; the rows of one medium alone get thresholds chosen for them on `val`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from avtool.detect.events import DECIMALS
from avtool.features.encoders import catalog
from avtool.models import zoo
from avtool.models.additive import AdditiveLocalizer
from avtool.training.corpus import Corpus
from avtool.training.localizer import Pair
from avtool.training.quadruples import encode, make, read
from avtool.training.recipe import Trial, ask_additive, choose_thresholds, rates, trials
from avtool.vocabulary import Vocabulary

SHARED = Path(os.environ.get("AVTOOL_SHARED", Path(__file__).parents[2] / "shared"))
CPU = torch.device("cpu")


def shown(trial: Trial, vocabulary: Vocabulary) -> Trial:
    """The same with the score of both media as users see it."""
    if vocabulary.calibration is None:
        return trial
    score = round(float(vocabulary.calibration(trial.scores[:1], [trial.label])[0]), DECIMALS)
    return replace(trial, scores=(score, *trial.scores[1:]))


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
    for which, name in enumerate(("audio+visual", "audio only", "visual only")):
        if which == 0:
            r = rates([shown(t, localizer.info.vocabulary) for t in test], localizer.info.vocabulary.thresholds)
        else:
            r = rates(test, choose_thresholds(val, which), which)
        print(f"{name:16s}{100 * r['kept']:8.1f}{100 * r['heard only']:22.1f}{100 * r['seen only']:22.1f}")


if __name__ == "__main__":
    main()
