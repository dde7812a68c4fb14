"""Trains `loco-tags`, one localizer for every encoder pair that says AudioSet's and ImageNet's words.

    python -m avtool.training.tags --shared ../shared --work DIR --out weights

It is fitted on class scores of several encoders at once, so that none of them is learnt by heart: mn04 with windows of
two seconds and of one, MobileNetV2, and the logits of SqueezeNet in `transfer/`. Design: labelspace.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.detect.proposals import Proposals
from avtool.features.encoders import catalog
from avtool.features.encoders.base import Encoder
from avtool.features.tags import scale_of, seen_things, words
from avtool.models.additive import CLIP, Judge
from avtool.models.labels import Labels, Voter
from avtool.models.release import write_model
from avtool.models.zoo import ModelInfo
from avtool.training.additive import Items, Scene, fit_judges, fit_side, sharpen
from avtool.training.calibration import calibrate, clip_answers, families
from avtool.training.corpus import Corpus, LabelledClip, folds
from avtool.training.localizer import CPU, Pair, clip_items, clip_labels
from avtool.training.recipe import TIER_AP, calibrated_thresholds, candidates, clip_ap, clip_thresholds
from avtool.vocabulary import Vocabulary

log = logging.getLogger("avtool")
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
FOLD_SEEDS = (0, 1, 2)
RIGHT_TIOU = 0.3  # overlap with the clip's event from which a candidate of its class is right
PROBABLE = 1e-4, 1 - 1e-4  # scores are clipped to these before they are calibrated


# ---------------------------------------------------------------- material


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one encoder says of M clips in label space: x (M, T, D), NaN where it lacks a class; valid (M, T)."""

    x: Floats
    valid: Bools


@dataclass(frozen=True, eq=False)
class View:
    """The clips as one pair of encoders hears and sees them."""

    audio: Inputs
    visual: Inputs


