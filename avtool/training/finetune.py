"""Contrastive fine-tuning of an encoder of pictures against a frozen encoder of sound (avel.md 3.3).

CACE-Net's third contribution: one vector per video and medium, positives are the two of one video, negatives those of
the other videos of the batch. Ours: any pair of encoders, the training split alone, other frames in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from avtool import weights
from avtool.errors import UsageError
from avtool.features.encoders import mini, resnet
from avtool.features.encoders.catalog import Encoder
from avtool.features.encoders.pictures import imagenet
from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest, Picture
from avtool.settings import did_you_mean
from avtool.timegrid import Grid
from avtool.training.engine import Batch, Indices, Moment

Floats = npt.NDArray[np.float32]
PROJECTED = 128
CHOICES = {"loss": ("symmetric", "one-sided")}


@dataclass(frozen=True)
class ContrastConfig:
    """What is compared and how; `[settings]` of a configuration with `network = "encoder"`.

    Attributes:
        loss: symmetric (as the public code), or one-sided (Eq. 9 of the paper: pictures ask, sounds answer).
        tau: temperature; 0.2 in the public code.
        frames: pictures of a video and step, spread over it.
        checkpointing: recompute activations in the backward pass: less memory, a third slower; batch norms then keep
            their statistics.
    """

    loss: Literal["symmetric", "one-sided"] = "symmetric"
    tau: float = 0.2
    frames: int = 10
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.loss not in CHOICES["loss"]:
            raise UsageError(f"loss = {self.loss!r} is not known", hint=f"one of {', '.join(CHOICES['loss'])}")
        if self.tau <= 0 or self.frames < 1:
            raise UsageError("settings.tau or settings.frames is out of range", "above 0, and 1 or more")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ContrastConfig:
        """From a table as in a TOML file.

        Raises:
            UsageError: there is no such setting.
        """
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                raise UsageError(f"there is no setting settings.{name}", hint=did_you_mean(name, known))
        return cls(**settings)


def contrast(visual: Tensor, audio: Tensor, tau: float, one_sided: bool = False) -> Tensor:
    """InfoNCE between the pictures and the sounds of a batch of videos.

    Args:
        visual, audio: (B, d) unit vectors, row i of both of one video.
        tau: temperature.
        one_sided: pictures ask alone (Eq. 9); else the mean of both directions.
    """
    logits = visual @ audio.T / tau
    own = torch.arange(len(logits), device=logits.device)
    asked = F.cross_entropy(logits, own)
    return asked if one_sided else (asked + F.cross_entropy(logits.T, own)) / 2


# ---- encoders that can be trained --------------------------------------------------------------------------


class Trainable(nn.Module):
    """An encoder of pictures with its last map averaged: uint8 RGB (B, H, W, 3) -> (B, D)."""

    def __init__(self, network: nn.Module, embed: Callable[[nn.Module, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.network, self.embed, self.width = network, embed, width

    def forward(self, pictures: Tensor) -> Tensor:
        return self.embed(self.network, pictures)


def trainable(name: str) -> Trainable:
    """The encoder of that name with its weights, ready to be trained.

    Raises:
        UsageError: it cannot be tuned.
        WeightsError: its weights are not here.
    """
    if name == "mini":
        state = weights.load(weights.locate("mini-visual")[0])
        network = mini.Mini(mini.VISUAL)
        network.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)  # no head that imitates
        return Trainable(network, _mini_embedding, mini.VISUAL.embedding)
    if name in resnet.SHORT:
        from torchvision.models import resnet50

        whole = resnet50(weights=None)
        whole.load_state_dict(weights.load(weights.locate(name)[0]), strict=False)  # but for counts of steps
        return Trainable(whole, _resnet_embedding, resnet.CHANNELS)
    known = ["mini", *resnet.SHORT]
    raise UsageError(f"the encoder '{name}' cannot be tuned", hint=did_you_mean(name, known))


def _mini_embedding(network: nn.Module, pictures: Tensor) -> Tensor:
    out: Tensor = network(mini.prepare_pictures(pictures.permute(0, 3, 1, 2)))[1]
    return out


def _resnet_embedding(network: nn.Module, pictures: Tensor) -> Tensor:
    x = imagenet(torch.float32)(pictures)
    for name, layer in network.named_children():
        if name != "fc":
            x = layer(x)
    return x.flatten(1)


class Contrast(nn.Module):
    """Encoder and both bias-free projections."""

    def __init__(self, encoder: Trainable, audio: int, config: ContrastConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.visual = nn.Linear(encoder.width, PROJECTED, bias=False)
        self.audio = nn.Linear(audio, PROJECTED, bias=False)

    def forward(self, pictures: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """pictures uint8 (B, F, H, W, 3), audio (B, Da) -> unit vectors (B, 128) of both."""
        flat = pictures.flatten(0, 1)
        if self.config.checkpointing and self.training:
            vectors = torch.cat([checkpoint(self._quiet, p, use_reentrant=False) for p in flat.split(len(pictures))])
        else:
            vectors = self.encoder(flat)
        mean = vectors.unflatten(0, pictures.shape[:2]).mean(1)
        return F.normalize(self.visual(mean), dim=1), F.normalize(self.audio(audio), dim=1)

    def _quiet(self, pictures: Tensor) -> Tensor:
        with _still(self.encoder):
            out: Tensor = self.encoder(pictures)
            return out


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Batch norms in evaluation mode: recomputed activations must be those of the first pass."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


# ---- the task ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TunedVideo:
    """A video with its frozen sound (Da,) and its split."""

    path: Path
    seconds: float
    sound: Floats
    split: str


class ContrastTask:
    """Videos whose pictures are drawn anew in every epoch.

    Args:
        encoder: what is tuned.
        eye: the same encoder as it is used, which says how pictures get their size.
        videos: with pictures and sound.
        config: of the contrast.
    """

    metric = "recall"
    criterion: nn.Module | None = None

    def __init__(self, encoder: Trainable, eye: Encoder, videos: list[TunedVideo], config: ContrastConfig) -> None:
        self.videos, self.eye, self.config = videos, eye, config
        self.network: nn.Module = Contrast(encoder, len(videos[0].sound), config)
        self._train = [v for v in videos if v.split == "train"]

    @property
    def samples(self) -> int:
        """Videos that are trained on."""
        return len(self._train)

    def load(self, index: Indices, rng: np.random.Generator) -> Batch:
        """Pictures uint8 (B, F, H, W, 3) and sounds (B, Da)."""
        return self._batch([self._train[i] for i in index], rng)

    def _batch(self, videos: list[TunedVideo], rng: np.random.Generator) -> dict[str, Tensor]:
        pictures = [draw_pictures(v.path, v.seconds, self.eye, self.config.frames, rng) for v in videos]
        height, width = (min(p.shape[k] for p in pictures) for k in (1, 2))
        cut = np.stack([_middle(p, height, width) for p in pictures])
        return {"pictures": torch.from_numpy(cut), "sound": torch.from_numpy(np.stack([v.sound for v in videos]))}

    def losses(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """See `Task`."""
        visual, audio = self.network(batch["pictures"], batch["sound"])
        return {"loss": contrast(visual.float(), audio.float(), self.config.tau, self.config.loss == "one-sided")}

    def validate(self, network: nn.Module, split: str) -> Mapping[str, float]:
        """Share of videos whose sound is the nearest to their pictures, among all of the split."""
        videos = [v for v in self.videos if v.split == split]
        if not videos:
            return {}
        batch, device = self._batch(videos, np.random.default_rng(0)), next(network.parameters()).device
        visual, audio = network(batch["pictures"].to(device), batch["sound"].to(device))
        loss = contrast(visual.float(), audio.float(), self.config.tau)
        hits = (visual @ audio.T).argmax(1).cpu() == torch.arange(len(videos))
        return {"recall": float(hits.float().mean()), "loss": float(loss)}

    def memory(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def remember(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Task`."""


