"""From encoders and material to the shipped localizer: fit, thresholds, tiers, files.

    python -m avtool.training.recipe --shared ../shared --work DIR --out weights

Thresholds come from composed scenes of the `val` split and from out-of-fold scores of the real clips.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

from avtool.calibration import Calibration
from avtool.detect.events import DECIMALS
from avtool.detect.proposals import Proposals, from_curve, from_pyramid
from avtool.detect.softnms import suppress
from avtool.evaluation.map import Segments, mean_ap
from avtool.features.encoders import catalog
from avtool.files import write_atomic
from avtool.models.additive import Additive
from avtool.models.loco import LoCo, LoCoConfig
from avtool.models.pyramid import describe, pyramid_levels
from avtool.models.release import calibration_header, calibration_line
from avtool.models.zoo import SPEC
from avtool.timegrid import Grid
from avtool.training.additive import FitConfig, Items, LeftOut, fit
from avtool.training.calibration import Answers, calibrate, clip_answers, families, scene_answers
from avtool.training.corpus import Corpus, LabelledClip, folds
from avtool.training.few import INTERLEAVE, FewRecipe, train_few
from avtool.training.localizer import Pair, bank_items, clip_items, teaching_pairs
from avtool.training.loco import LoCoRecipe, Standard, train
from avtool.training.quadruples import LETTERS, Encoded, encode, scenes

log = logging.getLogger("avtool")
TIER_AP = 0.3  # out-of-fold average precision from which a class is in the default tier
TIER_TIOU = 0.3
FALSE_ALARMS = 0.004  # share of the clips of other classes in which a class may fire: a third of the clips in all
STRANGE = 0.01  # ... of composed scenes of other classes in which a class of clips may fire
NOTHING = 0.015  # ... and of scenes of no class at all: unlabelled pictures with unlabelled sounds
SHRINKAGE = 4  # pooled scenes that every class's own scenes are mixed with when its threshold is chosen
KEEPING = 0.1  # keeping true pairs is held to a standard higher by this: it falls most on pictures not chosen on
LOWEST, HIGHEST = 0.02, 0.95  # thresholds stay inside
LEVELS = 200  # thresholds that are tried
FOLD_SEEDS = (0, 1, 2)
SCENE_SECONDS = 10.0
KINDS = ("kept", "heard only", "seen only")
Floats = npt.NDArray[np.float64]


def candidates(curve: npt.NDArray[np.float32], duration: float, floor: float = 0.01) -> Proposals:
    """What `avtool localize --min-score 0.01 --classes all` selects from, for one clip of one window."""
    return cut_to(suppress(from_curve(curve, Grid())), duration, floor)


def cut_to(found: Proposals, duration: float, floor: float = 0.01) -> Proposals:
    """Candidates cut to the file, those below `floor` left out."""
    starts, ends = np.maximum(found.starts, 0.0), np.minimum(found.ends, duration)
    kept = (found.scores >= floor) & (ends > starts)
    return Proposals(starts, ends, found.labels, found.scores).take(kept)


def fit_on(
    visual: Items, audio: Items, bank: tuple[Items, Items] | None, config: FitConfig, seed: int, quadruples: int = 0
) -> LeftOut:
    """Fit on real clips and, where given, composed scenes, the last of which belong to quadruples."""
    count = len(visual.x)
    if bank:
        visual, audio = Items.join([visual, bank[0]]), Items.join([audio, bank[1]])
    pairs = teaching_pairs(visual, audio, count, np.random.default_rng(seed), quadruples)
    return fit(visual, audio, pairs, config, count)


@dataclass(frozen=True)
class Trial:
    """One question to a localizer: the best score it gives to `label`, and whether it should have."""

    label: int
    kind: str  # one of KINDS: a true pair, heard but not seen, seen but not heard
    scores: tuple[float, float, float]  # both media, sound alone, picture alone


Ask = Callable[[Mapping[str, Any]], Sequence[Proposals]]  # clip features -> candidates: both media, sound, picture


def ask_additive(network: Additive) -> Ask:
    """Candidates of an additive network, and of each of its media alone."""

    def ask(found: Mapping[str, Any]) -> Sequence[Proposals]:
        curves = network.scores(found["visual"], found["audio"], found["seen"], found["heard"])
        return [candidates(curve, SCENE_SECONDS) for curve in curves]

    return ask


def ask_votes(network: Additive) -> Ask:
    """The same of votes in place of embeddings."""

    def ask(found: Mapping[str, Any]) -> Sequence[Proposals]:
        curves = network.judged(found["visual"], found["audio"], found["seen"], found["heard"])
        return [candidates(curve, SCENE_SECONDS) for curve in curves]

    return ask


def as_left_out(left: LeftOut, quadruples: Sequence[Encoded]) -> Iterator[Encoded]:
    """Quadruples that a network was fitted on, with the votes of maps that never saw their files."""
    start = len(left.visual) - 2 * len(quadruples)
    for k, q in enumerate(quadruples):
        rows = len(q.clips["aa"]["seen"])
        clips = {
            key: {
                **clip,
                "visual": left.visual[start + 2 * k + LETTERS.index(key[0]), :rows],
                "audio": left.audio[start + 2 * k + LETTERS.index(key[1]), :rows],
            }
            for key, clip in q.clips.items()
        }
        yield replace(q, clips=clips)


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network as the recipe needs it.

    Attributes:
        kind: as in the description of a model.
        candidates: of one clip of one window: embeddings (n, Dv) and (n, Da), seconds.
        tensors: of its file.
        settings: of its description that belong to the network, as TOML values.
    """

    kind: str
    candidates: Callable[[Any, Any, float], Proposals]
    tensors: Mapping[str, torch.Tensor]
    settings: Mapping[str, str]


