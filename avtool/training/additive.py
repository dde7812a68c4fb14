"""Fits the `additive` localizer in closed form, and its verifier on answers of maps that never saw the clip.

Both media are fitted apart from each other on items (scenes or clips): what is heard, what is seen. The verifier is
fitted on pairs of items, matched and mismatched, scored with all items of the same file left out of the map
(leave-one-file-out ridge).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from avtool.models.additive import BOUND, EVIDENCE, Additive, Judge, Side, evidence, log_softmax, normalise

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
EAR, EYE = (2, 4, 7, 11, 13, 16), (1, 3, 6, 10, 12, 15)  # kinds of evidence that one medium gives alone
ROWS_APART = 4  # every so many rows of a scene teach the verifier: neighbours say nearly the same


@dataclass(frozen=True, eq=False)
class Items:
    """M scenes or clips of one medium, padded to T rows.

    Attributes:
        x: (M, T, D) embeddings.
        valid: (M, T) rows that exist.
        labels: (M, T, C) what is audible (visible) in each row.
        weight: (M,) how much an item counts.
        source: (M,) int64; items with the same number show (sound) the same file, and are left out together.
    """

    x: Floats
    valid: Bools
    labels: Bools
    weight: Floats
    source: npt.NDArray[np.int64]

    def take(self, index: npt.NDArray[np.int64]) -> Items:
        """The items at `index`."""
        return Items(self.x[index], self.valid[index], self.labels[index], self.weight[index], self.source[index])

    @staticmethod
    def join(parts: Sequence[Items]) -> Items:
        """All items of several sets of equal T and C, which share no files."""
        arrays = {k: np.concatenate([getattr(p, k) for p in parts]) for k in ("x", "valid", "labels", "weight")}
        shifts = np.cumsum([0, *(int(p.source.max(initial=-1)) + 1 for p in parts)])
        return Items(**arrays, source=np.concatenate([p.source + s for p, s in zip(parts, shifts, strict=False)]))


@dataclass(frozen=True)
class FitConfig:
    """Strengths of the fit.

    Attributes:
        ridge: of the map fitted on real clips, as a multiple of the mean squared row length.
        scene_ridge: of the map fitted on composed scenes.
        audio_share: weight of sound's votes against the picture's.
        real_share: how much more a real row counts than a composed one when the two maps are balanced.
        positive: how much more a true (class, row) counts than a wrong one for the verifier.
        foreign_wins: share of the real clips in which a class that only scenes show may outrank the clip's own.
        centre, spread: a verifier's log-odds z become (z + centre) / spread, so that scores at which decisions are
            made lie in the middle of [0, 1]; the order of scores stays.
    """

    ridge: float = 1.0
    scene_ridge: float = 2.0
    audio_share: float = 0.75
    real_share: float = 3.0
    positive: float = 5.0
    foreign_wins: float = 0.1
    centre: float = 3.0
    spread: float = 1.5


def examples(items: Items) -> tuple[Floats, Floats, Floats, npt.NDArray[np.int64]]:
    """One example per item and stretch: the mean embedding of the rows with a label, and of those without.

    Returns:
        x (E, D), targets (E, C) label shares, weight (E,), item (E,).
    """
    xs, ys, ws, owners = [], [], [], []
    for i in range(len(items.x)):
        busy = items.labels[i].any(1) & items.valid[i]
        for rows, share in ((busy, 1.0), (items.valid[i] & ~busy, 0.5)):
            if rows.any():
                xs.append(items.x[i, rows].mean(0))
                ys.append(items.labels[i, rows].mean(0, dtype=np.float32))
                ws.append(items.weight[i] * share)
                owners.append(i)
    return np.stack(xs), np.stack(ys), np.asarray(ws, np.float32), np.asarray(owners)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted side with what leave-one-out needs."""

    side: Side
    loo: Floats  # (M, T, C) votes (before sharpness) of each item by the map that never saw its file


