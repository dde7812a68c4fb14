"""How a network is optimised: the recipes of the papers as one record, its optimiser, and the rate of every step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from avtool.errors import UsageError
from avtool.settings import did_you_mean
from avtool.training.losses import parameter_groups

CHOICES = {
    "optimiser": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "steps", "cosine"),
    "precision": ("float32", "bf16", "float64"),
    "select": ("val", "best-epoch-on-test", "last"),
}
POSITIVE = ("epochs", "batch", "rate", "gamma")
NOT_NEGATIVE = ("decay", "momentum", "warm_up", "last_rate", "clip", "patience", "seed")


@dataclass(frozen=True)
class Recipe:
    """Everything about a training that is not the network, its loss or its data; `[training]` of a configuration.

    Attributes:
        epochs, batch: passes over the training split, samples a step.
        optimiser: adam, adamw or sgd.
        rate: learning rate.
        decay: weight decay; adamw: on the weights of convolutions and linear maps alone (dave.md 2.8).
        momentum: of sgd.
        schedule: constant; steps: times `gamma` after each of the epochs in `milestones`; cosine: down to `last_rate`
            at the end, a little every step.
        milestones, gamma, last_rate: see there.
        warm_up: epochs in which the rate rises linearly from 0.
        clip: longest gradient; 0: any.
        ema: decay of the averaged weights, which then are what is validated and kept; 0: none.
        precision: float32, float64, or bf16 (bf16 products, float32 weights and losses).
        drop_last: leave out a last batch that is not full.
        seed: of everything drawn.
        patience: epochs without a better value after which training ends; 0: never.
        select: which epoch is kept: the best on "val", the "last", or, as much of the literature does and by this
            name alone, "best-epoch-on-test".

    Raises:
        UsageError: a value is outside its range.
    """

    epochs: int = 40
    batch: int = 64
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    rate: float = 7e-4
    decay: float = 0.0
    momentum: float = 0.9
    schedule: Literal["constant", "steps", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.5
    last_rate: float = 0.0
    warm_up: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    precision: Literal["float32", "bf16", "float64"] = "float32"
    drop_last: bool = False
    seed: int = 0
    patience: int = 0
    select: Literal["val", "best-epoch-on-test", "last"] = "val"

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                what = f"training.{name} = {getattr(self, name)!r} is not known"
                raise UsageError(what, hint=f"one of {', '.join(choices)}")
        for name in (*POSITIVE, *NOT_NEGATIVE):
            value = getattr(self, name)
            if isinstance(value, bool) or not math.isfinite(value) or value < 0 or (name in POSITIVE and value == 0):
                low = "above 0" if name in POSITIVE else "0 or more"
                raise UsageError(f"training.{name} = {value} is out of range", f"it must be {low}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"training.ema = {self.ema} is out of range", "it must be from 0 to below 1")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """From a table as in a TOML file.

        Raises:
            UsageError: there is no such setting, or a value is of another kind or out of range.
        """
        known = {f.name: type(f.default) for f in fields(cls)}
        for name, value in settings.items():
            if name not in known:
                raise UsageError(f"there is no setting training.{name}", hint=did_you_mean(name, list(known)))
            fine = isinstance(value, (int, float) if known[name] is float else (known[name], list))
            if not fine or (isinstance(value, list) and known[name] is not tuple):
                raise UsageError(f"training.{name} = {value!r} is not of its kind", f"{known[name].__name__} is needed")
        return cls(**settings)

    def steps(self, samples: int) -> int:
        """Steps of one epoch over so many samples."""
        whole, rest = divmod(samples, self.batch)
        return whole if self.drop_last and whole else whole + bool(rest)

    def rate_at(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of a step, from 0, of an epoch, from 0, that has so many steps."""
        now = epoch + step / steps
        if now < self.warm_up:
            return self.rate * now / self.warm_up
        if self.schedule == "steps":
            return float(self.rate * self.gamma ** bisect_right(sorted(self.milestones), epoch))
        if self.schedule == "cosine":
            share = (now - self.warm_up) / max(self.epochs - self.warm_up, 1e-9)
            return self.last_rate + (self.rate - self.last_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return self.rate


def make_optimiser(recipe: Recipe, *modules: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the parameters of network and loss."""
    every = [p for module in modules for p in module.parameters() if p.requires_grad]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameter_groups(*modules, weight_decay=recipe.decay), lr=recipe.rate)
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(every, lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay)
    return torch.optim.Adam(every, lr=recipe.rate, weight_decay=recipe.decay)
