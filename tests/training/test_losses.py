"""Losses and targets: golden values of the reference, and the properties that dave.md 2.3, 2.5 and 3 state."""

from __future__ import annotations

from dataclasses import replace
from math import log, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.models.loco import LoCo, LoCoConfig, LoCoOutput
from avtool.models.points import pyramid_points
from avtool.training import losses
from avtool.training.losses import (
    Correspondence,
    Events,
    LoCoLoss,
    Targets,
    assign,
    interval_loss,
    parameter_groups,
    sigmoid_focal,
)

CONFIG = LoCoConfig.tiny(6, 5, 3, width=16, drop_path=0.0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    path = shared / "golden" / "unav_tiny.npz"
    if not path.is_file():
        pytest.skip(f"no golden arrays at {path}")
    keys = ("points", "assign/", "focal/", "diou/", "giou/")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(keys)}


# ---- elementwise -------------------------------------------------------------------------------------------


def test_focal_loss_equals_the_reference(golden: dict[str, Tensor]) -> None:
    got = sigmoid_focal(golden["focal/logits"], golden["focal/targets"])
    torch.testing.assert_close(got, golden["focal/loss"], atol=1e-6, rtol=1e-6)


def test_focal_loss_by_hand() -> None:
    logits, targets = torch.tensor([0.0, log(3)]), torch.tensor([1.0, 0.0])  # p = 1/2 and 3/4
    want = [0.25 * 0.5**2 * log(2), 0.75 * 0.75**2 * log(4)]
    assert sigmoid_focal(logits, targets).tolist() == pytest.approx(want)
    assert sigmoid_focal(logits, targets, alpha=-1, gamma=0).tolist() == pytest.approx([log(2), log(4)])


@pytest.mark.parametrize("kind", ["diou", "giou"])
def test_interval_loss_equals_the_reference(golden: dict[str, Tensor], kind: str) -> None:
    got = interval_loss(golden["diou/pred"], golden["diou/target"], kind)
    torch.testing.assert_close(got, golden[f"{kind}/loss"], atol=1e-6, rtol=1e-6)


def test_interval_loss_by_hand() -> None:
    predicted, target = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[2.0, 1.0], [2.0, 2.0]])
    assert interval_loss(predicted, target, "giou").tolist() == pytest.approx([1 - 2 / 5, 0])
    assert interval_loss(predicted, target, "diou").tolist() == pytest.approx([1 - 2 / 5 + (1.5 / 5) ** 2, 0])
    empty = torch.zeros(1, 2, requires_grad=True)
    interval_loss(empty, torch.zeros(1, 2)).sum().backward()
    assert empty.grad is not None and torch.isfinite(empty.grad).all()


# ---- assignment --------------------------------------------------------------------------------------------


def test_points_equal_the_reference(golden: dict[str, Tensor]) -> None:
    np.testing.assert_array_equal(pyramid_points(64, 6), golden["points"].numpy())


@pytest.mark.parametrize("aware", [True, False])
def test_assignment_equals_the_reference(golden: dict[str, Tensor], aware: bool) -> None:
    events = Events(golden["assign/segments"], golden["assign/labels"])
    labels, offsets = assign(golden["points"], events, 5, aware)
    name = "aware" if aware else "agnostic"
    assert torch.equal(labels, golden[f"assign/cls_{name}"])
    where = labels.bool() if aware else labels.any(1)
    assert torch.equal(offsets[where], golden[f"assign/off_{name}"][where])
    assert not offsets[~where].any()


def brute_force(points: Tensor, events: Events, classes: int, aware: bool) -> tuple[Tensor, Tensor]:
    """The words of dave.md section 3, point by point."""
    labels = torch.zeros(len(points), classes)
    offsets = torch.zeros(len(points), classes, 2) if aware else torch.zeros(len(points), 2)
    for n, (time, low, high, stride) in enumerate(points.tolist()):
        fits = []
        for (start, end), label in zip(events.segments.tolist(), events.labels.tolist(), strict=True):
            left, right = time - start, end - time
            if min(left, right) > 0 and low <= max(left, right) <= high:
                fits.append((end - start, label, torch.tensor([left / stride, right / stride])))
        if aware:
            for _, label, sides in fits:
                labels[n, label], offsets[n, label] = 1, sides
        elif fits:
            shortest = min(length for length, _, _ in fits)
            offsets[n] = next(sides for length, _, sides in fits if length == shortest)
            for length, label, _ in fits:
                labels[n, label] = max(labels[n, label], float(length <= shortest + 1e-3))
    return labels, offsets


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_assignment_equals_the_point_by_point_rule(aware: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 9))
    # quarters are exact in binary, so ranges and ties are met exactly
    starts = torch.from_numpy(random.integers(-8, 120, count) / 4).float()
    lengths = torch.from_numpy(random.integers(1, 160, count) / 4).float()
    events = Events(torch.stack((starts, starts + lengths), 1), torch.from_numpy(random.integers(0, 3, count)))
    points = torch.from_numpy(pyramid_points(40, 5))
    for got, want in zip(assign(points, events, 3, aware), brute_force(points, events, 3, aware), strict=True):
        torch.testing.assert_close(got, want)


