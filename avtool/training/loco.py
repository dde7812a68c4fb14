"""Trains a small LoCo on pairs of picture items and sound items, whose common labels are the events."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avtool.models.loco import LoCo, LoCoConfig
from avtool.models.pyramid import standardise
from avtool.training.additive import Items
from avtool.training.losses import Events, LoCoLoss, Losses, parameter_groups

log = logging.getLogger("avtool")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LoCoRecipe:
    """How a small LoCo is trained.

    Attributes:
        steps, batch, rate, decay: AdamW with linear warm-up over a tenth of the steps, then cosine to 0.
        noise: deviation of the noise on standardised features.
        mixed: largest share of a foreign item that is mixed into the features of each medium.
        classmates: how often every clip comes with the sound of any clip of its class.
        ema: decay of the averaged weights, which are what is kept (dave.md 2.8).
    """

    steps: int = 600
    batch: int = 48
    rate: float = 1e-3
    decay: float = 0.05
    noise: float = 1.0
    mixed: float = 0.5
    classmates: int = 2
    ema: float = 0.995


def runs(active: Bools) -> list[tuple[int, int]]:
    """Stretches of True as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def events_of(labels: Bools) -> Events:
    """Events of (T, C) labels on the grid: rows [a, b) span a - 0.5 to b - 0.5, as row g is centred at g."""
    found = [(a - 0.5, b - 0.5, c) for c in np.flatnonzero(labels.any(0)) for a, b in runs(labels[:, c])]
    table = torch.tensor(found, dtype=torch.float32).reshape(-1, 3)
    return Events(table[:, :2], table[:, 2].long())


def scale_of(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean (D,) and scale (D,) of features (N, D) for `standardise`; a dimension that hardly moves is not blown up."""
    return rows.mean(0), rows.std(0) + 0.1 * rows.std()


class Standard:
    """Standardised features of the items as tensors."""

    def __init__(self, visual: Items, audio: Items) -> None:
        self.sides = [scale_of(flat) for flat in (visual.x[visual.valid], audio.x[audio.valid])]
        self.visual, self.audio = (self.apply(k, items.x) for k, items in enumerate((visual, audio)))

    def apply(self, side: int, x: npt.NDArray[np.float32]) -> Tensor:
        """Standardised rows of one side, 0 for visual and 1 for audio: (..., D)."""
        return torch.from_numpy(standardise(x, *self.sides[side]))

    def tensors(self) -> dict[str, Tensor]:
        """Mean and scale of both sides by the names that a model's file has them under."""
        named = zip(("visual", "audio"), self.sides, strict=True)
        return {
            f"{side}.{part}": torch.from_numpy(x)
            for side, pair in named
            for part, x in zip(("mean", "scale"), pair, strict=True)
        }


def spoilt(
    x: Tensor, index: npt.NDArray[np.int64], rows: slice, noise: float, mixed: float, rng: np.random.Generator
) -> Tensor:
    """Features (B, T, D) of items of x (M, N, D), with a share of others mixed in, up to `mixed`, and noise."""
    found = x[index, rows]
    if mixed:
        others = rng.integers(len(x), size=len(index))
        share = mixed * torch.rand(len(index), 1, 1)
        found = (1 - share) * found + share * x[others, rows]
    return found + noise * torch.randn_like(found)


def train(
    visual: Items, audio: Items, pairs: Sequence[tuple[int, int]], config: LoCoConfig, recipe: LoCoRecipe, seed: int
) -> tuple[LoCo, Standard]:
    """Train one network.

    Args:
        visual, audio: items of the two media; equal T.
        pairs: (visual item, audio item) that batches are drawn from.
        config: of the network.
        recipe: of the training.
        seed: of everything drawn.

    Returns:
        The averaged network in eval mode, and the standardisation of its inputs.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data, model = Standard(visual, audio), LoCo(config)
    criterion = LoCoLoss(config, start=20.0)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.ema)
    )
    optimiser = torch.optim.AdamW(parameter_groups(model, criterion, weight_decay=recipe.decay), lr=recipe.rate)
    valid = visual.valid, audio.valid
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * warmed_cosine(step, recipe.steps)
        chosen = [pairs[int(k)] for k in rng.integers(len(pairs), size=recipe.batch)]
        i, j = np.array([p[0] for p in chosen]), np.array([p[1] for p in chosen])
        losses = _step(
            model,
            criterion,
            data,
            (visual.labels[i] & audio.labels[j]),
            (i, j),
            valid[0][i] | valid[1][j],
            recipe,
            rng,
        )
        optimiser.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(model)
        if (step + 1) % 200 == 0:
            log.info(
                "loco %d/%d cls %.3f reg %.3f lcf %.3f",
                step + 1,
                recipe.steps,
                losses.classification,
                losses.regression,
                losses.correspondence,
            )
    averaged = average.module.eval()
    assert isinstance(averaged, LoCo)
    return averaged, data


def warmed_cosine(step: int, steps: int) -> float:
    """Share of the learning rate in a step from 0: linear warm-up over a tenth of the steps, then cosine to 0."""
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + float(np.cos(np.pi * (step - warm) / (steps - warm))))


def _step(
    model: LoCo,
    criterion: LoCoLoss,
    data: Standard,
    labels: Bools,
    index: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    mask: Bools,
    recipe: LoCoRecipe,
    rng: np.random.Generator,
) -> Losses:
    model.train()
    criterion.train()
    v, a = (
        spoilt(x, rows, slice(None), recipe.noise, recipe.mixed, rng)
        for x, rows in zip((data.visual, data.audio), index, strict=True)
    )
    lasting = np.maximum.accumulate(mask[:, ::-1], 1)[:, ::-1]  # rows up to the last valid one: masks have no holes
    output = model(v, a, torch.from_numpy(lasting.copy()))
    return criterion(output, criterion.targets([events_of(row) for row in labels], labels.shape[1]))  # type: ignore[no-any-return]
