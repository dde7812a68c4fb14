"""`additive`: each medium votes for classes on its own, the votes are added, and a verifier asks whether both agree.

A linear map per medium (closed-form ridge regression on normalised embeddings), a sum, and a logistic verifier with one
weight per kind of evidence, shared by all classes that were learnt from the same kind of material. With two or three
clips per class it generalises better than anything with a joint layer. Design after labelspace.md ("class logits of
both modalities are added").
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from avtool import weights
from avtool.errors import UsageError
from avtool.features.store import Features
from avtool.models.zoo import ModelInfo, WindowOutput
from avtool.tensorfiles import check_shapes

Floats = npt.NDArray[np.float32]
CLIP = 6.0  # deviations beyond which a feature says no more
BOUND = 20.0  # evidence beyond it says no more
CONTEXT = 2  # rows on each side that a segment's votes are averaged over
EVIDENCE = 18  # kinds of evidence per class and segment, in the order of `evidence`


@dataclass(frozen=True, eq=False)
class Side:
    """The linear map of one medium. mean, scale (D,); weight (D, C); bias (C,); sharpness: votes -> logits."""

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats
    sharpness: float

    def votes(self, embedding: Floats) -> Floats:
        """Class logits of this medium alone: (..., D) -> (..., C)."""
        votes = normalise(embedding, self.mean, self.scale) @ self.weight + self.bias
        return np.asarray(votes * self.sharpness, np.float32)


def normalise(embedding: Floats, mean: Floats, scale: Floats) -> Floats:
    """Standardise every dimension, clip, and bring each row to unit length: (..., D) -> (..., D)."""
    x = np.clip((embedding - mean) / scale, -CLIP, CLIP)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6), np.float32)


def evidence(visual: Floats, audio: Floats, seen: npt.NDArray[np.bool_], heard: npt.NDArray[np.bool_]) -> Floats:
    """What speaks for each class in each segment.

    Args:
        visual, audio: (n, C) logits of the two media.
        seen, heard: (n,) a picture was shown, sound existed.

    Returns:
        (n, C, EVIDENCE): log-posterior fused, visual, audio; margin over the best other class visual, audio and the
        smaller of the two; the logits themselves visual, audio and the smaller of the two, which know no competitor;
        then the same nine for the mean of the window, repeated in every segment.
    """
    local = _kinds(_blur(visual, seen), _blur(audio, heard))
    whole = _kinds(_mean(visual, seen)[None], _mean(audio, heard)[None])
    return np.concatenate([local, np.broadcast_to(whole, local.shape)], 2)


def _kinds(visual: Floats, audio: Floats) -> Floats:
    v, a = margin(visual), margin(audio)
    posteriors = [log_softmax(visual + audio), log_softmax(visual), log_softmax(audio)]
    return np.stack([*posteriors, v, a, np.minimum(v, a), visual, audio, np.minimum(visual, audio)], 2)


def log_softmax(logits: Floats) -> Floats:
    """(n, C) -> (n, C)."""
    shifted: Floats = logits - logits.max(1, keepdims=True)
    total: Floats = np.exp(shifted).sum(1, keepdims=True)
    return shifted - np.log(total)


def margin(logits: Floats) -> Floats:
    """Logit of each class minus the largest other one, (n, C) -> (n, C); minus 0 where there is no other."""
    if logits.shape[1] < 2:
        return logits
    best = np.partition(logits, -2, axis=1)[:, -2:]  # second best, best
    rival: Floats = np.where(logits == best[:, 1:], best[:, :1], best[:, 1:])
    return logits - rival


def _blur(logits: Floats, valid: npt.NDArray[np.bool_]) -> Floats:
    """Mean over the valid rows at most CONTEXT away; rows with none are 0."""
    n = len(logits)
    sums = np.concatenate([np.zeros((1, logits.shape[1])), np.cumsum(logits * valid[:, None], 0, dtype=np.float64)])
    counts = np.concatenate([[0], np.cumsum(valid)])
    low, high = np.maximum(np.arange(n) - CONTEXT, 0), np.minimum(np.arange(n) + CONTEXT + 1, n)
    total = np.maximum(counts[high] - counts[low], 1)[:, None]
    return np.asarray((sums[high] - sums[low]) / total, np.float32)


def _mean(logits: Floats, valid: npt.NDArray[np.bool_]) -> Floats:
    total: Floats = (logits * valid[:, None]).sum(0)
    return total / np.float32(max(1, int(valid.sum())))


@dataclass(frozen=True, eq=False)
class Judge:
    """Logistic weights of each class over the kinds of evidence: weight (C, EVIDENCE), bias (C,)."""

    weight: Floats
    bias: Floats

    def score(self, kinds: Floats) -> Floats:
        """(n, C, EVIDENCE) -> (n, C) in [0, 1]."""
        logits = np.einsum("nck,ck->nc", np.clip(kinds, -BOUND, BOUND), self.weight) + self.bias
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)


def verdicts(
    judges: tuple[Judge, Judge, Judge], kinds: Floats, seen: npt.NDArray[np.bool_], heard: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """What three judges say of the evidence (n, C, EVIDENCE): audible and visible, audible, visible.

    Returns:
        (n, C) in [0, 1] each; rows not seen or not heard are 0.
    """
    both, ear, eye = (judge.score(kinds) for judge in judges)
    return both * (heard & seen)[:, None], ear * heard[:, None], eye * seen[:, None]


@dataclass(frozen=True, eq=False)
class Additive:
    """The whole network; `both` judges events, `ear` and `eye` what one medium alone says."""

    visual: Side
    audio: Side
    both: Judge
    ear: Judge
    eye: Judge

    def scores(
        self, visual: Floats, audio: Floats, seen: npt.NDArray[np.bool_], heard: npt.NDArray[np.bool_]
    ) -> tuple[Floats, Floats, Floats]:
        """Scores of one window.

        Args:
            visual, audio: embeddings (n, Dv), (n, Da).
            seen, heard: (n,) bool.

        Returns:
            (n, C) in [0, 1] each: audible and visible, audible, visible. Rows not seen or not heard are 0.
        """
        return self.judged(self.visual.votes(visual), self.audio.votes(audio), seen, heard)

    def judged(
        self, visual: Floats, audio: Floats, seen: npt.NDArray[np.bool_], heard: npt.NDArray[np.bool_]
    ) -> tuple[Floats, Floats, Floats]:
        """The same for given votes (n, C) of both media, wherever they come from."""
        return verdicts((self.both, self.ear, self.eye), evidence(visual, audio, seen, heard), seen, heard)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All numbers by name, float16 for the large maps."""
        out: dict[str, torch.Tensor] = {}
        for part in fields(self):
            for item in fields(owner := getattr(self, part.name)):
                value = np.asarray(getattr(owner, item.name), np.float32)
                tensor = torch.from_numpy(value.reshape(1) if value.ndim == 0 else value.copy())
                large = isinstance(owner, Side) and item.name == "weight"
                out[f"{part.name}.{item.name}"] = tensor.half() if large else tensor
        return out

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Additive:
        """The inverse of `tensors`.

        Raises:
            KeyError: a part is missing.
        """

        def array(name: str) -> Floats:
            value: Floats = tensors[name].float().numpy()
            return value

        def side(name: str) -> Side:
            mean, scale, weight, bias, sharpness = (array(f"{name}.{item.name}") for item in fields(Side))
            return Side(mean, scale, weight, bias, float(sharpness[0]))

        def judge(name: str) -> Judge:
            return Judge(array(f"{name}.weight"), array(f"{name}.bias"))

        return cls(side("visual"), side("audio"), judge("both"), judge("ear"), judge("eye"))


