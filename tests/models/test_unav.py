"""UnAV against the public code's own numbers (dave.md 7), and free of its defects by default (dave.md 6)."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from avtool.detect.proposals import Proposals
from avtool.detect.softnms import detect_on_grid
from avtool.errors import UsageError, WeightsError
from avtool.models.pyramid import pyramid_levels
from avtool.models.unav import UnAV, UnAVConfig, UnAVOutput, from_official, own_name
from avtool.timegrid import Grid
from avtool.training.losses import Events, LoCoLoss

Golden = dict[str, np.ndarray[Any, Any]]
GRID = Grid(Fraction(24, 25), Fraction(8, 25))
TINY = UnAVConfig(24, 12, 5, width=32, max_length=64, drop_path=0.0, reference=True)
PLAIN = replace(TINY, dependency=False, regression="shared")
SMALL = UnAVConfig(
    6, 5, 3, width=16, heads=2, levels=3, unimodal_blocks=1, max_length=16, mlp_ratio=2, expand=8, layer_scale=1.0
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    with np.load(shared / "golden" / "unav_tiny.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def network(golden: Golden, which: str) -> UnAV:
    start = f"weights_{which}/"
    state = {k.removeprefix(start): torch.from_numpy(v) for k, v in golden.items() if k.startswith(start)}
    return from_official(state, TINY if which == "a" else PLAIN)


def batch(golden: Golden, case: str) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Features (B, T, C) padded with zeros, their mask and lengths."""
    meta = json.loads(str(golden["meta"]))[case]
    lengths, padded = meta["lens"], meta["padded"]
    visual, audio = (
        torch.stack(
            [
                F.pad(torch.from_numpy(golden[f"{case}/in_{m}{i}"].T), (0, 0, 0, padded - n))
                for i, n in enumerate(lengths)
            ]
        )
        for m in "va"
    )
    return visual, audio, torch.arange(padded) < torch.tensor(lengths)[:, None], lengths


@pytest.mark.parametrize("case", ["b_plain", "a_single33", "a_single50", "a_single64", "a_long", "a_short"])
def test_every_tensor_and_detection_is_the_references(golden: Golden, case: str) -> None:
    visual, audio, mask, lengths = batch(golden, case)
    with torch.no_grad():
        output = network(golden, case[0])(visual, audio, mask)
    ours = {"pyr_v": output.visual_levels, "pyr_a": output.audio_levels, "dep": output.joint, "cls": output.logits,
            "off": output.offsets}  # fmt: skip
    for name, levels in ours.items():
        for level, tensor in enumerate(levels):
            if (want := golden.get(f"{case}/{name}{level}")) is not None:
                tolerance = max(1e-5, 2e-6 * np.abs(want).max())
                np.testing.assert_allclose(tensor.mT.numpy(), want, rtol=0, atol=tolerance, err_msg=f"{name}{level}")
    for level, tensor in enumerate(output.masks):
        assert np.array_equal(tensor.numpy(), golden[f"{case}/mask{level}"][:, 0])
    for video, rows in enumerate(lengths):
        found = detect_on_grid(pyramid_levels(output, clip=video), GRID, (8 * rows + 24) / 25)
        same_detections(found, *(golden[f"{case}/det{video}_{key}"] for key in ("segments", "scores", "labels")))


def same_detections(found: Proposals, segments: Any, scores: Any, labels: Any) -> None:
    """Equal but for the order of near-equal scores."""
    assert len(found) == len(scores)
    expected = np.column_stack([segments, scores, labels])
    mine = np.column_stack([found.starts, found.ends, found.scores, found.labels])
    near = np.isclose(expected[:, None], mine, rtol=0, atol=[2e-4, 2e-4, 1e-5, 0]).all(axis=2)
    assert near.any(axis=1).all() and near.any(axis=0).all()


