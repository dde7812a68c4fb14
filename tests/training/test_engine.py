"""The training loop: resumed it is the same curve, and every part of a recipe does what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avtool.errors import AvtoolError, UsageError, WeightsError
from avtool.training.checkpoints import read_checkpoint, write_checkpoint
from avtool.training.engine import Moment, Trainer
from avtool.training.optimisation import Recipe, make_optimiser
from avtool.training.segments import SegmentTask
from avtool.training.synthetic import SyntheticLaw, synthetic

LAW = SyntheticLaw(classes=3, clips=(40, 16, 16), visual=8, audio=6)
SMALL = {"visual_width": 8, "audio_width": 4, "width": 8, "heads": 2, "layers": 1}
RECIPE = Recipe(epochs=4, batch=16, rate=3e-3, schedule="cosine", warm_up=1, clip=1.0, ema=0.5, seed=3)


class Line:
    """Fits y = w x; validation is minus the squared error."""

    metric = "fit"
    criterion: nn.Module | None = None

    def __init__(self, values: Mapping[int, float] | None = None) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.Linear(1, 1)
        self.x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
        self.values = values  # what `validate` says in each epoch, by count
        self.judged = 0
        self.rates: list[float] = []

    samples = 20

    def load(self, index: Any, rng: np.random.Generator) -> dict[str, Tensor]:
        return {"x": torch.from_numpy(self.x[index] + 0.01 * rng.standard_normal((len(index), 1)).astype(np.float32))}

    def losses(self, batch: Mapping[str, Any], moment: Moment) -> dict[str, Tensor]:
        error = (self.network(batch["x"]) - 3 * batch["x"] - 1).square().mean()
        return {"loss": error, "half": error / 2}

    def validate(self, network: nn.Module, split: str) -> dict[str, float]:
        if split != "val":
            return {}
        self.judged += 1
        if self.values is not None:
            return {"fit": self.values[self.judged]}
        device = next(network.parameters())
        x = torch.from_numpy(self.x).to(device)
        return {"fit": -float((network(x) - 3 * x - 1).square().mean())}

    def memory(self) -> dict[str, Tensor]:
        return {}

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        return None


def task() -> SegmentTask:
    torch.manual_seed(1)
    return SegmentTask("ccln", SMALL, synthetic(LAW))


def plain(history: Any) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "loading")} for record in history]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 3, 5, 8])
def test_resumed_from_any_step_it_is_the_same_curve(tmp_path: Path, after: int) -> None:
    """CCLN remembers embeddings, averages weights and draws dropout: all of it comes back."""
    whole = Trainer(task(), RECIPE).run()
    done: list[float] = []

    def stop(*_: Any) -> None:
        done.append(0)
        if len(done) == after:
            raise Killed

    file = tmp_path / "run.checkpoint.safetensors"
    with pytest.raises(Killed):
        Trainer(task(), RECIPE, file, on_progress=stop, save_seconds=0).run()
    again = Trainer(task(), RECIPE, file, save_seconds=0).run()
    assert plain(again.history) == plain(whole.history) and again.best == whole.best
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], tensor, rtol=0, atol=0)


CHILD = """
import sys, json, torch
from pathlib import Path
from avtool.training.engine import Trainer
from tests.training.test_engine import RECIPE, plain, task
torch.set_num_threads(1)
file = Path(sys.argv[1])
print("ready", flush=True)
out = Trainer(task(), RECIPE, file, on_progress=lambda *_: print("step", flush=True), save_seconds=0).run()
print(json.dumps(plain(out.history)), flush=True)
"""


def test_killed_for_good_it_goes_on(tmp_path: Path, repo: Path) -> None:
    """kill -9 of a process, then another one: the figures are those of an undisturbed run, to 1e-6."""
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run.checkpoint.safetensors")]
    environment = {**os.environ, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repo, env=environment) as child:
        assert child.stdout is not None
        for _ in range(6):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo, env=environment, check=True)
    *steps, last = done.stdout.splitlines()[1:]
    assert len(steps) < 12  # it did not begin anew
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = plain(Trainer(task(), RECIPE).run().history)
    finally:
        torch.set_num_threads(threads)
    for mine, theirs in zip(json.loads(last), whole, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_the_same_seed_is_the_same_training() -> None:
    first, second = (Trainer(Line(), Recipe(epochs=2, batch=8, seed=5)).run() for _ in range(2))
    other = Trainer(Line(), Recipe(epochs=2, batch=8, seed=6)).run()
    assert plain(first.history) == plain(second.history) != plain(other.history)


def test_the_best_epoch_is_kept_and_patience_ends_it(tmp_path: Path) -> None:
    said = {k + 1: value for k, value in enumerate((0.1, 0.5, 0.4, 0.3, 0.2, 0.9))}
    recipe = Recipe(epochs=6, batch=20, rate=0.1, optimiser="sgd", momentum=0.0, patience=3)
    file = tmp_path / "x.checkpoint.safetensors"
    trainer = Trainer(Line(said), recipe, file)
    out = trainer.run()
    assert (out.best, out.value, len(out.history)) == (1, 0.5, 5)
    early = Trainer(Line(said), Recipe(**{**recipe.__dict__, "epochs": 2})).run()
    assert out.network.state_dict()["weight"] == early.network.state_dict()["weight"]
    again = Trainer(Line(said), recipe, file).run()  # a run that is over says the same again
    assert again.network.state_dict()["weight"] == early.network.state_dict()["weight"]
    trainer.forget()
    assert not list(tmp_path.iterdir())


def test_an_epoch_is_chosen_on_test_by_name_alone() -> None:
    asked: list[str] = []

    class Both(Line):
        def validate(self, network: nn.Module, split: str) -> dict[str, float]:
            asked.append(split)
            return {"fit": 1.0}

    Trainer(Both(), Recipe(epochs=2, batch=20)).run()
    assert set(asked) == {"val"}
    out = Trainer(Both(), Recipe(epochs=1, batch=20, select="best-epoch-on-test")).run()
    assert asked[-1] == "test" and "test/fit" in out.history[0]
    with pytest.raises(UsageError, match="'test'"):
        Trainer(Line(), Recipe(epochs=1, batch=20, select="best-epoch-on-test")).run()


def test_rates() -> None:
    steps = Recipe(epochs=40, schedule="steps", milestones=(10, 20, 30), rate=8.0)
    assert [steps.rate_at(e, 0, 5) for e in (0, 9, 10, 20, 39)] == [8, 8, 4, 2, 1]
    cosine = Recipe(epochs=45, schedule="cosine", warm_up=5, rate=1.0, last_rate=1e-8)
    assert cosine.rate_at(0, 0, 10) == 0 and cosine.rate_at(2, 5, 10) == pytest.approx(0.5)
    assert cosine.rate_at(5, 0, 10) == 1 and cosine.rate_at(25, 0, 10) == pytest.approx(0.5)
    assert cosine.rate_at(44, 9, 10) < 1e-3
    assert Recipe(batch=8, drop_last=True).steps(20) == 2 and Recipe(batch=8).steps(20) == 3
    assert Recipe(batch=64, drop_last=True).steps(20) == 1  # rather a small batch than none


def test_averaged_weights_are_what_is_validated_and_kept() -> None:
    one = Trainer(Line(), Recipe(epochs=1, batch=20, rate=0.1, optimiser="sgd", momentum=0.0, ema=0.9))
    out = one.run()  # the first update copies the weights
    assert out.network is one.average.module  # type: ignore[union-attr]
    two = Trainer(Line(), Recipe(epochs=2, batch=20, rate=0.1, optimiser="sgd", momentum=0.0, ema=0.9, select="last"))
    kept = two.run().network.state_dict()["weight"]
    first, last = out.network.state_dict()["weight"], two.task.network.state_dict()["weight"]
    torch.testing.assert_close(kept, 0.9 * first + 0.1 * last)


def test_a_long_gradient_is_cut() -> None:
    def moved(clip: float) -> float:
        line = Line()
        before = line.network.state_dict()["bias"].clone()
        recipe = Recipe(epochs=1, batch=20, rate=1.0, optimiser="sgd", momentum=0.0, clip=clip, select="last")
        network = Trainer(line, recipe).run().network
        return float((network.state_dict()["bias"] - before).abs())

    assert moved(0.01) <= 0.01 + 1e-6 < 0.5 < moved(0.0)


@pytest.mark.parametrize("precision", ["bf16", "float64"])
def test_precisions(precision: str) -> None:
    plain_run = Trainer(task(), Recipe(epochs=1, batch=16)).run()
    out = Trainer(task(), Recipe(epochs=1, batch=16, precision=precision)).run()  # type: ignore[arg-type]
    kind = torch.float64 if precision == "float64" else torch.float32
    assert next(out.network.parameters()).dtype == kind
    assert out.history[0]["train/loss"] == pytest.approx(plain_run.history[0]["train/loss"], rel=0.05)
    assert out.history[0]["train/loss"] != plain_run.history[0]["train/loss"]


def test_a_loss_that_is_no_number_ends_it() -> None:
    line = Line()
    line.x[3] = np.nan
    with pytest.raises(AvtoolError, match="no number in epoch 1"):
        Trainer(line, Recipe(epochs=1)).run()


def test_states_of_other_trainings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.checkpoint.safetensors"
    Trainer(Line(), Recipe(epochs=1), file, "a").run()
    with pytest.raises(UsageError, match="another training"):
        Trainer(Line(), Recipe(epochs=1), file, "b").run()
    file.write_bytes(b"{}")
    with pytest.raises(WeightsError, match="no state"):
        Trainer(Line(), Recipe(epochs=1), file, "a").run()
    write_checkpoint(file, {"network": nn.Linear(2, 2)}, None, {})
    with pytest.raises(WeightsError, match="no state"):
        read_checkpoint(file, {"network": nn.Linear(1, 1)})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rat": 1.0}, "training.rat"),
        ({"rate": "fast"}, "kind"),
        ({"rate": 0.0}, "range"),
        ({"ema": 1.0}, "range"),
        ({"optimiser": "lion"}, "lion"),
        ({"select": "test"}, "select"),
        ({"milestones": 3}, "kind"),
    ],
)
def test_wrong_recipes_are_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Recipe.from_settings(settings)
    assert caught.value.hint or caught.value.why


def test_adamw_decays_weights_alone() -> None:
    groups = make_optimiser(Recipe(optimiser="adamw", decay=0.1), nn.Linear(2, 2), nn.LayerNorm(2)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (3, 0.0)]
    assert Recipe.from_settings({"milestones": [3], "rate": 1}).milestones == (3,)