def shapes(visual: int, audio: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `Additive.tensors`, for embeddings of these lengths."""
    out: dict[str, tuple[int, ...]] = {}
    for side, size in (("visual", visual), ("audio", audio)):
        out |= {f"{side}.mean": (size,), f"{side}.scale": (size,), f"{side}.weight": (size, classes)}
        out |= {f"{side}.bias": (classes,), f"{side}.sharpness": (1,)}
    for judge in ("both", "ear", "eye"):
        out |= {f"{judge}.weight": (classes, EVIDENCE), f"{judge}.bias": (classes,)}
    return out


class AdditiveLocalizer:
    """An Additive network behind the interface of the zoo."""

    def __init__(self, info: ModelInfo, network: Additive) -> None:
        self.info = info
        self.network = network

    @classmethod
    def from_file(cls, info: ModelInfo, file: Path, device: torch.device) -> AdditiveLocalizer:
        """Load from safetensors; the work is too small for a device other than the CPU.

        Raises:
            WeightsError: the file is missing, damaged, or not such a network.
        """
        tensors = weights.load(file)
        sizes = [tensors[name].numel() if name in tensors else 0 for name in ("visual.mean", "audio.mean")]
        expected = shapes(sizes[0], sizes[1], len(info.vocabulary))
        check_shapes(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected)
        return cls(info, Additive.from_tensors(tensors))

    def run(self, features: Features, start: int, stop: int) -> WindowOutput:
        """See zoo.Localizer.

        Raises:
            UsageError: the features come from other encoders than the model reads.
        """
        part = features.part(start, stop)
        if part.visual is None or part.audio is None:
            raise UsageError("the localizer needs features of both sound and picture")
        for value, side, name in (
            (part.visual, self.network.visual, "visual"),
            (part.audio, self.network.audio, "audio"),
        ):
            if value.ndim != 2 or value.shape[1] != len(side.mean):
                raise UsageError(
                    f"{name} features of shape {value.shape[1:]} do not fit {self.info.name}",
                    f"it reads ({len(side.mean)},)",
                )
        both, ear, eye = self.network.scores(part.visual, part.audio, part.seen, part.heard)
        return WindowOutput(start, stop, both, ear, eye)
