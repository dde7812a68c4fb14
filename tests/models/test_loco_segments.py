"""LoCo on segment labels (dave.md 2.7): merging of levels, weak supervision, padding, and the full-size network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.errors import UsageError
from avtool.models.loco_segments import LoCoSegments
from avtool.training.losses import Correspondence
from avtool.training.segment_losses import SegmentTargets, labels_from_indices, loco_segment_loss, segment_targets

SMALL: dict[str, Any] = {"width": 16, "heads": 2, "unimodal_blocks": 1, "mlp_ratio": 2, "layer_scale": 1.0}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(supervision: Any = "full") -> LoCoSegments:
    model = LoCoSegments(12, 9, 5, supervision, **SMALL).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def clips(lengths: list[int], padded: int) -> tuple[Tensor, Tensor, Tensor]:
    visual = torch.full((len(lengths), padded, 2, 2, 12), torch.nan, dtype=torch.float64)
    audio = torch.full((len(lengths), padded, 9), torch.nan, dtype=torch.float64)
    for i, length in enumerate(lengths):
        random = torch.Generator().manual_seed(i)
        visual[i, :length] = torch.randn(length, 2, 2, 12, generator=random, dtype=torch.float64)
        audio[i, :length] = torch.randn(length, 9, generator=random, dtype=torch.float64)
    return visual, audio, torch.arange(padded) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("supervision", ["full", "weak"])
def test_a_clip_alone_equals_the_same_clip_in_a_padded_batch(supervision: str) -> None:
    """Padding ten rows to twelve, as the text has it, is one case of it."""
    model = network(supervision)
    lengths = [10, 3, 7, 1]
    visual, audio, mask = clips(lengths, 12)
    many = model(visual, audio, mask)
    for i, length in enumerate(lengths):
        one = model(visual[i : i + 1, :length], audio[i : i + 1, :length])
        torch.testing.assert_close(many.logits[i, :length], one.logits[0], rtol=0, atol=1e-10)
        assert torch.equal(many.labels()[i, :length], one.labels()[0])


def test_levels_are_spread_over_their_segments_and_averaged() -> None:
    model = network()
    visual, audio, mask = clips([10], 10)
    inner = model.network(visual.mean((2, 3)), audio, mask)
    assert [x.shape[1] for x in inner.logits] == [10, 5, 3]
    by_hand = sum(x[:, torch.arange(10) // 2**k] for k, x in enumerate(inner.logits)) / 3
    torch.testing.assert_close(model(visual, audio, mask).logits, by_hand)
    assert not inner.offsets


def test_every_class_starts_equal() -> None:
    model = LoCoSegments(12, 9, 5, **SMALL)
    assert not model.network.class_head.out.conv.bias.any()


@pytest.mark.parametrize("supervision", ["full", "weak"])
def test_losses_train_and_weak_ones_never_see_segment_labels(supervision: Any) -> None:
    model = network(supervision)
    output = model(*clips([6, 6], 6))
    targets = segment_targets(labels_from_indices(torch.tensor([[5, 1, 1, 5, 5, 5], [2, 2, 5, 5, 5, 5]]), 5))
    correspondence = Correspondence(16, 12).double().eval()
    plain, whole = loco_segment_loss(output, targets), loco_segment_loss(output, targets, correspondence)
    lcf = correspondence(output.visual, output.audio, output.mask)
    assert whole.item() == pytest.approx(plain.item() + 0.1 * lcf.item())
    whole.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    permuted = SegmentTargets(targets.events[:, [3, 4, 1, 5, 2, 0]], targets.classes)
    same = loco_segment_loss(output, permuted).item() == plain.item()
    assert same == (supervision == "weak")
    if supervision == "full":
        truth = torch.tensor([[5, 1, 1, 5, 5, 5], [2, 2, 5, 5, 5, 5]])
        assert plain.item() == pytest.approx(F.cross_entropy(output.logits.flatten(0, 1), truth.flatten()).item())


def test_weak_labels_are_the_clips_class_or_background() -> None:
    output = network("weak")(*clips([10, 10], 10))
    for row, mask in zip(output.labels(), output.events() > 0.5, strict=True):
        assert (row[~mask] == 5).all() and len(row[mask].unique()) <= 1


def test_settings_of_loco_pass_through_and_foreign_ones_do_not() -> None:
    assert LoCoSegments(12, 9, 5, **SMALL, attention="none").config.attention == "none"
    for wrong in ({"colour": 1}, {"attention": "x"}):
        with pytest.raises(UsageError):
            LoCoSegments(12, 9, 5, **wrong)
    with pytest.raises(UsageError):
        LoCoSegments(12, 9, 5, "some")  # type: ignore[arg-type]


@pytest.mark.parametrize("dims", [(1536, 1536), (2048, 128)])
def test_full_size_padding_and_batch_mates_change_nothing(dims: tuple[int, int]) -> None:
    """The published widths on three levels; size and cost of the whole are in test_loco.py."""
    from avtool.models.loco import LoCo, LoCoConfig

    config = LoCoConfig(*dims, 100, levels=3, layer_scale=0.1)
    model = LoCo(config).eval().double()
    lengths, padded = [19, 32], 40
    visual, audio = (torch.full((2, padded, d), torch.nan, dtype=torch.float64) for d in dims)
    mask = torch.arange(padded) < torch.tensor(lengths)[:, None]
    for side in (visual, audio):
        side[mask] = torch.randn(int(mask.sum()), side.shape[2], dtype=torch.float64)
    with torch.inference_mode():
        many = model(visual, audio, mask)
        for i, length in enumerate(lengths):
            one = model(*(x[i : i + 1, :length] for x in (visual, audio, mask)))
            for a, b, m in zip(many.logits, one.logits, one.masks, strict=True):
                torch.testing.assert_close(a[i, : m.shape[1]], b[0], rtol=0, atol=1e-6)
