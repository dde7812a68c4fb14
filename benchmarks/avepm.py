"""Cross-validation on the real clips of ../shared/clips/avepm: the accuracy table of the README and of the model card.

    python benchmarks/avepm.py [--work DIR] [--seeds 3] [--rows mini teachers random] [--held-out FOLDER]

Three folds by clip inside each class (two training clips per class in most folds), composed training scenes beside the
clips, no test clip seen by anything that is fitted. Features and scenes are cached in DIR. Prints one line per row;
--rows loco cacenet ccln are the trained networks on `mini`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from avtool.detect.proposals import Proposals
from avtool.evaluation.map import Segments, mean_ap
from avtool.features.encoders import catalog
from avtool.files import write_atomic
from avtool.timegrid import Grid
from avtool.training.additive import FitConfig, Items
from avtool.training.corpus import Corpus, LabelledClip, folds
from avtool.training.localizer import Pair, bank_items, clip_items
from avtool.training.recipe import NETWORKS, candidates, fit_on, out_of_fold_trained

SHARED = Path(os.environ.get("AVTOOL_SHARED", Path(__file__).parents[2] / "shared"))
CPU = torch.device("cpu")
TIOUS = (0.3, 0.5, 0.7)
SCENES = 1800


def encoder_pair(name: str, weights: Path | None = None) -> Pair:
    """The encoders of a row: mini, teachers, random, or mini with the weights of a folder."""
    if name == "teachers":
        return Pair(name, catalog.VISUAL["mobilenetv2-coral"](CPU), catalog.AUDIO["mn04"](CPU))
    if name == "mini":
        return Pair(name, catalog.VISUAL["mini"](CPU), catalog.AUDIO["mini"](CPU))
    return Pair(name, *catalog.mini_pair(weights, CPU))


def derangement(clips: Sequence[LabelledClip], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """For every clip another one of another class."""
    labels = np.array([c.label for c in clips])
    while True:
        order = rng.permutation(len(clips))
        clash = np.flatnonzero(labels[order] == labels)
        for k in clash:
            order[k], order[other] = order[other := int(rng.integers(len(clips)))], order[k]
        if not (labels[order] == labels).any():
            return order


def cross_validate(
    visual: Items,
    audio: Items,
    banks: tuple[Items, Items] | None,
    clips: Sequence[LabelledClip],
    config: FitConfig,
    seed: int,
    only: int | None = None,
) -> dict[str, list[Proposals | None]]:
    """Candidates of every clip for the rows that share one fit: both media, one alone, sound swapped between clips."""
    fold, classes = np.array(folds(list(clips), seed)), visual.labels.shape[2]
    swap = derangement(clips, np.random.default_rng(seed + 100))
    rows: dict[str, list[Proposals | None]] = {
        k: [None] * len(clips) for k in ("audio+visual", "audio only", "visual only", "sound swapped")
    }
    for number in range(3) if only is None else [only]:
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        network = fit_on(visual.take(train), audio.take(train), banks, config, seed * 10 + number).network
        for i in test.tolist():
            n = int((visual.valid[i] | audio.valid[i]).sum())
            both, ear, eye = network.scores(visual.x[i, :n], audio.x[i, :n], visual.valid[i, :n], audio.valid[i, :n])
            j = swap[i]
            swapped = network.scores(visual.x[i, :n], audio.x[j, :n], visual.valid[i, :n], audio.valid[j, :n])[0]
            for name, curve in zip(rows, (both, ear, eye, swapped), strict=True):
                rows[name][i] = candidates(curve, clips[i].duration)
    assert classes == network.visual.weight.shape[1]
    return rows


def ranks(rows: Sequence[Proposals | None], clips: Sequence[LabelledClip], classes: int) -> npt.NDArray[np.float64]:
    """Rank of the true class of each clip by its best event, 0 = first; classes without events share the last place."""
    out = np.full(len(clips), np.nan)
    for i, found in enumerate(rows):
        if found is not None:
            best = np.zeros(classes)
            np.maximum.at(best, found.labels, found.scores)
            own = best[clips[i].label]
            out[i] = (best > own).sum() + (0 if own > 0 else classes)
    return out


def top(rank: npt.NDArray[np.float64], k: int) -> float:
    """Share of the clips with an answer whose true class is among the first k."""
    return float(np.mean(rank[~np.isnan(rank)] < k))


def segment_truth(clip: LabelledClip, rows: int) -> npt.NDArray[np.int64]:
    """Label of each half-second segment, -1 = background."""
    centres = (np.arange(rows) + 0.5) * 0.5
    return np.where((centres >= clip.onset) & (centres < clip.offset), clip.label, -1)


def segment_guess(found: Proposals, rows: int, threshold: float) -> npt.NDArray[np.int64]:
    """The strongest event above the threshold over each segment's centre, -1 = none."""
    guess, best = np.full(rows, -1), np.full(rows, threshold)
    centres = (np.arange(rows) + 0.5) * 0.5
    for start, end, label, score in zip(found.starts, found.ends, found.labels, found.scores, strict=True):
        inside = (centres >= start) & (centres < end) & (score >= best)
        guess[inside], best[inside] = label, score
    return guess


