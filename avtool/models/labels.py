"""`labels`: reads class scores on a common scale instead of an encoder's embedding; media vote apart, votes are added.

What was learnt with some AudioSet taggers and ImageNet classifiers runs with others. Design: labelspace.md. The
verifier is that of `additive`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from avtool import weights
from avtool.errors import UsageError
from avtool.features.store import Features
from avtool.features.tags import THINGS, WORDS, Scale, scale_of, seen_things, words
from avtool.models.additive import EVIDENCE, Judge, evidence, normalise, verdicts
from avtool.models.zoo import ModelInfo, WindowOutput
from avtool.tensorfiles import check_shapes

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
WINDOW = "sound_window_seconds"  # in `Features.sampling`; an encoder of the catalog hears at least a second
SIDES = {"visual": THINGS, "audio": WORDS}
JUDGES = ("both", "ear", "eye")


@dataclass(frozen=True, eq=False)
class Voter:
    """The linear map of one medium. mean (D,); scale: one number for all classes; weight (D, C); bias (C,)."""

    mean: Floats
    scale: float
    weight: Floats
    bias: Floats

    def votes(self, inputs: Floats) -> Floats:
        """Class logits of this medium alone: (..., D), NaN where an encoder lacks a class, -> (..., C)."""
        known = np.where(np.isfinite(inputs), inputs, self.mean)
        scaled = normalise(known, self.mean, np.asarray(self.scale, np.float32))
        return np.asarray(scaled @ self.weight + self.bias, np.float32)


@dataclass(frozen=True, eq=False)
class Labels:
    """The whole network; `both` judges events, `ear` and `eye` what one medium alone says."""

    visual: Voter
    audio: Voter
    both: Judge
    ear: Judge
    eye: Judge

    def scores(self, visual: Floats, audio: Floats, seen: Bools, heard: Bools) -> tuple[Floats, Floats, Floats]:
        """Scores of one window.

        Args:
            visual: (n, THINGS) of `features.tags.seen_things`.
            audio: (n, WORDS) of `features.tags.words`.
            seen, heard: (n,) a picture was shown, sound existed.

        Returns:
            (n, C) in [0, 1] each: audible and visible, audible, visible. Rows not seen or not heard are 0.
        """
        kinds = evidence(self.visual.votes(visual), self.audio.votes(audio), seen, heard)
        return verdicts((self.both, self.ear, self.eye), kinds, seen, heard)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All numbers by name, float16 for the large maps."""
        out: dict[str, torch.Tensor] = {}
        for name in SIDES:
            side: Voter = getattr(self, name)
            out |= {f"{name}.mean": torch.from_numpy(side.mean), f"{name}.bias": torch.from_numpy(side.bias)}
            out |= {f"{name}.scale": torch.tensor([side.scale]), f"{name}.weight": torch.from_numpy(side.weight).half()}
        for name in JUDGES:
            judge: Judge = getattr(self, name)
            out |= {f"{name}.weight": torch.from_numpy(judge.weight), f"{name}.bias": torch.from_numpy(judge.bias)}
        return out

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Labels:
        """The inverse of `tensors`.

        Raises:
            KeyError: a part is missing.
        """

        def array(name: str) -> Floats:
            value: Floats = tensors[name].float().numpy()
            return value

        def voter(name: str) -> Voter:
            mean, scale, weight, bias = (array(f"{name}.{part}") for part in ("mean", "scale", "weight", "bias"))
            return Voter(mean, float(scale[0]), weight, bias)

        def judge(name: str) -> Judge:
            return Judge(array(f"{name}.weight"), array(f"{name}.bias"))

        return cls(voter("visual"), voter("audio"), judge("both"), judge("ear"), judge("eye"))


def shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `Labels.tensors`."""
    out: dict[str, tuple[int, ...]] = {}
    for name, size in SIDES.items():
        out |= {f"{name}.mean": (size,), f"{name}.scale": (1,)}
        out |= {f"{name}.weight": (size, classes), f"{name}.bias": (classes,)}
    for name in JUDGES:
        out |= {f"{name}.weight": (classes, EVIDENCE), f"{name}.bias": (classes,)}
    return out


class LabelLocalizer:
    """A Labels network behind the interface of the zoo; the scale of a tagger comes from the whole file."""

    def __init__(self, info: ModelInfo, network: Labels) -> None:
        self.info = info
        self.network = network
        self._scaled: tuple[weakref.ref[Features], Scale | None] | None = None

    @classmethod
    def from_file(cls, info: ModelInfo, file: Path, device: torch.device) -> LabelLocalizer:
        """Load from safetensors; the work is too small for a device other than the CPU.

        Raises:
            WeightsError: the file is missing, damaged, or not such a network.
        """
        tensors = weights.load(file)
        check_shapes(file, {n: tuple(t.shape) for n, t in tensors.items()}, shapes(len(info.vocabulary)))
        return cls(info, Labels.from_tensors(tensors))

    def run(self, features: Features, start: int, stop: int) -> WindowOutput:
        """See zoo.Localizer.

        Raises:
            UsageError: the features hold no class scores of AudioSet and ImageNet.
        """
        sound, picture = features.audio_tags, features.visual_tags
        for tags, size, encoder in ((sound, WORDS, features.audio_encoder), (picture, THINGS, features.visual_encoder)):
            if tags is None or tags.shape[1] != size:
                what = f"the localizer '{self.info.name}' needs {size} class scores"
                raise UsageError(what, f"'{encoder}' gave {'none' if tags is None else tags.shape[1]}")
        assert sound is not None and picture is not None
        near = slice(max(0, start - 1), stop + 1)  # a neighbour on each side, for windows that are averaged
        heard = words(sound[near], features.heard[near], self._scale(features), _seconds(features))
        heard = heard[start - near.start :][: stop - start]
        part = features.part(start, stop)
        both, ear, eye = self.network.scores(seen_things(picture[start:stop]), heard, part.seen, part.heard)
        return WindowOutput(start, stop, both, ear, eye)

    def _scale(self, features: Features) -> Scale | None:
        """That of the whole file, computed once."""
        if self._scaled is None or self._scaled[0]() is not features:
            assert features.audio_tags is not None
            scale = scale_of(features.audio_encoder, features.audio_tags, features.heard)
            self._scaled = weakref.ref(features), scale
        return self._scaled[1]


def _seconds(features: Features) -> float:
    return float(features.sampling.get(WINDOW, 2.0))
