"""LoCo and UnAV behind the interface of the zoo: features in, a pyramid of class scores and offsets out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avtool import weights
from avtool.errors import UsageError, WeightsError
from avtool.features.store import Features
from avtool.models.additive import normalise
from avtool.models.loco import LoCo, LoCoConfig, LoCoOutput
from avtool.models.points import PyramidLevel
from avtool.models.unav import UnAV, UnAVConfig
from avtool.models.zoo import ModelInfo, WindowOutput

Floats = npt.NDArray[np.float32]
SIDES = ("visual", "audio")


def standardise(x: Floats, mean: Floats, scale: Floats) -> Floats:
    """Rows of unit length times the root of their dimension, so that a value is about 1: (..., D) -> (..., D)."""
    return normalise(x, mean, scale) * np.float32(x.shape[-1] ** 0.5)


def take_sides(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Floats, Floats]]:
    """Takes mean and scale of each side out of a model's tensors, where it has them."""
    return {
        s: (tensors.pop(f"{s}.mean").float().numpy(), tensors.pop(f"{s}.scale").float().numpy())
        for s in SIDES
        if f"{s}.mean" in tensors
    }


def pyramid_levels(
    output: LoCoOutput, present: npt.NDArray[np.bool_] | None = None, clip: int = 0
) -> tuple[PyramidLevel, ...]:
    """The pyramid of one clip as arrays, for `avtool.detect.proposals.from_pyramid`.

    Args:
        output: of LoCo or UnAV, with offsets per class or shared by the classes.
        present: (T,) rows whose points count, e.g. those that were both seen and heard; None: the valid ones.
        clip: which of the batch.
    """
    return tuple(
        PyramidLevel(
            logits[clip].detach().float().cpu().numpy(),
            _sides(offsets[clip].detach().float().cpu().numpy(), logits.shape[2]),
            mask[clip].cpu().numpy() if present is None else present[:: 2**k][: logits.shape[1]],
            2**k,
        )
        for k, (logits, offsets, mask) in enumerate(zip(output.logits, output.offsets, output.masks, strict=True))
    )


def _sides(offsets: Floats, classes: int) -> Floats:
    """(T, 2C) -> (T, C, 2); (T, 2), shared by several classes, stays."""
    return offsets if offsets.shape[1] != 2 * classes else offsets.reshape(len(offsets), classes, 2)


NETWORKS: dict[str, Callable[[Mapping[str, Any]], LoCo | UnAV]] = {
    "loco": lambda settings: LoCo(LoCoConfig(**settings)),
    "unav": lambda settings: UnAV(UnAVConfig(**settings)),
}


class PyramidLocalizer:
    """A trained LoCo or UnAV, with the standardisation of its inputs if it has one."""

    def __init__(self, info: ModelInfo, network: LoCo | UnAV, sides: dict[str, tuple[Floats, Floats]]) -> None:
        self.info, self.network, self._sides = info, network, sides

    @classmethod
    def from_file(cls, info: ModelInfo, file: Path, device: torch.device) -> PyramidLocalizer:
        """Load from safetensors; the configuration is part of the description.

        Raises:
            WeightsError: the file is missing, damaged, or does not fit its description.
        """
        tensors = weights.load(file)
        try:
            network = NETWORKS[info.kind](json.loads(str(info.settings["config"])))
            sides = take_sides(tensors)
            network.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            raise WeightsError(
                f"{file.name} is not the {info.kind} its description says", str(error).splitlines()[0]
            ) from None
        return cls(info, network.eval().to(device), sides)

    def run(self, features: Features, start: int, stop: int) -> WindowOutput:
        """See zoo.Localizer.

        Raises:
            UsageError: the features come from other encoders than the model reads.
        """
        part = features.part(start, stop)
        with torch.inference_mode():
            output = self.network(*self.inputs(part))
        present = part.seen & part.heard
        levels = pyramid_levels(output, present)
        curve = (1 / (1 + np.exp(-levels[0].logits))).astype(np.float32) * present[:, None]
        nothing = np.zeros_like(curve)  # a joint network has no opinion of one medium alone
        return WindowOutput(start, stop, curve, nothing, nothing, levels=levels)

    def judge(self, visual: Floats, audio: Floats) -> tuple[PyramidLevel, ...]:
        """The pyramid of one whole video, from its features (N, Dv) and (N, Da).

        Raises:
            UsageError: the features do not fit the network.
        """
        with torch.inference_mode():
            return pyramid_levels(self.network(*self._ready(visual, audio)))

    def inputs(self, part: Features) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the network reads: visual (1, N, Dv), audio (1, N, Da), mask (1, N), on its device.

        Raises:
            UsageError: the features come from other encoders than the model reads.
        """
        return self._ready(part.visual, part.audio)

    def _ready(self, visual: Floats | None, audio: Floats | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ready = []
        config = self.network.config
        for side, value, width in zip(SIDES, (visual, audio), (config.visual_dim, config.audio_dim), strict=True):
            if value is None or value.ndim != 2 or value.shape[1] != width:
                raise UsageError(f"{self.info.name} cannot read these {side} features", f"it needs (N, {width})")
            plain = standardise(value, *self._sides[side]) if side in self._sides else value.astype(np.float32)
            ready.append(torch.from_numpy(plain)[None])
        device = next(self.network.parameters()).device
        mask = torch.ones(ready[0].shape[:2], dtype=torch.bool, device=device)
        return ready[0].to(device), ready[1].to(device), mask


def describe(config: LoCoConfig | UnAVConfig) -> str:
    """The configuration as one line of JSON, for the model's description."""
    return json.dumps(asdict(config), separators=(",", ":"))
