"""CACE-Net against the published code's own numbers (avel.md 6), and what the published code does not offer."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avtool.errors import UsageError, WeightsError
from avtool.models.cacenet import CACENet, CACENetConfig, CACENetOutput, from_official
from avtool.training.segment_losses import (
    CACELosses,
    cace_loss,
    event_contrast,
    labels_from_indices,
    segment_targets,
)

DIMS = {"vgg": (512, 128), "res": (2048, 2048)}
GUIDES = {"none": "None", "audio": "Audio-Guide", "visual": "Visual-Guide", "co": "Co-Guide"}
LOSSES = {
    "event": "L_loss_is_event", "classification": "L_loss_event_class", "gate": "L_label_is_gate",
    "scores": "L_loss_cas", "contrast": "L_loss_contrastive", "total": "L_loss",
}  # fmt: skip
Golden = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@cache
def recipe_weights(file: Path) -> dict[str, Tensor]:
    """The official network's weights, generated from their names and shapes (avel.md 6, "Recipe")."""
    weights = {}
    for key, shape in json.loads(file.read_text()).items():
        r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        if len(shape) >= 2:
            r = r / np.sqrt(shape[1])
        elif key.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            r = 1 + 0.1 * r
        else:
            r = 0.1 * r
        weights[key] = torch.from_numpy(r)
    return weights


def recipe_inputs(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rs = np.random.RandomState(20240717)
    visual = np.maximum(rs.standard_normal((3, 10, 7, 7, DIMS[kind][0])), 0)
    audio = rs.uniform(0, 1, (3, 10, DIMS[kind][1]))
    return torch.from_numpy(visual).to(dtype), torch.from_numpy(audio).to(dtype)


def golden(shared: Path, name: str) -> Golden:
    with np.load(shared / "golden" / name) as file:
        return dict(file)


Result = tuple[CACENetOutput, CACELosses]


def build(shared: Path, kind: str, dtype: torch.dtype = torch.float64, **settings: Any) -> CACENet:
    config = CACENetConfig(*DIMS[kind], **settings)
    return from_official(recipe_weights(shared / "golden" / f"cace_{kind}_shapes.json"), config, dtype)


def run(shared: Path, kind: str, network: CACENet, switch: int, dtype: torch.dtype = torch.float64) -> Result:
    """The recipe through network and losses."""
    recipe = golden(shared, f"cace_{kind}_recipe.npz")
    noise = torch.from_numpy(recipe["noise"]).transpose(0, 1).to(dtype)
    output = network(*recipe_inputs(kind, dtype), contrast=bool(switch), noise=noise)
    targets = segment_targets(torch.from_numpy(recipe["labels"]))
    return output, cace_loss(output, targets, network.config, contrast=bool(switch))


def same(found: Tensor, expected: np.ndarray[Any, Any], tolerance: float) -> None:
    np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)


def agree(shared: Path, result: Result, expected: Golden, tolerance: float) -> None:
    """Outputs, losses and accuracy."""
    output, losses = result
    same(output.events.T[..., None], expected["is_event_scores"], tolerance)
    same(output.classes, expected["event_scores"], tolerance)
    same(output.gate.T[..., None], expected["audio_visual_gate"], tolerance)
    same(output.scores, expected["av_score"], tolerance)
    if "query_feat" in expected:
        same(output.query, expected["query_feat"], tolerance)
        same(output.key, expected["key_feat"], tolerance)
    for ours, name in LOSSES.items():
        same(getattr(losses, ours), expected[name], tolerance)
    truth = torch.from_numpy(golden(shared, "cace_vgg_recipe.npz")["labels"]).argmax(2)
    same(100 * (output.labels() == truth).double().mean(), expected["acc"], 1e-12)


def part(every: Golden, start: str) -> Golden:
    return {name.removeprefix(start): value for name, value in every.items() if name.startswith(start)}


