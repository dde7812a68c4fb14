"""The training loop: any task, any recipe, killed at any moment and resumed to the same curve.

Chance in a step depends on the seed and the number of the step alone, so no generator has a state that could be lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from avtool.errors import AvtoolError, UsageError
from avtool.files import printable, remove
from avtool.training.checkpoints import read_about, read_checkpoint, read_part, write_checkpoint
from avtool.training.optimisation import Recipe, make_optimiser

log = logging.getLogger("avtool")
SAVE_SECONDS = 60.0  # between two checkpoints inside an epoch
Indices = npt.NDArray[np.int64]
Batch = Mapping[str, Any]  # tensors by name, and what the loss needs besides
Record = dict[str, Any]  # one line of the metrics: numbers by name


@dataclass(frozen=True)
class Moment:
    """Where a training is: epoch and step from 0, the number of epochs."""

    epoch: int
    step: int
    epochs: int


class Task(Protocol):
    """What is trained: a network, its loss, its data."""

    network: nn.Module
    criterion: nn.Module | None  # a loss with parameters of its own
    metric: str  # of `validate`; more is better

    @property
    def samples(self) -> int:
        """Of the training split."""
        ...

    def load(self, index: Indices, rng: np.random.Generator) -> Batch:
        """The samples at `index` of the training split; runs beside the training, touches no network."""
        ...

    def losses(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """Parts of the loss; "loss" is what is minimised."""
        ...

    def validate(self, network: nn.Module, split: str) -> Mapping[str, float]:
        """Figures of a network in evaluation mode on a split; nothing where there is no such split."""
        ...

    def memory(self) -> Mapping[str, Tensor]:
        """What the loss remembers from step to step, for the checkpoint."""
        ...

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `memory`."""
        ...


@dataclass
class Outcome:
    """How a training went.

    Attributes:
        network: the selected one, in evaluation mode.
        history: a record for each epoch.
        best: epoch of the selected network, from 0.
        value: its figure.
    """

    network: nn.Module
    history: list[Record]
    best: int
    value: float


@dataclass
class _Progress:
    """What a checkpoint says besides tensors."""

    fingerprint: str
    epoch: int = 0
    step: int = 0
    history: list[Record] = field(default_factory=list)
    best: int = -1
    value: float = float("-inf")
    sums: dict[str, float] = field(default_factory=dict)  # of the losses of the epoch so far

    def plain(self) -> dict[str, Any]:
        return {**self.__dict__, "value": None if self.best < 0 else self.value}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> _Progress:
        return cls(**{**table, "value": float("-inf") if table["value"] is None else table["value"]})


def nothing(*_: Any) -> None:
    """A hook that does nothing."""


