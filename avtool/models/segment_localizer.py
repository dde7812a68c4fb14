"""Networks that label the segments of ten-second clips behind the interface of the zoo: CACE-Net, CCLN-style, LoCo."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avtool import weights
from avtool.errors import UsageError, WeightsError
from avtool.features.store import Features
from avtool.files import printable
from avtool.models.cacenet import CACENet, CACENetConfig
from avtool.models.ccln import CCLN, CCLNConfig
from avtool.models.loco_segments import LoCoSegments
from avtool.models.pyramid import standardise, take_sides
from avtool.models.zoo import ModelInfo, WindowOutput

Floats = npt.NDArray[np.float32]


class Answer(Protocol):
    """What all these networks return."""

    def labels(self, threshold: float = 0.5) -> Tensor:
        """(B, T) label of every segment, background last."""
        ...

    def curve(self) -> Tensor:
        """(B, T, C) probability of every event class."""
        ...


NETWORKS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "cace": lambda settings: CACENet(CACENetConfig.from_settings(settings)),
    "ccln": lambda settings: CCLN(CCLNConfig(**settings)),
    "loco-segments": lambda settings: LoCoSegments(**settings),
}


@dataclass(frozen=True, eq=False)
class Judged:
    """Labels and scores of a batch of clips.

    Attributes:
        labels: (B, T) class indices, background = C.
        scores: (B, T, C) in [0, 1].
    """

    labels: npt.NDArray[np.int64]
    scores: Floats


def interleaved(judge: Callable[[Floats, Floats], Floats], visual: Floats, audio: Floats, count: int) -> Floats:
    """Scores of rows that are judged as `count` clips, each of every `count`-th row.

    Networks for clips of ten segments of a second so keep their ten segments on a grid of half seconds. Half of a row's
    score then comes from its neighbours, which were judged in other clips; at an end, the row is its own neighbour.

    Args:
        judge: features of a clip (m, ...) and (m, ...) -> scores (m, C).
        visual, audio: (n, ...) features.
        count: clips; 1: all rows are one.

    Returns:
        (n, C).
    """
    parts = [judge(visual[k::count], audio[k::count]) for k in range(min(count, len(visual)))]
    curve = np.empty((len(visual), parts[0].shape[1]), np.float32)
    for k, part in enumerate(parts):
        curve[k::count] = part
    if count == 1:
        return curve
    near = np.pad(curve, ((1, 1), (0, 0)), mode="edge")
    return np.asarray((near[:-2] + 2 * curve + near[2:]) / 4, np.float32)


class SegmentLocalizer:
    """One of `NETWORKS` with its weights; windows of a long video are judged as if each were a clip.

    Args:
        info: its description.
        network: with weights.
        sides: "visual", "audio" -> mean and scale by which features are standardised first, if they are.
    """

    def __init__(
        self, info: ModelInfo, network: nn.Module, sides: Mapping[str, tuple[Floats, Floats]] | None = None
    ) -> None:
        self.info, self.network, self._sides = info, network, sides or {}

    @classmethod
    def from_file(cls, info: ModelInfo, file: Path, device: torch.device) -> SegmentLocalizer:
        """Load from safetensors; the configuration is part of the description.

        Raises:
            WeightsError: the file is missing, damaged, or does not fit its description.
        """
        tensors = weights.load(file)
        try:
            sides = take_sides(tensors)
            network = NETWORKS[info.kind](json.loads(str(info.settings["config"])))
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            why = str(error).splitlines()[0]
            raise WeightsError(f"{printable(file.name)} is not the network its description says", why) from None
        return cls(info, network.eval().to(device), sides)

    def judge(self, visual: Floats, audio: Floats, threshold: float = 0.5) -> Judged:
        """Labels and scores of clips, e.g. of a data set.

        Args:
            visual: (B, T, [H, W,] Cv).
            audio: (B, T, Ca).
            threshold: probability above which a segment is an event.

        Raises:
            UsageError: the features do not fit the network.
        """
        device = next(self.network.parameters()).device
        given = {"visual": visual, "audio": audio}
        visual, audio = (standardise(x, *self._sides[s]) if s in self._sides else x for s, x in given.items())
        with torch.inference_mode():
            answer: Answer = self.network(torch.from_numpy(visual).to(device), torch.from_numpy(audio).to(device))
            labels, curve = answer.labels(threshold), answer.curve()
        return Judged(labels.cpu().numpy(), curve.float().cpu().numpy())

    def run(self, features: Features, start: int, stop: int) -> WindowOutput:
        """See zoo.Localizer.

        Raises:
            UsageError: the features come from other encoders than the model reads.
        """
        part = features.part(start, stop)
        if part.visual is None or part.audio is None:
            raise UsageError("the localizer needs features of both sound and picture")
        if self.info.settings.get("pool") == "none" and part.visual.ndim == 2:
            why = "these are averaged over the picture"
            raise UsageError(f"{self.info.name} reads maps of the picture", why, "give the video instead")
        present = part.seen & part.heard
        visual, audio = (np.nan_to_num(x.astype(np.float32)) for x in (part.visual, part.audio))
        count = int(self.info.settings.get("interleave", 1))
        curve = interleaved(lambda v, a: self.judge(v[None], a[None]).scores[0], visual, audio, count)
        curve *= present[:, None]
        nothing = np.zeros_like(curve)  # a joint network has no opinion of one medium alone
        return WindowOutput(start, stop, curve.astype(np.float32), nothing, nothing)