@pytest.mark.parametrize("kind", ["vgg", "res"])
def test_outputs_losses_and_gradients_are_the_published_networks(shared: Path, kind: str) -> None:
    network = build(shared, kind)
    expected = golden(shared, f"cace_{kind}_recipe.npz")
    with torch.no_grad():
        agree(shared, run(shared, kind, network, 0), part(expected, "sw0_"), 1e-9)
    result = run(shared, kind, network, 1)
    agree(shared, result, part(expected, "sw1_"), 1e-9)
    result[1].total.backward()
    norms = json.loads((shared / "golden" / f"cace_{kind}_recipe_gradnorms.json").read_text())
    live = {name: norm for name, norm in norms.items() if norm is not None}
    found = {name: p.grad.norm().item() for name, p in network.named_parameters() if p.grad is not None}
    assert found.keys() == live.keys() == dict(network.named_parameters()).keys()
    for name, norm in live.items():
        assert found[name] == pytest.approx(norm, rel=1e-9, abs=1e-9), name
    assert sum(n**2 for n in found.values()) ** 0.5 == pytest.approx(float(expected["sw1_gradnorm_total"]), rel=1e-9)


@pytest.mark.parametrize("kind", ["vgg", "res"])
@torch.no_grad()
def test_single_precision_agrees_too(shared: Path, kind: str) -> None:
    network = build(shared, kind, torch.float32)
    expected = golden(shared, f"cace_{kind}_recipe.npz")
    for switch in (0, 1):
        result = run(shared, kind, network, switch, torch.float32)
        agree(shared, result, part(expected, f"sw{switch}_"), 1e-5)


@pytest.mark.parametrize("guide", list(GUIDES))
def test_guidance_variants_are_the_published_networks(shared: Path, guide: str) -> None:
    network = build(shared, "vgg", guide=guide)
    expected = part(golden(shared, "cace_vgg_guides.npz"), f"{GUIDES[guide]}_")
    with torch.no_grad():
        agree(shared, run(shared, "vgg", network, 1), part(expected, "sw1_"), 1e-9)
    result = run(shared, "vgg", network, 0)
    agree(shared, result, part(expected, "sw0_"), 1e-9)
    result[1].total.backward()
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    same(torch.stack(norms).norm(), expected["sw0_gradnorm_total"], 1e-9)


@torch.no_grad()
def test_class_head_on_the_enhanced_feature_and_attention_maps_meet_their_anchors(shared: Path) -> None:
    output, _ = run(shared, "vgg", build(shared, "vgg", contrast_class_head=True), 1)
    assert output.classes.sum().item() == pytest.approx(17.1473204984, abs=1e-9)
    assert output.attention is not None
    assert output.attention[0].argmax(1).tolist() == [42, 18, 38, 1, 34, 34, 29, 43, 21, 21]
    assert output.attention.max().item() == pytest.approx(0.0327245699, abs=1e-9)
    same(output.attention.sum(2), np.ones((3, 10)), 1e-12)


@pytest.mark.parametrize(("kind", "total", "unused"), [("vgg", 13_118_681, 3_835_264), ("res", 14_150_873, 3_818_752)])
def test_size_is_the_published_one_without_its_dead_weights(shared: Path, kind: str, total: int, unused: int) -> None:
    shapes = json.loads((shared / "golden" / f"cace_{kind}_shapes.json").read_text())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == total
    with torch.device("meta"):
        network = CACENet(CACENetConfig(*DIMS[kind]))
    assert sum(p.numel() for p in network.parameters()) == total - unused
    assert {n: list(p.shape) for n, p in network.named_parameters()}.items() <= shapes.items()


# ---- official checkpoints ----------------------------------------------------------------------------------


def official(shared: Path) -> dict[str, Tensor]:
    """As the file is: float64 under DataParallel's prefix."""
    return {f"module.{k}": v for k, v in recipe_weights(shared / "golden" / "cace_vgg_shapes.json").items()}


def test_an_official_checkpoint_gives_its_own_configuration(shared: Path) -> None:
    network = from_official(official(shared))
    assert network.config == CACENetConfig()
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training
    res = from_official(recipe_weights(shared / "golden" / "cace_res_shapes.json"))
    assert (res.config.visual_dim, res.config.audio_dim) == (2048, 2048)


