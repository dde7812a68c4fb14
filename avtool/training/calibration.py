"""Fits the maps that make probabilities of scores, on candidates of localizers that never saw the file.

Classes learnt from the same kind of material, a family, share the shape of their beta map; each has an offset of its
own that is drawn towards the family's, as far as left-out files say that it helps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.calibration import FARTHEST, PROBABLE, STEEPEST, Calibration
from avtool.detect.events import clamp, merge
from avtool.detect.proposals import Proposals
from avtool.training.corpus import LabelledClip
from avtool.training.localizer import GRID
from avtool.training.quadruples import Encoded

log = logging.getLogger("avtool")
RIGHT_TIOU = 0.5  # overlap with a true event of its class from which a candidate is right
REAL_SHARE = 4.0  # how much more a real clip counts for a class that only scenes show: users have no scenes
SPREADS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.5)  # of class offsets about their family's, in log-odds: those that are tried
ENOUGH = 0.002  # of a log-loss; a gain below it is not worth offsets that change the order of classes
PARTS = 5  # of the files, for choosing among them
STEP = 0.05  # log-odds; scores nearer than this are counted together
LOOSE, FREE = 1e-3, 1e-4  # precision of the priors of slopes (about 1) and of a family's offset
NEWTON = 60  # steps at most
Floats = npt.NDArray[np.float64]
Truth = tuple[int, float, float]  # label, start, end


@dataclass(frozen=True, eq=False)
class Answers:
    """Candidates as users see them, with what became of them; (P,) each.

    Attributes:
        scores: before any map.
        labels: class indices.
        right: whether it is a file's best of its class that overlaps a true event enough.
        files: numbers; candidates of one file are left out together.
        weight: how much each counts.
    """

    scores: Floats
    labels: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    files: npt.NDArray[np.int64]
    weight: Floats

    @staticmethod
    def join(parts: Iterable[Answers]) -> Answers:
        """All candidates of several sets; their files are taken to be numbered in one way."""
        rows = list(parts)
        names = ("scores", "labels", "right", "files", "weight")
        return Answers(*(np.concatenate([getattr(row, name) for row in rows]) for name in names))

    def take(self, index: npt.NDArray[np.bool_]) -> Answers:
        """The candidates of a mask (P,)."""
        return Answers(self.scores[index], self.labels[index], self.right[index], self.files[index], self.weight[index])


def judge(
    found: Proposals, duration: float, truth: Sequence[Truth], file: int, weight: float = 1.0, tiou: float = RIGHT_TIOU
) -> Answers:
    """Candidates of one file after merging, each compared with the true events; one event makes one candidate right.

    Args:
        found: after Soft-NMS.
        duration: of the file in seconds.
        truth: its events.
        file: its number.
        weight: of each candidate.
        tiou: overlap from which one is right.
    """
    merged = merge(clamp(found, duration))
    right = np.zeros(len(merged), bool)
    for label, start, end in truth:
        shared = np.minimum(merged.ends, end) - np.maximum(merged.starts, start)
        union = np.maximum(merged.ends, end) - np.minimum(merged.starts, start)
        near = np.flatnonzero((merged.labels == label) & (shared >= tiou * union) & ~right)
        if len(near):
            right[near[int(np.argmax(merged.scores[near]))]] = True
    count = len(merged)
    scores = merged.scores.astype(np.float64)
    return Answers(scores, merged.labels, right, np.full(count, file), np.full(count, weight, np.float64))


@dataclass(frozen=True, eq=False)
class _Tally:
    """Weighted counts of candidates (C, S), and of right ones, by class and step of log-odds."""

    count: Floats
    hits: Floats

    @classmethod
    def of(cls, answers: Answers, classes: int) -> _Tally:
        low, high = (float(x) for x in _log_odds(np.array(PROBABLE)))
        shape = classes, round((high - low) / STEP) + 1
        step = np.round((_log_odds(answers.scores) - low) / STEP).astype(np.int64)
        count, hits = np.zeros(shape), np.zeros(shape)
        np.add.at(count, (answers.labels, step), answers.weight)
        np.add.at(hits, (answers.labels, step), answers.weight * answers.right)
        return cls(count, hits)

    @cached_property
    def inputs(self) -> Floats:
        """(S, 2) ln s and -ln(1 - s) of each step."""
        low = float(_log_odds(np.array(PROBABLE[0])))
        score = 1 / (1 + np.exp(-(low + STEP * np.arange(self.count.shape[1]))))
        return np.stack([np.log(score), -np.log1p(-score)], 1)


def _log_odds(scores: Floats) -> Floats:
    p = np.clip(scores, *PROBABLE)
    return np.asarray(np.log(p) - np.log1p(-p))


def fit(answers: Answers, families: npt.NDArray[np.int64], spreads: Sequence[float], platt: bool = False) -> Floats:
    """Maps (C, 3) that make the answers most likely.

    Args:
        answers: with weights.
        families: (C,) number of each class's family.
        spreads: of the offsets inside each family; 0: one map for the whole family.
        platt: one slope instead of two.
    """
    tally, out = _Tally.of(answers, len(families)), np.zeros((len(families), 3))
    for family in np.unique(families):
        members = np.flatnonzero(families == family)
        out[members] = _fit_family(tally, members, spreads[int(family)], platt)
    return out


def _fit_family(tally: _Tally, members: npt.NDArray[np.int64], spread: float, platt: bool) -> Floats:
    """Slopes, offset, and an offset per class with a normal prior: penalised logistic regression."""
    member, step = np.nonzero(tally.count[members])
    weight = tally.count[members][member, step]
    share = tally.hits[members][member, step] / weight
    own = np.eye(len(members))[member] if spread else np.zeros((len(member), 0))
    inputs = np.tile(tally.inputs[step].sum(1, keepdims=True) / 2, 2) if platt else tally.inputs[step]
    x = np.concatenate([inputs, np.ones((len(member), 1)), own], 1)
    precision = np.concatenate([[LOOSE, LOOSE, FREE], np.full(own.shape[1], spread**-2 if spread else 0.0)])
    prior = np.concatenate([[1.0, 1.0, 0.0], np.zeros(own.shape[1])])
    theta = _newton(x, share, weight, precision, prior)
    if platt:
        theta[:2] = theta[:2].mean()
    maps = np.tile(theta[:3], (len(members), 1))
    if spread:
        maps[:, 2] += theta[3:]
    return maps


def _newton(x: Floats, y: Floats, weight: Floats, precision: Floats, prior: Floats) -> Floats:
    """Logistic regression with a normal prior by projected Newton steps; the first two, slopes, stay at least 0."""
    theta = prior.copy()

    def cost(at: Floats) -> float:
        z = x @ at
        return float((weight * (np.logaddexp(0, z) - y * z)).sum() + 0.5 * (precision * (at - prior) ** 2).sum())

    for _ in range(NEWTON):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        slope = x.T @ (weight * (p - y)) + precision * (theta - prior)
        bend = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(precision + 1e-9)
        free = np.ones(len(theta), bool)
        free[:2] = (theta[:2] > 0) | (slope[:2] < 0)  # what would turn negative waits at 0
        move, size, before = np.zeros_like(theta), 1.0, cost(theta)
        move[free] = np.linalg.solve(bend[np.ix_(free, free)], slope[free])
        while size > 1e-6 and cost(_projected(theta - size * move)) > before:
            size /= 2
        theta, last = _projected(theta - size * move), theta
        if np.abs(theta - last).max() < 1e-7:
            break
    return theta


def _projected(theta: Floats) -> Floats:
    return np.concatenate([np.maximum(theta[:2], 0), theta[2:]])


def calibrate(answers: Answers, families: npt.NDArray[np.int64]) -> Calibration:
    """The maps of all classes; each family's spread is the one with the best log-loss on left-out files."""
    spreads = best_spreads(answers, families)
    log.info("offsets of classes spread by %s about their families", ", ".join(f"{s:g}" for s in spreads))
    return as_calibration(fit(answers, families, spreads))