def test_range_ends_are_inclusive_and_inside_is_strict() -> None:
    points = torch.from_numpy(pyramid_points(16, 3))
    labels, _ = assign(points, Events(torch.tensor([[0.0, 8.0]]), torch.tensor([0])), 1)
    positive = {(t, s) for (t, _, _, s), hit in zip(points.tolist(), labels[:, 0].tolist(), strict=True) if hit}
    assert (4.0, 1.0) in positive and (4.0, 2.0) in positive  # a distance of exactly 4: both levels
    assert (0.0, 4.0) not in positive and (8.0, 4.0) not in positive  # on the border
    assert (4.0, 4.0) not in positive


# ---- correspondence ------------------------------------------------------------------------------------------


def plain_lcf(module: Correspondence, visual: Tensor, audio: Tensor, mask: Tensor) -> float:
    """Equations of dave.md 2.3 written out over the whole N x N matrix in NumPy."""
    clip, step = (x.numpy() for x in mask.nonzero(as_tuple=True))
    v, a = (
        F.normalize(part(x[mask]), dim=-1).detach().numpy().astype(np.float64)
        for part, x in ((module.visual, visual), (module.audio, audio))
    )
    sigma, n = module.sigma.item(), len(clip)
    same = clip[:, None] == clip
    distance = np.abs(step[:, None] - step) / sqrt(2)
    goal = {
        "diagonal": np.eye(n),
        "smoothed": np.where(np.eye(n) == 1, 0.9, 0.1 / np.maximum(same.sum(1) - 1, 1)[:, None] * same),
    }.get(module.target, same * np.exp(-(distance**2) / (2 * sigma**2)) / (sigma * sqrt(2 * pi)))
    if module.objective == "kl":
        goal = goal / goal.sum(1, keepdims=True)
    total = 0.0
    for scores in (v @ a.T / module.tau.item(), a @ v.T / module.tau.item()):
        log_q = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        total -= 0.5 * (goal * log_q).sum() / n
        if module.objective == "kl":
            total += 0.5 * (goal * np.log(np.where(goal > 0, goal, 1))).sum() / n
    return total


