"""The shared blocks: padding-free by default, positions as in the UnAV reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.models.blocks import (
    Attention,
    ChannelNorm,
    ConvStack,
    LayerScale,
    MaskedConv1d,
    TransformerBlock,
    pooled,
    sinusoids,
    stretched,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    path = shared / "golden" / "unav_tiny.npz"
    if not path.is_file():
        pytest.skip(f"no golden arrays at {path}")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def test_positions_equal_the_golden_table(golden: dict[str, np.ndarray]) -> None:
    want = torch.from_numpy(golden["pos_embd_512_224"])[0]
    table = sinusoids(224, 512)[: want.shape[0], : want.shape[1]]
    torch.testing.assert_close(table, want, atol=1e-7, rtol=0)


# ---- own properties ----------------------------------------------------------------------------------------


def lengths_mask(lengths: list[int], padded: int) -> Tensor:
    return torch.arange(padded) < torch.tensor(lengths)[:, None, None]


def test_positions_of_a_long_clip_are_the_interpolated_table() -> None:
    table = sinusoids(16, 8)
    want = F.interpolate(table[None], 21, mode="linear", align_corners=False)[0]
    got = stretched(table, torch.tensor([21, 10]), 24)
    torch.testing.assert_close(got[0, :, :21], want)
    assert torch.equal(got[1, :, :16], table)


def test_masked_convolution_is_zero_on_padding_and_halves_the_mask() -> None:
    x, mask = torch.randn(2, 3, 7), lengths_mask([7, 4], 7)
    out, out_mask = MaskedConv1d(3, 5, stride=2, bias=True)(x, mask)
    assert out.shape == (2, 5, 4)
    assert out_mask[:, 0].tolist() == [[True] * 4, [True, True, False, False]]
    assert not out.masked_select(~out_mask).any()


def test_channel_norm_normalises_every_step() -> None:
    x = torch.randn(2, 16, 5) * 3 + 1
    out = ChannelNorm(16)(x)
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 5), atol=1e-4, rtol=0)


def test_drop_path_acts_per_clip_keeps_the_mean_and_only_in_training() -> None:
    torch.manual_seed(0)
    scale = LayerScale(2, drop_path=0.25, start=1.0)
    x = torch.ones(4000, 2, 3)
    out = scale.train()(x)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out.amax((1, 2)) == out.amin((1, 2))).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(scale.eval()(x), x)


def test_pooling_never_sees_padding() -> None:
    x = -torch.ones(1, 1, 6)
    assert pooled(x, lengths_mask([5], 6), 2, remask=True).tolist() == [[[-1, -1, -1]]]
    assert pooled(x * lengths_mask([5], 6), lengths_mask([5], 6), 2, remask=False).tolist() == [[[-1, -1, 0]]]


@pytest.mark.parametrize("remask", [True, False])
def test_padding_moves_a_block_only_without_remasking(remask: bool) -> None:
    torch.manual_seed(1)
    block = TransformerBlock(Attention(8, 2, 2), 8, 16, 2, layer_scale=1.0, remask=remask)
    nn.init.normal_(block.norm_kv.bias)  # what leaks
    stack = ConvStack(8, 8, 2, remask)
    nn.init.normal_(stack.norms[0].bias)
    x = torch.randn(1, 8, 9)
    outs = []
    for padded in (9, 10, 16):
        mask = lengths_mask([9], padded)
        y = stack(F.pad(x, (0, padded - 9)), mask)
        outs.append(block(y, y, mask)[0][..., :5])
    same = all(torch.allclose(outs[0], o, atol=1e-6) for o in outs[1:])
    assert same == remask


def test_an_empty_clip_stays_finite() -> None:
    block = TransformerBlock(Attention(8, 2), 8, 16, layer_scale=1.0)
    x = torch.randn(2, 8, 4, requires_grad=True)
    out, _ = block(x, x, lengths_mask([4, 0], 4))
    out.sum().backward()
    assert torch.isfinite(out).all() and not out[1].any()
    assert x.grad is not None and torch.isfinite(x.grad).all()