def best_spreads(answers: Answers, families: npt.NDArray[np.int64]) -> list[float]:
    """For each family the smallest of SPREADS whose log-loss on left-out files is, within ENOUGH, the best."""
    costs = np.zeros((len(SPREADS), int(families.max()) + 1))
    for row, spread in enumerate(SPREADS):
        chances = np.clip(crossed(answers, families, [spread] * costs.shape[1]), 1e-6, 1 - 1e-6)
        each = -np.where(answers.right, np.log(chances), np.log1p(-chances)) * answers.weight
        np.add.at(costs[row], families[answers.labels], each)
    good = costs <= costs.min(0) * (1 + ENOUGH)
    return [SPREADS[k] for k in good.argmax(0)]


def crossed(
    answers: Answers,
    families: npt.NDArray[np.int64],
    spreads: Sequence[float] | None = None,
    others: Answers | None = None,
    platt: bool = False,
) -> Floats:
    """Probability (P,) of every candidate from maps that were not fitted on its file.

    Args:
        answers: what the maps are fitted on.
        families: (C,).
        spreads: per family; None: chosen anew on each part's other files.
        others: candidates to give the probabilities of instead, of files numbered alike.
        platt: see `fit`.
    """
    asked = answers if others is None else others
    files = np.unique(np.concatenate([answers.files, asked.files]))
    part = np.random.default_rng(0).permutation(len(files)) % PARTS
    mine, theirs = (part[np.searchsorted(files, some.files)] for some in (answers, asked))
    out = np.zeros(len(asked.scores))
    for number in range(PARTS):
        kept = answers.take(mine != number)
        maps = fit(kept, families, best_spreads(kept, families) if spreads is None else spreads, platt)
        left = theirs == number
        out[left] = as_calibration(maps)(asked.scores[left], asked.labels[left])
    return out


