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
        ridge: regularisation as a multiple of the mean squared row length.
        audio_share: weight of sound's votes against the picture's.
    """

    ridge: float = 1.0
    audio_share: float = 0.75


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


def fit_side(items: Items, ridge: float) -> Fitted:
    """Weighted ridge regression in its dual form, with exact leave-one-item-out votes.

    With K = X X', alpha = (K + lambda W^-1)^-1 Y and M = (K + lambda W^-1)^-1, taking the examples G of one item out
    changes alpha by -M[:, G] M[G, G]^-1 alpha[G] (standard block identity).
    """
    x, y, w, owner = examples(items)
    flat = items.x[items.valid]
    mean = flat.mean(0)
    deviation = flat.std(0)
    scale = deviation + 0.1 * deviation.mean()
    z = normalise(x, mean, scale).astype(np.float64)
    prior = (w[:, None] * y).sum(0) / w.sum()
    target = y - prior
    kernel = z @ z.T + 1.0  # + 1: a bias that is regularised like the rest
    strength = ridge * float(np.mean(np.diag(kernel))) * float(len(z)) ** 0.5 / 10
    inverse = np.linalg.inv(kernel + strength * np.diag(1 / w))
    alpha = inverse @ target
    side = Side(mean, scale, (z.T @ alpha).astype(np.float32), (alpha.sum(0) + prior).astype(np.float32), 1.0)
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


def fit(visual: Items, audio: Items, pairs: Sequence[tuple[int, int]], config: FitConfig) -> Additive:
    """Fit the whole localizer.

    Args:
        visual, audio: items of the two media over the same classes.
        pairs: (visual item, audio item) that the verifier is fitted on, with repetition as wanted.
        config: strengths.

    Returns:
        The network.
    """
    seeing, hearing = fit_side(visual, config.ridge), fit_side(audio, config.ridge)
    factor_v, factor_a = sharpen(seeing.loo, visual), sharpen(hearing.loo, audio) * config.audio_share
    scenes = [
        Scene(
            seeing.loo[i] * factor_v,
            hearing.loo[j] * factor_a,
            visual.valid[i],
            audio.valid[j],
            visual.labels[i],
            audio.labels[j],
        )
        for i, j in pairs
    ]
    judges = fit_judges(scenes)
    v, a = seeing.side, hearing.side
    return Additive(
        Side(v.mean, v.scale, v.weight, v.bias, factor_v), Side(a.mean, a.scale, a.weight, a.bias, factor_a), *judges
    )


def fit_judges(scenes: Sequence[Scene]) -> tuple[Judge, Judge, Judge]:
    """Logistic regressions on the evidence: audible and visible, audible, visible.

    Every positive (class, row) counts, and as many of the hardest negatives as matter: the classes of the other
    medium and the best-scoring wrong ones.
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
    return tuple(_logistic(x, y[:, k], columns[k]) for k in range(3))  # type: ignore[return-value]


def _logistic(x: torch.Tensor, y: torch.Tensor, columns: Sequence[int]) -> Judge:
    """Maximum likelihood with weights that are never negative: more evidence never lowers a score."""
    kept = list(columns)
    raw = torch.full((len(kept),), -1.0, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw, bias], lr=0.5, max_iter=60, line_search_fn="strong_wolfe")
    inputs = x[:, kept].clamp(-20, 20)

    def cost() -> torch.Tensor:
        optimiser.zero_grad()
        value = (
            F.binary_cross_entropy_with_logits(inputs @ F.softplus(raw) + bias, y)
            + 1e-4 * F.softplus(raw).square().sum()
        )
        value.backward()
        return value

    optimiser.step(cost)
    weight = np.zeros(EVIDENCE, np.float32)
    weight[kept] = F.softplus(raw).detach().numpy()
    return Judge(weight, float(bias.detach()))
