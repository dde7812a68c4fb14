"""LoCo's invariants (dave.md 2.4 to 2.6): size, windows, padding, cost, gradients, switches."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from avtool.errors import UsageError
from avtool.models.loco import LoCo, LoCoConfig, LoCoOutput, WindowAdaptation, WindowAttention, sample, window_attention
from avtool.models.points import level_lengths, pyramid_points, regression_ranges
from avtool.training.losses import Events, LoCoLoss

PUBLISHED = LoCoConfig(1536, 1536, 100)
TINY = LoCoConfig(
    visual_dim=6, audio_dim=5, classes=3, width=16, heads=2, levels=3, window=4, unimodal_blocks=1, max_length=24,
    mlp_ratio=2, drop_path=0.0, layer_scale=1.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def shaken(config: LoCoConfig, seed: int = 0, adaptation: bool = True) -> LoCo:
    """A network in whose outputs every part counts: all parameters random, windows moved unless told otherwise."""
    torch.manual_seed(seed)
    model = LoCo(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if adaptation or "adaptation" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def clips(lengths: list[int], padded: int, config: LoCoConfig, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Random features (B, T, C), equal for equal seed and clip index whatever the padding, which is filled with NaN."""
    visual, audio = (torch.full((len(lengths), padded, d), torch.nan) for d in (config.visual_dim, config.audio_dim))
    for i, length in enumerate(lengths):
        random = torch.Generator().manual_seed(seed + i)
        visual[i, :length] = torch.randn(length, config.visual_dim, generator=random)
        audio[i, :length] = torch.randn(length, config.audio_dim, generator=random)
    return visual, audio, torch.arange(padded) < torch.tensor(lengths)[:, None]


def tensors(output: LoCoOutput, clip: int = 0) -> list[Tensor]:
    """Everything that one clip's output says on valid rows, level by level."""
    levels = zip(output.logits, output.offsets, output.masks, strict=True)
    rows = [x[clip][mask[clip]] for logits, offsets, mask in levels for x in (logits, offsets)]
    return [*rows, output.visual[clip][output.masks[0][clip]], output.audio[clip][output.masks[0][clip]]]


def largest_difference(a: LoCoOutput, b: LoCoOutput, clip_a: int = 0, clip_b: int = 0) -> float:
    pairs = list(zip(tensors(a, clip_a), tensors(b, clip_b), strict=True))
    assert all(x.shape == y.shape for x, y in pairs)
    assert all(torch.isfinite(x).all() for x, _ in pairs)
    return max((x - y).abs().max().item() for x, y in pairs)


# ---- size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "millions"), [((1536, 1536), 75.0), ((2048, 128), 73.6)])
def test_published_size(dims: tuple[int, int], millions: float) -> None:
    """The count of dave.md 2.6 includes the projections of the correspondence loss."""
    with torch.device("meta"):
        config = replace(PUBLISHED, visual_dim=dims[0], audio_dim=dims[1])
        count = sum(p.numel() for m in (LoCo(config), LoCoLoss(config)) for p in m.parameters())
        plain = sum(p.numel() for p in LoCo(replace(config, attention="global")).parameters())
        whole = sum(p.numel() for p in LoCo(config).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    assert (whole - plain) / 1e6 == pytest.approx(0.05, abs=0.005)


def test_published_cost() -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = torch.zeros(1, 256, 1536)
        LoCo(PUBLISHED).eval()(x, x, torch.ones(1, 256, dtype=torch.bool))
    assert counter.get_total_flops() / 1e9 == pytest.approx(34.8, rel=0.01)


def test_tiny_size() -> None:
    with torch.device("meta"):
        model = LoCo(LoCoConfig.tiny(1280, 527, 87))
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert len(model.visual_levels) == 3


def test_streams_without_crossing_keep_the_size() -> None:
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in LoCo(replace(PUBLISHED, attention=a)).parameters()) for a in ("none", "adaptive")
        ]
    assert abs(counts[0] - counts[1]) <= 0.05e6


