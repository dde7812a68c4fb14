"""The localizers that can be run now: name -> constructor, weights, vocabulary, default settings."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from avtool import weights
from avtool.calibration import Calibration
from avtool.errors import UsageError, WeightsError
from avtool.files import printable
from avtool.models.points import PyramidLevel
from avtool.settings import did_you_mean
from avtool.timegrid import Grid
from avtool.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from avtool.features.store import Features

DEFAULT = "additive-mini"
MANIFEST = "manifest"  # what lies beside the models and is none
LARGER = "loco-tags"  # reads larger encoders
LIGHT = ("mobilenet_v2", "mn04")  # the smallest pair of those: 18 MB
AUTO = "auto"
SPEC = "avtool localizer 1"


@dataclass(frozen=True)
class ModelInfo:
    """What a localizer says about itself.

    Attributes:
        name: as in `--model`.
        kind: which constructor reads its file.
        weights: file name -> sha256; empty for a localizer without weights.
        vocabulary: class names, tiers and thresholds.
        grid: rows it was trained on.
        window, hop: rows it sees at once, rows between windows.
        visual, audio: encoder names it can read, best first; "*" is any encoder with class scores.
        settings: defaults of nms, sigma, min_score and the like.
        licence: of the weights. commercial: "yes", "no" or "ask".
        summary: one line for `avtool models`. details: what it was trained on, one sentence.
    """

    name: str
    kind: str
    vocabulary: Vocabulary
    visual: tuple[str, ...]
    audio: tuple[str, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    grid: Grid = field(default_factory=Grid)
    window: int = 20
    hop: int = 10
    settings: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    commercial: str = "ask"
    summary: str = ""
    details: str = ""

    @property
    def reads_tags(self) -> bool:
        """Whether the localizer needs the encoders' class scores."""
        return self.kind in ("tags", "labels") or "*" in (*self.visual, *self.audio)


@dataclass(frozen=True, eq=False)
class WindowOutput:
    """What a localizer says about rows [start, stop).

    Attributes:
        start, stop: rows.
        curve: (n, C) in [0, 1]: audible and visible.
        audio_curve, visual_curve: (n, C) in [0, 1]: evidence in one medium alone.
        levels: of an anchor-free pyramid; None if proposals are to be made from the stitched curve.
    """

    start: int
    stop: int
    curve: npt.NDArray[np.float32]
    audio_curve: npt.NDArray[np.float32]
    visual_curve: npt.NDArray[np.float32]
    levels: tuple[PyramidLevel, ...] | None = None


class Localizer(Protocol):
    """Turns features into scores per class and segment, one window at a time."""

    info: ModelInfo

    def run(self, features: Features, start: int, stop: int) -> WindowOutput:
        """Scores of rows [start, stop)."""
        ...


def _tags(info: ModelInfo, file: Path | None, device: torch.device) -> Localizer:
    from avtool.models.tags import TagsLocalizer

    return TagsLocalizer(info)


def _additive(info: ModelInfo, file: Path | None, device: torch.device) -> Localizer:
    from avtool.models.additive import AdditiveLocalizer

    assert file is not None
    return AdditiveLocalizer.from_file(info, file, device)


def _labels(info: ModelInfo, file: Path | None, device: torch.device) -> Localizer:
    from avtool.models.labels import LabelLocalizer

    assert file is not None
    return LabelLocalizer.from_file(info, file, device)


def _pyramid(info: ModelInfo, file: Path | None, device: torch.device) -> Localizer:
    from avtool.models.pyramid import PyramidLocalizer

    assert file is not None
    return PyramidLocalizer.from_file(info, file, device)


def _segments(info: ModelInfo, file: Path | None, device: torch.device) -> Localizer:
    from avtool.models.segment_localizer import SegmentLocalizer

    assert file is not None
    return SegmentLocalizer.from_file(info, file, device)


KINDS: dict[str, Callable[[ModelInfo, Path | None, torch.device], Localizer]] = {
    "tags": _tags,
    "additive": _additive,
    "labels": _labels,
    "loco": _pyramid,
    "unav": _pyramid,
    "cace": _segments,
    "ccln": _segments,
    "loco-segments": _segments,
}