@pytest.mark.parametrize("objective", ["ce", "kl"])
@pytest.mark.parametrize("target", ["diagonal", "smoothed", "fixed_gaussian", "learned_gaussian"])
def test_correspondence_equals_the_equations(target: str, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Correspondence(8, 16, target, objective)
    visual, audio = torch.randn(3, 16, 8), torch.randn(3, 16, 8)
    mask = torch.arange(16) < torch.tensor([[16], [5], [2]])
    whole = module(visual, audio, mask)
    assert whole.item() == pytest.approx(plain_lcf(module, visual, audio, mask), rel=1e-4)
    whole.backward()
    gradient = module.visual.weight.grad
    monkeypatch.setattr(losses, "LCF_ROWS", 7)
    module.zero_grad()
    chunked = module(visual, audio, mask)
    chunked.backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(module.visual.weight.grad, gradient)
    assert objective == "ce" or whole >= 0  # a divergence


def test_correspondence_ignores_padding() -> None:
    module = Correspondence(8, 16)
    visual, audio = torch.randn(2, 2, 9, 8).unbind(0)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    want = module(visual, audio, mask)
    visual[1, 4:], audio[1, 4:] = torch.nan, torch.nan
    assert torch.equal(module(visual, audio, mask), want)
    padded = [F.pad(x, (0, 0, 0, 7)) for x in (visual, audio)]
    torch.testing.assert_close(module(*padded, F.pad(mask, (0, 7))), want)
    assert module(visual, audio, mask & False).item() == 0


def test_printed_gaussian_sums_to_the_root_of_two_inside_and_half_of_it_at_the_ends() -> None:
    module = Correspondence(8, 400, "fixed_gaussian", "ce")
    step = torch.arange(41)
    distance = (step[:, None] - step).abs().float()
    sums = module._log_target(torch.ones(41, 41, dtype=torch.bool), distance).exp().sum(1)
    assert sums[20].item() == pytest.approx(sqrt(2), abs=1e-3)
    assert sums[0].item() == pytest.approx(0.71 + 0.5 / sqrt(2 * pi), abs=0.01)  # half, and half of the centre


def test_the_two_streams_are_drawn_together() -> None:
    """Equal streams with distinct rows cost less than streams shifted by half a clip."""
    module = Correspondence(8, 16)
    module.audio.load_state_dict(module.visual.state_dict())
    x = torch.randn(2, 16, 8)
    mask = torch.ones(2, 16, dtype=torch.bool)
    assert module(x, x, mask) < 0.9 * module(x, x.roll(8, 1), mask)


def walk(length: float, objective: str, steps: int = 150) -> float:
    """Sigma learnt on two streams that share a random sequence with the given correlation length."""
    torch.manual_seed(0)
    module = Correspondence(16, 64, "learned_gaussian", objective).train()
    optimiser = torch.optim.Adam(module.parameters(), 0.03)
    mask = torch.ones(4, 48, dtype=torch.bool)
    kernel = torch.exp(-0.5 * (torch.arange(-24, 25) / length) ** 2)
    for _ in range(steps):
        noise = torch.randn(4, 16, 96)
        smooth = F.conv1d(noise.flatten(0, 1)[:, None], kernel[None, None]).view(4, 16, 48).transpose(1, 2)
        smooth = smooth / smooth.std()
        visual, audio = (smooth + 0.3 * torch.randn_like(smooth) for _ in range(2))
        optimiser.zero_grad()
        module(visual, audio, mask).backward()
        optimiser.step()
    return module.sigma.item()


def test_learnt_width_follows_the_data_with_kl() -> None:
    assert walk(1.0, "kl") + 0.4 < walk(6.0, "kl")


def test_temperature_and_width_stay_inside_their_limits_and_come_back() -> None:
    module = Correspondence(8, 16).train()
    x, mask = torch.randn(1, 16, 8), torch.ones(1, 16, dtype=torch.bool)
    for sigma, tau in ((50.0, 9.0), (-50.0, -50.0)):
        module.rho.data.fill_(sigma)
        module.log_tau.data.fill_(tau)
        module(x, x, mask).backward()
        assert 0.5 - 1e-6 <= module.sigma.item() <= 4 + 1e-6
        assert 0.001 - 1e-6 <= module.tau.item() <= 0.5 + 1e-6
        assert module.rho.grad is not None and module.rho.grad != 0  # a limit does not hold it for good
        assert module.log_tau.grad is not None and torch.isfinite(module.log_tau.grad)


def test_only_the_learnt_gaussian_learns_its_width() -> None:
    for target in ("diagonal", "smoothed", "fixed_gaussian", "learned_gaussian"):
        assert Correspondence(8, 16, target).rho.requires_grad == (target == "learned_gaussian")
    assert Correspondence(8, 16).sigma.item() == pytest.approx(1)
    assert Correspondence(8, 16).tau.item() == pytest.approx(0.07)


# ---- the whole -----------------------------------------------------------------------------------------------


def output_of(points: int, classes: int, rows: int) -> LoCoOutput:
    """An output of one level, with gradient."""
    logits = torch.randn(1, rows, classes, requires_grad=True)
    offsets = torch.rand(1, rows, 2 * classes, requires_grad=True)
    mask = torch.arange(rows)[None] < points
    return LoCoOutput((logits,), (offsets,), (mask,), torch.randn(1, rows, 16), torch.randn(1, rows, 16))


def test_total_by_hand_and_padding_has_no_gradient() -> None:
    config = replace(CONFIG, levels=1, lcf_weight=0.1)
    loss = LoCoLoss(config, start=20.0).train()
    output = output_of(8, 3, 12)
    events = Events(torch.tensor([[0.5, 4.5], [2.5, 11.0]]), torch.tensor([1, 2]))
    targets = loss.targets([events], 12)
    parts = loss(output, targets)
    # rows 1 to 4 hold class 1, rows 3 to 7 class 2 (8 to 10 are padding): 7 points, 9 pairs
    assert parts.positives.item() == 7
    assert loss.normaliser.item() == pytest.approx(0.9 * 20 + 0.1 * 7)
    valid = slice(0, 8)
    focal = sigmoid_focal(output.logits[0][0, valid], targets.labels[0, valid]).sum() / loss.normaliser
    pairs = targets.labels[0, valid].nonzero().tolist()
    assert len(pairs) == 9
    distances = [(output.offsets[0][0, n, 2 * c : 2 * c + 2], targets.offsets[0, n, c]) for n, c in pairs]
    boxes = sum(interval_loss(p, t) for p, t in distances) / loss.normaliser
    torch.testing.assert_close(parts.classification, focal)
    torch.testing.assert_close(parts.regression, boxes)
    torch.testing.assert_close(parts.total, focal + boxes + 0.1 * parts.correspondence)
    parts.total.backward()
    for x in (output.logits[0], output.offsets[0]):
        assert x.grad is not None and x.grad[0, valid].any() and not x.grad[0, 8:].any()


def test_normaliser_moves_in_training_only_and_counts_at_least_one() -> None:
    config = replace(CONFIG, levels=1, lcf_weight=0.0)
    loss = LoCoLoss(config, start=100)
    none = loss.targets([Events(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))], 12)
    output = output_of(12, 3, 12)
    loss.eval()(output, none)
    assert loss.normaliser.item() == 100
    parts = loss.train()(output, none)
    assert loss.normaliser.item() == pytest.approx(90.1)
    assert parts.regression.item() == 0 and parts.correspondence.item() == 0
    parts.total.backward()
    assert output.logits[0].grad is not None and torch.isfinite(output.logits[0].grad).all()
    assert "normaliser" in loss.state_dict()