# ---- windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "padded", "levels", "window"), [([21, 20, 1], 21, 3, 4), ([224, 131], 224, 6, 8)])
def test_zero_initialised_adaptation_equals_fixed_windows_bit_for_bit(
    lengths: list[int], padded: int, levels: int, window: int
) -> None:
    """224 rows give levels of 28, 14 and 7, which no window of 8 tiles."""
    config = replace(TINY, levels=levels, window=window, max_length=padded)
    adaptive = shaken(config, adaptation=False)
    fixed = LoCo(replace(config, attention="fixed")).eval()
    missing, unexpected = fixed.load_state_dict(adaptive.state_dict(), strict=False)
    assert not missing and all(".adaptation." in name for name in unexpected)
    inputs = clips(lengths, padded, config)
    with torch.no_grad():
        a, b = adaptive(*inputs), fixed(*inputs)
    for clip in range(len(lengths)):
        assert all(torch.equal(x, y) for x, y in zip(tensors(a, clip), tensors(b, clip), strict=True))


def test_moved_windows_change_the_output() -> None:
    inputs = clips([21], 21, TINY)
    with torch.no_grad():
        assert largest_difference(shaken(TINY)(*inputs), shaken(TINY, adaptation=False)(*inputs)) > 1e-3


@pytest.mark.parametrize("source", ["kv", "q", "both"])
def test_gradients_reach_the_adaptation_from_the_start(source: Any) -> None:
    torch.manual_seed(0)
    model = LoCo(replace(TINY, wa_source=source))
    output = model(*clips([24, 17], 24, TINY))
    sum(x.square().sum() for x in output.logits).backward()
    for level in (*model.visual_levels, *model.audio_levels):
        adaptation = level.attention.adaptation
        for gradient in (adaptation.linear.weight.grad, adaptation.linear.bias.grad):
            scale, offset = gradient.chunk(2)
            assert torch.isfinite(gradient).all()
            assert scale.abs().max() > 0 and offset.abs().max() > 0


def test_target_windows_are_placed_scaled_and_clamped() -> None:
    adaptation = WindowAdaptation(8, 2, 4)
    with torch.no_grad():  # head 0 twice as wide, head 1 moved right by one window
        adaptation.linear.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 2.0]))
    mask = torch.arange(12) < torch.tensor([[[10]]])
    positions = adaptation(torch.randn(1, 8, 12), mask)[0]  # (2, 3, 4)
    assert positions[0, 1].tolist() == [2.5, 4.5, 6.5, 8.5]
    assert positions[0, 0].tolist() == [0, 0.5, 2.5, 4.5]  # clamped at the start
    assert positions[1, 0].tolist() == [4, 5, 6, 7]
    assert positions[1, 1].tolist() == [8, 9, 9, 9]  # clamped at the last valid row, not at the padding


def test_window_means_skip_padding_and_empty_windows_are_zero() -> None:
    adaptation = WindowAdaptation(1, 1, 4)
    with torch.no_grad():
        adaptation.linear.weight[1].fill_(-0.2)  # the offset reads the mean, the scale stays 0
    x = torch.tensor([[[1.0, 2, 3, 4, 5, 99, 99, 99, 99]]])
    mask = torch.arange(9) < 5
    positions = adaptation(x, mask.expand(1, 1, 9))[0, 0]  # (3, 4)
    assert positions[0].tolist() == pytest.approx([0, 0, 1, 2])  # mean 2.5: left by half a half window of 2
    assert positions[1].tolist() == pytest.approx([2, 3, 4, 4])  # mean 5 of the one valid row
    assert positions[2].tolist() == [4, 4, 4, 4]  # no valid row: not moved, clamped