Training = Callable[[Items, Items, tuple[Items, Items], int], Trained]  # items of the clips, bank, seed


def ask_trained(trained: Trained) -> Ask:
    """Candidates of a network that has no opinion of one medium alone."""

    def ask(found: Mapping[str, Any]) -> Sequence[Proposals]:
        return [trained.candidates(found["visual"], found["audio"], SCENE_SECONDS)] * 3

    return ask


def additive_training(config: FitConfig) -> Training:
    """The closed form, for comparison; `additive_release` is what ships."""

    def trained(visual: Items, audio: Items, bank: tuple[Items, Items], seed: int) -> Trained:
        network = fit_on(visual, audio, bank, config, seed).network

        def found(v: Any, a: Any, seconds: float) -> Proposals:
            every = np.ones(len(v), bool)
            return candidates(network.scores(v, a, every, every)[0], seconds)

        return Trained("additive", found, network.tensors(), {})

    return trained


def loco_training(recipe: LoCoRecipe) -> Training:
    """A tiny LoCo on real clips and composed scenes; clips make up half of the pairs, some with another's sound."""

    def trained(visual: Items, audio: Items, bank: tuple[Items, Items], seed: int) -> Trained:
        count = len(visual.x)
        visual, audio = Items.join([visual, bank[0]]), Items.join([audio, bank[1]])
        rng = np.random.default_rng(seed)
        pairs = teaching_pairs(visual, audio, count, rng)
        pairs += classmates(visual.labels[:count].any(1).argmax(1), recipe.classmates, rng)
        real = [p for p in pairs if p[0] < count and p[1] < count]
        pairs += real * max(1, len(pairs) // max(1, len(real)))
        config = LoCoConfig.tiny(visual.x.shape[2], audio.x.shape[2], visual.labels.shape[2])
        network, data = train(visual, audio, pairs, config, recipe, seed)
        tensors = {k: v.half() if v.ndim > 1 else v for k, v in network.state_dict().items()}
        settings = {"config": f"'{describe(network.config)}'"}
        return Trained("loco", partial(loco_candidates, network, data), tensors | data.tensors(), settings)

    return trained


def classmates(classes: npt.NDArray[np.int64], times: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Every clip so many times with the sound of any clip of its class; classes (M,)."""
    every = list(range(len(classes))) * times
    return [(i, int(rng.choice(np.flatnonzero(classes == classes[i])))) for i in every]


def loco_candidates(network: LoCo, data: Standard, visual: Any, audio: Any, duration: float) -> Proposals:
    """Candidates of one clip of one window: embeddings (n, Dv) and (n, Da)."""
    rows = len(visual)
    with torch.inference_mode():
        output = network(data.apply(0, visual)[None], data.apply(1, audio)[None], torch.ones(1, rows, dtype=torch.bool))
    return cut_to(suppress(from_pyramid(pyramid_levels(output, np.ones(rows, bool)), Grid())), duration)


def segment_training(
    kind: str, recipe: FewRecipe, changes: Mapping[str, Any] | None = None, silent: str | None = None
) -> Training:
    """A small network of `avtool.training.few`, see `train_few`."""

    def trained(visual: Items, audio: Items, bank: tuple[Items, Items], seed: int) -> Trained:
        count = len(visual.x)
        visual, audio = Items.join([visual, bank[0]]), Items.join([audio, bank[1]])
        few = train_few(kind, visual, audio, count, recipe, seed, changes, silent)
        settings = {"interleave": str(INTERLEAVE), "config": f"'{few.describe()}'"}
        return Trained(kind, lambda v, a, seconds: candidates(few.curve(v, a), seconds), few.tensors(), settings)

    return trained


def trials(ask: Ask, classes: int, quadruples: Iterable[Encoded]) -> list[Trial]:
    """Ask about both classes of every quadruple in all four clips."""
    out = []
    for quad in quadruples:
        for key, found in quad.clips.items():
            peaks = [best_scores(c, classes, quad.start, quad.end) for c in ask(found)]
            for letter, label in zip("ab", (quad.first, quad.second), strict=True):
                kind = {(True, True): "kept", (False, True): "heard only", (True, False): "seen only"}.get(
                    (key[0] == letter, key[1] == letter)
                )
                if kind:
                    out.append(Trial(label, kind, tuple(float(p[label]) for p in peaks)))  # type: ignore[arg-type]
    return out


def best_scores(found: Proposals, classes: int, start: float = 0.0, end: float = np.inf) -> Floats:
    """Best score of each class among the candidates that overlap [start, end), 0 where there is none."""
    best = np.zeros(classes)
    near = (found.starts < end) & (found.ends > start)
    np.maximum.at(best, found.labels[near], found.scores[near])
    return best


def rates(
    answers: Sequence[Trial], thresholds: Mapping[int, float] | Sequence[float] | Floats, which: int = 0
) -> dict[str, float]:
    """Mean over classes of: true pairs kept, heard-only rejected, seen-only rejected; `which` of a trial's scores."""
    table: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for t in answers:
        above = t.scores[which] >= thresholds[t.label]
        table[t.kind, t.label].append(above == (t.kind == "kept"))
    return {kind: float(np.mean([np.mean(v) for (k, _), v in table.items() if k == kind])) for kind in KINDS}


def choose_thresholds(answers: Sequence[Trial], which: int = 0) -> dict[int, float]:
    """For each class the threshold with the best worst of keeping and rejecting; few scenes lean on all of them."""
    levels = np.unique(np.clip([t.scores[which] for t in answers], LOWEST, HIGHEST))
    levels = np.unique(np.quantile(levels, np.linspace(0, 1, LEVELS)))

    def right(chosen: Sequence[Trial]) -> tuple[Floats, Floats]:
        hits, counts = np.zeros((len(KINDS), len(levels))), np.zeros((len(KINDS), 1))
        for t in chosen:
            k = KINDS.index(t.kind)
            hits[k] += (t.scores[which] >= levels) == (t.kind == "kept")
            counts[k] += 1
        return hits, counts

    pooled_hits, pooled_counts = right(answers)
    pooled = pooled_hits / np.maximum(pooled_counts, 1)
    out = {}
    for label in sorted({t.label for t in answers}):
        hits, counts = right([t for t in answers if t.label == label])
        share = (hits + SHRINKAGE * pooled) / (counts + SHRINKAGE)
        share[KINDS.index("kept")] -= KEEPING
        out[label] = float(levels[int(np.argmax(share.min(0) + 0.1 * share.mean(0)))])
    return out


def out_of_fold(
    visual: Items,
    audio: Items,
    bank: tuple[Items, Items],
    clips: Sequence[LabelledClip],
    config: FitConfig,
    seed: int,
    quadruples: int = 0,
) -> list[Proposals]:
    """Candidates of every clip from a fit that did not see it."""
    fold = np.array(folds(list(clips), seed))
    out: dict[int, Proposals] = {}
    for number in range(3):
        train = np.flatnonzero(fold != number)
        network = fit_on(visual.take(train), audio.take(train), bank, config, seed * 10 + number, quadruples).network
        for i in np.flatnonzero(fold == number).tolist():
            n = int((visual.valid[i] | audio.valid[i]).sum())
            scores = network.scores(visual.x[i, :n], audio.x[i, :n], visual.valid[i, :n], audio.valid[i, :n])
            out[i] = candidates(scores[0], clips[i].duration)
    return [out[i] for i in range(len(clips))]


def out_of_fold_trained(
    visual: Items, audio: Items, bank: tuple[Items, Items], clips: Sequence[LabelledClip], training: Training, seed: int
) -> list[Proposals]:
    """The same folds for a trained network."""
    fold = np.array(folds(list(clips), seed))
    out: dict[int, Proposals] = {}
    for number in range(3):
        keep = np.flatnonzero(fold != number)
        trained = training(visual.take(keep), audio.take(keep), bank, seed * 10 + number)
        for i in np.flatnonzero(fold == number).tolist():
            n = int((visual.valid[i] | audio.valid[i]).sum())
            out[i] = trained.candidates(visual.x[i, :n], audio.x[i, :n], clips[i].duration)
    return [out[i] for i in range(len(clips))]


def clip_ap(runs: Sequence[Sequence[Proposals]], clips: Sequence[LabelledClip]) -> dict[int, float]:
    """Average precision of each class at TIER_TIOU, mean over the fold seeds."""
    truth = Segments(
        *(np.array(v) for v in zip(*((i, c.onset, c.offset, c.label) for i, c in enumerate(clips)), strict=True))
    )
    table = []
    for rows in runs:
        every = Proposals.concat(rows)
        video = np.concatenate([np.full(len(r.labels), i) for i, r in enumerate(rows)])
        result = mean_ap(
            truth, Segments(video, every.starts, every.ends, every.labels, every.scores.astype(float)), (TIER_TIOU,)
        )
        table.append(result.ap[0])
    return {int(label): float(ap) for label, ap in zip(result.labels, np.mean(table, 0), strict=True)}


def clip_thresholds(
    runs: Sequence[Sequence[Proposals]], clips: Sequence[LabelledClip], classes: int
) -> dict[int, float]:
    """The threshold at which a class fires in FALSE_ALARMS of the clips of other classes."""
    peaks = np.stack([[best_scores(found, classes) for found in rows] for rows in runs])  # (seeds, clips, C)
    labels = np.array([c.label for c in clips])
    return {
        int(c): float(np.clip(np.quantile(peaks[:, labels != c, c], 1 - FALSE_ALARMS), LOWEST, HIGHEST))
        for c in np.unique(labels)
    }


def scene_peaks(ask: Ask, classes: int, quadruples: Iterable[Encoded]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Label (M,) of every true pair of the quadruples and the best score of each class in it (M, C)."""
    pairs = [
        (label, quad.clips[key]) for quad in quadruples for key, label in (("aa", quad.first), ("bb", quad.second))
    ]
    peaks = np.stack([best_scores(ask(found)[0], classes) for _, found in pairs])
    return np.array([label for label, _ in pairs]), peaks


def empty_peaks(ask: Ask, classes: int, bank: tuple[Items, Items], visual: Any, audio: Any) -> Floats:
    """The best score of each class (M, C) in scenes that show nothing, each with a scene's sound that says nothing.

    Args:
        ask: a localizer.
        classes: C.
        bank: composed scenes of both media.
        visual, audio: (N, T, D) what `ask` takes for each scene of the bank.
    """
    rng = np.random.default_rng(0)
    blank, silent = (np.flatnonzero(~items.labels.any((1, 2))) for items in bank)
    found = []
    for i, j in zip(blank, rng.choice(silent, len(blank)), strict=True):
        rows = min(int(bank[0].valid[i].sum()), int(bank[1].valid[j].sum()))
        every = np.ones(rows, bool)
        clip = {"visual": visual[i, :rows], "audio": audio[j, :rows], "seen": every, "heard": every}
        found.append(best_scores(ask(clip)[0], classes))
    return np.stack(found)


def strange_thresholds(labels: npt.NDArray[np.int64], peaks: Floats, chosen: Iterable[int]) -> dict[int, float]:
    """The threshold at which a class fires in STRANGE of the scenes of other classes."""
    return {
        c: float(np.clip(np.quantile(peaks[labels != c, c], 1 - STRANGE), LOWEST, HIGHEST)) for c in sorted(set(chosen))
    }


def scene_ap(answers: Sequence[Trial]) -> dict[int, float]:
    """Average precision of each class over its composed scenes, true pairs against mismatched ones."""
    out = {}
    for label in {t.label for t in answers}:
        own = sorted((t for t in answers if t.label == label), key=lambda t: -t.scores[0])
        good = np.array([t.kind == "kept" for t in own])
        out[label] = float((np.cumsum(good) / np.arange(1, len(own) + 1))[good].mean())
    return out


@dataclass(frozen=True, eq=False)
class Release:
    """A trained localizer with what its description says about itself and about each class."""

    name: str
    kind: str
    tensors: Mapping[str, torch.Tensor]
    thresholds: tuple[float, ...]
    tiers: tuple[str, ...]
    calibration: Calibration
    ap: tuple[float, ...]
    settings: Mapping[str, str]  # as TOML values


@dataclass(frozen=True, eq=False)
class Material:
    """All that a localizer is trained and judged on."""

    corpus: Corpus
    pair: Pair
    visual: Items
    audio: Items
    bank: tuple[Items, Items]  # the last items are those of `taught`
    taught: Sequence[Encoded]  # quadruples of the training split
    quadruples: Sequence[Encoded]  # ... of the validation split


def gather(corpus: Corpus, pair: Pair, work: Path, count: int, per_class: int) -> Material:
    """Features of the clips, of `count` composed scenes per medium, and of `per_class` quadruples a class and split."""
    visual, audio = clip_items(corpus, pair, work)
    taught, asked = (list(encode(corpus, pair, split, per_class, 1)) for split in ("train", "val"))
    more = scenes(taught, len(corpus.classes))
    bank = bank_items(corpus, pair, "train", count, work, visual.x.shape[1], more)
    return Material(corpus, pair, visual, audio, bank, taught, asked)


def additive_release(name: str, material: Material, config: FitConfig) -> Release:
    """Fit the additive localizer on everything; thresholds and tiers from clips and scenes it was not fitted on."""
    m, clips, count = material, material.corpus.clips(), len(material.corpus.classes)
    left = fit_on(m.visual, m.audio, m.bank, config, 0, len(m.taught))
    answers = trials(ask_additive(left.network), count, m.quadruples)
    known = trials(ask_votes(left.network), count, as_left_out(left, m.taught))
    runs = [out_of_fold(m.visual, m.audio, m.bank, clips, config, seed, len(m.taught)) for seed in FOLD_SEEDS]
    settings = {"nms": '"gaussian"', "sigma": "0.4"}
    sides = (ask_additive(left.network), m.quadruples), (ask_votes(left.network), list(as_left_out(left, m.taught)))
    found = [scene_peaks(ask, count, quadruples) for ask, quadruples in sides]
    peaks = np.concatenate([labels for labels, _ in found]), np.concatenate([table for _, table in found])
    votes = (part[len(clips) :] for part in (left.visual, left.audio))
    empty = empty_peaks(ask_votes(left.network), count, m.bank, *votes)
    maps = scene_maps(runs, clips, sides, count)
    return _judged(
        name, "additive", left.network.tensors(), m.corpus, answers + known, peaks, empty, runs, maps, settings
    )


def network_release(name: str, material: Material, training: Training) -> Release:
    """The same for a trained network; one seed of folds, as its training is the longest step."""
    m, clips, count = material, material.corpus.clips(), len(material.corpus.classes)
    trained = training(m.visual, m.audio, m.bank, 0)
    ask = ask_trained(trained)
    answers = trials(ask, count, m.quadruples)
    runs = [out_of_fold_trained(m.visual, m.audio, m.bank, clips, training, 0)]
    peaks = scene_peaks(ask, count, m.quadruples)
    empty = empty_peaks(ask, count, m.bank, m.bank[0].x, m.bank[1].x)
    settings = {"nms": '"gaussian"', "sigma": "0.4", **trained.settings}
    maps = scene_maps(runs, clips, [(ask, m.quadruples)], count)
    return _judged(name, trained.kind, trained.tensors, m.corpus, answers, peaks, empty, runs, maps, settings)


def scene_maps(
    runs: Sequence[Sequence[Proposals]],
    clips: Sequence[LabelledClip],
    sides: Sequence[tuple[Ask, Sequence[Encoded]]],
    classes: int,
) -> Calibration:
    """Calibration on candidates of left-out clips and scenes; a scene of any side counts alike.

    Args:
        runs: candidates of every clip from a fit that did not see it.
        clips: the clips.
        sides: localizers, each with quadruples that it was not fitted on.
        classes: C.
    """
    return calibrate(*left_out_answers(runs, clips, sides, classes))


def left_out_answers(
    runs: Sequence[Sequence[Proposals]],
    clips: Sequence[LabelledClip],
    sides: Sequence[tuple[Ask, Sequence[Encoded]]],
    classes: int,
) -> tuple[Answers, npt.NDArray[np.int64]]:
    """What `scene_maps` fits on: candidates with their truth, and the family of each class."""
    parts, first, scenes = [clip_answers(runs, clips, classes)], len(clips), sum(len(q) for _, q in sides)
    for ask, quadruples in sides:
        parts.append(scene_answers(ask, quadruples, first, len(clips) * len(quadruples) / scenes))
        first += len(quadruples)
    return Answers.join(parts), families(clips, classes)


def _judged(
    name: str,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    corpus: Corpus,
    answers: Sequence[Trial],
    peaks: tuple[npt.NDArray[np.int64], Floats],
    empty: Floats,
    runs: Sequence[Sequence[Proposals]],
    calibration: Calibration,
    settings: Mapping[str, str],
) -> Release:
    """Thresholds and tiers. Thresholds are chosen on what a localizer computes, then take the way of all scores.

    A class that scenes show must be right on scenes; one that only clips show must be quiet on clips of other classes
    and on scenes, those of no class included, as two clips are too few to ask what it keeps.
    """
    clips, count = corpus.clips(), len(corpus.classes)
    real, composed = clip_thresholds(runs, clips, count), choose_thresholds(answers)
    log.info("%s: composed val at the chosen thresholds: %s", name, rates(answers, composed))
    strange, nothing = strange_thresholds(*peaks, real), np.clip(np.quantile(empty, 1 - NOTHING, 0), LOWEST, HIGHEST)
    chosen = {c: max(real[c], strange[c], float(nothing[c])) for c in real} | composed
    thresholds = calibrated_thresholds([chosen[c] for c in range(count)], calibration)
    ap = {**scene_ap(answers), **clip_ap(runs, clips)}
    tiers = tuple("default" if ap[c] >= TIER_AP else "experimental" for c in range(count))
    log.info("%s: %d classes in the default tier", name, tiers.count("default"))
    return Release(name, kind, tensors, thresholds, tiers, calibration, tuple(ap[c] for c in range(count)), settings)


def calibrated_thresholds(chosen: Sequence[float], calibration: Calibration) -> tuple[float, ...]:
    """Thresholds as a description keeps them: what is above stays above."""
    kept = np.round(chosen, DECIMALS)
    return tuple(round(float(t), DECIMALS) for t in calibration(kept, np.arange(len(kept))))


LICENCE = "avtool's own weights; fitted partly on AVE-PM clips (CC BY-NC-SA 4.0) and ImageNet pictures"
DETAILS = (
    "encoders distilled from ImageNet and AudioSet models; localizer fitted on AVE-PM clips and on composed scenes"
)


def write(release: Release, corpus: Corpus, out: Path) -> None:
    """Write NAME.safetensors and NAME.toml."""
    data = save({k: v.contiguous() for k, v in release.tensors.items()})
    write_atomic(out / f"{release.name}.safetensors", data)
    vouched = release.tiers.count("default")
    lines = [
        f'format = "{SPEC}"',
        f'kind = "{release.kind}"',
        f'name = "{release.name}"',
        f'sha256 = "{hashlib.sha256(data).hexdigest()}"',
        'segment = "1/2" # seconds',
        'stride = "1/2"',
        "window = 20 # segments",
        "hop = 5",
        'visual = ["mini"]',
        'audio = ["mini"]',
        f'licence = "{LICENCE}"',
        'commercial = "ask"',
        f'summary = "{len(release.ap)} events, {vouched} of them vouched for; reads mini"',
        f'details = "{DETAILS}"',
        "",
        "[settings]",
        *(f"{key} = {value}" for key, value in release.settings.items()),
        *calibration_header(release.calibration),
        "",
    ]
    columns = zip(corpus.names, release.tiers, release.thresholds, release.ap, strict=True)
    for label, (event, tier, threshold, ap) in enumerate(columns):
        lines += ["[[classes]]", f'name = "{event}"', f'tier = "{tier}"']
        lines += [f"threshold = {threshold} # average precision {ap:.2f}"]
        lines += [*calibration_line(release.calibration, label), ""]
    write_atomic(out / f"{release.name}.toml", "\n".join(lines))


NETWORKS: dict[str, Training] = {
    "loco": loco_training(LoCoRecipe()),
    "cacenet": segment_training("cace", FewRecipe()),
    "ccln": segment_training("ccln", FewRecipe()),
}


def main() -> None:
    """Build and write `additive-mini`, `loco-mini`, `cacenet-mini` and `ccln-mini`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--shared", "--work", "--out"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=9600)
    parser.add_argument("--per-class", type=int, default=12)
    parser.add_argument("--only", choices=("additive", *NETWORKS))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    cpu = torch.device("cpu")
    corpus, pair = Corpus(options.shared), Pair("mini", catalog.VISUAL["mini"](cpu), catalog.AUDIO["mini"](cpu))
    material = gather(corpus, pair, options.work, options.scenes, options.per_class)
    for name in [options.only] if options.only else ["additive", *NETWORKS]:
        if name == "additive":
            release = additive_release("additive-mini", material, FitConfig())
        else:
            release = network_release(f"{name}-mini", material, NETWORKS[name])
        write(release, corpus, options.out)


if __name__ == "__main__":
    main()
