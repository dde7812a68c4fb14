"""How often are events right that score 0.7? Reliability before and after calibration, on files nothing was fitted on.

    python benchmarks/calibration.py [--work DIR] [--tags DIR] [--seeds 3] [--figure FILE] [--only additive tags]

Right is a candidate, after Soft-NMS and merging, that is its file's best of its class with a tIoU of at least 0.5 (0.3
beside it) with a true event of that class. Rows: real clips of ../shared/clips/avepm, left out of the network that is
asked and, in the rows "after", of the maps too (cross-fitted); composed `val` scenes, where only classes count that
scenes show, likewise; and with what ships, composed `test` scenes and the 47 check clips, of which only the labels are
known, not the times. --work and --tags are the folders of avepm.py and labelspace.py. Real clips are fitted as by
avepm.py, with 1,800 scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from avepm import CPU, SCENES, SHARED, encoder_pair, maps, paired_interval, ranks, top

from avtool.calibration import Calibration
from avtool.detect.proposals import Proposals
from avtool.evaluation.avel import reliability
from avtool.evaluation.diagnostics import reliability_diagram
from avtool.files import write_atomic
from avtool.models import zoo
from avtool.models.additive import AdditiveLocalizer
from avtool.pipeline import localize
from avtool.session import Session
from avtool.settings import Settings
from avtool.training import tags
from avtool.training.additive import FitConfig
from avtool.training.calibration import (
    SPREADS,
    Answers,
    as_calibration,
    best_spreads,
    clip_answers,
    crossed,
    families,
    fit,
    scene_answers,
)
from avtool.training.corpus import Corpus, LabelledClip
from avtool.training.localizer import bank_items, clip_items
from avtool.training.quadruples import encode, make, read
from avtool.training.recipe import Ask, ask_additive, fit_on, left_out_answers, out_of_fold
from avtool.training.views import read_rows

Floats = npt.NDArray[np.float64]
LOOSER = 0.3  # tIoU beside that of the maps
QUADRUPLES = 12  # of the composed validation scenes, per class, as in the recipe
CHECKED = 0.01  # score from which candidates of the check clips count


@dataclass(frozen=True)
class Row:
    """Candidates of one kind of file: what they score, and which are right at tIoU 0.5 and 0.3."""

    scores: Floats
    right: npt.NDArray[np.bool_]
    loosely: npt.NDArray[np.bool_] | None = None

    def lines(self, title: str) -> Iterator[str]:
        """Bins, and the expected calibration error: of all, of scores from 0.1 on, and from 0.3 on."""
        sure = reliability(self.scores, self.right)
        filled = np.flatnonzero(sure.counts)
        cells = (f"{sure.confidence[k]:.2f}: {sure.accuracy[k]:.2f} ({sure.counts[k]})" for k in filled)
        yield f"{title}: mean score: share right (candidates)  {'  '.join(cells)}"
        every, low, high = (100 * error_from(self.scores, self.right, start) for start in (0.0, 0.1, 0.3))
        text = f"calibration error, points: {every:.1f}; of scores from 0.1 on {low:.1f}, from 0.3 on {high:.1f}"
        yield f"{'':8s}{text}; log-loss {log_loss(self.scores, self.right):.4f}"
        if self.loosely is not None and (high := self.scores >= LOOSER).any():
            share, looser = self.right[high].mean(), self.loosely[high].mean()
            yield f"{'':8s}of {high.sum()} from 0.3 on {share:.2f} are right at tIoU 0.5, {looser:.2f} at 0.3"


def error_from(scores: Floats, right: npt.NDArray[np.bool_], low: float) -> float:
    """Expected calibration error of the scores from `low` on, NaN where there are none."""
    high = scores >= low
    return reliability(scores[high], right[high]).error if high.any() else float("nan")


def log_loss(scores: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Mean over candidates."""
    p = np.clip(scores, 1e-6, 1 - 1e-6)
    return float(-np.where(right, np.log(p), np.log1p(-p)).mean())


def tell(title: str, before: Row, after: Row) -> None:
    """Both reliabilities."""
    for name, row in (("before", before), ("after", after)):
        for line in row.lines(f"{title}, {name}"):
            print(line, flush=True)


