"""UnAV, the baseline of dense audio-visual events: pieces of LoCo, global attention, and a block relating classes.

After the public code as specified in dave.md section 3. Tensors inside are (B, C, T) with bool masks (B, 1, T); at the
border they are (B, T, C) and (B, T), True = valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avtool.errors import UsageError, WeightsError
from avtool.models.blocks import Attention, ClassHead, MaskedConv1d, OffsetHead, TransformerBlock, UnimodalEncoder
from avtool.models.loco import LoCoOutput, check_inputs

CHOICES = {"regression": ("class", "shared"), "reg_loss": ("diou", "giou")}
SIZES = ("visual_dim", "audio_dim", "classes", "width", "heads", "levels", "unimodal_blocks", "max_length", "expand")


@dataclass(frozen=True)
class UnAVConfig:
    """Every size and switch of UnAV; the defaults are the published network on I3D and VGGish features.

    Attributes:
        visual_dim, audio_dim: feature dimensions.
        classes: C.
        width: D, channels of each stream; the dependency block and the heads read 2D.
        heads: attention heads, but for the dependency block's one.
        levels: pyramid levels, strides 1, 2, 4, ...
        unimodal_blocks: self-attention blocks per modality.
        max_length: T_max, rows of the position table.
        mlp_ratio: hidden width of the MLPs over their input.
        head_depth: convolutions per head.
        dependency: whether the dependency block exists; 90 % of the time is spent in it.
        expand: E, channels per class inside the dependency block.
        regression: offsets per class, or shared by the classes.
        reg_loss: diou or giou, read by `avtool.training.losses`.
        drop_path, dropout, layer_scale, prior: as in LoCo.
        reference: behave as the public code does, defects included: padding leaks into the last valid rows, and in a
            batch the dependency block reads other clips' masks (dave.md 2.4 and 6.1). For comparisons alone.
    """

    visual_dim: int = 2048
    audio_dim: int = 128
    classes: int = 100
    width: int = 512
    heads: int = 4
    levels: int = 6
    unimodal_blocks: int = 2
    max_length: int = 224
    mlp_ratio: int = 4
    head_depth: int = 3
    dependency: bool = True
    expand: int = 128
    regression: Literal["class", "shared"] = "class"
    reg_loss: Literal["diou", "giou"] = "diou"
    drop_path: float = 0.1
    dropout: float = 0.0
    layer_scale: float = 1e-4
    prior: float = 0.01
    reference: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                what = f"{name} = {getattr(self, name)!r} is no setting of UnAV"
                raise UsageError(what, hint=f"one of {', '.join(choices)}")
        for name in SIZES:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} is too small", hint="at least 1")
        if self.width % (2 * self.heads):
            raise UsageError(f"width {self.width} does not fit {self.heads} heads", hint="a multiple of 2 * heads")


@dataclass(frozen=True)
class UnAVOutput(LoCoOutput):
    """What UnAV says about a batch; see `LoCoOutput` for the rest.

    Attributes:
        visual_levels, audio_levels: per level (B, T_l, D) streams of the pyramid.
        joint: per level (B, T_l, 2D) what the heads read, after the dependency block if there is one.
    """

    visual_levels: tuple[Tensor, ...] = ()
    audio_levels: tuple[Tensor, ...] = ()
    joint: tuple[Tensor, ...] = ()


class Dependency(nn.Module):
    """Lets classes that follow each other, and those that occur together, inform each other; shared by the levels."""

    def __init__(self, config: UnAVConfig) -> None:
        super().__init__()
        self.classes, self.reference = config.classes, config.reference
        inner, joint = config.expand, 2 * config.width
        self.expand = MaskedConv1d(joint, inner * config.classes)
        self.squeeze = MaskedConv1d(inner * config.classes, joint)
        self.temporal, self.cooccurrence = (_block(config, inner, inner, 1, heads=1) for _ in range(2))

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """z (B, 2D, T), mask (B, 1, T) -> (B, 2D, T)."""
        z = F.relu(self.expand(z, mask)[0]).unflatten(1, (self.classes, -1))  # (B, C, E, T)
        both = self._over_time(z, mask) + self._over_classes(z) * mask[:, None]
        squeezed: Tensor = self.squeeze(both.flatten(1, 2), mask)[0]
        return squeezed

    def _over_time(self, z: Tensor, mask: Tensor) -> Tensor:
        """Attention along time, each class by itself, (B, C, E, T)."""
        rows = z.flatten(0, 1)  # (B C, E, T), the class runs fastest
        # the public code tiles the masks as if the clip ran fastest
        masks = mask.repeat(self.classes, 1, 1) if self.reference else mask.repeat_interleave(self.classes, 0)
        out: Tensor = self.temporal(rows, rows, masks)[0]
        return out.view_as(z)

    def _over_classes(self, z: Tensor) -> Tensor:
        """Attention between the classes, each row by itself, (B, C, E, T); no key is masked."""
        rows = z.permute(0, 3, 2, 1)  # (B, T, E, C)
        flat = rows.flatten(0, 1)
        every = torch.ones(len(flat), 1, self.classes, dtype=torch.bool, device=z.device)
        out: Tensor = self.cooccurrence(flat, flat, every)[0]
        return out.view_as(rows).permute(0, 3, 2, 1)


class UnAV(nn.Module):
    """The network of dave.md section 3.

    Example:
        >>> network = UnAV(UnAVConfig(visual_dim=8, audio_dim=4, classes=3, width=16, levels=3, expand=8)).eval()
        >>> output = network(torch.rand(1, 20, 8), torch.rand(1, 20, 4), torch.ones(1, 20, dtype=torch.bool))
        >>> [tuple(logits.shape) for logits in output.logits]
        [(1, 20, 3), (1, 10, 3), (1, 5, 3)]
    """

    def __init__(self, config: UnAVConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UnAVConfig()
        width, hidden, remask = config.width, config.width * config.mlp_ratio, not config.reference
        self.visual_encoder, self.audio_encoder = (
            UnimodalEncoder(
                inputs,
                width,
                [_block(config, width, hidden) for _ in range(config.unimodal_blocks)],
                config.max_length,
                remask,
            )
            for inputs in (config.visual_dim, config.audio_dim)
        )
        strides = [1] + [2] * (config.levels - 1)
        self.visual_levels, self.audio_levels = (
            nn.ModuleList(_block(config, width, hidden, stride) for stride in strides) for _ in range(2)
        )
        self.dependency = Dependency(config) if config.dependency else None
        joint, outputs = 2 * width, 2 * (config.classes if config.regression == "class" else 1)
        self.class_head = ClassHead(joint, width, config.classes, config.head_depth, config.prior, remask)
        self.offset_head = OffsetHead(joint, width, outputs, config.levels, config.head_depth, remask)

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor) -> UnAVOutput:
        """Scores and offsets of every point.

        Args:
            visual: (B, T, Dv) features, any T; what stands on padded rows is never read.
            audio: (B, T, Da).
            mask: (B, T) bool, True = valid; valid rows come first.

        Raises:
            UsageError: the tensors do not fit each other or the network, or a valid row follows a padded one.
        """
        check_inputs(visual, audio, mask, self.config.visual_dim, self.config.audio_dim)
        mask = mask[:, None]  # (B, 1, T)
        visual, audio = (x.transpose(1, 2).masked_fill(~mask, 0) for x in (visual, audio))
        v0, a0 = v, a = self.visual_encoder(visual, mask), self.audio_encoder(audio, mask)
        parts: list[tuple[Tensor, ...]] = []
        for level, (visual_block, audio_block) in enumerate(zip(self.visual_levels, self.audio_levels, strict=True)):
            (v, next_mask), (a, _) = visual_block(v, a, mask), audio_block(a, v, mask)
            mask = next_mask
            z = torch.cat((v, a), 1)  # (B, 2D, T_l)
            if self.dependency is not None:
                z = self.dependency(z, mask)
            parts.append((self.class_head(z, mask), self.offset_head(z, mask, level), mask, v, a, z))
        logits, offsets, masks, vs, as_, zs = (
            tuple(x.transpose(1, 2) for x in column) for column in zip(*parts, strict=True)
        )
        return UnAVOutput(
            logits, offsets, tuple(m[..., 0] for m in masks), v0.transpose(1, 2), a0.transpose(1, 2), vs, as_, zs
        )


def _block(
    config: UnAVConfig, channels: int, hidden: int, stride: int = 1, heads: int | None = None
) -> TransformerBlock:
    """A block whose attention sees everything; `heads` 0 are those of the configuration."""
    return TransformerBlock(
        Attention(channels, heads or config.heads, stride, config.dropout),
        channels,
        hidden,
        stride,
        config.drop_path,
        config.dropout,
        config.layer_scale,
        remask=not config.reference,
    )


# ---- official checkpoints ----------------------------------------------------------------------------------

_RENAMES = (
    (r"^backbone\.", ""),
    (r"^embd_([VA])\.", r"\1.embed.convs."),
    (r"^embd_norm_([VA])\.", r"\1.embed.norms."),
    (r"^self_att_([VA])\.", r"\1.blocks."),
    (r"^V\.", "visual_encoder."),
    (r"^A\.", "audio_encoder."),
    (r"^(ori_)?cross_att_Va", r"\1visual_levels"),
    (r"^(ori_)?cross_att_Av", r"\1audio_levels"),
    (r"^ori_(\w+_levels)", r"\1.0"),
    (r"^dependency_block\.feature_expand", "dependency.expand"),
    (r"^dependency_block\.feature_squeeze", "dependency.squeeze"),
    (r"^dependency_block\.temporal_branch", "dependency.temporal"),
    (r"^dependency_block\.cooccur_branch", "dependency.cooccurrence"),
    (r"\.ln11", ".norm_kv"),
    (r"\.ln12", ".norm_query"),
    (r"\.ln2", ".norm_mlp"),
    (r"attn\.(key|query|value)_(conv|norm)", r"attention.\1.\2"),
    (r"attn\.(key|query|value)\.(weight|bias)", r"attention.\1.linear.\2"),
    (r"attn\.proj", "attention.proj"),
    (r"drop_path_attn", "scale_attention"),
    (r"drop_path_mlp", "scale_mlp"),
    (r"^cls_head\.cls_head", "class_head.out"),
    (r"^reg_head\.offset_head", "offset_head.out"),
    (r"^cls_head", "class_head"),
    (r"^reg_head", "offset_head"),
    (r"_head\.head", "_head.trunk.convs"),
    (r"_head\.norm", "_head.trunk.norms"),
    (r"scale\.(\d+)\.scale", r"scales.\1"),
)


def own_name(official: str) -> str:
    """The name here of a parameter of the public code, e.g. `backbone.ori_cross_att_Va.ln11.weight`."""
    name = official.removeprefix("module.")
    # the public code keeps the first level apart from the down-sampling ones
    later = re.match(r"backbone\.cross_att_(Va|Av)\.(\d+)", name)
    if later:
        name = name.replace(later[0], f"backbone.cross_att_{later[1]}.{int(later[2]) + 1}")
    for pattern, new in _RENAMES:
        name = re.sub(pattern, new, name)
    return name


def from_official(state: Mapping[str, Tensor], config: UnAVConfig) -> UnAV:
    """A network with the weights of the public code's checkpoint, in evaluation mode.

    Args:
        state: its state dict by name, with or without the prefix `module.`.
        config: of the network; sizes that do not fit the tensors are refused.

    Raises:
        WeightsError: a tensor is missing, foreign, of another shape, or not finite.
    """
    tensors = {own_name(name): tensor for name, tensor in state.items()}
    network = UnAV(config)
    own = network.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            raise _refused(f"tensor {name} is {'missing' if name in own else 'not part of this network'}")
        if tensors[name].shape != own[name].shape:
            raise _refused(f"tensor {name} has shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}")
        if not bool(tensors[name].isfinite().all()):
            raise _refused(f"tensor {name} holds NaN or infinity")
    network.load_state_dict(tensors)
    return network.eval()


def _refused(why: str) -> WeightsError:
    return WeightsError("this is no checkpoint of such a UnAV", why, "give the official file and its configuration")
