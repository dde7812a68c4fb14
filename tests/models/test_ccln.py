"""The CCLN-style network: its structural tests (avel.md 9.2, end), padding, supervision, switches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.errors import UsageError
from avtool.models.ccln import CCLN, SBI, CCLNConfig, CCLNOutput, boundary
from avtool.models.cmm import MatchingNetwork
from avtool.training.segment_losses import (
    SegmentTargets,
    VideoMemory,
    ccln_loss,
    class_contrast,
    fee_loss,
    labels_from_indices,
    segment_targets,
    tower_loss,
    wccl_loss,
)

SMALL = CCLNConfig(visual_dim=12, audio_dim=9, classes=5, visual_width=16, audio_width=8, width=16, heads=2)
D, HEADS, T = SMALL.width, SMALL.heads, 6
ALL = torch.ones(2, T, dtype=torch.bool)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def streams() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, T, D, dtype=torch.float64) for _ in range(3))  # type: ignore[return-value]


def layer(**changes: Any) -> SBI:
    return SBI(replace(SMALL, **changes)).eval().double()


def clips(lengths: list[int], padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random clips, equal for equal index whatever the padding, which is filled with NaN."""
    visual = torch.full((len(lengths), padded, 2, 2, 12), torch.nan, dtype=torch.float64)
    audio = torch.full((len(lengths), padded, 9), torch.nan, dtype=torch.float64)
    for i, length in enumerate(lengths):
        random = torch.Generator().manual_seed(i)
        visual[i, :length] = torch.randn(length, 2, 2, 12, generator=random, dtype=torch.float64)
        audio[i, :length] = torch.randn(length, 9, generator=random, dtype=torch.float64)
    return visual, audio, torch.arange(padded) < torch.tensor(lengths)[:, None]


# ---- (i) to (iii): SBI -------------------------------------------------------------------------------------