def segment_hits(
    rows: Sequence[Proposals | None], clips: Sequence[LabelledClip], threshold: float
) -> npt.NDArray[np.float64]:
    """Share of right segments of each clip."""
    out = np.full(len(clips), np.nan)
    for i, found in enumerate(rows):
        if found is not None:
            count = Grid().count(clips[i].duration)
            out[i] = (segment_guess(found, count, threshold) == segment_truth(clips[i], count)).mean()
    return out


def crossed_segments(
    rows: Sequence[Proposals | None], clips: Sequence[LabelledClip], seed: int
) -> npt.NDArray[np.float64]:
    """segment_hits with each fold's threshold chosen on the other folds.

    Where only one fold has answers, it is dealt into three parts in file order, and each part's threshold is chosen on
    the other two.
    """
    levels = np.concatenate([np.geomspace(0.01, 0.5, 25), np.linspace(0.55, 0.95, 9)])
    table = np.stack([segment_hits(rows, clips, float(t)) for t in levels])
    answered, part = ~np.isnan(table[0]), np.array(folds(list(clips), seed))
    if len(np.unique(part[answered])) == 1:
        part[answered] = np.arange(answered.sum()) % 3
    out = np.full(len(clips), np.nan)
    for number in range(3):
        own, others = answered & (part == number), answered & (part != number)
        if own.any():
            out[own] = table[int(np.argmax(table[:, others].mean(1))), own]
    return out


def maps(rows: Sequence[Proposals | None], clips: Sequence[LabelledClip]) -> list[float]:
    """mAP at TIOUS over the clips that have an answer, per cent."""
    index = [i for i, r in enumerate(rows) if r is not None]
    truth = Segments(
        np.array(index),
        np.array([clips[i].onset for i in index]),
        np.array([clips[i].offset for i in index]),
        np.array([clips[i].label for i in index]),
    )
    parts = [(i, found) for i in index if (found := rows[i]) is not None]
    video = np.concatenate([np.full(len(f.labels), i) for i, f in parts])
    every = Proposals.concat([f for _, f in parts])
    guesses = Segments(video, every.starts, every.ends, every.labels, every.scores.astype(np.float64))
    return [100 * float(v) for v in mean_ap(truth, guesses, TIOUS).by_tiou] if len(video) else [0.0] * len(TIOUS)


def report(
    name: str,
    by_seed: Sequence[Sequence[Proposals | None]],
    clips: Sequence[LabelledClip],
    classes: int,
    seeds: Sequence[int],
) -> dict[str, object]:
    """One row of the table, over all clips and over those that their event does not fill."""
    short = np.array([not c.fills for c in clips])
    figures: dict[str, list[float]] = {}
    for part, chosen in (("all", np.ones(len(clips), bool)), ("short events", short)):
        lines = []
        for rows, seed in zip(by_seed, seeds, strict=True):
            rank = ranks(rows, clips, classes)[chosen]
            kept = [r if c else None for r, c in zip(rows, chosen, strict=True)]
            lines.append(
                [
                    100 * top(rank, 1),
                    100 * top(rank, 5),
                    100 * np.nanmean(crossed_segments(rows, clips, seed)[chosen]),
                    *maps(kept, clips),
                ]
            )
        table = np.array(lines)
        figures[part] = [round(float(v), 1) for v in table.mean(0)]
        figures[f"{part}, sd"] = [round(float(v), 1) for v in table.std(0)]
    print(
        f"{name:36s}"
        + "   ".join(f"{part}: " + " ".join(f"{v:5.1f}" for v in figures[part]) for part in ("all", "short events")),
        flush=True,
    )
    return {"row": name, **figures}


