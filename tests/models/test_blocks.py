"""The shared blocks: padding-free by default, and equal to the UnAV reference with its re-masking switched off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.models.blocks import (
    Attention,
    ChannelNorm,
    ClassHead,
    ConvStack,
    LayerScale,
    MaskedConv1d,
    OffsetHead,
    TransformerBlock,
    UnimodalEncoder,
    pooled,
    sinusoids,
    stretched,
)
from avtool.models.loco import LoCoConfig, LoCoOutput
from avtool.training.losses import Events, LoCoLoss

# ---- UnAV from the same blocks: the reference of dave.md section 3, width 32 -------------------------------

WIDTH, CLASSES, LEVELS, EXPANDED = 32, 5, 6, 128


def reference_block(channels: int, hidden: int, stride: int = 1, heads: int = 4) -> TransformerBlock:
    return TransformerBlock(Attention(channels, heads, stride), channels, hidden, stride, remask=False)


class Dependency(nn.Module):
    """Temporal and co-occurrence branch of UnAV; padded steps of the classes are repeated per clip."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_expand = MaskedConv1d(2 * WIDTH, EXPANDED * CLASSES)
        self.feature_squeeze = MaskedConv1d(EXPANDED * CLASSES, 2 * WIDTH)
        self.temporal_branch = reference_block(EXPANDED, EXPANDED, heads=1)
        self.cooccur_branch = reference_block(EXPANDED, EXPANDED, heads=1)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        batch, _, steps = z.shape
        z = F.relu(self.feature_expand(z, mask)[0]).view(batch, CLASSES, EXPANDED, steps)
        per_class = z.flatten(0, 1)  # (B C, E, T)
        temporal, _ = self.temporal_branch(per_class, per_class, mask.repeat_interleave(CLASSES, 0))
        per_step = z.permute(0, 3, 2, 1).flatten(0, 1)  # (B T, E, C)
        every = torch.ones(per_step.shape[0], 1, CLASSES, dtype=torch.bool)
        cooccur, _ = self.cooccur_branch(per_step, per_step, every)
        cooccur = cooccur.view(batch, steps, EXPANDED, CLASSES).permute(0, 3, 2, 1) * mask[:, None]
        both = temporal.view_as(cooccur) + cooccur
        squeezed: Tensor = self.feature_squeeze(both.flatten(1, 2), mask)[0]
        return squeezed


class Reference(nn.Module):
    def __init__(self, visual_dim: int, audio_dim: int, offsets: int, dependency: bool) -> None:
        super().__init__()
        self.visual_encoder, self.audio_encoder = (
            UnimodalEncoder(dim, WIDTH, [reference_block(WIDTH, 4 * WIDTH) for _ in range(2)], 64, remask=False)
            for dim in (visual_dim, audio_dim)
        )
        self.visual_levels, self.audio_levels = (
            nn.ModuleList(reference_block(WIDTH, 4 * WIDTH, 1 + (level > 0)) for level in range(LEVELS))
            for _ in range(2)
        )
        self.dependency_block = Dependency() if dependency else None
        self.class_head = ClassHead(2 * WIDTH, WIDTH, CLASSES, remask=False)
        self.offset_head = OffsetHead(2 * WIDTH, WIDTH, offsets, LEVELS, remask=False)

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor) -> dict[str, Tensor]:
        out = {}
        v, a = self.visual_encoder(visual, mask), self.audio_encoder(audio, mask)
        for level, (toward_v, toward_a) in enumerate(zip(self.visual_levels, self.audio_levels, strict=True)):
            (v, _), (a, mask) = toward_v(v, a, mask), toward_a(a, v, mask)
            z = torch.cat((v, a), 1)
            if self.dependency_block is not None:
                z = self.dependency_block(z, mask)
            out |= {f"pyr_v{level}": v, f"pyr_a{level}": a, f"mask{level}": mask, f"dep{level}": z}
            out |= {f"cls{level}": self.class_head(z, mask), f"off{level}": self.offset_head(z, mask, level)}
        return out