class Trainer:
    """Runs a task to its end.

    Args:
        task: network, loss and data.
        recipe: of the optimisation.
        state: file of the checkpoint; `STEM.best.safetensors` beside it holds the best network. None: keep nothing.
        fingerprint: of all that the curve depends on; a checkpoint with another one is refused.
        device: where.
        on_epoch: gets all records after each epoch.
        on_progress: gets "train", steps done, steps of all epochs.
        save_seconds: between two checkpoints inside an epoch.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        state: Path | None = None,
        fingerprint: str = "",
        device: torch.device | None = None,
        on_epoch: Callable[[Sequence[Record]], None] = nothing,
        on_progress: Callable[[str, float, float], None] = nothing,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        self.task, self.recipe, self.state = task, recipe, state
        self.device = device or torch.device("cpu")
        self.on_epoch, self.on_progress, self.save_seconds = on_epoch, on_progress, save_seconds
        dtype = torch.float64 if recipe.precision == "float64" else torch.float32
        self.trained = [m.to(self.device, dtype) for m in (task.network, task.criterion) if m is not None]
        self.optimiser = make_optimiser(recipe, *self.trained)
        self.average = (
            AveragedModel(task.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        )
        self.modules = dict(zip(("network", "criterion"), self.trained, strict=False))
        if self.average is not None:
            self.modules["average"] = self.average
        self.progress = _Progress(fingerprint)
        self._kept: dict[str, Tensor] = {}

    def run(self) -> Outcome:
        """Trains, from a checkpoint where there is one.

        Raises:
            UsageError: the checkpoint is of another training, or there is nothing to train on.
            AvtoolError: the loss is no number any more.
        """
        if self.task.samples < 1:
            raise UsageError("there is nothing to train on", "the training split is empty")
        self._resume()
        while self.progress.epoch < self.recipe.epochs and not self._has_stalled():
            self._epoch()
        return self._outcome()

    # ---- one epoch

    def _epoch(self) -> None:
        now, begin, waited = self.progress, time.monotonic(), 0.0
        batches = self._batches(now.epoch)
        saved = begin
        loads = (self._loader(now.epoch, k, batches[k]) for k in range(now.step, len(batches)))
        for batch, wait in _ahead(loads):
            waited += wait
            self._step(batch, len(batches))
            now.step += 1
            self.on_progress("train", now.epoch * len(batches) + now.step, self.recipe.epochs * len(batches))
            if time.monotonic() - saved > self.save_seconds and now.step < len(batches):
                self._save()
                saved = time.monotonic()
        seconds = time.monotonic() - begin
        rate = self.recipe.rate_at(now.epoch, len(batches) - 1, len(batches))
        record: Record = {"epoch": now.epoch + 1, "rate": rate}
        record |= {f"train/{name}": total / len(batches) for name, total in now.sums.items()}
        record |= self._judge(now.epoch)
        record |= {"seconds": round(seconds, 3), "loading": round(waited / max(seconds, 1e-9), 4)}
        now.history.append(record)
        now.epoch, now.step, now.sums = now.epoch + 1, 0, {}
        self._save()
        self.on_epoch(now.history)

    def _batches(self, epoch: int) -> list[Indices]:
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(self.task.samples)
        size = self.recipe.batch
        return [order[k * size : (k + 1) * size] for k in range(self.recipe.steps(len(order)))]

    def _loader(self, epoch: int, step: int, index: Indices) -> Callable[[], Batch]:
        rng = np.random.default_rng((self.recipe.seed, epoch, step))
        return lambda: self.task.load(index, rng)

    def _step(self, batch: Batch, steps: int) -> None:
        now, recipe = self.progress, self.recipe
        torch.manual_seed(_number(recipe.seed, now.epoch, now.step))
        for module in self.trained:
            module.train()
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at(now.epoch, now.step, steps)
        with self._precision():
            losses = self.task.losses(self._placed(batch), Moment(now.epoch, now.step, recipe.epochs))
        self.optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_([p for m in self.trained for p in m.parameters()], recipe.clip)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.task.network)
        for name, value in losses.items():
            now.sums[name] = now.sums.get(name, 0.0) + self._finite(name, float(value.detach()))

    def _finite(self, name: str, value: float) -> float:
        if not np.isfinite(value):
            what = f"the loss '{name}' is no number in epoch {self.progress.epoch + 1}"
            raise AvtoolError(what, "the features hold no numbers, or the rate is too high", "--set training.rate=...")
        return value

    def _placed(self, batch: Batch) -> Batch:
        wide = torch.float64 if self.recipe.precision == "float64" else torch.float32

        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, wide if value.is_floating_point() else value.dtype)

        return {name: place(value) for name, value in batch.items()}

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.recipe.precision == "bf16" else nullcontext()

    # ---- selection

    @property
    def _candidate(self) -> nn.Module:
        """What would be kept now."""
        return self.task.network if self.average is None else self.average.module

    def _judge(self, epoch: int) -> Record:
        """Figures of the epoch; keeps its network if it is the best."""
        network, recipe = self._candidate.eval(), self.recipe
        torch.manual_seed(_number(recipe.seed, epoch, 0))
        split = "test" if recipe.select == "best-epoch-on-test" else "val"
        with torch.inference_mode():
            figures = dict(self.task.validate(network, split))
        if not figures and recipe.select != "last":
            raise UsageError(f"there is no split '{split}' to choose an epoch on", hint="--set training.select=last")
        value = figures.get(self.task.metric, float(epoch)) if recipe.select != "last" else float(epoch)
        if value > self.progress.value:
            self.progress.best, self.progress.value = epoch, value
            if self.state is not None:
                write_checkpoint(self._best_file, {"network": network}, None, {"epoch": epoch})
            self._kept = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return {f"{split}/{name}": number for name, number in figures.items()}

    def _has_stalled(self) -> bool:
        now, recipe = self.progress, self.recipe
        return bool(recipe.patience) and now.best >= 0 and now.epoch - 1 - now.best >= recipe.patience

    def _outcome(self) -> Outcome:
        network = self._candidate.eval()
        network.load_state_dict(self._kept)
        now = self.progress
        return Outcome(network, now.history, now.best, now.value)

    # ---- state

    @property
    def _best_file(self) -> Path:
        assert self.state is not None
        return self.state.with_name(f"{self.state.name.removesuffix('.safetensors')}.best.safetensors")

    def _save(self) -> None:
        if self.state is not None:
            write_checkpoint(self.state, self.modules, self.optimiser, self.progress.plain(), self.task.memory())

    def _resume(self) -> None:
        if self.state is None or not self.state.exists():
            return
        about = read_about(self.state)
        if about.get("fingerprint") != self.progress.fingerprint:
            what = f"{printable(self.state)} is the state of another training"
            raise UsageError(what, "its configuration, its data or its version differ", "--overwrite begins anew")
        self.task.remember(read_checkpoint(self.state, self.modules, self.optimiser))
        self.progress = _Progress.of(about)
        if self.progress.best >= 0:
            self._kept = read_part(self._best_file, "network")
        log.info("resumed after %d epochs and %d steps", self.progress.epoch, self.progress.step)

    def forget(self) -> None:
        """Removes the checkpoint of a training that is over."""
        if self.state is not None:
            remove(self.state)
            remove(self._best_file)


def _number(*parts: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _ahead(loads: Iterator[Callable[[], Batch]]) -> Iterator[tuple[Batch, float]]:
    """What the loaders give, each made while its predecessor is used, and the seconds that one had to wait."""
    with ThreadPoolExecutor(1, "loader") as pool:
        following = next(loads, None)
        pending = pool.submit(following) if following else None
        while pending is not None:
            begin = time.monotonic()
            batch = pending.result()
            waited = time.monotonic() - begin
            following = next(loads, None)
            pending = pool.submit(following) if following else None
            yield batch, waited
