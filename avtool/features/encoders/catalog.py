"""Encoders: what each makes of pictures or sound, behind one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avtool import weights
from avtool.errors import WeightsError
from avtool.features import logmel
from avtool.features.encoders import mini
from avtool.features.encoders.mini import Mini, MiniConfig, fuse
from avtool.files import printable
from avtool.media.request import PictureSpec

MINI_LICENCE = "see the model card: distilled partly from material under non-commercial terms"
Run = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # inputs -> embedding (B, D), class logits (B, K) or None


@dataclass(frozen=True)
class Encoder:
    """One ready encoder.

    Attributes:
        name: as in `--visual` and `--audio`.
        modality: "visual" or "audio".
        dim: length of the embedding.
        tags: number of class scores: 1000 (ImageNet), 527 (AudioSet) or 0.
        run: visual: uint8 RGB (B, H, W, 3); audio: float32 mono (B, samples). Gives embedding and logits.
        sha256: of its weights.
        pictures: how a picture leaves the decoder (visual).
        rate, seconds: sample rate in Hz and context of one row in seconds (audio).
        licence: of the weights.
    """

    name: str
    modality: str
    dim: int
    tags: int
    run: Run
    sha256: str
    pictures: PictureSpec | None = None
    rate: int = 0
    seconds: float = 0.0
    licence: str = ""


def _mini(name: str, config: MiniConfig, device: torch.device) -> tuple[Mini, str]:
    path, sha = weights.locate(name)
    return _ready(weights.load(path), config, device), sha


def _ready(state: dict[str, Tensor], config: MiniConfig, device: torch.device) -> Mini:
    """A fused network; the head that imitated the teacher's embedding is not shipped.

    Raises:
        WeightsError: the tensors are not those of the network.
    """
    model = Mini(config)
    needed = {name: value.shape for name, value in model.state_dict().items() if not _unused(name)}
    given = {name: value for name, value in state.items() if not _unused(name)}
    wrong = sorted(n for n in needed.keys() | given.keys() if n not in given or needed.get(n) != given[n].shape)
    if wrong:
        raise WeightsError(
            "these weights are not those of the network 'mini'", f"tensor {wrong[0]}", "avtool weights verify"
        )
    model.load_state_dict(given, strict=False)
    fused = fuse(model.eval()).to(device)
    return fused.to(memory_format=torch.channels_last) if config.inputs == 3 else fused  # type: ignore[call-overload]


def _unused(name: str) -> bool:
    return name.startswith("imitate.") or name.endswith("num_batches_tracked")


def mini_pair(folder: Path | None, device: torch.device) -> tuple[Encoder, Encoder]:
    """The mini encoders with a folder's weights (`visual-NAME`, `audio-NAME`.safetensors), or random ones."""
    files = [_checkpoint(folder, m) for m in ("visual", "audio")] if folder else []
    states = [weights.load_safetensors(f, accept_unpinned=True).tensors for f in files] or [
        calibrated(c) for c in (mini.VISUAL, mini.AUDIO)
    ]
    visual, audio = (_ready(s, c, device) for s, c in zip(states, (mini.VISUAL, mini.AUDIO), strict=True))
    return _visual_encoder(visual, ""), _audio_encoder(audio, "")


def _checkpoint(folder: Path, modality: str) -> Path:
    found = sorted(f for f in folder.glob(f"{modality}-*.safetensors") if f.stem.count(".") == 0)
    if not found:
        raise WeightsError(f"no {modality}-*.safetensors in {printable(folder)}")
    return found[0]


def calibrated(config: MiniConfig) -> dict[str, Tensor]:
    """Random weights whose batch norms have seen noise, so that signals pass: the control of benchmarks/avepm.py."""
    model = mini.blank(config, 0).train()
    size = (16, config.inputs, 128, 128)
    with torch.no_grad():
        for _ in range(40):
            model(torch.randn(size))
    return model.state_dict()


def _mini_visual(device: torch.device) -> Encoder:
    return _visual_encoder(*_mini("mini-visual", mini.VISUAL, device))


def _visual_encoder(model: Mini, sha: str) -> Encoder:

    def run(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        x = mini.prepare_pictures(pictures.permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        logits, embedding, _ = model(x)
        return embedding, logits

    return Encoder(
        "mini", "visual", mini.VISUAL.embedding, 1000, run, sha, PictureSpec(short=mini.SHORT), licence=MINI_LICENCE
    )


def _mini_audio(device: torch.device) -> Encoder:
    return _audio_encoder(*_mini("mini-audio", mini.AUDIO, device))


def _audio_encoder(model: Mini, sha: str) -> Encoder:

    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, embedding, _ = model(logmel.MN04(wave)[:, None])
        return embedding, logits

    return Encoder(
        "mini", "audio", mini.AUDIO.embedding, 527, run, sha, rate=logmel.MN04.rate, seconds=2.0, licence=MINI_LICENCE
    )


def _mobilenet(device: torch.device) -> Encoder:
    from avtool.features.encoders import mobilenet

    path, sha = weights.locate("mobilenetv2-coral")
    model = mobilenet.load_state(mobilenet.MobileNetV2Coral(), weights.load(path)).to(
        device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]

    def run(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        x = mobilenet.prepare(pictures.permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        logits, embedding = model(x)
        return embedding, logits

    # short side 180, the whole picture: 9 points of top-1 better on portrait clips than a 0.875 centre crop
    return Encoder(
        "mobilenetv2-coral", "visual", mobilenet.EMBEDDING, 1000, run, sha, PictureSpec(short=180), licence="Apache-2.0"
    )


def _mn04(device: torch.device) -> Encoder:
    from avtool.features.encoders import mn04

    path, sha = weights.locate("mn04")
    model = mn04.Mn04()
    model.load_state_dict(weights.load(path), strict=False)  # the file lacks BatchNorm's num_batches_tracked
    model.eval().to(device)

    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, embedding = model(logmel.MN04(wave)[:, None])
        return embedding, logits

    return Encoder("mn04", "audio", mn04.EMBEDDING, 527, run, sha, rate=mn04.RATE, seconds=2.0, licence="MIT")


VISUAL: dict[str, Callable[[torch.device], Encoder]] = {"mini": _mini_visual, "mobilenetv2-coral": _mobilenet}
AUDIO: dict[str, Callable[[torch.device], Encoder]] = {"mini": _mini_audio, "mn04": _mn04}
