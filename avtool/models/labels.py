"""`labels`: an additive network that reads class scores on a common scale instead of an encoder's own embedding.

What was learnt with some AudioSet taggers and ImageNet classifiers runs with others. Design: labelspace.md.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from avtool import weights
from avtool.errors import UsageError
from avtool.features.store import Features
from avtool.features.tags import THINGS, WORDS, Scale, scale_of, seen_things, words
from avtool.models.additive import Additive, shapes
from avtool.models.zoo import ModelInfo, WindowOutput
from avtool.tensorfiles import check_shapes

Floats = npt.NDArray[np.float32]
WINDOW = "sound_window_seconds"  # in `Features.sampling`; an encoder of the catalog hears at least a second


class LabelLocalizer:
    """An Additive network over WORDS and THINGS; the scale of a tagger comes from the whole file."""

    def __init__(self, info: ModelInfo, network: Additive) -> None:
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
        expected = shapes(THINGS, WORDS, len(info.vocabulary))
        check_shapes(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected)
        return cls(info, Additive.from_tensors(tensors))

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
        inputs = (
            _known(seen_things(picture[start:stop]), self.network.visual.mean),
            _known(heard, self.network.audio.mean),
        )
        both, ear, eye = self.network.scores(*inputs, part.seen, part.heard)
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


def _known(x: Floats, mean: Floats) -> Floats:
    """Inputs without holes: a word that an encoder lacks says what the average says."""
    return np.where(np.isfinite(x), x, mean)