def as_calibration(maps: Floats) -> Calibration:
    """Rounded and bounded as a description keeps them; no map is level."""
    rows = np.round(np.clip(maps, [0, 0, -FARTHEST], [STEEPEST, STEEPEST, FARTHEST]), 4)
    rows[:, 0] = np.maximum(rows[:, 0], np.where(rows[:, 1] > 0, 0, 0.01))
    return Calibration(tuple((float(a), float(b), float(c)) for a, b, c in rows))


# ---------------------------------------------------------------- candidates of clips and of composed scenes


def clip_answers(
    runs: Sequence[Sequence[Proposals]], clips: Sequence[LabelledClip], classes: int, tiou: float = RIGHT_TIOU
) -> Answers:
    """Candidates of real clips; all runs of a clip together count as one, for classes that no clip shows REAL_SHARE.

    Args:
        runs: for each run candidates of every clip, from a localizer that never saw it.
        clips: with their one event; numbered from 0.
        classes: C.
        tiou: overlap from which a candidate is right.
    """
    share = np.full(classes, REAL_SHARE)
    share[[clip.label for clip in clips]] = 1.0
    rows = [
        judge(found, clip.duration, [(clip.label, clip.onset, clip.offset)], i, 1 / len(runs), tiou)
        for run in runs
        for i, (found, clip) in enumerate(zip(run, clips, strict=True))
    ]
    every = Answers.join(rows)
    return replace(every, weight=every.weight * share[every.labels])


def scene_answers(
    ask: Callable[[Mapping[str, Any]], Sequence[Proposals]], quadruples: Sequence[Encoded], first: int, clips: float
) -> Answers:
    """Candidates of composed scenes, only of the classes that these show.

    Args:
        ask: a localizer that was not fitted on the scenes; the first of its answers counts.
        quadruples: of scenes; what picture and sound show alike is an event.
        first: file number of the first quadruple; the scenes of one have one number.
        clips: all scenes together count as so many files.
    """
    shown = sorted({label for q in quadruples for label in (q.first, q.second)})
    weight = clips / max(1, sum(len(q.clips) for q in quadruples))
    rows = []
    for number, q in enumerate(quadruples, first):
        for key, clip in q.clips.items():
            truth = [(label, q.start, q.end) for name, label in (("aa", q.first), ("bb", q.second)) if name == key]
            rows.append(judge(ask(clip)[0], len(clip["seen"]) * float(GRID.stride), truth, number, weight))
    every = Answers.join(rows)
    return every.take(np.isin(every.labels, shown))


def families(clips: Sequence[LabelledClip], classes: int) -> npt.NDArray[np.int64]:
    """(C,) 0 for classes that real clips show, 1 for those that only composed scenes do."""
    out = np.ones(classes, np.int64)
    out[[clip.label for clip in clips]] = 0
    return out