def test_offset_channels_are_left_and_right_of_each_class() -> None:
    """The target itself, written as channels 2c and 2c + 1, costs nothing."""
    config = replace(CONFIG, levels=1, lcf_weight=0.0)
    loss = LoCoLoss(config).eval()
    targets = loss.targets([Events(torch.tensor([[0.5, 6.0], [3.5, 9.0]]), torch.tensor([0, 2]))], 12)
    exact = replace(output_of(12, 3, 12), offsets=(targets.offsets.flatten(2),))
    assert loss(exact, targets).regression.item() == pytest.approx(0, abs=1e-6)
    swapped = replace(exact, offsets=(targets.offsets.flip(3).flatten(2),))
    assert loss(swapped, targets).regression.item() > 0.01


def test_shared_offsets_regress_the_shortest_event() -> None:
    config = replace(CONFIG, levels=1, lcf_weight=0.0, regression="shared")
    loss = LoCoLoss(config).eval()
    targets = loss.targets([Events(torch.tensor([[0.5, 10.0], [3.5, 7.0]]), torch.tensor([0, 2]))], 12)
    assert targets.offsets.shape == (1, 12, 2)
    assert targets.labels[0, 5].tolist() == [0, 0, 1]
    exact = replace(output_of(12, 3, 12), offsets=(targets.offsets,))
    assert loss(exact, targets).regression.item() == pytest.approx(0, abs=1e-6)


def test_soft_labels_are_allowed() -> None:
    config = replace(CONFIG, levels=1, lcf_weight=0.0)
    loss = LoCoLoss(config).eval()
    hard = loss.targets([Events(torch.tensor([[0.5, 6.0]]), torch.tensor([0]))], 12)
    parts = loss(output_of(12, 3, 12), Targets(hard.labels * 0.7, hard.offsets))
    assert parts.positives.item() == 5


def test_decay_reaches_weights_of_convolutions_and_linear_maps_alone() -> None:
    model, loss = LoCo(CONFIG), LoCoLoss(CONFIG)
    groups = parameter_groups(model, loss, weight_decay=0.1)
    decayed = {id(p) for p in groups[0]["params"]}
    rest = {id(p) for p in groups[1]["params"]}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.1, 0.0)
    named: dict[str, Any] = dict(model.named_parameters()) | dict(loss.named_parameters())
    assert decayed | rest == {id(p) for p in named.values()} and not decayed & rest
    for name, parameter in named.items():
        kernel = name.endswith("weight") and "norm" not in name
        assert (id(parameter) in decayed) == kernel, name