def scales(items: Items) -> tuple[Floats, Floats]:
    """Mean and deviation of every dimension over the valid rows: (D,) each; no deviation is near zero."""
    flat = items.x[items.valid]
    deviation = flat.std(0)
    return flat.mean(0), deviation + 0.1 * deviation.mean()


def fit_side(items: Items, ridge: float, scale: tuple[Floats, Floats] | None = None) -> Fitted:
    """Weighted ridge regression with exact leave-one-file-out votes.

    With A = X'WX + lambda I and theta = A^-1 X'Wy, taking the examples G of one file out changes theta by
    -A^-1 X_G' (W_G^-1 - X_G A^-1 X_G')^-1 (y_G - X_G theta) (Woodbury identity).
    """
    x, y, w, owner = examples(items)
    mean, deviation = scale or scales(items)
    w = w / w.mean()
    z = np.pad(normalise(x, mean, deviation).astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0)  # a bias
    prior = (w[:, None] * y).sum(0) / w.sum()
    target, weighted = y - prior, z * w[:, None]
    strength = ridge * float((z * z).sum(1).mean()) * float(len(z)) ** 0.5 / 10
    inverse = np.linalg.inv(weighted.T @ z + strength * np.eye(z.shape[1]))
    theta = inverse @ (weighted.T @ target)  # (D + 1, C); the bias is regularised like the rest
    side = Side(mean, deviation, theta[:-1].astype(np.float32), (theta[-1] + prior).astype(np.float32), 1.0)
    return Fitted(side, _left_out(items, side, z, w, inverse, target - z @ theta, owner))


def _left_out(
    items: Items,
    side: Side,
    z: Doubles,
    weight: Floats,
    inverse: Doubles,
    residual: Doubles,
    owner: npt.NDArray[np.int64],
) -> Floats:
    out = side.votes(items.x)
    for source in np.unique(items.source):
        members = np.flatnonzero(items.source == source)
        group = np.flatnonzero(np.isin(owner, members))
        pull = inverse @ z[group].T  # (D + 1, G)
        change = pull @ np.linalg.solve(np.diag(1 / weight[group]) - z[group] @ pull, residual[group])  # (D + 1, C)
        rows = normalise(items.x[members], side.mean, side.scale)
        out[members] -= rows @ change[:-1].astype(np.float32) + change[-1].astype(np.float32)
    return out


def sharpen(votes: Floats, items: Items) -> float:
    """The factor, searched on a log scale, that makes softmax(factor * votes) most likely right on left-out items."""
    busy = items.valid & (items.labels.sum(2) == 1)
    rows, truth = votes[busy], items.labels[busy].argmax(1)
    weight = np.repeat(items.weight[:, None], items.valid.shape[1], 1)[busy]

    def cost(factor: float) -> float:
        return float(-(log_softmax(rows * factor)[np.arange(len(rows)), truth] * weight).sum())

    grid = np.exp(np.linspace(np.log(2), np.log(100), 40))
    return float(grid[int(np.argmin([cost(float(f)) for f in grid]))])


@dataclass(frozen=True, eq=False)
class Scene:
    """Votes of one pair of items with its truth: (T, C) each, labels split by medium."""

    visual: Floats
    audio: Floats
    seen: Bools
    heard: Bools
    visible: Bools
    audible: Bools