def draw_pictures(
    path: Path, seconds: float, eye: Encoder, frames: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Pictures of a video as the encoder sees them, one of each of `frames` equal parts: (F, H, W, 3)."""
    part = Fraction(max(seconds, 0.1) / frames).limit_denominator(1000)
    moment = Fraction(int(rng.integers(2, 198)), 100) * part  # a row is looked at in its middle, half of this
    request = DecodeRequest(pictures=eye.pictures, sample_rate=None, grid=Grid(moment, part))
    found = [item.pixels for item in decode(path, request) if isinstance(item, Picture) and item.row < frames]
    if not found:
        raise UsageError(f"{path} shows no pictures", "it cannot be tuned on")
    ready = [eye.prepare(p) if eye.prepare is not None else p for p in found]
    return np.stack([ready[min(k, len(ready) - 1)] for k in range(frames)])


def _middle(pictures: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    top, left = (pictures.shape[1] - height) // 2, (pictures.shape[2] - width) // 2
    return pictures[:, top : top + height, left : left + width]


def tuned_tensors(name: str, network: nn.Module) -> dict[str, Tensor]:
    """The weights of the tuned encoder as its untuned ones are stored."""
    assert isinstance(network, Contrast)
    unused = ("imitate.",) if name == "mini" else ()
    state = network.encoder.network.state_dict()
    return {k: v for k, v in state.items() if not k.startswith(unused or ("\0",)) and "num_batches" not in k}