def test_one_training_step_of_the_reference(golden: Golden) -> None:
    """Losses, normaliser and gradient norms: network, assignment and losses together."""
    model = network(golden, "a").train()
    visual, audio = (torch.from_numpy(golden[f"train/in_{m}"].T)[None] for m in "va")
    output = model(visual, audio, torch.ones(1, 64, dtype=torch.bool))
    criterion = LoCoLoss(TINY).train()
    events = Events(torch.from_numpy(golden["assign/segments"]), torch.from_numpy(golden["assign/labels"]))
    losses = criterion(output, criterion.targets([events], 64))
    losses.total.backward()
    assert criterion.normaliser.item() == pytest.approx(float(golden["train/loss_normalizer_after"]))
    found = [losses.classification.item(), losses.regression.item(), losses.total.item()]
    assert found == pytest.approx(golden["train/losses"].tolist(), rel=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, want in json.loads(str(golden["meta"]))["train_grad_norms"].items():
        gradient = gradients[own_name(name)]
        assert (0.0 if gradient is None else gradient.norm().item()) == pytest.approx(want, rel=1e-3, abs=1e-6), name


def test_published_size_and_names(shared: Path) -> None:
    info = json.loads((shared / "golden" / "unav_model_info.json").read_text())
    with torch.device("meta"):
        model = UnAV()
        plain, onepeace = UnAV(replace(model.config, dependency=False)), UnAV(UnAVConfig(1536, 1536, max_length=256))
    shapes = {own_name(name): shape for name, shape in info["full"]["state_dict"].items()}
    assert {name: list(p.shape) for name, p in model.state_dict().items()} == shapes

    def size(module: torch.nn.Module | None) -> int:
        assert module is not None
        return sum(p.numel() for p in module.parameters())

    assert size(model) == info["full"]["total_params"] == 139_544_114
    assert size(model.dependency) == info["full"]["by_module"]["dependency_block"]
    assert (size(plain), size(onepeace)) == (info["full_no_dependency_params"], info["onepeace_dims_params"])


@pytest.mark.parametrize(("dependency", "name"), [(True, "flops_T224"), (False, "full_no_dependency_flops_T224")])
def test_published_cost(shared: Path, dependency: bool, name: str) -> None:
    """Multiply-adds count as two; the meta device computes nothing."""
    info = json.loads((shared / "golden" / "unav_model_info.json").read_text())
    with torch.device("meta"):
        model = UnAV(UnAVConfig(dependency=dependency)).eval()
        inputs = torch.empty(1, 224, 2048), torch.empty(1, 224, 128), torch.empty(1, 224, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    assert counter.get_total_flops() == {**info, **info["full"]}[name]


# ---- without the defects -----------------------------------------------------------------------------------


def shaken(config: UnAVConfig) -> UnAV:
    """A network in whose outputs every part counts."""
    torch.manual_seed(0)
    model = UnAV(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def clips(lengths: list[int], padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random clips, equal for equal index whatever the padding, which is filled with NaN."""
    sides = [torch.full((len(lengths), padded, d), torch.nan, dtype=torch.float64) for d in (6, 5)]
    for i, length in enumerate(lengths):
        random = torch.Generator().manual_seed(i)
        for side in sides:
            side[i, :length] = torch.randn(length, side.shape[2], generator=random, dtype=torch.float64)
    return sides[0], sides[1], torch.arange(padded) < torch.tensor(lengths)[:, None]


def own_rows(output: UnAVOutput, clip: int) -> list[Tensor]:
    return [
        x[clip][m[clip]]
        for levels in (output.logits, output.offsets)
        for x, m in zip(levels, output.masks, strict=True)
    ]


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, dependency=False, regression="shared")])
def test_a_clip_alone_equals_the_same_clip_in_a_padded_batch(config: UnAVConfig) -> None:
    model = shaken(config)
    lengths = [11, 16, 5, 1]
    visual, audio, mask = clips(lengths, 21)
    with torch.no_grad():
        many = model(visual, audio, mask)
        for i, length in enumerate(lengths):
            one = model(visual[i : i + 1, :length], audio[i : i + 1, :length], mask[i : i + 1, :length])
            for a, b in zip(own_rows(many, i), own_rows(one, 0), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_references_behaviour_shows_both_defects() -> None:
    model = shaken(replace(SMALL, reference=True))
    visual, audio, mask = (torch.nan_to_num(x) if x.dtype != torch.bool else x for x in clips([16, 9], 16))
    with torch.no_grad():
        pair, alone = model(visual, audio, mask), model(visual[:1], audio[:1], mask[:1])
        longer = model(*(F.pad(x[:1], (0, 0, 0, 4)) for x in (visual, audio)), F.pad(mask[:1], (0, 4)))
    assert (pair.logits[0][0] - alone.logits[0][0]).abs().max() > 1e-3  # another clip's mask
    assert (longer.logits[0][0, :16] - alone.logits[0][0]).abs().max() > 1e-3  # padding leaks


def test_a_batch_whose_rows_are_as_many_as_classes_runs() -> None:
    """Where the public code crashes (dave.md 7): B * T_l equals the class count."""
    visual, audio, mask = clips([3], 3)
    assert shaken(SMALL)(visual, audio, mask).logits[0].isfinite().all()


def test_gradients_reach_every_parameter_but_unread_scales() -> None:
    model = shaken(SMALL)
    visual, audio, mask = clips([16, 9], 16)
    criterion = LoCoLoss(SMALL)
    events = [
        Events(torch.tensor([[1.0, 6.0], [0.2, 15.5]]), torch.tensor([0, 2])),
        Events(torch.tensor([[2.0, 4.5]]), torch.tensor([1])),
    ]
    losses = criterion(model(torch.nan_to_num(visual), torch.nan_to_num(audio), mask), criterion.targets(events, 16))
    losses.total.backward()
    assert losses.correspondence.item() == 0
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_impossible_settings_inputs_and_checkpoints_are_refused() -> None:
    for wrong in ({"regression": "none"}, {"reg_loss": "x"}, {"classes": 0}, {"width": 14}):
        with pytest.raises(UsageError):
            replace(SMALL, **wrong)  # type: ignore[arg-type]
    model = UnAV(SMALL)
    visual, audio, mask = clips([4], 4)
    with pytest.raises(UsageError):
        model(visual[..., :2], audio, mask)
    state = model.state_dict()
    with pytest.raises(WeightsError, match="no checkpoint"):
        from_official({**state, "extra": torch.zeros(1)}, SMALL)
    with pytest.raises(WeightsError, match="no checkpoint"):
        from_official({}, SMALL)
    assert torch.equal(
        from_official(state, SMALL).state_dict()["class_head.out.conv.bias"], state["class_head.out.conv.bias"]
    )