def fit_medium(items: Items, clips: int, config: FitConfig) -> Fitted:
    """One map out of two: of the real clips, and of the composed scenes for the classes that these show.

    Few clips and many scenes do not share a regression: the scenes' classes would drown the others. Both maps are
    fitted apart; two sharpnesses and an offset of the scenes' classes balance them on left-out rows.

    Args:
        items: the first `clips` are real, the rest composed; only real ones give an ordinary ridge regression.
        clips: number of real items.
        config: strengths.
    """
    real = items.take(np.arange(clips))
    if clips == len(items.x):
        found = fit_side(real, config.ridge)
        factor = sharpen(found.loo, real)
        side = found.side
        return Fitted(replace(side, sharpness=factor), found.loo * factor)
    scale, scenes = scales(real), items.take(np.arange(clips, len(items.x)))
    first, second = fit_side(real, config.ridge, scale), fit_side(scenes, config.scene_ridge, scale)
    shown = np.asarray(scenes.labels.any((0, 1)))
    own = np.concatenate([first.loo, first.side.votes(scenes.x)])  # votes of the map of the clips
    other = np.concatenate([second.side.votes(real.x), second.loo]) * shown
    sharp, sharper, offset = _balance(own, other, shown, items, clips, config.real_share)
    extra = offset * shown.astype(np.float32)
    weight = sharp * first.side.weight + sharper * second.side.weight * shown
    bias = sharp * first.side.bias + sharper * second.side.bias * shown + extra
    return Fitted(Side(*scale, weight, bias, 1.0), own * sharp + other * sharper + extra)