RENAMES = [
    (r"^backbone\.", ""),
    (r"embd_([VA])\.", r"\1.embed.convs."),
    (r"embd_norm_([VA])\.", r"\1.embed.norms."),
    (r"self_att_([VA])\.", r"\1.blocks."),
    (r"^V\.", "visual_encoder."),
    (r"^A\.", "audio_encoder."),
    (r"cross_att_Va", "visual_levels"),
    (r"cross_att_Av", "audio_levels"),
    (r"ori_(\w+_levels)", r"\1.0"),
    (r"\.ln11", ".norm_kv"),
    (r"\.ln12", ".norm_query"),
    (r"\.ln2", ".norm_mlp"),
    (r"attn\.(key|query|value)_(conv|norm)", r"attention.\1.\2"),
    (r"attn\.(key|query|value)\.(weight|bias)", r"attention.\1.linear.\2"),
    (r"attn\.proj", "attention.proj"),
    (r"drop_path_attn", "scale_attention"),
    (r"drop_path_mlp", "scale_mlp"),
    (r"cls_head\.cls_head", "class_head.out"),
    (r"reg_head\.offset_head", "offset_head.out"),
    (r"^cls_head", "class_head"),
    (r"^reg_head", "offset_head"),
    (r"_head\.head", "_head.trunk.convs"),
    (r"_head\.norm", "_head.trunk.norms"),
    (r"scale\.(\d)\.scale", r"scales.\1"),
]


def renamed(name: str) -> str:
    later = re.match(r"backbone\.cross_att_(Va|Av)\.(\d)", name)
    if later:  # the reference keeps level 1 apart from the five down-sampling levels
        name = name.replace(later[0], f"backbone.cross_att_{later[1]}.{int(later[2]) + 1}")
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


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


def reference(golden: dict[str, np.ndarray], which: str) -> Reference:
    weights = {
        renamed(key.removeprefix(f"weights_{which}/")): torch.from_numpy(value)
        for key, value in golden.items()
        if key.startswith(f"weights_{which}/")
    }
    model = Reference(24, 12, weights["offset_head.out.conv.bias"].shape[0], dependency=which == "a")
    model.load_state_dict(weights)  # strict: every name found, every shape that of the reference
    return model.eval()


def batch(arrays: list[np.ndarray], length: int) -> tuple[Tensor, Tensor]:
    """Features (C, T_i) -> (B, C, length) padded with zeros, and the mask."""
    x = torch.stack([F.pad(torch.from_numpy(a), (0, length - a.shape[1])) for a in arrays])
    mask = torch.arange(length) < torch.tensor([[[a.shape[1]]] for a in arrays])
    return x, mask


@pytest.mark.parametrize("case", ["b_plain", "a_single33", "a_single50", "a_single64", "a_long"])
def test_blocks_reproduce_every_tensor_of_the_unav_reference(golden: dict[str, np.ndarray], case: str) -> None:
    model = reference(golden, case[0])
    meta = json.loads(str(golden["meta"]))[case]
    count = len(meta["lens"])
    visual, mask = batch([golden[f"{case}/in_v{i}"] for i in range(count)], meta["padded"])
    audio, _ = batch([golden[f"{case}/in_a{i}"] for i in range(count)], meta["padded"])
    with torch.no_grad():
        out = model(visual, audio, mask)
    compared = 0
    for key, value in out.items():
        if (want := golden.get(f"{case}/{key}")) is None:
            continue
        compared += 1
        tolerance = 2e-6 * np.abs(want).max() if key.startswith("dep") else 1e-5
        assert np.abs(value.numpy().astype(np.float64) - want).max() <= max(tolerance, 1e-5), key
    assert compared >= 5 * LEVELS


def test_training_step_of_the_reference(golden: dict[str, np.ndarray]) -> None:
    """Losses, normaliser and gradient norms of one recorded step: forward, assignment and losses together."""
    model = reference(golden, "a").train()
    for module in model.modules():
        if isinstance(module, LayerScale):
            assert module.drop_path == 0
    visual, mask = batch([golden["train/in_v"]], 64)
    audio, _ = batch([golden["train/in_a"]], 64)
    out = model(visual, audio, mask)
    loss = LoCoLoss(LoCoConfig(24, 12, CLASSES, width=WIDTH, levels=LEVELS, lcf_weight=0)).train()
    levels = range(LEVELS)
    output = LoCoOutput(
        tuple(out[f"cls{i}"].transpose(1, 2) for i in levels),
        tuple(out[f"off{i}"].transpose(1, 2) for i in levels),
        tuple(out[f"mask{i}"][:, 0] for i in levels),
        visual,
        audio,
    )
    events = Events(torch.from_numpy(golden["assign/segments"]), torch.from_numpy(golden["assign/labels"]))
    losses = loss(output, loss.targets([events], 64))
    losses.total.backward()
    assert loss.normaliser.item() == pytest.approx(float(golden["train/loss_normalizer_after"]))
    got = [losses.classification.item(), losses.regression.item(), losses.total.item()]
    assert got == pytest.approx(golden["train/losses"].tolist(), rel=1e-5)
    norms = json.loads(str(golden["meta"]))["train_grad_norms"]
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, want in norms.items():
        gradient = gradients[renamed(name)]
        assert (0.0 if gradient is None else gradient.norm().item()) == pytest.approx(want, rel=1e-3, abs=1e-6), name


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