def scored(encoder: Encoder) -> Encoder:
    """The same encoder with its class scores in place of the embedding."""

    def run(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = encoder.run(batch)[1]
        assert logits is not None
        return logits, None

    return replace(encoder, run=run, dim=encoder.tags, tags=0)


def clip_scores(corpus: Corpus, pair: Pair, work: Path) -> tuple[Items, Items]:
    """Class scores of all labelled clips, pictures and sound; cached in `work` under the pair's name."""
    return clip_items(corpus, Pair(pair.name, scored(pair.visual), scored(pair.audio)), work)


def heard_inputs(encoder: str, scores: Floats, heard: Bools, seconds: float = 2.0) -> Inputs:
    """Label space of sound; every clip is its tagger's own scale.

    Args:
        encoder: name of the tagger.
        scores: (M, T, WORDS) logits.
        heard: (M, T).
        seconds: length of its windows.
    """
    rows = [words(z, valid, scale_of(encoder, z, valid), seconds) for z, valid in zip(scores, heard, strict=True)]
    return Inputs(np.stack(rows), heard)


def seen_inputs(scores: Floats, seen: Bools) -> Inputs:
    """Label space of pictures. scores: (M, T, THINGS) logits; seen: (M, T)."""
    return Inputs(seen_things(np.where(np.isfinite(scores), scores, 0)), seen)


def read_squeezenet(shared: Path, clips: Sequence[LabelledClip], rows: int) -> Floats:
    """SqueezeNet's logits (M, rows, THINGS), one a second and so each for two segments.

    Raises:
        ValueError: the file is not about these clips.
    """
    with np.load(shared / "transfer" / "squeezenet_avepm_1s.npz") as archive:
        if [str(n) for n in archive["clip"]] != [clip.path.name for clip in clips]:
            raise ValueError("squeezenet_avepm_1s.npz is about other clips")
        logits = archive["logits"].astype(np.float32)
    known = np.isfinite(logits).all(2)
    last = np.maximum(known.sum(1) - 1, 0)  # a clip's last second may be cut: its last picture stays
    index = np.minimum(np.arange(rows)[None] // 2, last[:, None])
    return np.take_along_axis(logits, index[..., None], 1)


def known_classes(corpus: Corpus) -> tuple[list[str], list[LabelledClip]]:
    """Names of the classes that clips show, and the clips with labels among these."""
    clips = corpus.clips()
    shown = sorted({clip.label for clip in clips})
    return [corpus.names[k] for k in shown], [replace(clip, label=shown.index(clip.label)) for clip in clips]


def training_views(shared: Path, corpus: Corpus, work: Path) -> dict[str, View]:
    """The encoders that are trained on; all of them may be shipped."""
    coral, mini, mn04 = (*(catalog.VISUAL[n](CPU) for n in ("mobilenetv2-coral", "mini")), catalog.AUDIO["mn04"](CPU))
    visual, audio = clip_scores(corpus, Pair("scores-mobilenet-mn04", coral, mn04), work)
    _, short = clip_scores(corpus, Pair("scores-mini-mn04-1s", mini, replace(mn04, seconds=1.0)), work)
    squeezed = read_squeezenet(shared, corpus.clips(), visual.x.shape[1])
    return {
        "mn04 + MobileNetV2": View(heard_inputs("mn04", audio.x, audio.valid), seen_inputs(visual.x, visual.valid)),
        "mn04 of 1 s + SqueezeNet": View(
            heard_inputs("mn04 of 1 s", short.x, short.valid, 1.0), seen_inputs(squeezed, visual.valid)
        ),
    }


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True)
class LabelConfig:
    """Strengths of the fit.

    Attributes:
        ridge: of both maps, as a multiple of the mean squared row length.
        reach: in root mean squares of an input, beyond which it says no more.
        audio_share: weight of sound's votes against the picture's.
        positive: how much more a true (class, row) counts than a wrong one for the verifier.
    """

    ridge: float = 1.0
    reach: float = 15.0
    audio_share: float = 0.75
    positive: float = 5.0


def fit_labels(
    views: Sequence[View], clips: Sequence[LabelledClip], classes: int, config: LabelConfig, seed: int
) -> Labels:
    """Fit the whole localizer on clips as several pairs of encoders hear and see them.

    Args:
        views: at least one; each of the same clips in the same order.
        clips: the clips.
        classes: number of classes.
        config: strengths.
        seed: of the pairs that the verifier is fitted on.
    """
    visual = _joined([view.visual for view in views], clips, classes)
    audio = _joined([view.audio for view in views], clips, classes)
    eye, seen = _voter(visual, len(views), 1.0, config)
    ear, heard = _voter(audio, len(views), config.audio_share, config)
    scenes = [
        Scene(seen[i], heard[j], visual.valid[i], audio.valid[j], visual.labels[i], audio.labels[j])
        for i, j in _pairs(len(clips), len(views), np.random.default_rng(seed))
    ]
    return Labels(eye, ear, *fit_judges(scenes, config.positive))


def _joined(parts: Sequence[Inputs], clips: Sequence[LabelledClip], classes: int) -> Items:
    """All views of one medium; those of one clip are left out together."""
    labels = [clip_labels(clips, part.valid, classes) & part.valid[..., None] for part in parts]
    return Items(
        x=np.concatenate([part.x for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
        labels=np.concatenate(labels),
        weight=np.ones(len(parts) * len(clips), np.float32),
        source=np.tile(np.arange(len(clips)), len(parts)),
    )


def _voter(items: Items, views: int, share: float, config: LabelConfig) -> tuple[Voter, Floats]:
    """The map of one medium, and the votes (M, T, C) of maps that never saw the clip.

    The mean is that over all encoders. The scale is one number: class by class, rare ones would be blown up.
    """
    flat = items.x[items.valid]
    present = np.isfinite(flat)
    mean = np.where(present, flat, 0).sum(0) / np.maximum(present.sum(0), 1)
    deviation = float(np.sqrt(np.mean(((flat - mean) ** 2)[present])))
    scale = deviation * config.reach / CLIP
    filled = replace(items, x=np.where(np.isfinite(items.x), items.x, mean).astype(np.float32))
    spread = np.full(len(mean), scale, np.float32)
    # the same clips again, as another encoder sees them, are no more evidence
    found = fit_side(filled, config.ridge * views**0.5, (mean.astype(np.float32), spread))
    factor = np.float32(sharpen(found.loo, filled) * share)
    side = found.side
    return Voter(mean.astype(np.float32), scale, side.weight * factor, side.bias * factor), found.loo * factor


def _pairs(clips: int, views: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(picture item, sound item): every clip twice with its own sound and once with another's, as any encoder."""

    def item(clip: int) -> int:
        return int(rng.integers(views)) * clips + clip

    own = [(item(i), item(i)) for i in range(clips) for _ in range(2)]
    return own + [(item(i), item(int(rng.integers(clips)))) for i in range(clips)]


# ---------------------------------------------------------------- scores on one scale


def ask(network: Labels, view: View, clip: int, duration: float) -> Proposals:
    """Candidates of one clip."""
    seen, heard = view.visual.valid[clip], view.audio.valid[clip]
    n = int((seen | heard).sum())
    curve = network.scores(view.visual.x[clip, :n], view.audio.x[clip, :n], seen[:n], heard[:n])[0]
    return candidates(curve, duration)


def right(found: Proposals, clip: LabelledClip) -> Bools:
    """(P,) which candidates are of the clip's class and overlap its event by RIGHT_TIOU."""
    inside = np.minimum(found.ends, clip.offset) - np.maximum(found.starts, clip.onset)
    union = np.maximum(found.ends, clip.offset) - np.minimum(found.starts, clip.onset)
    return np.asarray((found.labels == clip.label) & (inside >= RIGHT_TIOU * union))


def fit_calibration(scores: npt.NDArray[np.floating], truth: Bools) -> tuple[float, float]:
    """Slope and offset of the log-odds that make scores probabilities (Platt's scaling).

    Args:
        scores: (P,) in [0, 1].
        truth: (P,) which of them were right.
    """
    x = torch.from_numpy(_log_odds(scores))
    y = torch.from_numpy(truth.astype(np.float64))
    theta = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=50, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimiser.zero_grad()
        value = F.binary_cross_entropy_with_logits(theta[0] * x + theta[1], y)
        value.backward()
        return value

    optimiser.step(cost)
    slope, offset = theta.tolist()
    return max(0.05, slope), offset


def _log_odds(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    p = np.clip(scores.astype(np.float64), *PROBABLE)
    return np.asarray(np.log(p / (1 - p)))


def calibrated(network: Labels, slope: float, offset: float) -> Labels:
    """The network whose log-odds z are slope * z + offset; the order of scores stays."""

    def judge(given: Judge) -> Judge:
        s, o = np.float32(slope), np.float32(offset)
        return Judge(given.weight * s, given.bias * s + o)

    return replace(network, both=judge(network.both), ear=judge(network.ear), eye=judge(network.eye))


@dataclass(frozen=True, eq=False)
class Folds:
    """Networks of one dealing of the clips: `networks[fold[i]]` never saw clip i."""

    fold: npt.NDArray[np.int64]
    networks: Sequence[Labels]

    def candidates(self, view: View, clips: Sequence[LabelledClip]) -> list[Proposals]:
        """Of every clip from the network that never saw it."""
        return [ask(self.networks[self.fold[i]], view, i, clip.duration) for i, clip in enumerate(clips)]

    def calibrated(self, slope: float, offset: float) -> Folds:
        """The same for calibrated networks."""
        return replace(self, networks=[calibrated(n, slope, offset) for n in self.networks])


def fit_folds(
    views: Sequence[View], clips: Sequence[LabelledClip], classes: int, config: LabelConfig, seed: int
) -> Folds:
    """Three networks, each without a third of the clips."""
    fold = np.array(folds(list(clips), seed))
    networks = []
    for number in range(3):
        kept = np.flatnonzero(fold != number)
        own = [View(_some(view.audio, kept), _some(view.visual, kept)) for view in views]
        networks.append(fit_labels(own, [clips[i] for i in kept.tolist()], classes, config, seed * 10 + number))
    return Folds(fold, networks)


def _some(inputs: Inputs, index: npt.NDArray[np.int64]) -> Inputs:
    return Inputs(inputs.x[index], inputs.valid[index])


def calibration_of(runs: Sequence[Sequence[Proposals]], clips: Sequence[LabelledClip]) -> tuple[float, float]:
    """Slope and offset from candidates of networks that never saw the clips."""
    pairs = [(found, clip) for run in runs for found, clip in zip(run, clips, strict=True)]
    scores = np.concatenate([found.scores for found, _ in pairs])
    return fit_calibration(scores, np.concatenate([right(found, clip) for found, clip in pairs]))


# ---------------------------------------------------------------- the file that ships


def release(corpus: Corpus, views: Mapping[str, View], config: LabelConfig, out: Path) -> Path:
    """Fit on all clips; thresholds, tiers and calibration come from networks that never saw the clip in question.

    The scaling of the log-odds puts scores where proposals are well made of them; probabilities are the maps' affair.
    """
    names, clips = known_classes(corpus)
    every, count = list(views.values()), len(names)
    dealt = [fit_folds(every, clips, count, config, seed) for seed in FOLD_SEEDS]
    slope, offset = calibration_of([d.candidates(view, clips) for d in dealt for view in every], clips)
    log.info("log-odds times %.3f plus %.3f", slope, offset)
    judged = [d.calibrated(slope, offset) for d in dealt]
    runs = [[d.candidates(view, clips) for d in judged] for view in every]
    ap = clip_ap(runs[0], clips)
    thresholds = clip_thresholds([run for rows in runs for run in rows], clips, count)
    tiers = tuple("default" if ap[k] >= TIER_AP else "experimental" for k in range(count))
    vouched = tiers.count("default")
    log.info("%d of %d classes in the default tier", vouched, count)
    network = calibrated(fit_labels(every, clips, count, config, 0), slope, offset)
    maps = calibrate(clip_answers([run for rows in runs for run in rows], clips, count), families(clips, count))
    kept = calibrated_thresholds([thresholds[k] for k in range(count)], maps)
    info = ModelInfo(
        name="loco-tags",
        kind="labels",
        vocabulary=Vocabulary(tuple(names), tiers, kept, maps),
        visual=("resnet50-v1", "mobilenet_v2", "mobilenetv2-coral", "mini", "*"),
        audio=("cnn14", "mn04", "mini", "*"),
        hop=5,
        settings={"nms": "gaussian", "sigma": 0.4},
        licence="avtool's own weights; fitted on AVE-PM clips (CC BY-NC-SA 4.0)",
        commercial="ask",
        summary=f"{count} events, {vouched} of them vouched for; reads any encoders with class scores",
        details=f"fitted on AVE-PM clips as {' and '.join(views)} say AudioSet's and ImageNet's words; no LoCo network",
    )
    return write_model(info, network.tensors(), out)


def main() -> None:
    """Build and write `loco-tags`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--shared", "--work", "--out"):
        parser.add_argument(option, type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    corpus = Corpus(options.shared)
    release(corpus, training_views(options.shared, corpus, options.work), LabelConfig(), options.out)


if __name__ == "__main__":
    main()