def split(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def test_open_gates_are_plain_co_attention() -> None:
    sbi, (v, a, f) = layer(), streams()
    m_v, m_a = sbi.messages(v, a, torch.ones(2, HEADS, T, T, dtype=torch.float64), ALL)
    plain_v = F.scaled_dot_product_attention(split(sbi.query(v)), split(sbi.key(a)), split(sbi.value_audio(a)))
    plain_a = F.scaled_dot_product_attention(split(sbi.key(a)), split(sbi.query(v)), split(sbi.value_visual(v)))
    for found, plain in ((m_v, plain_v), (m_a, plain_a)):
        torch.testing.assert_close(found, plain.transpose(1, 2).flatten(2), rtol=0, atol=1e-5)
    ungated = layer(sbi="ungated")
    ungated.load_state_dict(sbi.state_dict())
    every = torch.ones(2, HEADS, T, T, dtype=torch.float64)
    assert torch.equal(ungated(v, a, f, ALL)[0], sbi(v, a, f, ALL, every)[0])
    assert not torch.equal(sbi(v, a, f, ALL)[0], ungated(v, a, f, ALL)[0])


def test_a_closed_column_silences_its_sound_and_closed_gates_everything() -> None:
    sbi, (v, a, f) = layer(), streams()
    gate = torch.rand(2, HEADS, T, T, dtype=torch.float64)
    gate[..., 2] = 0
    changed = a.clone()
    changed[:, 2] += 3 * torch.randn(2, D)
    before, after = sbi(v, a, f, ALL, gate)[0], sbi(v, changed, f, ALL, gate)[0]
    assert (before - after).abs().max() < 1e-4
    gate[..., 2] = 0.5
    assert (sbi(v, a, f, ALL, gate)[0] - sbi(v, changed, f, ALL, gate)[0]).abs().max() > 1e-2
    for message in sbi.messages(v, a, torch.zeros_like(gate), ALL):
        assert message.abs().max() < 1e-5


def test_swapping_modalities_and_weights_transposes_the_matrix() -> None:
    sbi, (v, a, _) = layer(), streams()
    swapped = layer()
    state = sbi.state_dict()
    swapped.load_state_dict({**state, "query.weight": state["key.weight"], "key.weight": state["query.weight"]})
    torch.testing.assert_close(swapped.correlation(a, v), sbi.correlation(v, a).transpose(2, 3))


def test_gate_starts_mostly_open_and_reads_what_it_is_told_to() -> None:
    v, a, f = streams()
    fused, own = layer(), layer(sbi_fusion=False)
    assert fused.gate(v, a, 0 * f).mean().item() == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert torch.equal(fused.gate(v, a, f), fused.gate(a, v, f)) and not torch.equal(
        own.gate(v, a, f), own.gate(a, v, f)
    )
    assert torch.equal(own.gate(v, a, f), own.gate(v, a, f + 1))


# ---- (iv) WCCL, (v) FEE ------------------------------------------------------------------------------------


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_wccl_ignores_the_order_and_is_infonce_for_distinct_classes() -> None:
    pooled = {name: unit(6, 8) for name in ("main", "branch", "visual", "audio")}
    classes, order = torch.tensor([0, 1, 1, 2, 0, 0]), torch.randperm(6)
    shuffled = wccl_loss({name: x[order] for name, x in pooled.items()}, classes[order], 0.1)
    assert wccl_loss(pooled, classes, 0.1).item() == pytest.approx(shuffled.item(), rel=1e-12)
    infonce = F.cross_entropy(pooled["main"] @ pooled["branch"].T / 0.1, torch.arange(6))
    distinct = torch.arange(6)
    assert class_contrast(pooled["main"], pooled["branch"], distinct, distinct, 0.1).item() == pytest.approx(
        infonce.item()
    )


def test_a_memory_adds_partners_and_forgets_the_oldest() -> None:
    memory, classes = VideoMemory(size=5), torch.tensor([0, 1, 0])
    first, second = ({"visual": unit(3, 8), "audio": unit(3, 8)} for _ in range(2))
    alone = wccl_loss(second, classes, 0.1)
    wccl_loss(first, classes, 0.1, memory)
    assert wccl_loss(second, classes, 0.1, memory).item() != pytest.approx(alone.item())
    assert memory.vectors["visual"].shape == (5, 8) and memory.classes is not None
    assert torch.equal(memory.vectors["audio"], torch.cat((first["audio"], second["audio"]))[-5:])


def test_fee_is_zero_for_orthogonal_clusters_and_for_one_kind() -> None:
    events = torch.tensor([[0.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    mask = torch.ones(3, 6, dtype=torch.bool)
    perfect = F.one_hot(events.long(), 4).double()
    assert fee_loss(perfect, events, mask).item() == pytest.approx(0, abs=1e-12)
    assert fee_loss(unit(2, 6, 4), events[1:], mask[1:]).item() == 0
    together = torch.zeros(3, 6, 4, dtype=torch.float64)
    together[..., 0] = 1  # cosines of 1: means 1 - 0, both changes 1 - 0.2, inside 0
    assert fee_loss(together, events, mask).item() == pytest.approx(1 + 2 * 0.8 / 4)
    u = unit(1, 6, 4).requires_grad_()
    fee_loss(u, events[:1], mask[:1]).backward()
    assert u.grad is not None and u.grad.isfinite().all() and u.grad.abs().sum() > 0


def test_boundaries_are_where_the_score_changes() -> None:
    p = torch.tensor([[0.0, 1, 1, 0.4, 0.9]])
    found = boundary(p, torch.tensor([[True, True, True, True, False]]))
    torch.testing.assert_close(found[0, :4], torch.tensor([1.0, 1.0, 0.6, 0.6]))


# ---- (vi) weak supervision, (vii) CML ----------------------------------------------------------------------


def test_segment_labels_never_reach_the_weak_loss() -> None:
    config = replace(SMALL, supervision="weak")
    network = CCLN(config).eval().double()
    output = network(*clips([6, 6, 6], 6))
    indices = torch.tensor([[5, 2, 2, 5, 5, 5], [1, 1, 1, 5, 5, 5], [5, 5, 0, 0, 0, 5]])
    targets = segment_targets(labels_from_indices(indices, 5))
    permuted = SegmentTargets(targets.events[:, torch.randperm(6)], targets.classes)
    assert ccln_loss(output, targets, config).total.item() == ccln_loss(output, permuted, config).total.item()
    background = SegmentTargets(targets.events, torch.tensor([2, 1, 5]))  # the third: background throughout
    assert ccln_loss(output, background, config).total.isfinite()
    full = CCLN(SMALL).eval().double()(*clips([6, 6, 6], 6))
    assert ccln_loss(full, targets, SMALL).total.item() != ccln_loss(full, permuted, SMALL).total.item()


def test_a_query_does_not_know_where_it_stood() -> None:
    towers = MatchingNetwork(12, 9, hidden=8, width=4, unit=True).double()
    visual, audio, _ = clips([6, 6], 6)
    v, a = towers(visual, audio)
    order = torch.randperm(6)
    v_moved, a_moved = towers(visual[:, order], audio[:, order])
    torch.testing.assert_close(v_moved, v[:, order])
    torch.testing.assert_close(a_moved, a[:, order])
    torch.testing.assert_close(v.norm(dim=2), torch.ones(2, 6, dtype=torch.float64))


def test_towers_learn_to_match() -> None:
    towers = MatchingNetwork(12, 9, hidden=32, width=16, unit=True)
    latent = torch.randn(16, 10, 6)
    events = torch.zeros(16, 10)
    events[:, 3:7] = 1
    visual, audio = latent @ torch.randn(6, 12), latent @ torch.randn(6, 9)
    optimiser = torch.optim.Adam(towers.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = tower_loss(*towers(visual, audio), events, torch.arange(16) % 4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert tower_loss(*towers(visual, audio), 0 * events, torch.arange(16)).isfinite()


# ---- the network -------------------------------------------------------------------------------------------


def flat(output: CCLNOutput, clip: int, rows: int) -> list[Tensor]:
    views = [output.main, *([output.branch] if output.branch else [])]
    timed = [x for view in views for x in (view.events, view.segments, view.states) if x is not None]
    timed += [x for x in (output.early, output.boundary) if x is not None] + [output.curve()]
    return (
        [x[clip, :rows] for x in timed] + [v.classes[clip] for v in views] + [x[clip] for x in output.pooled.values()]
    )


@pytest.mark.parametrize("supervision", ["full", "weak"])
def test_a_clip_alone_equals_the_same_clip_in_a_padded_batch(supervision: Any) -> None:
    network = CCLN(replace(SMALL, supervision=supervision)).eval().double()
    lengths = [10, 3, 7, 1]
    visual, audio, mask = clips(lengths, 12)
    many = network(visual, audio, mask)
    for i, length in enumerate(lengths):
        one = network(visual[i : i + 1, :length], audio[i : i + 1, :length])
        for a, b in zip(flat(many, i, length), flat(one, 0, length), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_padding_changes_no_loss() -> None:
    network = CCLN(SMALL).eval().double()
    indices = torch.tensor([[2, 2, 5, 5, 2, 5], [5, 1, 1, 5, 5, 5]])
    totals = []
    for padded in (6, 9):
        output = network(*clips([6, 4], padded))
        labels = labels_from_indices(F.pad(indices, (0, padded - 6), value=5), 5)
        totals.append(ccln_loss(output, segment_targets(labels), SMALL).total.item())
    assert totals[0] == pytest.approx(totals[1], abs=1e-10)


@pytest.mark.parametrize(
    "change",
    [
        {}, {"sbi": "ungated"}, {"sbi": "off"}, {"sbi_fusion": False}, {"fee": False}, {"wccl": False},
        {"branch": False}, {"supervision": "weak"}, {"supervision": "weak", "branch": False, "fee": False},
    ],
)  # fmt: skip
def test_every_switch_trains(change: dict[str, Any]) -> None:
    config = replace(SMALL, **change)
    network = CCLN(config)
    visual, audio, mask = clips([6, 6], 6)
    targets = segment_targets(labels_from_indices(torch.tensor([[5, 1, 1, 5, 5, 5], [2, 2, 5, 5, 5, 5]]), 5))
    losses = ccln_loss(network(visual.float(), audio.float(), mask), targets, config)
    losses.total.backward()
    idle = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is None}
    gates = {"interaction"} if change.get("sbi") == "ungated" else set()
    assert idle <= gates | {"fee"} and losses.total.isfinite()
    assert bool(losses.fee.item()) <= config.fee and bool(losses.wccl.item()) == config.wccl
    assert bool(losses.branch.item()) == config.branch


def test_labels_follow_event_and_class() -> None:
    output = CCLN(SMALL).eval().double()(*clips([6, 6], 6))
    labels, events = output.labels(), output.main.events.sigmoid()
    expected = torch.where(events > 0.5, output.main.classes.argmax(1, keepdim=True), 5)
    assert torch.equal(labels, expected) and output.curve().shape == (2, 6, 5)


def test_impossible_settings_and_inputs_are_refused() -> None:
    for wrong in ({"sbi": "x"}, {"supervision": "none"}, {"classes": 0}, {"width": 15}, {"tau": 0.0}):
        with pytest.raises(UsageError):
            replace(SMALL, **wrong)  # type: ignore[arg-type]
    visual, audio, mask = clips([4], 4)
    for bad in ((visual[..., :3], audio, mask), (visual, audio[:, :2], mask), (visual, audio, mask.int())):
        with pytest.raises(UsageError):
            CCLN(SMALL)(*bad)


def test_it_says_what_is_ours() -> None:
    from avtool.models import ccln

    assert ccln.__doc__ is not None and "not results of CCLN" in ccln.__doc__ and "our reading" in ccln.__doc__
