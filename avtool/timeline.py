"""The nouns of avtool: what was found in one file, when, and in which medium."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = "avtool timeline 1"
CANDIDATE_FLOOR = 0.05  # candidates below this score are not stored


@dataclass(frozen=True, order=True)
class Event:
    """Something heard and seen from `start` to `end` (seconds, half open), `score` in [0, 1]."""

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class VideoInfo:
    """The video track that is analysed; `average_rate` is a fraction such as "30000/1001"."""

    codec: str
    width: int  # pixels, as displayed (after rotation)
    height: int
    average_rate: str
    variable: bool
    rotation: int = 0  # degrees clockwise to show the picture upright: 0, 90, 180, 270


@dataclass(frozen=True)
class AudioInfo:
    """The audio track that is analysed; `rate` in Hz, `track` counts audio tracks from 0."""

    codec: str
    rate: int
    channels: int
    track: int = 0


@dataclass(frozen=True)
class MediaInfo:
    """One media file. Times are seconds from the start of the presentation."""

    path: str
    bytes: int
    mtime_ns: int
    has_audio: bool
    has_video: bool
    duration: float  # decoded span; before decoding the best estimate
    declared_duration: float | None  # what the header claims
    video: VideoInfo | None
    audio: AudioInfo | None
    analysed_until: float


@dataclass(frozen=True)
class Notice:
    """Something the reader of a result must know: a stable `code` and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class RunInfo:
    """Provenance, copied from the objects that ran, never from flags."""

    tool: str  # "avtool 0.1.0"
    model: str
    weights: Mapping[str, str]  # name -> sha256
    settings: Mapping[str, Any]
    device: str
    fingerprint: str
    details: str = ""  # for external_data: what the encoders were trained on
    encoders: Mapping[str, str] = field(default_factory=dict)  # modality -> encoder name


@dataclass(frozen=True)
class Curves:
    """Scores of the shown classes on the grid: values (N, C) uint8 = round(255 * score)."""

    labels: tuple[str, ...]
    step: float  # seconds per row; row i covers [i * step, (i + 1) * step)
    values: npt.NDArray[np.uint8]  # (N, C)


@dataclass(frozen=True)
class Preview:
    """Small pictures and a waveform for people; empty where a stream is missing."""

    thumbnails: tuple[tuple[float, bytes], ...]  # (seconds, JPEG)
    peaks: npt.NDArray[np.float32]  # (N,) in [0, 1], evenly spread over the duration


@dataclass(frozen=True)
class Timeline:
    """All events of one file, with the candidates they were selected from."""

    media: MediaInfo
    events: tuple[Event, ...]
    candidates: tuple[Event, ...]
    run: RunInfo
    warnings: tuple[Notice, ...] = ()
    best_score: float | None = None  # highest candidate score of the classes shown
    heard_only: int = 0  # stretches above the threshold in sound that the picture does not confirm
    seen_only: int = 0
    curves: Curves | None = None