def test_scales_and_offsets_are_finite_for_clips_of_any_length() -> None:
    model = shaken(TINY)
    inputs = clips([24, 5, 1, 0], 24, TINY)
    for name, parameter in model.named_parameters():
        if "adaptation" in name:
            parameter.data.mul_(1e4)  # absurd windows
    output = model(*inputs)
    windows = model.target_windows(*inputs)
    assert all(torch.isfinite(x).all() for x in (*output.logits, *output.offsets))
    assert all(torch.isfinite(w.starts).all() and torch.isfinite(w.ends).all() for w in windows)
    sum(x.sum() for x in output.logits).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_learnt_windows_can_be_looked_at() -> None:
    inputs = clips([21, 9], 24, TINY)
    windows = shaken(TINY, adaptation=False).target_windows(*inputs)
    assert [(w.level, w.stream) for w in windows] == list(itertools.product(range(3), ("visual", "audio")))
    top = windows[2]  # level 1: rows of two input rows, windows of four
    assert top.starts.shape == top.ends.shape == (2, 2, 3)
    assert top.starts[0, 0].tolist() == [0, 8, 16]
    assert top.ends[0, 0].tolist() == [6, 14, 20]  # 11 valid rows at this level, the last at input row 20
    assert top.mask.tolist() == [[True, True, True], [True, True, False]]
    model = shaken(TINY)
    before = tensors(model(*inputs))
    assert any((w.starts != v.starts).any() for w, v in zip(model.target_windows(*inputs), windows, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(before, tensors(model(*inputs)), strict=True))
    assert shaken(replace(TINY, attention="fixed")).target_windows(*inputs) == ()


def test_sampling_is_linear_interpolation() -> None:
    x = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    last = torch.tensor([8, 4])
    positions = torch.rand(2, 3, 7, dtype=torch.float64) * last[:, None, None]
    positions[0, 0, :3] = torch.tensor([0.0, 8.0, 5.0])
    got = sample(x, positions, last)
    for b, h, d in itertools.product(range(2), range(3), range(4)):
        want = np.interp(positions[b, h].numpy(), np.arange(9), x[b, h, :, d].numpy())
        np.testing.assert_allclose(got[b, h, :, d].numpy(), want, atol=1e-12)
    assert torch.equal(got[0, 0, :3], x[0, 0, [0, 8, 5]])


def test_sampling_and_its_gradient_never_read_padding() -> None:
    x = torch.randn(1, 1, 6, 2)
    x[:, :, 4:] = torch.nan
    x.requires_grad_()
    positions = torch.tensor([[[3.0, 2.5, 3.0]]], requires_grad=True)
    sample(x, positions, torch.tensor([3])).sum().backward()
    assert positions.grad is not None and torch.isfinite(positions.grad).all() and (positions.grad != 0).all()
    assert x.grad is not None and not x.grad[:, :, 4:].any()


@pytest.mark.parametrize(("length", "valid", "window"), [(16, 16, 4), (13, 9, 4), (7, 7, 8), (1, 1, 4), (30, 21, 6)])
def test_window_attention_equals_masked_dense_attention(length: int, valid: int, window: int) -> None:
    q, k, v = torch.randn(3, 2, 2, length, 5, dtype=torch.float64).unbind(0)
    mask = (torch.arange(length) < valid).expand(2, 1, length)
    distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    near = (distance <= window // 2) & (torch.arange(length) < valid)
    scores = (q @ k.transpose(2, 3) / 5**0.5).masked_fill(~near, -torch.inf)
    want = scores.softmax(-1)[:, :, :valid] @ v
    torch.testing.assert_close(window_attention(q, k, v, mask, window)[:, :, :valid], want)
    middle = valid // 2
    assert near[middle].sum() == min(window + 1, valid) or valid <= window  # w + 1 keys away from the ends


class Elements(TorchDispatchMode):
    """Counts the elements of every tensor that an operation returns, and the largest one."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.total += x.numel()
                self.largest = max(self.largest, x.numel())
        return out


def test_cost_of_local_attention_is_linear_in_length() -> None:
    config = replace(TINY, window=8)
    attention = WindowAttention(config, stride=1)

    def cost(length: int) -> tuple[int, int, int]:
        x = torch.randn(1, config.width, length)
        with Elements() as elements, FlopCounterMode(display=False) as flops:
            attention(x, x, torch.ones(1, 1, length, dtype=torch.bool))
        return elements.total, elements.largest, flops.get_total_flops()

    short, long = cost(256), cost(2048)
    for a, b in zip(short, long, strict=True):
        assert b / a == pytest.approx(8, rel=0.01)
    assert long[1] < 2048 * 2048 / 8


def test_the_residual_is_the_stream_of_keys_and_values() -> None:
    model = shaken(TINY)
    for level in (*model.visual_levels, *model.audio_levels):  # residual branches off
        nn.init.zeros_(level.scale_attention.scale)
        nn.init.zeros_(level.scale_mlp.scale)
    v, a = torch.randn(2, 1, TINY.width, 12).unbind(0)
    for level, (v_l, a_l, _) in enumerate(model._pyramid(v, a, torch.ones(1, 1, 12, dtype=torch.bool))):
        v, a = (F.max_pool1d(x, 3, 2, 1) if level else x for x in (v, a))
        assert torch.equal(v_l, v) and torch.equal(a_l, a)


@pytest.mark.parametrize("attention", ["adaptive", "fixed", "global", "none"])
def test_only_none_keeps_the_streams_apart(attention: Any) -> None:
    model = shaken(replace(TINY, attention=attention))
    v, a = torch.randn(2, 1, TINY.width, 12).unbind(0)
    mask = torch.ones(1, 1, 12, dtype=torch.bool)
    plain, other = (next(model._pyramid(v, audio, mask)) for audio in (a, a.flip(1)))
    assert torch.equal(plain[0], other[0]) == (attention == "none")


# ---- padding and neighbours --------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["adaptive", "fixed", "global", "none"])
@pytest.mark.parametrize("length", [1, 6, 20, 21])
def test_right_padding_changes_nothing(attention: Any, length: int) -> None:
    model = shaken(replace(TINY, attention=attention))
    with torch.no_grad():
        plain = model(*clips([length], length, TINY))
        for padded in (length + 1, length + 3, 24, 40):
            assert largest_difference(plain, model(*clips([length], padded, TINY))) <= 1e-5


def test_right_padding_changes_no_gradient() -> None:
    gradients = []
    for padded in (21, 24, 32):
        model = shaken(TINY).double()
        visual, audio, mask = clips([21], padded, TINY)
        output = model(visual.double(), audio.double(), mask)
        sum(x.square().sum() for x in tensors(output)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, want in gradients[0].items():
        assert all(torch.allclose(g[name], want, rtol=1e-8, atol=1e-8) for g in gradients[1:]), name


def test_batch_mates_change_nothing() -> None:
    lengths = [21, 7, 24, 1]
    model = shaken(TINY)
    with torch.no_grad():
        together = model(*clips(lengths, 24, TINY))
        for clip, length in enumerate(lengths):
            alone = model(*clips([length], length, TINY, seed=1 + clip))
            assert largest_difference(together, alone, clip_a=clip) <= 1e-5


def test_a_clip_longer_than_the_position_table_runs_and_ignores_its_padding() -> None:
    model = shaken(TINY)
    with torch.no_grad():
        plain = model(*clips([53], 53, TINY))
        assert largest_difference(plain, model(*clips([53], 64, TINY))) <= 1e-5


@pytest.mark.parametrize(("length", "levels", "window"), [(224, 6, 8), (20, 3, 4), (10, 3, 4)])
def test_levels_have_the_rows_of_their_points(length: int, levels: int, window: int) -> None:
    config = replace(TINY, levels=levels, window=window, max_length=length)
    with torch.no_grad():
        output = LoCo(config).eval()(*clips([length, length - 3], length, config))
    rows = level_lengths(length, levels)
    assert tuple(x.shape[1] for x in output.logits) == rows
    assert all(x.shape == (2, n, 3) for x, n in zip(output.logits, rows, strict=True))
    assert all(x.shape == (2, n, 6) for x, n in zip(output.offsets, rows, strict=True))
    assert all(mask[1].sum() == -(-(length - 3) // 2**level) for level, mask in enumerate(output.masks))
    assert output.visual.shape == output.audio.shape == (2, length, config.width)
    assert len(pyramid_points(length, levels)) == sum(rows)


def test_points_and_ranges() -> None:
    assert regression_ranges(3).tolist() == [[0, 4], [4, 8], [8, 10_000]]
    assert regression_ranges(1).tolist() == [[0, 10_000]]
    points = pyramid_points(5, 2)
    assert points.dtype == np.float32
    assert points[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 2, 4]
    assert points[:, 3].tolist() == [1] * 5 + [2] * 3


# ---- gradients and switches --------------------------------------------------------------------------------


def step(model: LoCo, loss: LoCoLoss, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The loss of one batch with two events each."""
    labels = torch.arange(2) % model.config.classes
    events = [Events(torch.tensor([[0.3, 5.2], [2.0, 9.6]]), labels) for _ in inputs[0]]
    total: Tensor = loss(model(*inputs), loss.targets(events, inputs[0].shape[1])).total
    return total


def test_gradient_check_in_double_precision() -> None:
    config = replace(TINY, width=8, classes=2, levels=2)
    model, loss = shaken(config).double(), LoCoLoss(config).double().eval()
    model.class_head.out.conv.bias.data.zero_()  # far from the flat end of the sigmoid
    visual, audio, mask = clips([12, 9], 12, config)
    visual, audio = (torch.nan_to_num(x).double() for x in (visual, audio))
    parameters = {f"model.{n}": p for n, p in model.named_parameters()}
    parameters |= {f"loss.{n}": p for n, p in loss.named_parameters()}
    both = nn.ModuleDict({"model": model, "loss": loss})

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = both

        def forward(self) -> Tensor:
            return step(model, loss, (visual, audio, mask))

    whole, names = Whole(), list(parameters)

    def function(*values: Tensor) -> Tensor:
        replaced = {f"parts.{name}": value for name, value in zip(names, values, strict=True)}
        total: Tensor = torch.func.functional_call(whole, replaced, ())
        return total

    assert torch.autograd.gradcheck(function, tuple(parameters.values()), fast_mode=True, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "adaptive"}, {"attention": "fixed"}, {"attention": "global"}, {"attention": "none"},
        {"wa_source": "q"}, {"wa_source": "both"}, {"lcf_weight": 0.0}, {"lcf_target": "diagonal"},
        {"lcf_target": "smoothed"}, {"lcf_target": "fixed_gaussian"}, {"lcf_target": "learned_gaussian"},
        {"lcf_objective": "ce"}, {"reg_loss": "giou"}, {"regression": "shared"}, {"regression": "none"},
        {"head_depth": 1}, {"decoder_blocks": 0}, {"decoder_blocks": 2}, {"unimodal_blocks": 0}, {"levels": 1},
        {"heads": 1}, {"heads": 8}, {"window": 2}, {"window": 32}, {"drop_path": 0.5, "dropout": 0.3},
    ],
    ids=str,
)  # fmt: skip
def test_every_switch_trains(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = replace(TINY, **change)
    model, loss = LoCo(config).train(), LoCoLoss(config).train()
    total = step(model, loss, clips([20, 24, 11], 24, config))
    total.backward()
    assert torch.isfinite(total)
    silent = [n for m in (model, loss) for n, p in m.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n in silent if not (n.endswith("rho") and config.lcf_target in ("diagonal", "smoothed"))]
    assert all(torch.isfinite(p.grad).all() for m in (model, loss) for p in m.parameters() if p.grad is not None)


def test_half_precision_keeps_the_positions_exact() -> None:
    adaptation = WindowAdaptation(16, 2, 8).bfloat16()
    positions = adaptation(torch.randn(1, 16, 1024).bfloat16(), torch.ones(1, 1, 1024, dtype=torch.bool))
    assert positions.dtype == torch.float32
    assert torch.equal(positions[0, 0].flatten(), torch.arange(1024.0))
    model = shaken(TINY)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*clips([20, 11], 24, TINY))
    assert all(torch.isfinite(x).all() for x in (*output.logits, *output.offsets))


