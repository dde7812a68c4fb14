"""Encoders by name: what each makes of pictures or sound, from which weights, behind one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from avtool import weights
from avtool.errors import WeightsError
from avtool.features import logmel
from avtool.features.encoders import mini
from avtool.features.encoders.base import DEFAULT, Encoder, Options, choose, dtype_of, pooled
from avtool.features.encoders.mini import Fused, Mini, MiniConfig
from avtool.features.encoders.pictures import Scale, Size, caffe, imagenet
from avtool.files import printable
from avtool.media.request import PictureSpec

__all__ = ["AUDIO", "VISUAL", "Encoder", "Entry", "Options"]

MINI_LICENCE = "see the model card: distilled partly from material under non-commercial terms"
TORCHVISION = "BSD-3-Clause (torchvision); trained on ImageNet: non-commercial research"
ANY_SIZE = PictureSpec()  # the source's own; the encoder makes its size itself


@dataclass(frozen=True)
class Entry:
    """One encoder that can be asked for.

    Attributes:
        make: builds it.
        weights: names of its weights in the manifest; the first ones are needed, see `extras`.
        licence: of the weights.
        protocols: published ways of using it, the default first; empty: there is one.
        extras: names of weights that only some protocols need.
        maps: whether it can give its last map instead of a vector.
    """

    make: Callable[[torch.device, Options], Encoder]
    weights: tuple[str, ...]
    licence: str
    protocols: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    maps: bool = False

    def __call__(self, device: torch.device, options: Options = DEFAULT) -> Encoder:
        """The encoder, ready to run.

        Raises:
            WeightsError: its weights are not here, or not its own.
            UsageError: it has no such option.
        """
        choose("protocol", options.protocol, self.protocols or ("",))
        choose("pool", options.pool, ("gap", "none") if self.maps else ("gap",))
        return self.make(device, options)


def _mini(name: str, config: MiniConfig, device: torch.device) -> tuple[Fused, str]:
    path, sha = weights.locate(name)
    return _ready(weights.load(path), config, device), sha


def _ready(state: dict[str, Tensor], config: MiniConfig, device: torch.device) -> Fused:
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
    return Fused(model.eval().to(device))


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


def _mini_visual(device: torch.device, options: Options) -> Encoder:
    return _visual_encoder(*_mini("mini-visual", mini.VISUAL, device))


def _visual_encoder(model: Fused, sha: str) -> Encoder:

    def run(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, embedding = model(mini.prepare_pictures(pictures.permute(0, 3, 1, 2)))
        return embedding, logits

    return Encoder(
        "mini", "visual", mini.VISUAL.embedding, 1000, run, sha, PictureSpec(short=mini.SHORT), licence=MINI_LICENCE
    )


def _mini_audio(device: torch.device, options: Options) -> Encoder:
    return _audio_encoder(*_mini("mini-audio", mini.AUDIO, device))


def _audio_encoder(model: Fused, sha: str) -> Encoder:

    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, embedding = model(logmel.MN04(wave)[:, None])
        return embedding, logits

    return Encoder(
        "mini", "audio", mini.AUDIO.embedding, 527, run, sha, rate=logmel.MN04.rate, seconds=2.0, licence=MINI_LICENCE
    )


def _coral(device: torch.device, options: Options) -> Encoder:
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


def _mn04(device: torch.device, options: Options) -> Encoder:
    from avtool.features.encoders import mn04

    path, sha = weights.locate("mn04")
    model = mn04.Mn04()
    model.load_state_dict(weights.load(path), strict=False)  # the file lacks BatchNorm's num_batches_tracked
    model.eval().to(device)

    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, embedding = model(logmel.MN04(wave)[:, None])
        return embedding, logits

    return Encoder("mn04", "audio", mn04.EMBEDDING, 527, run, sha, rate=mn04.RATE, seconds=2.0, licence="MIT")


# ---------------------------------------------------------------- the literature's encoders

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # (B, 3, H, W) -> map (B, D, H', W'), logits


def _state(name: str, check: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> tuple[dict[str, Tensor], str]:
    path, sha = weights.locate(name)
    return check(weights.load(path)), sha


def _looking(
    name: str,
    network: Network,
    dim: int,
    tags: int,
    size: Size,
    scale: Scale,
    sha: str,
    options: Options,
    at_once: int = 0,
) -> Encoder:
    """An encoder of pictures whose last map is pooled or kept."""

    def run(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        maps, logits = network(scale(pictures))
        return pooled(maps, options.pool), logits

    return Encoder(
        name, "visual", dim, tags, run, sha, ANY_SIZE,
        licence=VISUAL[name].licence, prepare=size, scaling=str(size), options=options, at_once=at_once,
    )  # fmt: skip


def _resnet(name: str) -> Callable[[torch.device, Options], Encoder]:
    def make(device: torch.device, options: Options) -> Encoder:
        from avtool.features.encoders import resnet

        state, sha = _state(name, resnet.from_upstream)
        network = resnet.ResNet50(state, device, options.precision)
        size, scale = Size(resnet.SHORT[name]), imagenet(dtype_of(options.precision))
        return _looking(name, network, resnet.CHANNELS, 1000, size, scale, sha, options)

    return make


def _vgg19(device: torch.device, options: Options) -> Encoder:
    from avtool.features.encoders import vgg

    state, sha = _state("vgg19", vgg.from_upstream)
    network = vgg.Vgg19(state, device, options.precision, options.tags)
    size, scale, tags = Size(vgg.SHORT), imagenet(dtype_of(options.precision)), 1000 if network.top else 0
    return _looking("vgg19", network, vgg.CHANNELS, tags, size, scale, sha, options, vgg.AT_ONCE)


def _vgg19_caffe(device: torch.device, options: Options) -> Encoder:
    from avtool.features.encoders import vgg

    state, sha = _state("vgg19-caffe", vgg.from_keras)
    network = vgg.Vgg19(state, device, options.precision, options.tags)
    size, scale = Size(None), caffe(dtype_of(options.precision))
    return _looking(
        "vgg19-caffe", network, vgg.CHANNELS, 1000 if network.top else 0, size, scale, sha, options, vgg.AT_ONCE
    )


def _mobilenet_v2(device: torch.device, options: Options) -> Encoder:
    from avtool.features.encoders import mobilenet

    state, sha = _state("mobilenet_v2", mobilenet.from_upstream)
    network = mobilenet.MobileNetV2(state, device, options.precision)
    size, scale = Size(mobilenet.SHORT), imagenet(dtype_of(options.precision))
    return _looking("mobilenet_v2", network, mobilenet.EMBEDDING, 1000, size, scale, sha, options)


def _cnn14(device: torch.device, options: Options) -> Encoder:
    from avtool.features.encoders import cnn14

    state, sha = _state("cnn14", cnn14.from_upstream)
    network = cnn14.Cnn14(state, device, options.precision)
    protocol = choose("protocol", options.protocol, AUDIO["cnn14"].protocols)

    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        return network(logmel.CNN14(wave))

    return Encoder(
        "cnn14", "audio", cnn14.EMBEDDING, cnn14.CLASSES, run, sha, rate=logmel.CNN14.rate,
        seconds=cnn14.SECONDS[protocol], alone=protocol == "per-second", licence=AUDIO["cnn14"].licence,
        options=options,
    )  # fmt: skip


def _vggish(device: torch.device, options: Options) -> Encoder:
    from avtool.features.encoders import vggish

    state, sha = _state("vggish", vggish.from_upstream)
    network = vggish.Vggish(state, device, options.precision)
    protocol = choose("protocol", options.protocol, AUDIO["vggish"].protocols)
    pca: dict[str, Tensor] = {}
    if protocol != "raw":
        pca = {k: v.to(device) for k, v in _state("vggish-pca", vggish.pca_from_upstream)[0].items()}

    def run(wave: Tensor) -> tuple[Tensor, Tensor | None]:
        embedding = network(logmel.VGGISH(wave)).float()
        embedding = vggish.whitened(embedding, pca) if pca else embedding
        return vggish.quantised(embedding) if protocol == "quantised" else embedding, None

    return Encoder(
        "vggish", "audio", vggish.EMBEDDING, 0, run, sha, rate=logmel.VGGISH.rate, seconds=vggish.SECONDS,
        before=vggish.BEFORE, licence=AUDIO["vggish"].licence, options=options,
    )  # fmt: skip


def _tuned(file: Path) -> Callable[[torch.device, Options], Encoder]:
    """An encoder of pictures whose weights were tuned (avtool.training.finetune); its name is that of the file."""

    def make(device: torch.device, options: Options) -> Encoder:
        from avtool.features.encoders import resnet

        state = weights.load_safetensors(file)
        base = state.metadata.get("encoder", "")
        if base == "mini":
            found = _visual_encoder(_ready(state.tensors, mini.VISUAL, device), state.sha256)
        elif base in resnet.SHORT:
            network = resnet.ResNet50(resnet.from_upstream(state.tensors), device, options.precision)
            size, scale = Size(resnet.SHORT[base]), imagenet(dtype_of(options.precision))
            found = _looking(base, network, resnet.CHANNELS, 1000, size, scale, state.sha256, options)
        else:
            raise WeightsError(f"{printable(file)} is no encoder of pictures", "avtool train did not make it")
        return replace(found, name=file.stem, licence="that of the material it was tuned on")

    return make


def with_file(wanted: str | None) -> tuple[dict[str, Entry], str | None]:
    """The encoders of pictures, with the one in a file where `wanted` is one; and the name that is wanted."""
    if wanted is None or not wanted.endswith(".safetensors"):
        return VISUAL, wanted
    file = Path(wanted)
    return VISUAL | {file.stem: Entry(_tuned(file), (), "", maps=True)}, file.stem


VISUAL: dict[str, Entry] = {
    "mini": Entry(_mini_visual, ("mini-visual",), MINI_LICENCE),
    "mobilenetv2-coral": Entry(_coral, ("mobilenetv2-coral",), "Apache-2.0"),
    "mobilenet_v2": Entry(_mobilenet_v2, ("mobilenet_v2",), TORCHVISION, maps=True),
    "resnet50-v1": Entry(_resnet("resnet50-v1"), ("resnet50-v1",), TORCHVISION, maps=True),
    "resnet50-v2": Entry(_resnet("resnet50-v2"), ("resnet50-v2",), TORCHVISION, maps=True),
    "vgg19": Entry(_vgg19, ("vgg19",), TORCHVISION, maps=True),
    "vgg19-caffe": Entry(_vgg19_caffe, ("vgg19-caffe",), "CC BY 4.0 (Visual Geometry Group, Oxford)", maps=True),
}
AUDIO: dict[str, Entry] = {
    "mini": Entry(_mini_audio, ("mini-audio",), MINI_LICENCE),
    "mn04": Entry(_mn04, ("mn04",), "MIT"),
    "cnn14": Entry(_cnn14, ("cnn14",), "CC BY 4.0 (PANNs)", ("sliding", "per-second")),
    "vggish": Entry(
        _vggish, ("vggish",), "Apache-2.0 (TensorFlow models)", ("raw", "pca", "quantised"), extras=("vggish-pca",)
    ),
}