def constant(clips: Sequence[LabelledClip], label: Callable[[int], int | None]) -> list[Proposals | None]:
    """One event over the whole clip, of the class that `label` says, or none."""
    rows: list[Proposals | None] = []
    for i, clip in enumerate(clips):
        chosen = label(i)
        kept = [] if chosen is None else [chosen]
        rows.append(
            Proposals(
                np.zeros(len(kept)),
                np.full(len(kept), clip.duration),
                np.array(kept, np.int64),
                np.ones(len(kept), np.float32),
            )
        )
    return rows


def paired_interval(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, float, float]:
    """Mean difference of per-clip values in points and its 95 % bootstrap interval over clips."""
    difference = first - second
    draws = difference[rng.integers(len(difference), size=(4000, len(difference)))].mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return 100 * float(difference.mean()), 100 * float(low), 100 * float(high)


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="*", default=["mini", "teachers", "random"])
    parser.add_argument("--held-out", type=Path, help="folder with encoders that never saw fold 0 of seed 0")
    parser.add_argument("--scenes", type=int, default=SCENES)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if not SHARED.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
        return
    corpus, config = Corpus(SHARED), FitConfig()
    clips, classes, seeds = corpus.clips(), len(corpus.classes), range(options.seeds)
    print(f"{len(clips)} clips ({sum(not c.fills for c in clips)} short events), {classes} classes, {len(seeds)} seeds")
    print("columns: clip top-1, top-5, segment accuracy, mAP at tIoU 0.3, 0.5, 0.7")
    results: list[dict[str, object]] = []
    for name in options.rows:
        pair = encoder_pair("mini" if name in NETWORKS else name)
        visual, audio = clip_items(corpus, pair, options.work)
        banks = bank_items(corpus, pair, "train", options.scenes, options.work, visual.x.shape[1])
        if name in NETWORKS:
            found = [out_of_fold_trained(visual, audio, banks, clips, NETWORKS[name], seed) for seed in seeds]
            results.append(report(f"mini, {name}-mini", found, clips, classes, seeds))
            continue
        runs = [cross_validate(visual, audio, banks, clips, config, seed) for seed in seeds]
        for row in runs[0]:
            if name == "mini" or row == "audio+visual":
                results.append(report(f"{name}: {row}", [run[row] for run in runs], clips, classes, seeds))
        if name != "random":
            _print_gain(name, runs, clips, classes)
    results += _floor_and_ceiling(clips, classes, seeds)
    if options.held_out:
        results += _leak(corpus, clips, classes, config, options)
    write_atomic(options.work / "avepm.json", json.dumps(results, indent=1))


def _print_gain(
    name: str, runs: Sequence[dict[str, list[Proposals | None]]], clips: Sequence[LabelledClip], classes: int
) -> None:
    for k in (1, 5):
        hits = {row: np.mean([ranks(run[row], clips, classes) < k for run in runs], 0) for row in runs[0]}
        better = max(("audio only", "visual only"), key=lambda row: float(hits[row].mean()))
        gain, low, high = paired_interval(hits["audio+visual"], hits[better], np.random.default_rng(0))
        print(f"{name}: top-{k} audio+visual - {better}: {gain:+.1f} points, 95 % interval {low:+.1f} .. {high:+.1f}")


def _floor_and_ceiling(clips: Sequence[LabelledClip], classes: int, seeds: Sequence[int]) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    known = sorted({c.label for c in clips})
    rows = {
        "right class, whole clip": [constant(clips, lambda i: clips[i].label) for _ in seeds],
        "chance: a random class, whole clip": [constant(clips, lambda i: int(rng.choice(known))) for _ in seeds],
        "all background": [constant(clips, lambda i: None) for _ in seeds],
    }
    return [report(name, by_seed, clips, classes, seeds) for name, by_seed in rows.items()]


def _leak(
    corpus: Corpus, clips: Sequence[LabelledClip], classes: int, config: FitConfig, options: argparse.Namespace
) -> list[dict[str, object]]:
    """Fold 0 of seed 0 with encoders that saw its pictures and sound, and with encoders that did not."""
    results = []
    for title, pair in (
        ("encoders saw the fold", encoder_pair("mini")),
        ("encoders never saw it", encoder_pair("held-out", options.held_out)),
    ):
        visual, audio = clip_items(corpus, pair, options.work)
        banks = bank_items(corpus, pair, "train", options.scenes, options.work, visual.x.shape[1])
        runs = [cross_validate(visual, audio, banks, clips, config, 0, only=0)]
        results.append(report(f"fold 0, {title}", [run["audio+visual"] for run in runs], clips, classes, [0]))
    return results


if __name__ == "__main__":
    main()
