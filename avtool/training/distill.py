"""Distils the embedded encoders `mini` from two teachers: the recipe file says how, the views say on what.

Schedule: warm-up, stable, decay. The stable part can be shared by several decays, which is how the encoders that
never saw a third of the clips are made for the honest figure at a third of the cost.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.features.encoders.mini import AUDIO, VISUAL, Mini, blank, prepare_pictures
from avtool.files import write_atomic
from avtool.training.checkpoints import read_about, read_checkpoint, write_checkpoint
from avtool.training.views import Chunk, chunks

log = logging.getLogger("avtool")
CHECKPOINT_EVERY = 1000  # steps


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes:
        name: of its checkpoint, `<modality>-<name>.safetensors`.
        start: name of the phase whose weights and optimiser it continues, or "".
        steps: optimiser steps.
        rate: (first, last) learning rate; linear in between after the warm-up.
        groups: chunk-name prefix -> share of the batches.
        leave_out: chunk-name prefixes that are never read.
    """

    name: str
    start: str
    steps: int
    rate: tuple[float, float]
    groups: Mapping[str, float]
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How one student is trained; read from training/configs/distill-*.toml."""

    modality: str  # "visual" or "audio"
    seed: int
    batch: int
    warm_up: int  # steps
    decay: float
    class_weight: float
    logit_weight: float
    embedding_weight: float
    temperature: float
    phases: tuple[Phase, ...]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    phases = [
        Phase(
            p["name"],
            p.get("start", ""),
            p["steps"],
            (p["rate"][0], p["rate"][1]),
            p["groups"],
            tuple(p.get("leave_out", ())),
        )
        for p in table.pop("phases")
    ]
    return Recipe(phases=tuple(phases), **table)


def batches(
    folder: Path, phase: Phase, batch: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches (inputs, teacher logits, teacher embedding); a batch comes from one chunk, so has one shape."""
    groups = [
        [c for c in chunks(folder, prefix) if not c.name.startswith(phase.leave_out or ("\0",))]
        for prefix in phase.groups
    ]
    shares = np.array(list(phase.groups.values()), float)
    for prefix, group in zip(phase.groups, groups, strict=True):
        log.info("%s: %d views", prefix, sum(len(c.logits) for c in group))
    while True:
        group = groups[int(rng.choice(len(groups), p=shares / shares.sum()))]
        chunk = group[int(rng.integers(len(group)))]
        count = min(batch, len(chunk.logits))  # the last chunk of a group may be smaller than a batch
        yield _take(chunk, np.sort(rng.choice(len(chunk.logits), count, replace=False)))


def _take(chunk: Chunk, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(chunk.inputs[rows]),
        torch.from_numpy(chunk.logits[rows].astype(np.float32)),
        torch.from_numpy(chunk.embedding[rows].astype(np.float32)),
    )


def _inputs(modality: str, raw: Tensor, rng: torch.Generator) -> Tensor:
    """Student inputs with a jitter that leaves the teacher's answer true: exposure for pictures, gain for sound."""
    size = len(raw)
    if modality == "audio":
        return raw.float()[:, None] + 0.1 * torch.randn(size, 1, 1, 1, generator=rng)
    x = prepare_pictures(raw.permute(0, 3, 1, 2))  # (B, H, W, 3) memory is channels_last already
    contrast = 1 + 0.1 * torch.randn(size, 1, 1, 1, generator=rng)
    return x * contrast + 0.15 * torch.randn(size, 3, 1, 1, generator=rng)


class Targets:
    """Scales of the teacher's outputs, taken once over a sample of the views."""

    def __init__(self, sample: Sequence[Chunk]) -> None:
        embedding = torch.cat([torch.from_numpy(c.embedding[:512].astype(np.float32)) for c in sample])
        logits = torch.cat([torch.from_numpy(c.logits[:512].astype(np.float32)) for c in sample])
        self.mean, self.std = embedding.mean(0), embedding.std(0) + 0.05 * embedding.std()
        self.logit_std = float(logits.std())


