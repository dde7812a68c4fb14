"""Writes a model as NAME.safetensors beside NAME.toml, the form that `zoo.load` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from avtool.calibration import KIND, VERSION, Calibration
from avtool.errors import UsageError, WeightsError
from avtool.files import printable, write_atomic
from avtool.models.cacenet import CACENet, CACENetConfig, from_official
from avtool.models.zoo import SPEC, ModelInfo
from avtool.tensorfiles import plain_tensors, unpack
from avtool.timegrid import Grid
from avtool.vocabulary import AVE, Vocabulary

THRESHOLD = 0.3  # of probability of an event times probability of its class; not fitted on any data
FEATURES = {  # channels of the visual map -> settings, visual and audio encoders of the published features (avel.md 3)
    512: ({"pool": "none"}, ("vgg19-caffe",), ("vggish",)),
    2048: ({"pool": "none", "protocol": "per-second"}, ("resnet50-v2",), ("cnn14",)),
}
WINDOW, HOP = 10, 5  # segments of a second


def write_model(info: ModelInfo, tensors: Mapping[str, Tensor], folder: Path) -> Path:
    """Writes a model.

    Args:
        info: its description; `weights` is filled in here.
        tensors: its parameters by name.
        folder: where both files go.

    Returns:
        Path of the .safetensors file, which `--model` takes.

    Raises:
        OutputError: a file cannot be written.
    """
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    file = folder / f"{info.name}.safetensors"
    write_atomic(file, data)
    described = replace(info, weights={file.name: hashlib.sha256(data).hexdigest()})
    write_atomic(folder / f"{info.name}.toml", describe(described))
    return file


def describe(info: ModelInfo) -> str:
    """The description as TOML; `zoo` reads it back."""
    (digest,) = info.weights.values()
    facts: dict[str, Any] = {
        "format": SPEC,
        "kind": info.kind,
        "name": info.name,
        "sha256": digest,
        "segment": str(info.grid.segment),
        "stride": str(info.grid.stride),
        "window": info.window,
        "hop": info.hop,
        "visual": list(info.visual),
        "audio": list(info.audio),
        **{key: getattr(info, key) for key in ("licence", "commercial", "summary", "details")},
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
    lines += ["", "[settings]", *(f"{key} = {json.dumps(value)}" for key, value in info.settings.items())]
    v = info.vocabulary
    lines += calibration_header(v.calibration)
    for k, (name, tier, threshold) in enumerate(zip(v.names, v.tiers, v.thresholds, strict=True)):
        lines += ["", "[[classes]]", f"name = {json.dumps(name)}", f'tier = "{tier}"', f"threshold = {threshold}"]
        lines += calibration_line(v.calibration, k)
    return "\n".join(lines) + "\n"


def calibration_header(calibration: Calibration | None) -> list[str]:
    """Which maps the classes have, as TOML; nothing where there are none."""
    return [] if calibration is None else ["", "[calibration]", f"version = {VERSION}", f'kind = "{KIND}"']


def calibration_line(calibration: Calibration | None, label: int) -> list[str]:
    """The map of one class."""
    return [] if calibration is None else [f"calibration = [{', '.join(map(str, calibration.maps[label]))}]"]


def read_cace(file: Path, **settings: Any) -> CACENet:
    """CACE-Net from an official checkpoint file; what the file holds besides tensors is never run.

    Args:
        file: as its authors publish it.
        **settings: of `CACENetConfig` that differ from the published ones and that no checkpoint tells, such as
            `guide`, `psi` and `lambda`.

    Raises:
        WeightsError: the file cannot be read, or holds another network.
        UsageError: there is no such setting.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{printable(file)} cannot be read", error.strerror or "") from error
    tensors = plain_tensors(file, unpack(file, data), 2 * len(data))
    network = from_official(tensors)
    if not settings:
        return network
    return from_official(tensors, CACENetConfig.from_settings({**asdict(network.config), **_named(settings)}))


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {("lambda_" if name == "lambda" else name): value for name, value in settings.items()}


def cace_info(network: CACENet, name: str, classes: tuple[str, ...] = AVE) -> ModelInfo:
    """What a CACE-Net from an official checkpoint is, for `write_model`.

    Raises:
        UsageError: the number of classes is another than the network's, or its features are none of the published.
    """
    config = network.config
    if len(classes) != config.classes or config.visual_dim not in FEATURES:
        why = f"it has {config.classes} classes and reads {config.visual_dim} channels"
        raise UsageError("this CACE-Net is not one of the published two", why)
    options, visual, audio = FEATURES[config.visual_dim]
    settings = {"nms": "gaussian", "sigma": 0.4, **options, "config": json.dumps(asdict(config))}
    thresholds = (THRESHOLD,) * len(classes)
    return ModelInfo(
        name=name,
        kind="cace",
        vocabulary=Vocabulary(classes, ("default",) * len(classes), thresholds),
        visual=visual,
        audio=audio,
        grid=Grid(Fraction(1), Fraction(1)),
        window=WINDOW,
        hop=HOP,
        settings=settings,
        licence="that of the checkpoint; AVE's clips are YouTube videos",
        commercial="ask",
        summary=f"CACE-Net, {len(classes)} events of AVE; reads {visual[0]} and {audio[0]}",
        details="imported from an official checkpoint; thresholds are not fitted",
    )
