"""Features of one file on one grid, and their .npz form."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.errors import InputError
from avtool.files import atomic_stream
from avtool.timeline import AudioInfo, MediaInfo, Notice, VideoInfo

FORMAT = "avtool features 1"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoders made of one file; row k of every array is row k of the grid.

    Attributes:
        visual: (N, Dv) or (N, H, W, C) float32, None if the file has no picture or none was wanted.
        audio: (N, Da) float32, None if the file has no sound or none was wanted.
        visual_tags: (N, 1000) ImageNet logits, if the encoder has class scores.
        audio_tags: (N, 527) AudioSet logits, if the encoder has class scores.
        seen: (N,) a picture was shown at the row's centre.
        heard: (N,) sound existed: inside the track and not digital silence.
        times: (N, 2) start and end of each row, seconds.
        visual_encoder, audio_encoder: names.
        weights: encoder file -> sha256.
        scaling: how frames were scaled.
        media: the file they were made from.
        notices: what the reader must know about the file.
        lost_seconds: media that the container indexes but that could not be decoded.
    """

    visual: Floats | None
    audio: Floats | None
    visual_tags: Floats | None
    audio_tags: Floats | None
    seen: npt.NDArray[np.bool_]
    heard: npt.NDArray[np.bool_]
    times: npt.NDArray[np.float64]
    visual_encoder: str
    audio_encoder: str
    weights: Mapping[str, str]
    scaling: str
    media: MediaInfo
    notices: tuple[Notice, ...] = ()
    lost_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of the grid."""
        return len(self.times)

    def part(self, start: int, stop: int) -> Features:
        """Rows [start, stop) as views of the same memory."""
        cut = {name: None if (a := getattr(self, name)) is None else a[start:stop] for name in _ARRAYS}
        return replace(self, **cut)  # type: ignore[arg-type]


# array -> (numpy's kind of its type, numbers of dimensions)
_FORMS = {
    "visual": ("f", (2, 4)),
    "audio": ("f", (2,)),
    "visual_tags": ("f", (2,)),
    "audio_tags": ("f", (2,)),
    "seen": ("b", (1,)),
    "heard": ("b", (1,)),
    "times": ("f", (2,)),
}
_ARRAYS = tuple(_FORMS)
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, EOFError, MemoryError, RuntimeError, zlib.error)


def save_npz(features: Features, path: Path, fingerprint: str = "") -> None:
    """Write features as an .npz without pickles, atomically.

    Args:
        features: what to write.
        path: where.
        fingerprint: see `Session.fingerprint`; says later whether they are what would be made again.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays: dict[str, Any] = {name: a for name in _ARRAYS if (a := getattr(features, name)) is not None}
    about = {
        "format": FORMAT,
        "visual_encoder": features.visual_encoder,
        "audio_encoder": features.audio_encoder,
        "weights": dict(features.weights),
        "scaling": features.scaling,
        "media": asdict(features.media),
        "notices": [asdict(n) for n in features.notices],
        "lost_seconds": features.lost_seconds,
        "fingerprint": fingerprint,
    }
    with atomic_stream(path) as stream:
        np.savez(stream, about=np.array(json.dumps(about)), **arrays)


def load_npz(path: Path) -> Features:
    """Read what save_npz wrote; checked for shape, so that a foreign .npz is refused.

    Raises:
        InputError: not such a file, or its arrays do not fit together.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            arrays: dict[str, Any] = {name: archive.get(name) for name in _ARRAYS}
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _foreign(path, "its format mark is missing")
    _check_forms(path, arrays)
    _check_rows(path, arrays)
    try:
        media = _media(about["media"])
        notices = tuple(Notice(**n) for n in about["notices"])
        return Features(
            **arrays,
            visual_encoder=str(about["visual_encoder"]),
            audio_encoder=str(about["audio_encoder"]),
            weights={str(k): str(v) for k, v in about["weights"].items()},
            scaling=str(about["scaling"]),
            media=media,
            notices=notices,
            lost_seconds=float(about["lost_seconds"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from None


def read_fingerprint(path: Path) -> str:
    """The fingerprint that `save_npz` was given; no array is read.

    Raises:
        InputError: not a feature file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return str(json.loads(str(archive["about"]))["fingerprint"])
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from None


def _check_forms(path: Path, arrays: Mapping[str, Any]) -> None:
    if any(arrays[name] is None for name in ("seen", "heard", "times")):
        raise _foreign(path, "it lacks seen, heard or times")
    for name, (kind, ranks) in _FORMS.items():
        value = arrays[name]
        if value is not None and not (
            isinstance(value, np.ndarray) and value.dtype.kind == kind and value.ndim in ranks
        ):
            raise _foreign(path, f"{name} is no array of the kind and shape it should be")


def _check_rows(path: Path, arrays: Mapping[str, Any]) -> None:
    rows = len(arrays["times"])
    wrong = [name for name in _ARRAYS if arrays[name] is not None and len(arrays[name]) != rows]
    if arrays["times"].shape != (rows, 2) or wrong:
        raise _foreign(path, f"row counts differ: {', '.join(wrong) or 'times'}")
    for name, (kind, _) in _FORMS.items():
        if kind == "f" and arrays[name] is not None and not np.isfinite(arrays[name]).all():
            raise _foreign(path, f"{name} holds NaN or infinity")


def _media(table: dict[str, Any]) -> MediaInfo:
    video = VideoInfo(**table["video"]) if table["video"] else None
    audio = AudioInfo(**table["audio"]) if table["audio"] else None
    media = MediaInfo(**{**table, "video": video, "audio": audio})
    numbers = (media.bytes, media.mtime_ns, media.duration, media.analysed_until)
    if not isinstance(media.path, str) or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError("what it says of its media is no path and no numbers")
    return media


def _foreign(path: Path, why: str) -> InputError:
    return InputError(f"{path} is not a feature file of avtool", why, "avtool extract-features VIDEO -o DIR makes one")