def kinds(answers: Answers, group: npt.NDArray[np.int64]) -> None:
    """What was tried: maps of several kinds, each on left-out files."""
    alone = np.arange(len(group))
    no_offsets, many = [0.0] * 2, [SPREADS[-1]] * len(group)
    tried = {
        "nothing": answers.scores,
        "Platt's, one for all": crossed(answers, group * 0, no_offsets, platt=True),
        "Platt's, by family": crossed(answers, group, no_offsets, platt=True),
        "beta, one for all": crossed(answers, group * 0, no_offsets),
        "beta, by family": crossed(answers, group, no_offsets),
        "beta, every class alone": crossed(answers, alone, [0.0] * len(group)),
        "beta by family, offsets of spread 2.5": crossed(answers, group, many),
        "beta by family, spreads chosen (ships)": crossed(answers, group),
    }
    for name, p in tried.items():
        cost = -np.where(answers.right, np.log(np.clip(p, 1e-6, 1)), np.log1p(-np.clip(p, 0, 1 - 1e-6)))
        parts = [(cost * answers.weight)[group[answers.labels] == k] for k in np.unique(group)]
        total = [answers.weight[group[answers.labels] == k].sum() for k in np.unique(group)]
        text = "  ".join(f"{1000 * part.sum() / n:.2f}" for part, n in zip(parts, total, strict=True))
        print(f"    {name:40s} weighted log-loss x 1000 by family: {text}", flush=True)


def ranking(
    title: str, runs: Sequence[Sequence[Proposals]], by_clip: Sequence[Calibration], clips: Sequence[LabelledClip]
) -> None:
    """Clip top-1, top-5 and mAP, before and after: order between classes is what calibration changes."""
    classes = len(by_clip[0].maps)
    moved = [[replace(f, scores=c(f.scores, f.labels)) for f, c in zip(run, by_clip, strict=True)] for run in runs]
    for name, found in (("before", runs), ("after", moved)):
        rank = [ranks(run, clips, classes) for run in found]
        ap = np.mean([maps(run, clips) for run in found], 0)
        figures = [*(100 * np.mean([top(r, k) for r in rank]) for k in (1, 5)), *ap]
        text = " ".join(f"{figure:.1f}" for figure in figures)
        print(f"{title}, {name}: top-1, top-5, mAP at 0.3, 0.5, 0.7: {text}", flush=True)
    for k in (1, 5):
        hits = [np.mean([ranks(run, clips, classes) < k for run in found], 0) for found in (moved, runs)]
        gain, low, high = paired_interval(*hits, np.random.default_rng(0))
        print(f"{'':8s}top-{k} after - before {gain:+.1f} points, 95 % interval {low:+.1f} .. {high:+.1f}", flush=True)


def maps_by_clip(answers: Answers, group: npt.NDArray[np.int64], clips: int) -> list[Calibration]:
    """For each clip maps that were not fitted on it, five parts as in `crossed`."""
    part, spreads = np.random.default_rng(1).permutation(clips) % 5, best_spreads(answers, group)
    fitted = []
    for number in range(5):
        kept = answers.take(~np.isin(answers.files, np.flatnonzero(part == number)))
        fitted.append(as_calibration(fit(kept, group, spreads)))
    return [fitted[k] for k in part]


def additive(work: Path, seeds: int, figure: Path | None) -> None:
    """`additive-mini`: real clips, composed scenes, check clips."""
    corpus, pair = Corpus(SHARED), encoder_pair("mini")
    clips, count = corpus.clips(), len(corpus.classes)
    visual, audio = clip_items(corpus, pair, work)
    bank = bank_items(corpus, pair, "train", SCENES, work, visual.x.shape[1])
    runs = [out_of_fold(visual, audio, bank, clips, FitConfig(), seed) for seed in range(seeds)]
    network = fit_on(visual, audio, bank, FitConfig(), 0).network
    scenes = list(encode(corpus, pair, "val", QUADRUPLES, 1))
    ask = remembered(ask_additive(network))
    answers, group = left_out_answers(runs, clips, [(ask, scenes)], count)
    kinds(answers, group)
    real = clip_answers(runs, clips, count)
    looser = clip_answers(runs, clips, count, LOOSER)
    after = crossed(answers, group, others=real)
    before_after = Row(real.scores, real.right, looser.right), Row(after, real.right, looser.right)
    tell("additive-mini, real clips left out", *before_after)
    if figure is not None:
        for name, row in zip(("before", "after"), before_after, strict=True):
            high = row.scores >= 0.05
            diagram = reliability_diagram(reliability(row.scores[high], row.right[high]))
            write_atomic(figure.with_name(f"{figure.stem}-{name}{figure.suffix}"), diagram)
    composed = scene_answers(ask, scenes, len(clips), 1)
    p = crossed(answers, group, others=composed)
    tell("additive-mini, composed val scenes left out", Row(composed.scores, composed.right), Row(p, composed.right))
    ranking("additive-mini, real clips left out", runs, maps_by_clip(answers, group, len(clips)), clips)
    shipped = zoo.load("additive-mini", CPU)
    assert isinstance(shipped, AdditiveLocalizer) and shipped.info.vocabulary.calibration
    test = list(read(make(corpus, "test", 3, work / "quadruples", 2), pair))
    composed = scene_answers(ask_additive(shipped.network), test, 0, 1)
    p = shipped.info.vocabulary.calibration(composed.scores, composed.labels).astype(np.float64)
    tell(
        "additive-mini as it ships, composed test scenes", Row(composed.scores, composed.right), Row(p, composed.right)
    )
    check_clips("additive-mini")