def _balance(
    own: Floats, other: Floats, shown: Bools, items: Items, clips: int, real_share: float
) -> tuple[np.float32, np.float32, np.float32]:
    """Sharpness of both maps and offset of the scenes' classes, by cross-entropy on rows with one label."""
    busy = items.valid & (items.labels.sum(2) == 1)
    busy[:, [k for k in range(busy.shape[1]) if k % ROWS_APART]] = False
    is_real = torch.from_numpy(np.repeat(np.arange(len(own)) < clips, busy.sum(1)))
    a, b, mask = torch.from_numpy(own[busy]), torch.from_numpy(other[busy]), torch.from_numpy(shown).float()
    truth = torch.from_numpy(items.labels[busy].argmax(1))
    theta = torch.tensor([3.0, 3.0, 0.0], requires_grad=True)  # log sharpnesses, offset
    optimiser = torch.optim.LBFGS([theta], max_iter=40, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        optimiser.zero_grad()
        logits = a * theta[0].exp() + (b * theta[1].exp() + theta[2]) * mask
        each = F.cross_entropy(logits, truth, reduction="none")
        value = real_share * each[is_real].mean() + each[~is_real].mean()
        value.backward()
        return value

    optimiser.step(cost)
    sharp, sharper, offset = theta.detach()
    return np.float32(sharp.exp()), np.float32(sharper.exp()), np.float32(offset)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A localizer with the votes (M, T, C) that each item gets from maps that never saw its file, as it takes them."""

    network: Additive
    visual: Floats
    audio: Floats


def fit(
    visual: Items, audio: Items, pairs: Sequence[tuple[int, int]], config: FitConfig, clips: int | None = None
) -> LeftOut:
    """Fit the whole localizer.

    Args:
        visual, audio: items of the two media over the same classes; the first `clips` of both are real clips.
        pairs: (visual item, audio item) that the verifier is fitted on, with repetition as wanted.
        config: strengths.
        clips: number of real items; None: all.

    Returns:
        The network, and the left-out votes of all items.
    """
    count = len(visual.x) if clips is None else clips
    seeing, hearing = fit_medium(visual, count, config), fit_medium(audio, count, config)
    heard = hearing.loo * np.float32(config.audio_share)
    scenes = [
        Scene(seeing.loo[i], heard[j], visual.valid[i], audio.valid[j], visual.labels[i], audio.labels[j])
        for i, j in pairs
    ]
    a, known = hearing.side, np.asarray(visual.labels[:count].any((0, 1)))
    louder = replace(a, sharpness=a.sharpness * config.audio_share)
    own = [scene for scene, (i, j) in zip(scenes, pairs, strict=True) if i == j < count]
    judges = (
        _spread(lower_foreign(judge, own, known, config.foreign_wins), config)
        for judge in fit_judges(scenes, config.positive, known)
    )
    return LeftOut(Additive(seeing.side, louder, *judges), seeing.loo, heard)


def _spread(judge: Judge, config: FitConfig) -> Judge:
    scale = np.float32(1 / config.spread)
    return Judge(judge.weight * scale, (judge.bias + np.float32(config.centre)) * scale)


def lower_foreign(judge: Judge, real: Sequence[Scene], known: Bools, wins: float) -> Judge:
    """Lower the classes that no real clip shows until left-out real clips get their own class first.

    Hundreds of scenes stand behind such a class and would let it outrank classes that two or three clips taught.

    Args:
        judge: of events, or of one medium.
        real: left-out scenes of real clips with their own sound.
        known: (C,) classes that real clips show.
        wins: share of the real clips in which a lowered class may still come first.
    """
    if not real or known.all():
        return judge
    peaks, truth = [], []
    for scene in real:
        kinds = evidence(scene.visual, scene.audio, scene.seen, scene.heard)
        logits = np.einsum("nck,ck->nc", np.clip(kinds, -BOUND, BOUND), judge.weight) + judge.bias
        peaks.append(logits[scene.seen & scene.heard].max(0, initial=-BOUND))
        truth.append(int((scene.visible & scene.audible).sum(0).argmax()))
    table = np.stack(peaks)
    lead = np.where(known, -np.inf, table).max(1) - table[np.arange(len(table)), truth]  # of the best lowered class
    step = min(0.0, -float(np.quantile(lead, 1 - wins)))
    return Judge(judge.weight, np.where(known, judge.bias, judge.bias + step).astype(np.float32))


def fit_judges(
    scenes: Sequence[Scene], positive: float = 1.0, known: Bools | None = None
) -> tuple[Judge, Judge, Judge]:
    """Logistic regressions on the evidence: audible and visible, audible, visible.

    Every (class, row) counts, a true one `positive` times as much as a wrong one.

    Args:
        scenes: left-out votes with their truth.
        positive: see FitConfig.
        known: (C,) classes that real clips show; they and the others get weights of their own, since votes that few
            clips taught are to be trusted otherwise than votes that hundreds of scenes did. None: all alike.
    """
    kinds, truths = [], []
    for scene in scenes:
        rows = scene.seen & scene.heard
        table = evidence(scene.visual, scene.audio, scene.seen, scene.heard)[rows]  # (n, C, EVIDENCE)
        truth = np.stack([scene.visible & scene.audible, scene.audible, scene.visible], 2)[rows]  # (n, C, 3)
        kinds.append(table[::ROWS_APART])
        truths.append(truth[::ROWS_APART])
    x, y = torch.from_numpy(np.concatenate(kinds)), torch.from_numpy(np.concatenate(truths)).float()
    count = x.shape[1]
    groups = [np.ones(count, bool)] if known is None else [g for g in (known, ~known) if g.any()]
    judges = []
    for k, columns in enumerate((range(EVIDENCE), EAR, EYE)):
        weight, bias = np.zeros((count, EVIDENCE), np.float32), np.zeros(count, np.float32)
        for group in groups:
            inside = torch.from_numpy(group)
            found = _logistic(x[:, inside].flatten(0, 1), y[:, inside, k].flatten(), columns, positive)
            weight[group], bias[group] = found
        judges.append(Judge(weight, bias))
    return judges[0], judges[1], judges[2]


def _logistic(x: torch.Tensor, y: torch.Tensor, columns: Sequence[int], positive: float) -> tuple[Floats, float]:
    """Maximum likelihood with weights that are never negative: more evidence never lowers a score."""
    kept = list(columns)
    raw = torch.full((len(kept),), -1.0, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw, bias], lr=0.5, max_iter=60, line_search_fn="strong_wolfe")
    inputs = x[:, kept].clamp(-BOUND, BOUND)

    def cost() -> torch.Tensor:
        optimiser.zero_grad()
        value = (
            F.binary_cross_entropy_with_logits(inputs @ F.softplus(raw) + bias, y, pos_weight=torch.tensor(positive))
            + 1e-4 * F.softplus(raw).square().sum()
        )
        value.backward()
        return value

    optimiser.step(cost)
    weight = np.zeros(EVIDENCE, np.float32)
    weight[kept] = F.softplus(raw).detach().numpy()
    return weight, float(bias.detach())
