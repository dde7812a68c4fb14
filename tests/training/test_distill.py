"""Distillation: batches from the right chunks, a loss that vanishes at the teacher, phases that continue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avtool.features.encoders import mini
from avtool.features.encoders.mini import MiniConfig
from avtool.training import distill
from avtool.training.distill import Phase, Recipe, Targets, batches, distil, load_recipe, loss, run_phase
from avtool.training.views import SHAPES, chunks, save_chunk

TINY = MiniConfig(3, (4, 8), (1, 1), 6, 5, 7)  # 5 values of the teacher's embedding, 7 classes
EAR = replace(TINY, inputs=1)
PHASE = Phase("base", "", 12, (1e-2, 5e-3), {"square": 0.7, "tall": 0.3})
RECIPE = Recipe(
    "visual", 3, 8, 4, 0.01, 0.5, 1.0, 1.0, 2.0, (PHASE, replace(PHASE, name="final", start="base", steps=6))
)


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two networks of a few parameters; bfloat16 on one thread."""
    monkeypatch.setattr(distill, "VISUAL", TINY)
    monkeypatch.setattr(distill, "AUDIO", EAR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_chunks(folder: Path, audio: bool = False) -> Path:
    """Chunks whose answers are a fixed map of colour or level, so that there is something to learn."""
    rng, direction = np.random.default_rng(0), np.random.default_rng(1).standard_normal((3, 12))
    sizes = {"sound-a-000": (128, 20), "sound-b-000": (128, 20)} if audio else {}
    shapes = {"square-a-000": (32, 32), "square-a-001": (32, 32), "tall-b-000": (48, 32), "tall-c-000": (48, 32)}
    for name, size in (sizes or shapes).items():
        colour = rng.standard_normal((20, 3))
        if audio:  # one level for all frequencies
            colour[:] = colour[:, :1]
            inputs = colour[:, :1, None] + 0.1 * rng.standard_normal((20, *size))
        else:
            noise = rng.integers(-20, 20, (20, *size, 3))
            inputs = np.clip(118 + 40 * colour[:, None, None] + noise, 0, 255).astype(np.uint8)
        answers = colour @ direction
        save_chunk(folder, name, inputs, answers[:, :7].astype(np.float16), answers[:, 7:].astype(np.float16))
    return folder


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chunks(tmp_path_factory.mktemp("views"))


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_the_recipes_that_ship(repo: Path, modality: str) -> None:
    recipe = load_recipe(repo / "avtool" / "training" / "configs" / f"distill-{modality}.toml")
    assert recipe.modality == modality and recipe.phases[0].start == ""
    known: set[str] = set()
    for phase in recipe.phases:
        assert not phase.start or phase.start in known
        assert phase.steps > 0 and phase.rate[0] >= phase.rate[1] and sum(phase.groups.values()) == pytest.approx(1)
        known.add(phase.name)
    assert {"base", "final", "held-out"} <= known
    held = {phase.name: phase for phase in recipe.phases}["held-out"]
    assert held.leave_out and held.groups == {phase.name: phase for phase in recipe.phases}["final"].groups
    first = recipe.phases[0]
    assert set(held.leave_out) <= set(first.leave_out)  # what is held out was not seen before either
    if modality == "visual":
        assert {prefix.split("-")[0] for phase in recipe.phases for prefix in phase.groups} <= set(SHAPES)


def test_the_fold_that_is_held_out_is_the_one_that_material_makes(repo: Path) -> None:
    """Every prefix left out is the name of a chunk family of fold 0, and every family of fold 0 is left out."""
    text = (repo / "avtool" / "training" / "material.py").read_text()
    for modality, marks in (("visual", ("tall-avepm", "tall-avepmb", "square-avepm")), ("audio", ("sound-avepm",))):
        recipe = load_recipe(repo / "avtool" / "training" / "configs" / f"distill-{modality}.toml")
        held = next(phase for phase in recipe.phases if phase.name == "held-out")
        assert set(held.leave_out) == {f"{mark}-f0" for mark in marks}
        assert all(mark in text for mark in marks)


# ---------------------------------------------------------------- batches


def test_batches_follow_the_shares_and_leave_out_what_they_must(views: Path) -> None:
    phase = replace(PHASE, leave_out=("tall-c",))
    taken = list(islice(batches(views, phase, 8, np.random.default_rng(0)), 300))
    tall = [inputs.shape[1:3] == (48, 32) for inputs, _, _ in taken]
    assert 60 < sum(tall) < 120
    left_out = {bytes(row) for c in chunks(views, "tall-c") for row in c.inputs}
    assert not any(row.numpy().tobytes() in left_out for inputs, _, _ in taken for row in inputs)
    allowed = {row.tobytes() for c in chunks(views, "") if c.name != "tall-c-000" for row in np.asarray(c.inputs)}
    assert {row.numpy().tobytes() for inputs, _, _ in taken for row in inputs} <= allowed


def test_inputs_stay_with_their_answers(views: Path) -> None:
    table = {
        row.tobytes(): (c.logits[i], c.embedding[i])
        for c in chunks(views, "")
        for i, row in enumerate(np.asarray(c.inputs))
    }
    for inputs, logits, embedding in islice(batches(views, PHASE, 8, np.random.default_rng(1)), 20):
        assert len(inputs) == 8 and logits.dtype == embedding.dtype == torch.float32
        assert len({row.numpy().tobytes() for row in inputs}) == 8
        for row, a, b in zip(inputs, logits, embedding, strict=True):
            wanted = table[row.numpy().tobytes()]
            assert (a.numpy() == wanted[0]).all() and (b.numpy() == wanted[1]).all()


def test_a_chunk_smaller_than_a_batch_gives_a_smaller_batch(views: Path) -> None:
    inputs, logits, _ = next(batches(views, PHASE, 64, np.random.default_rng(0)))
    assert len(inputs) == len(logits) == 20


def test_batches_are_reproducible(views: Path) -> None:
    first, again, other = (
        torch.cat([b[1] for b in islice(batches(views, PHASE, 8, np.random.default_rng(s)), 5)]) for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_jitter_leaves_shapes_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = distill._inputs("visual", torch.full((4, 32, 48, 3), 118, dtype=torch.uint8), generator)
    assert pictures.shape == (4, 3, 32, 48) and abs(pictures).max() < 1 and pictures.std() > 0.05
    assert pictures[0, 0].std() < 1e-6  # exposure of the whole picture, no noise
    sounds = distill._inputs("audio", torch.zeros(4, 128, 20, dtype=torch.float16), generator)
    assert sounds.shape == (4, 1, 128, 20) and sounds.dtype == torch.float32 and sounds[0].std() < 1e-6


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_the_loss_vanishes_at_the_teacher_and_nowhere_else(views: Path, modality: str) -> None:
    recipe, targets = replace(RECIPE, modality=modality), Targets(chunks(views, ""))
    _, logits, embedding = next(batches(views, PHASE, 8, np.random.default_rng(0)))
    right = (embedding - targets.mean) / targets.std
    nothing = torch.zeros(8, 6)
    assert float(loss(recipe, targets, (logits, nothing, right), logits, embedding)) == pytest.approx(0, abs=1e-5)
    for outputs in ((logits + torch.randn(8, 7), nothing, right), (logits, nothing, right + 0.5)):
        assert float(loss(recipe, targets, outputs, logits, embedding)) > 0.05


def test_each_weight_of_the_loss_counts(views: Path) -> None:
    targets = Targets(chunks(views, ""))
    _, logits, embedding = next(batches(views, PHASE, 8, np.random.default_rng(0)))
    outputs = torch.randn(8, 7), torch.zeros(8, 6), torch.randn(8, 5)
    weights = ("class_weight", "logit_weight", "embedding_weight")
    off = replace(RECIPE, **dict.fromkeys(weights, 0.0))
    parts = [float(loss(replace(off, **{w: 1.0}), targets, outputs, logits, embedding)) for w in weights]
    whole = float(loss(replace(off, **dict.fromkeys(weights, 1.0)), targets, outputs, logits, embedding))
    assert min(parts) > 0 and whole == pytest.approx(sum(parts), rel=1e-5)


def test_targets_are_those_of_the_chunks(views: Path) -> None:
    found = chunks(views, "")
    targets = Targets(found)
    embedding = np.concatenate([np.asarray(c.embedding, np.float32) for c in found])
    np.testing.assert_allclose(targets.mean, embedding.mean(0), atol=1e-5)
    assert (targets.std.numpy() > embedding.std(0)).all() and targets.logit_std > 0


def test_the_rate_warms_up_once_and_falls() -> None:
    rates = [distill._rate(PHASE, step, 4) for step in range(12)]
    assert rates[:3] == sorted(rates[:3]) and rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[0] == pytest.approx(1e-2 / 4) and rates[-1] > 5e-3
    assert distill._rate(RECIPE.phases[1], 0, 4) == 1e-2


# ---------------------------------------------------------------- phases


def counting(monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[float]:
    """Notes the loss of every step; the process "dies" before step `stop`."""
    values: list[float] = []
    original = distill.loss

    def noted(*arguments: object) -> torch.Tensor:
        if len(values) == stop:
            raise KeyboardInterrupt
        value = original(*arguments)  # type: ignore[arg-type]
        values.append(float(value.detach()))
        return value

    monkeypatch.setattr(distill, "loss", noted)
    return values


@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_a_training_lowers_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str) -> None:
    views = write_chunks(tmp_path / "views", modality == "audio")
    values = counting(monkeypatch)
    groups = {"sound": 1.0} if modality == "audio" else PHASE.groups
    run_phase(replace(RECIPE, modality=modality), replace(PHASE, steps=60, groups=groups), views, tmp_path)
    assert len(values) == 60 and np.mean(values[-10:]) < 0.6 * np.mean(values[:10])


def test_phases_continue_each_other(views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = counting(monkeypatch)
    distil(RECIPE, views, tmp_path / "out")
    assert len(values) == 18
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(f"visual-{n}{s}.safetensors" for n in ("base", "final") for s in ("", ".state"))
    base, final = (load_file(tmp_path / "out" / f"visual-{n}.safetensors") for n in ("base", "final"))
    assert {k: v.shape for k, v in base.items()} == {k: v.shape for k, v in mini.Mini(TINY).state_dict().items()}
    assert base.keys() == final.keys() and not torch.equal(base["classify.weight"], final["classify.weight"])
    assert int(final["stem.1.num_batches_tracked"]) == 18  # the norms went on as well
    step = load_file(tmp_path / "out" / "visual-final.state.safetensors")["optimiser/0/step"]
    assert int(step) == 18  # and so did the optimiser


def test_finished_phases_are_loaded(views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_phase(RECIPE, PHASE, views, tmp_path)
    values = counting(monkeypatch)
    again = run_phase(RECIPE, PHASE, views, tmp_path)
    assert values == []
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_only_the_phases_asked_for(views: Path, tmp_path: Path) -> None:
    distil(RECIPE, views, tmp_path, ["base"])
    assert not (tmp_path / "visual-final.safetensors").exists()
    distil(RECIPE, views, tmp_path, ["final"])
    assert (tmp_path / "visual-final.safetensors").exists()


def test_an_interrupted_phase_continues_from_its_checkpoint(
    views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_EVERY", 5)
    with monkeypatch.context() as patch:
        counting(patch, stop=8)
        with pytest.raises(KeyboardInterrupt):
            run_phase(RECIPE, PHASE, views, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["visual-base.partial.safetensors"]
    values = counting(monkeypatch)
    model = run_phase(RECIPE, PHASE, views, tmp_path)
    assert len(values) == 12 - 5
    assert not (tmp_path / "visual-base.partial.safetensors").exists()
    assert int(load_file(tmp_path / "visual-base.state.safetensors")["optimiser/0/step"]) == 12
    whole = run_phase(RECIPE, PHASE, views, tmp_path / "whole")
    for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype


def test_training_is_reproducible(views: Path, tmp_path: Path) -> None:
    first, again = (run_phase(RECIPE, PHASE, views, tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_checkpoints_hold_the_weights_and_the_optimiser(tmp_path: Path) -> None:
    models = [mini.blank(TINY, seed) for seed in (0, 1)]
    optimisers = [distill._optimiser(model, 0.1) for model in models]
    for _ in range(3):
        loss_ = sum(o.square().sum() for o in models[0](torch.randn(2, 3, 32, 32)))
        assert isinstance(loss_, torch.Tensor)
        optimisers[0].zero_grad()
        loss_.backward()
        optimisers[0].step()
    distill._store(tmp_path / "x.safetensors", models[0], optimisers[0], 3)
    assert distill._restore(tmp_path / "x.safetensors", models[1], optimisers[1]) == 3
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    first, second = (o.state_dict()["state"] for o in optimisers)
    assert first.keys() == second.keys() and len(first) == len(list(models[0].parameters()))
    for index, table in first.items():
        for key, value in table.items():
            assert torch.equal(value, second[index][key]), (index, key)


def test_norms_and_biases_do_not_decay() -> None:
    decaying, others = distill._optimiser(mini.blank(TINY, 0), 0.1).param_groups
    assert decaying["weight_decay"] == 0.1 and all(p.ndim > 1 for p in decaying["params"])
    assert others["weight_decay"] == 0.0 and all(p.ndim == 1 for p in others["params"])