def test_shared_and_absent_regression_change_the_offsets() -> None:
    inputs = clips([8], 8, TINY)
    assert LoCo(replace(TINY, regression="none"))(*inputs).offsets == ()
    assert [x.shape[2] for x in LoCo(replace(TINY, regression="shared"))(*inputs).offsets] == [2, 2, 2]


@pytest.mark.parametrize(
    "change", [{"window": 5}, {"window": 0}, {"heads": 3}, {"levels": 0}, {"attention": "local"}, {"reg_loss": "iou"}]
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change)) if "heads" not in change else "heads"):
        replace(TINY, **change)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = LoCo(TINY)
    visual, audio, mask = clips([8], 8, TINY)
    holes = mask.clone()
    holes[0, 3] = False
    for inputs in ((visual[:, :7], audio, mask), (audio, visual, mask), (visual, audio, mask[:, :7])):
        with pytest.raises(UsageError, match="features have the shape"):
            model(*inputs)
    with pytest.raises(UsageError, match="valid row after a padded one"):
        model(visual, audio, holes)


# ---- learning ----------------------------------------------------------------------------------------------

ROWS, DIM = 20, 24


def scenes(count: int, prototypes: Tensor, seed: int) -> tuple[Tensor, Tensor, list[Events]]:
    """Clips with one event that is seen and heard, one thing only heard and one only seen, each of its own class."""
    random = np.random.default_rng(seed)
    visual, audio = (torch.from_numpy(random.normal(0, 0.4, (count, ROWS, DIM))).float() for _ in range(2))
    events = []
    for i in range(count):
        both, heard, seen = random.permutation(len(prototypes))[:3]
        start, length = random.integers(0, 13), random.integers(4, 9)
        stop = min(int(start + length), ROWS)
        for x, only in ((visual, seen), (audio, heard)):
            x[i, start:stop] += prototypes[both]
            at = int(random.integers(0, 14))
            x[i, at : at + 6] += prototypes[only]
        events.append(Events(torch.tensor([[start - 0.5, stop - 0.5]]), torch.tensor([int(both)])))
    return visual, audio, events