def load(name: str | None, device: torch.device) -> Localizer:
    """Load a localizer.

    Args:
        name: of an embedded model, path of a .safetensors file beside its .toml, or None for the default.
        device: where it will run.

    Raises:
        UsageError: there is no such model.
        WeightsError: its file is missing or damaged.
    """
    info, file = find(name or available()[0].name)
    return KINDS[info.kind](info, file, device)


def choose(name: str | None, visual: str | None = None, audio: str | None = None) -> str:
    """The localizer that is named or, where that is left open, the best that reads the encoders asked for.

    The default stays where LARGER could run: it is surer of the classes it knows, but it knows fewer.

    Args:
        name: as in `--model`; None or AUTO: left open.
        visual, audio: encoders that are asked for; None: left open.
    """
    if name not in (None, AUTO):
        return str(name)
    if visual is None and audio is None and os.path.isfile(_spec_of(DEFAULT)):
        return DEFAULT
    known = available()
    wanted = [(encoder, k) for k, encoder in enumerate((visual, audio)) if encoder is not None]

    def reads(info: ModelInfo) -> bool:
        return all({encoder, "*"} & set((info.visual, info.audio)[k]) for encoder, k in wanted)

    ordered = sorted(known, key=lambda info: (info.name != DEFAULT, info.name != LARGER))
    return next((info.name for info in ordered if reads(info)), known[0].name)


def find(name: str) -> tuple[ModelInfo, Path | None]:
    """What is known about a model, and its weights file; see `load`."""
    if name.endswith(".safetensors") or os.sep in name:
        file = Path(name)
        return _read_spec(file.parent / f"{file.stem}.toml", file)
    if name != MANIFEST and os.path.isfile(spec := _spec_of(name)):
        return _read_spec(spec, spec.with_suffix(".safetensors"))
    models = {info.name: (info, file) for info, file in _installed()}
    if name not in models:
        raise UsageError(
            f"no model '{printable(name)}'", f"there are {', '.join(models)}", did_you_mean(name, list(models))
        )
    return models[name]


def available() -> list[ModelInfo]:
    """Every localizer that can be run now, the default first; loads no tensors."""
    return sorted((info for info, _ in _installed()), key=lambda info: info.name != DEFAULT)


def _installed() -> list[tuple[ModelInfo, Path | None]]:
    from avtool.models.tags import tags_info

    specs = sorted(weights.embedded_dir().glob("*.toml"))
    found: list[tuple[ModelInfo, Path | None]] = [
        _read_spec(spec, spec.with_suffix(".safetensors")) for spec in specs if spec.stem != MANIFEST
    ]
    return [*found, (tags_info(), None)]


def _spec_of(name: str) -> Path:
    return weights.embedded_dir() / f"{name}.toml"


def _read_spec(spec: Path, file: Path) -> tuple[ModelInfo, Path]:
    """Model description beside its weights; the sha256 in it is what the weights must have."""
    try:
        table = tomllib.loads(spec.read_text(encoding="utf-8"))
        if table.pop("format") != SPEC or table["kind"] not in KINDS:
            raise ValueError("its format or kind is unknown")
        classes = table.pop("classes")
        calibration = Calibration.read(table.pop("calibration", None), [c.get("calibration") for c in classes])
        names, tiers, thresholds = (tuple(c[key] for c in classes) for key in ("name", "tier", "threshold"))
        info = ModelInfo(
            vocabulary=Vocabulary(names, tiers, thresholds, calibration),
            grid=Grid(Fraction(table.pop("segment")), Fraction(table.pop("stride"))),
            visual=tuple(table.pop("visual")),
            audio=tuple(table.pop("audio")),
            weights={file.name: table.pop("sha256")},
            **table,
        )
        if not (0 < info.hop <= info.window and min(info.grid.stride, info.grid.segment) > 0):
            raise ValueError("its windows or segments have no length")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise WeightsError(
            f"{printable(spec)} does not describe a localizer",
            f"{type(error).__name__}: {error}".splitlines()[0],
            "a model is NAME.safetensors beside NAME.toml; avtool models lists those that ship with avtool",
        ) from None
    return info, file