def loss(
    recipe: Recipe, targets: Targets, outputs: tuple[Tensor, Tensor, Tensor], logits: Tensor, embedding: Tensor
) -> Tensor:
    """Weighted sum of class agreement, logit agreement and embedding agreement (all float32)."""
    classes, _, imitation = (o.float() for o in outputs)
    if recipe.modality == "audio":
        agree = F.binary_cross_entropy_with_logits(classes, logits.sigmoid(), reduction="none").sum(1).mean()
        agree = agree - F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none").sum(1).mean()
    else:
        t = recipe.temperature
        agree = (
            F.kl_div((classes / t).log_softmax(1), (logits / t).log_softmax(1), reduction="batchmean", log_target=True)
            * t
            * t
        )
    near = ((classes - logits) / targets.logit_std).square().mean()
    imitate = (imitation - (embedding - targets.mean) / targets.std).square().mean()
    return recipe.class_weight * agree + recipe.logit_weight * near + recipe.embedding_weight * imitate


def _optimiser(model: nn.Module, decay: float) -> torch.optim.AdamW:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )


def _rate(phase: Phase, step: int, warm_up: int) -> float:
    share = step / phase.steps
    ramp = min(1.0, (step + 1) / warm_up) if warm_up and not phase.start else 1.0
    return ramp * (phase.rate[0] * (1 - share) + phase.rate[1] * share)


def run_phase(recipe: Recipe, phase: Phase, views: Path, out: Path) -> Mini:
    """Train one phase and write `<modality>-<name>.safetensors` (float32); a finished phase is loaded instead."""
    path = out / f"{recipe.modality}-{phase.name}.safetensors"
    model: Mini = blank(VISUAL if recipe.modality == "visual" else AUDIO, recipe.seed)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    partial = path.with_name(path.stem + ".partial.safetensors")
    done, optimiser = 0, _optimiser(model, recipe.decay)
    if partial.exists():
        done = _restore(partial, model, optimiser)
    elif phase.start:
        _restore(out / f"{recipe.modality}-{phase.start}.state.safetensors", model, optimiser)
    targets = Targets(chunks(views, next(iter(phase.groups)))[:8])
    rng, generator = np.random.default_rng((recipe.seed, done)), torch.Generator().manual_seed(recipe.seed + done)
    source, began, mean = batches(views, phase, recipe.batch, rng), time.monotonic(), 0.0
    model.train()
    for step in range(done, phase.steps):
        for group in optimiser.param_groups:
            group["lr"] = _rate(phase, step, recipe.warm_up)
        raw, logits, embedding = next(source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(_inputs(recipe.modality, raw, generator).contiguous(memory_format=torch.channels_last))
        value = loss(recipe, targets, outputs, logits, embedding)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        mean += (float(value.detach()) - mean) / min(step - done + 1, 100)
        if (step + 1) % 100 == 0:
            log.info(
                "%s %s %d/%d loss %.4f  %.0f views/s",
                recipe.modality,
                phase.name,
                step + 1,
                phase.steps,
                mean,
                recipe.batch * (step + 1 - done) / (time.monotonic() - began),
            )
        if (step + 1) % CHECKPOINT_EVERY == 0:
            _store(partial, model, optimiser, step + 1)
    _store(path.with_name(path.stem + ".state.safetensors"), model, optimiser, phase.steps)
    write_atomic(path, save({k: v.contiguous() for k, v in model.state_dict().items()}))
    partial.unlink(missing_ok=True)
    return model


def _store(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    write_checkpoint(path, {"model": model}, optimiser, {"step": step})


def _restore(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    read_checkpoint(path, {"model": model}, optimiser)
    return int(read_about(path)["step"])


def distil(recipe: Recipe, views: Path, out: Path, only: Sequence[str] = ()) -> None:
    """Run the phases in order; finished ones are skipped, an interrupted one continues from its last checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    for phase in recipe.phases:
        if not only or phase.name in only:
            run_phase(recipe, phase, views, out)


def publish(model: Mini, path: Path) -> str:
    """Write what ships: large tensors in float16, norms in float32, without the head that imitated the teacher.

    Returns:
        sha256 of the file.
    """
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("imitate") and "num_batches" not in k}
    data = save({k: (v.half() if v.ndim > 1 else v).contiguous() for k, v in kept.items()})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Train both students and write what ships."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder whose `views` avtool.training.material made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="names of phases")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for modality in ("audio", "visual"):
        recipe = load_recipe(Path(__file__).parent / "configs" / f"distill-{modality}.toml")
        distil(recipe, options.work / "views", options.work / "checkpoints", options.only)
        final = next(phase for phase in recipe.phases if phase.name == "final")
        model = run_phase(recipe, final, options.work / "views", options.work / "checkpoints")
        log.info("mini-%s sha256 %s", modality, publish(model, options.out / f"mini-{modality}.safetensors"))


if __name__ == "__main__":
    main()
