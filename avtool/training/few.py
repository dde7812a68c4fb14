"""Trains a small network that labels segments on few real clips and many composed scenes, beside the closed form.

Every batch holds real clips, the sound of each from any clip of its class, and composed scenes. Their features carry
noise about as strong as they are themselves, which is what the strong ridge of the closed form amounts to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from avtool.models.cacenet import CACENetOutput
from avtool.models.ccln import CCLNOutput
from avtool.models.segment_localizer import interleaved
from avtool.models.segments import masked_mean
from avtool.training.additive import FitConfig, Items, fit_medium
from avtool.training.engine import Batch, Indices, Moment
from avtool.training.loco import Standard, spoilt, warmed_cosine
from avtool.training.losses import parameter_groups
from avtool.training.segment_losses import SegmentTargets
from avtool.training.segments import LOSSES
from avtool.training.sources import composed_pairs

log = logging.getLogger("avtool")
Floats = npt.NDArray[np.float32]
INTERLEAVE = 2  # half-second rows of a window of 10 s are judged as so many clips of ten segments a second apart
SETTINGS: dict[str, dict[str, Any]] = {
    "cace": {"visual_width": 128, "audio_width": 64, "width": 128},
    "ccln": {"visual_width": 128, "audio_width": 64, "width": 128},
    "loco-segments": {"width": 64, "unimodal_blocks": 1, "mlp_ratio": 2, "layer_scale": 0.1},
}


@dataclass(frozen=True)
class FewRecipe:
    """How a small network is trained.

    Attributes:
        steps, batch, rate, decay: AdamW with linear warm-up over a tenth of the steps, then cosine to 0.
        noise: deviation of the noise on standardised features, whose own is about 1.
        mixed: largest share of a foreign clip or scene that is mixed into the features of each medium.
        real: share of real clips in a batch.
        taught: weight of the cross-entropy to the classes that the closed form sees in the same noisy features.
        ema: decay of the averaged weights, which are what is kept.
        scenes: composed clips that batches are drawn from.
    """

    steps: int = 200
    batch: int = 32
    rate: float = 2e-3
    decay: float = 0.05
    noise: float = 1.0
    mixed: float = 0.5
    real: float = 0.75
    taught: float = 1.0
    ema: float = 0.99
    scenes: int = 2400


@dataclass(frozen=True, eq=False)
class Few:
    """A trained network with the standardisation of its inputs.

    Attributes:
        kind, settings: that made it, see `avtool.models.segment_localizer.NETWORKS`.
        network: in evaluation mode.
        data: standardisation.
        silent: medium that it never got, or None.
    """

    kind: str
    settings: Mapping[str, Any]
    network: nn.Module
    data: Standard
    silent: str | None = None

    def curve(self, visual: Floats, audio: Floats) -> Floats:
        """(n, C) probability of every event class, from features (n, Dv) and (n, Da)."""
        sides = [self.data.apply(k, x) for k, x in enumerate((visual, audio))]
        for side, name in zip(sides, ("visual", "audio"), strict=True):
            if name == self.silent:
                side.zero_()

        def judge(v: Floats, a: Floats) -> Floats:
            with torch.inference_mode():
                found: Tensor = self.network(torch.from_numpy(v)[None], torch.from_numpy(a)[None]).curve()
            return found[0].numpy()

        return interleaved(judge, sides[0].numpy(), sides[1].numpy(), INTERLEAVE)

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name, float16 for matrices, as `SegmentLocalizer` reads them."""
        tensors = {name: x.half() if x.ndim > 1 else x for name, x in self.network.state_dict().items()}
        return tensors | self.data.tensors()

    def describe(self) -> str:
        """The settings as one line of JSON, for the model's description."""
        return json.dumps(dict(self.settings), separators=(",", ":"))


def class_logits(output: Any) -> Tensor:
    """Class logits of any of the networks: (B, C) of clips, or (B, T, C + 1) of segments."""
    if isinstance(output, CCLNOutput):
        return output.main.classes
    logits: Tensor = output.classes if isinstance(output, CACENetOutput) else output.logits
    return logits