def remembered(ask: Ask) -> Ask:
    """The same answers, computed once for each clip."""
    known: dict[int, tuple[Mapping[str, object], Sequence[Proposals]]] = {}

    def again(clip: Mapping[str, object]) -> Sequence[Proposals]:
        if id(clip) not in known:
            known[id(clip)] = clip, ask(clip)
        return known[id(clip)][1]

    return again


def check_clips(model: str) -> None:
    """Every class's best candidate in each of the 47 clips: is it a label of the clip?"""
    before: list[tuple[float, bool]] = []
    after: list[tuple[float, bool]] = []
    with Session(Settings(model=model, min_score=CHECKED)) as session:
        info = session.info
        for rows in (after, before):
            for row in read_rows(SHARED / "corpus" / "clips" / "clips.csv"):
                true = {label.replace("_", " ") for label in row["labels"].split(",") if label}
                events = localize(SHARED / "corpus" / "clips" / Path(row["file"]).name, session=session).events
                best = {e.label: max(o.score for o in events if o.label == e.label) for e in events}
                rows += [(score, name in true) for name, score in best.items()]
            session.localizer.info = replace(info, vocabulary=replace(info.vocabulary, calibration=None))
    pairs = (np.array(rows, np.float64).reshape(-1, 2).T for rows in (before, after))
    tell(f"{model} as it ships, check clips (labels alone)", *(Row(score, right > 0) for score, right in pairs))


def label_space(work: Path, seeds: int) -> None:
    """`loco-tags`: real clips, as a pair it was taught with and as one that it never met."""
    from labelspace import views

    corpus = Corpus(SHARED)
    names, clips = tags.known_classes(corpus)
    trained, foreign = views(corpus, work)
    taught, count = list(trained.values()), len(names)
    dealt = [tags.fit_folds(taught, clips, count, tags.LabelConfig(), seed) for seed in range(seeds)]
    slope, offset = tags.calibration_of([d.candidates(v, clips) for d in dealt for v in taught], clips)
    judged = [d.calibrated(slope, offset) for d in dealt]  # two numbers for the scale that the maps take over from
    runs = {name: [d.candidates(view, clips) for d in judged] for name, view in {**trained, **foreign}.items()}
    answers = clip_answers([run for name in trained for run in runs[name]], clips, count)
    group = families(clips, count)
    kinds(answers, group)
    for name in ("mn04 + MobileNetV2", "YAMNet + ResNet-50"):
        own = clip_answers(runs[name], clips, count)
        looser = clip_answers(runs[name], clips, count, LOOSER)
        p = crossed(answers, group, others=own)
        pair = Row(own.scores, own.right, looser.right), Row(p, own.right, looser.right)
        tell(f"loco-tags on {name}, real clips left out", *pair)
        ranking(f"loco-tags on {name}", runs[name], maps_by_clip(answers, group, len(clips)), clips)
    check_clips("loco-tags")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--tags", type=Path, default=Path("build/bench"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="NAME.png: NAME-before.png and NAME-after.png, real clips")
    parser.add_argument("--only", nargs="+", choices=("additive", "tags"), default=["additive", "tags"])
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
        return
    if "additive" in options.only:
        additive(options.work, options.seeds, options.figure)
    if "tags" in options.only:
        label_space(options.tags, options.seeds)


if __name__ == "__main__":
    main()