def best(output: LoCoOutput) -> tuple[Tensor, Tensor]:
    """Class and segment (B, 2) of the strongest point of every clip."""
    logits, offsets = torch.cat(output.logits, 1), torch.cat(output.offsets, 1)
    points = torch.from_numpy(pyramid_points(ROWS, len(output.logits)))
    index = logits.flatten(1).argmax(1)
    point, label = index // logits.shape[2], index % logits.shape[2]
    sides = offsets.view(*logits.shape, 2)[torch.arange(len(index)), point, label] * points[point, 3:]
    return label, torch.stack((points[point, 0] - sides[:, 0], points[point, 0] + sides[:, 1]), 1)


def test_a_tiny_network_learns_to_localize() -> None:
    torch.manual_seed(0)
    prototypes = torch.randn(5, DIM)
    config = LoCoConfig.tiny(DIM, DIM, 5, width=32)
    model, loss = LoCo(config), LoCoLoss(config, start=100)
    steps, clips_per_step = 100, 16
    optimiser = torch.optim.AdamW([*model.parameters(), *loss.parameters()], 4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    mask = torch.ones(clips_per_step, ROWS, dtype=torch.bool)
    for i in range(steps):
        visual, audio, events = scenes(clips_per_step, prototypes, seed=i)
        optimiser.zero_grad()
        loss(model(visual, audio, mask), loss.targets(events, ROWS)).total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    visual, audio, events = scenes(100, prototypes, seed=10_000)
    with torch.no_grad():
        label, segment = best(model.eval()(visual, audio, torch.ones(100, ROWS, dtype=torch.bool)))
    truth = torch.cat([e.segments for e in events])
    inside = (torch.minimum(segment[:, 1], truth[:, 1]) - torch.maximum(segment[:, 0], truth[:, 0])).clamp(min=0)
    iou = inside / ((segment[:, 1] - segment[:, 0]) + (truth[:, 1] - truth[:, 0]) - inside)
    right = label == torch.cat([e.labels for e in events])
    assert right.float().mean() >= 0.9
    assert iou[right].mean() >= 0.65