class _Batches:
    """Draws what the steps see.

    Args:
        visual, audio: items, the first `clips` real clips.
        clips: number of real clips.
        data: their features.
        recipe: of the training.
        silent: medium that is zero, or None.
        rng: chance.
    """

    def __init__(
        self,
        visual: Items,
        audio: Items,
        clips: int,
        data: Standard,
        recipe: FewRecipe,
        silent: str | None,
        rng: np.random.Generator,
    ) -> None:
        self.visual, self.audio, self.data, self.recipe, self.silent, self.rng = (
            visual,
            audio,
            data,
            recipe,
            silent,
            rng,
        )
        self.own = visual.labels[:clips].any(1).argmax(1)  # (clips,) class of each clip
        self.mates = {int(c): np.flatnonzero(self.own == c) for c in np.unique(self.own)}
        scenes = np.arange(clips, len(visual.x))
        found, self.composed_classes = composed_pairs(visual.take(scenes), audio.take(scenes), recipe.scenes, rng)
        self.composed = found + clips

    def draw(self) -> tuple[Batch, SegmentTargets]:
        """Features, mask and targets; every other row of the items."""
        real = round(self.recipe.batch * self.recipe.real)
        i, j, classes = (np.concatenate(parts) for parts in zip(self._clips(real), self._scenes(real), strict=True))
        rows = slice(int(self.rng.integers(INTERLEAVE)), None, INTERLEAVE)
        both = self.visual.labels[i] & self.audio.labels[j]
        events = both[np.arange(len(i)), rows, classes]  # (B, T)
        valid = (self.visual.valid[i] | self.audio.valid[j])[:, rows]
        mask = np.maximum.accumulate(valid[:, ::-1], 1)[:, ::-1].copy()
        batch = {"visual": self._spoilt("visual", i, rows), "audio": self._spoilt("audio", j, rows)}
        targets = SegmentTargets(torch.from_numpy(events.astype(np.float32)), torch.from_numpy(classes))
        return batch | {"mask": torch.from_numpy(mask)}, targets

    def _clips(self, count: int) -> tuple[Indices, Indices, Indices]:
        """Picture item, sound item of the same class, class."""
        i = self.rng.integers(len(self.own), size=count)
        j = np.array([self.rng.choice(self.mates[int(c)]) for c in self.own[i]], np.int64)
        return i, j, self.own[i]

    def _scenes(self, real: int) -> tuple[Indices, Indices, Indices]:
        k = self.rng.integers(len(self.composed), size=self.recipe.batch - real)
        return self.composed[k, 0], self.composed[k, 1], self.composed_classes[k]

    def _spoilt(self, side: str, index: Indices, rows: slice) -> Tensor:
        """Features (B, T, D) of items with a share of others mixed in, and noise."""
        x: Tensor = getattr(self.data, side)
        found = spoilt(x, index, rows, self.recipe.noise, self.recipe.mixed, self.rng)
        return torch.zeros_like(found) if side == self.silent else found


class _Teacher:
    """The closed form on the same items: softmax of added votes, for a clip."""

    def __init__(self, visual: Items, audio: Items, clips: int, data: Standard) -> None:
        config = FitConfig()
        plain = (replace(items, x=x.numpy()) for items, x in ((visual, data.visual), (audio, data.audio)))
        eye, ear = (fit_medium(items, clips, config).side for items in plain)
        self.sides = {"visual": (eye, 1.0), "audio": (ear, config.audio_share)}

    def answer(self, batch: Batch, silent: str | None) -> Tensor:
        """(B, C) shares of the classes, from features as the network gets them."""
        votes = [share * side.votes(batch[s].numpy()) for s, (side, share) in self.sides.items() if s != silent]
        return masked_mean(torch.from_numpy(sum(votes)), batch["mask"]).softmax(1)


def taught_loss(logits: Tensor, shares: Tensor, events: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of class logits to what the closed form answers.

    Args:
        logits: (B, C) of clips, or (B, T, C + 1) of segments, of which those with an event count.
        shares: (B, C), rows sum to 1.
        events: (B, T), above 0.5 where the segment is an event.
        mask: (B, T).
    """
    if logits.ndim == 2:
        return F.cross_entropy(logits, shares)
    inside = (events > 0.5) & mask
    rows = shares[:, None].expand(*mask.shape, -1)[inside]
    return F.cross_entropy(logits[..., :-1][inside], rows) if len(rows) else logits.sum() * 0


def train_few(
    kind: str,
    visual: Items,
    audio: Items,
    clips: int,
    recipe: FewRecipe,
    seed: int,
    changes: Mapping[str, Any] | None = None,
    silent: str | None = None,
) -> Few:
    """Train one network.

    Args:
        kind: "cace", "ccln" or "loco-segments".
        visual, audio: items of the two media; equal T; the first `clips` are real clips, the rest composed scenes.
        clips: number of real clips.
        recipe: of the training.
        seed: of everything drawn.
        changes: settings of the network that differ from SETTINGS.
        silent: a medium, "visual" or "audio", that is zero in training and later.
    """
    torch.manual_seed(seed)
    data = Standard(visual, audio)
    sizes = {"visual_dim": visual.x.shape[2], "audio_dim": audio.x.shape[2], "classes": visual.labels.shape[2]}
    settings = sizes | SETTINGS[kind] | dict(changes or {})
    network, loss, criterion = LOSSES[kind](settings)
    modules = nn.ModuleList([network] if criterion is None else [network, criterion]).train()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    optimiser = torch.optim.AdamW(parameter_groups(*modules, weight_decay=recipe.decay), lr=recipe.rate)
    batches = _Batches(visual, audio, clips, data, recipe, silent, np.random.default_rng(seed))
    teacher = _Teacher(visual, audio, clips, data) if recipe.taught else None
    answers: list[Any] = []
    hook = network.register_forward_hook(lambda module, inputs, output: answers.append(output))
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * warmed_cosine(step, recipe.steps)
        batch, targets = batches.draw()
        total = loss(network, batch, targets, Moment(step, step, recipe.steps), None)["loss"]
        if teacher is not None:
            shares = teacher.answer(batch, silent)
            total = total + recipe.taught * taught_loss(
                class_logits(answers.pop()), shares, targets.events, batch["mask"]
            )
        answers.clear()
        optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(network)
    hook.remove()
    log.info("%s: %d steps, loss %.3f", kind, recipe.steps, total.item())
    network.load_state_dict(average.module.state_dict())
    return Few(kind, settings, network.eval(), data, silent)
