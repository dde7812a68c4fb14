"""Fits the `additive` localizer in closed form, and its verifier on answers of maps that never saw the clip.

Both media are fitted apart from each other on items (scenes or clips): what is heard, what is seen. The verifier is
fitted on pairs of items, matched and mismatched, scored with the item left out of its own map (leave-one-out ridge).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from avtool.models.additive import EVIDENCE, Additive, Judge, Side, evidence, log_softmax, normalise

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
ROWS_APART = 4  # every so many rows of a scene teach the verifier: neighbours say nearly the same


@dataclass(frozen=True, eq=False)
class Items:
    """M scenes or clips of one medium, padded to T rows.

    Attributes:
        x: (M, T, D) embeddings.
        valid: (M, T) rows that exist.
        labels: (M, T, C) what is audible (visible) in each row.
        weight: (M,) how much an item counts.
    """

    x: Floats
    valid: Bools
    labels: Bools
    weight: Floats

    def take(self, index: npt.NDArray[np.int64]) -> Items:
        """The items at `index`."""
        return Items(self.x[index], self.valid[index], self.labels[index], self.weight[index])

    @staticmethod
    def join(parts: Sequence[Items]) -> Items:
        """All items of several sets of equal T and C."""
        return Items(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("x", "valid", "labels", "weight")))


@dataclass(frozen=True)
class FitConfig:
    """Strengths of the fit.

    Attributes:
        ridge: of the map fitted on real clips, as a multiple of the mean squared row length.
        scene_ridge: of the map fitted on composed scenes.
        audio_share: weight of sound's votes against the picture's.
        real_share: how much more a real row counts than a composed one when the two maps are balanced.
        positive: how much more a true (class, row) counts than a wrong one for the verifier; sets the scale of scores.
    """

    ridge: float = 1.0
    scene_ridge: float = 0.3
    audio_share: float = 0.75
    real_share: float = 10.0
    positive: float = 5.0


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
    loo: Floats  # (M, T, C) votes (before sharpness) of each item by the map that never saw it


def scales(items: Items) -> tuple[Floats, Floats]:
    """Mean and deviation of every dimension over the valid rows: (D,) each; no deviation is near zero."""
    flat = items.x[items.valid]
    deviation = flat.std(0)
    return flat.mean(0), deviation + 0.1 * deviation.mean()


def fit_side(items: Items, ridge: float, scale: tuple[Floats, Floats] | None = None) -> Fitted:
    """Weighted ridge regression in its dual form, with exact leave-one-item-out votes.

    With K = X X', alpha = (K + lambda W^-1)^-1 Y and M = (K + lambda W^-1)^-1, taking the examples G of one item out
    changes alpha by -M[:, G] M[G, G]^-1 alpha[G] (standard block identity).
    """
    x, y, w, owner = examples(items)
    mean, deviation = scale or scales(items)
    w = w / w.mean()
    z = normalise(x, mean, deviation).astype(np.float64)
    prior = (w[:, None] * y).sum(0) / w.sum()
    target = y - prior
    kernel = z @ z.T + 1.0  # + 1: a bias that is regularised like the rest
    strength = ridge * float(np.mean(np.diag(kernel))) * float(len(z)) ** 0.5 / 10
    inverse = np.linalg.inv(kernel + strength * np.diag(1 / w))
    alpha = inverse @ target
    side = Side(mean, deviation, (z.T @ alpha).astype(np.float32), (alpha.sum(0) + prior).astype(np.float32), 1.0)
    return Fitted(side, _left_out(items, side, z, inverse, alpha, owner))


def _left_out(
    items: Items,
    side: Side,
    z: npt.NDArray[np.float64],
    inverse: npt.NDArray[np.float64],
    alpha: npt.NDArray[np.float64],
    owner: npt.NDArray[np.int64],
) -> Floats:
    out, columns = side.votes(items.x), z.T.astype(np.float32)  # (D, E)
    for i in range(len(items.x)):
        group = np.flatnonzero(owner == i)
        change = inverse[:, group] @ np.linalg.solve(inverse[np.ix_(group, group)], alpha[group])  # (E, C)
        rows = normalise(items.x[i], side.mean, side.scale)
        out[i] -= (rows @ columns) @ change.astype(np.float32) + change.sum(0).astype(np.float32)
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
        return Fitted(Side(side.mean, side.scale, side.weight, side.bias, factor), found.loo * factor)
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


def fit(
    visual: Items, audio: Items, pairs: Sequence[tuple[int, int]], config: FitConfig, clips: int | None = None
) -> Additive:
    """Fit the whole localizer.

    Args:
        visual, audio: items of the two media over the same classes; the first `clips` of both are real clips.
        pairs: (visual item, audio item) that the verifier is fitted on, with repetition as wanted.
        config: strengths.
        clips: number of real items; None: all.

    Returns:
        The network.
    """
    seeing, hearing = (fit_medium(i, len(i.x) if clips is None else clips, config) for i in (visual, audio))
    share = np.float32(config.audio_share)
    scenes = [
        Scene(
            seeing.loo[i],
            hearing.loo[j] * share,
            visual.valid[i],
            audio.valid[j],
            visual.labels[i],
            audio.labels[j],
        )
        for i, j in pairs
    ]
    a = hearing.side
    louder = Side(a.mean, a.scale, a.weight, a.bias, a.sharpness * config.audio_share)
    return Additive(seeing.side, louder, *fit_judges(scenes, config.positive))


def fit_judges(scenes: Sequence[Scene], positive: float = 1.0) -> tuple[Judge, Judge, Judge]:
    """Logistic regressions on the evidence: audible and visible, audible, visible.

    Every (class, row) counts, a true one `positive` times as much as a wrong one.
    """
    kinds, truths = [], []
    for scene in scenes:
        rows = scene.seen & scene.heard
        table = evidence(scene.visual, scene.audio, scene.seen, scene.heard)[rows]  # (n, C, EVIDENCE)
        truth = np.stack([scene.visible & scene.audible, scene.audible, scene.visible], 2)[rows]  # (n, C, 3)
        kinds.append(table[::ROWS_APART].reshape(-1, EVIDENCE))
        truths.append(truth[::ROWS_APART].reshape(-1, 3))
    x, y = torch.from_numpy(np.concatenate(kinds)), torch.from_numpy(np.concatenate(truths)).float()
    columns = (range(EVIDENCE), (2, 4, 8, 10), (1, 3, 7, 9))
    return tuple(_logistic(x, y[:, k], columns[k], positive) for k in range(3))  # type: ignore[return-value]


def _logistic(x: torch.Tensor, y: torch.Tensor, columns: Sequence[int], positive: float) -> Judge:
    """Maximum likelihood with weights that are never negative: more evidence never lowers a score."""
    kept = list(columns)
    raw = torch.full((len(kept),), -1.0, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw, bias], lr=0.5, max_iter=60, line_search_fn="strong_wolfe")
    inputs = x[:, kept].clamp(-20, 20)

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
    return Judge(weight, float(bias.detach()))