def test_foreign_missing_misshapen_and_broken_tensors_are_refused(shared: Path) -> None:
    state = official(shared)
    name = "module.v_fc.weight"
    for wrong, why in (
        ({**state, "module.extra.weight": torch.zeros(1)}, "extra.weight"),
        ({k: v for k, v in state.items() if k != "module.AVInter.norm1.bias"}, "AVInter.norm1.bias is missing"),
        ({**state, "module.AVInter.norm1.bias": torch.zeros(3)}, "shape"),
        ({**state, name: state[name] * torch.nan}, "NaN"),
        ({}, "missing"),
    ):
        with pytest.raises(WeightsError) as caught:
            from_official(wrong)
        assert why in caught.value.why


# ---- batches, padding, settings ----------------------------------------------------------------------------

SMALL = CACENetConfig(visual_dim=12, audio_dim=9, classes=5, visual_width=16, audio_width=8, width=16)


@pytest.fixture(scope="module")
def small() -> CACENet:
    torch.manual_seed(3)
    return CACENet(SMALL).eval().double()


def clips(lengths: list[int], padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random clips, equal for equal index whatever the padding, which is filled with NaN."""
    visual = torch.full((len(lengths), padded, 2, 2, 12), torch.nan, dtype=torch.float64)
    audio = torch.full((len(lengths), padded, 9), torch.nan, dtype=torch.float64)
    for i, length in enumerate(lengths):
        random = torch.Generator().manual_seed(i)
        visual[i, :length] = torch.randn(length, 2, 2, 12, generator=random, dtype=torch.float64)
        audio[i, :length] = torch.randn(length, 9, generator=random, dtype=torch.float64)
    return visual, audio, torch.arange(padded) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("guide", list(GUIDES))
def test_a_clip_alone_equals_the_same_clip_in_a_padded_batch(guide: Any) -> None:
    torch.manual_seed(3)
    network = CACENet(replace(SMALL, guide=guide)).eval().double()
    lengths = [10, 3, 7, 1]
    visual, audio, mask = clips(lengths, 12)
    noise = torch.randn(4, 12, 16, dtype=torch.float64)
    many = network(visual, audio, mask, noise=noise)
    for i, length in enumerate(lengths):
        own = slice(i, i + 1), slice(0, length)
        one = network(visual[own], audio[own], noise=noise[own])
        for name in ("events", "gate", "query", "key"):
            torch.testing.assert_close(getattr(many, name)[own], getattr(one, name), rtol=0, atol=1e-12)
        for name in ("classes", "scores"):
            torch.testing.assert_close(getattr(many, name)[i], getattr(one, name)[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(many.curve()[own], one.curve(), rtol=0, atol=1e-12)


def test_audio_guidance_is_co_guidance_without_audio_calibration(small: CACENet) -> None:
    visual, audio, mask = clips([5, 4], 5)
    co = CACENet(replace(SMALL, psi=0.0)).eval().double()
    co.load_state_dict(small.state_dict())
    other = CACENet(replace(SMALL, guide="audio")).eval().double()
    other.load_state_dict({k: v for k, v in co.state_dict().items() if k in other.state_dict()})
    assert torch.equal(other(visual, audio, mask).events, co(visual, audio, mask).events)


def test_padding_changes_no_loss(small: CACENet) -> None:
    lengths = [6, 4]
    indices = torch.tensor([[2, 2, 5, 5, 2, 5], [5, 1, 1, 5, 5, 5]])
    totals = []
    for padded in (6, 9):
        visual, audio, mask = clips(lengths, padded)
        labels = labels_from_indices(torch.nn.functional.pad(indices, (0, padded - 6), value=5), 5)
        noise = torch.zeros(2, padded, 16)
        losses = cace_loss(small(visual, audio, mask, noise=noise), segment_targets(labels), SMALL)
        totals.append(losses.total.item())
    assert totals[0] == pytest.approx(totals[1], abs=1e-12)


def test_single_modalities_never_read_the_other() -> None:
    visual, audio, mask = clips([5, 4], 5)
    for modality, changed in (("audio", (visual + 1, audio)), ("visual", (visual, audio + 1))):
        torch.manual_seed(1)
        network = CACENet(replace(SMALL, modality=modality)).eval().double()  # type: ignore[arg-type]
        assert network.config.guide == "none"
        assert torch.equal(network(visual, audio, mask).classes, network(*changed, mask).classes)


def test_without_contrast_the_switch_has_no_effect() -> None:
    torch.manual_seed(1)
    network = CACENet(replace(SMALL, contrast=False)).eval().double()
    visual, audio, mask = clips([5], 5)
    on, off = (network(visual, audio, mask, contrast=switch) for switch in (True, False))
    assert torch.equal(on.events, off.events)
    targets = segment_targets(labels_from_indices(torch.tensor([[1, 1, 5, 5, 5]]), 5))
    losses = cace_loss(on, targets, network.config)
    parts = losses.event + losses.classification + losses.gate + losses.scores
    assert losses.total.item() == pytest.approx(parts.item())


def test_gate_loss_comes_as_published_and_corrected(small: CACENet) -> None:
    visual, audio, mask = clips([5], 5)
    output = small(visual, audio, mask)
    events = torch.tensor([[1.0, 1, 0, 0, 0]]).double()
    targets = segment_targets(labels_from_indices(torch.tensor([[1, 1, 5, 5, 5]]), 5))
    gate = output.gate.detach()
    for kind, p in (("published", gate.sigmoid()), ("corrected", gate)):
        config = replace(SMALL, gate_loss=kind)  # type: ignore[arg-type]
        expected = -(events * p.log() + (1 - events) * (1 - p).log()).mean()
        assert cace_loss(output, targets, config).gate.item() == pytest.approx(expected.item(), rel=1e-9)


def test_contrast_stays_finite_in_single_precision() -> None:
    z = torch.nn.functional.normalize(torch.randn(4, 10, 16), dim=-1).requires_grad_()
    events = torch.rand(4, 10).round()
    events[0], events[1] = 0, 1
    mask = torch.ones(4, 10, dtype=torch.bool)
    loss = event_contrast(z, z, events, mask)  # copies are equal: logits reach 100
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None and bool(z.grad.isfinite().all())
    wide = event_contrast(z.double(), z.double(), events, mask)
    assert loss.item() == pytest.approx(wide.item(), rel=1e-5)


def test_a_clip_of_background_only_has_class_zero_as_in_the_official_code() -> None:
    targets = segment_targets(labels_from_indices(torch.tensor([[5, 5, 5], [5, 3, 5]]), 5))
    assert targets.classes.tolist() == [0, 3]
    assert targets.events.tolist() == [[0, 0, 0], [0, 1, 0]]


def test_settings_by_name_and_impossible_ones() -> None:
    assert CACENetConfig.from_settings({"lambda": 0.2, "guide": "audio"}).lambda_ == 0.2
    for wrong in ({"guide": "both"}, {"modality": "x"}, {"gate_loss": "y"}, {"classes": 0}, {"tau": 0.0}, {"nope": 1}):
        with pytest.raises(UsageError):
            CACENetConfig.from_settings(wrong)


def test_inputs_that_do_not_fit_are_refused(small: CACENet) -> None:
    visual, audio, mask = clips([5, 4], 5)
    for wrong in (
        (visual[..., :3], audio, mask),
        (visual, audio[:, :3], mask),
        (visual, audio, mask[:, :3]),
        (visual, audio, mask.flip(1)),
        (visual, audio, torch.zeros_like(mask)),
        (visual[0, 0], audio, mask),
    ):
        with pytest.raises(UsageError):
            small(*wrong)
    with pytest.raises(UsageError):
        small(visual, audio, mask, noise=torch.zeros(5, 2, 16))


def test_official_random_stream_is_kept(small: CACENet) -> None:
    visual, audio, mask = clips([5, 5], 5)
    torch.manual_seed(7)
    drawn = small(visual, audio, mask).key
    torch.manual_seed(7)
    given = small(visual, audio, mask, noise=torch.randn(5, 2, 16).transpose(0, 1)).key
    assert torch.equal(drawn, given)
