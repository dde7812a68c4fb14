"""Features of one file and their forms on disk: .npz, AVE's .h5, and .npy files as UnAV-100 and ActivityNet use."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.errors import InputError, UsageError
from avtool.files import atomic_stream, write_atomic
from avtool.timeline import AudioInfo, MediaInfo, Notice, VideoInfo

FORMAT = "avtool features 1"
SUFFIXES = (".npz", ".h5", ".hdf5")  # of files that hold features whole
NPY_SUFFIX = ".features.json"
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
        audio_times: (N, 2) the same for the rows of `audio` where they have a grid of their own (AVE's drifts); None:
            those of `times`.
        visual_encoder, audio_encoder: names.
        weights: encoder file -> sha256.
        scaling: how frames were scaled.
        media: the file they were made from.
        notices: what the reader must know about the file.
        lost_seconds: media that the container indexes but that could not be decoded.
        sampling: how rows were made: the encoders' options, pictures per row and what else a reader may ask.
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
    audio_times: npt.NDArray[np.float64] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

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
    "audio_times": ("f", (2,)),
}
_ARRAYS = tuple(_FORMS)
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, EOFError, MemoryError, RuntimeError, zlib.error)


def load(path: Path) -> Features:
    """Read a feature file of any form that one file holds, known by its suffix.

    Raises:
        InputError: not such a file, or its arrays do not fit together.
    """
    return load_h5(path) if path.suffix.lower() in (".h5", ".hdf5") else load_npz(path)


def load_marked(path: Path) -> tuple[Features, str]:
    """Features of any layout, a .json of .npy files too, with the fingerprint that they were saved with.

    Raises:
        InputError: not such a file, damaged, or its arrays do not fit together.
    """
    suffix = path.suffix.lower()
    return load_npy(path) if suffix == ".json" else _read_h5(path) if suffix in (".h5", ".hdf5") else _read_npz(path)


def _about(features: Features, fingerprint: str) -> dict[str, Any]:
    """All that is no array, as JSON knows it."""
    return {
        "format": FORMAT,
        "visual_encoder": features.visual_encoder,
        "audio_encoder": features.audio_encoder,
        "weights": dict(features.weights),
        "scaling": features.scaling,
        "media": asdict(features.media),
        "notices": [asdict(n) for n in features.notices],
        "lost_seconds": features.lost_seconds,
        "sampling": dict(features.sampling),
        "fingerprint": fingerprint,
    }


def _stored(features: Features, dtype: str) -> dict[str, Any]:
    """The arrays that there are; times stay as exact as they are."""
    arrays = {name: a for name in _ARRAYS if (a := getattr(features, name)) is not None}
    encoded = ("visual", "audio", "visual_tags", "audio_tags")
    return {name: a.astype(dtype, copy=False) if name in encoded else a for name, a in arrays.items()}


def _from(path: Path, about: Any, arrays: dict[str, Any]) -> tuple[Features, str]:
    """Features with their fingerprint, everything checked.

    Raises:
        InputError: as `load`.
    """
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _foreign(path, "its format mark is missing")
    _check_forms(path, arrays)
    _check_rows(path, arrays)
    for name in _ARRAYS:
        if arrays[name] is not None and arrays[name].dtype == np.float16:
            arrays[name] = arrays[name].astype(np.float32)
    try:
        features = Features(
            **arrays,
            visual_encoder=str(about["visual_encoder"]),
            audio_encoder=str(about["audio_encoder"]),
            weights={str(k): str(v) for k, v in about["weights"].items()},
            scaling=str(about["scaling"]),
            media=_media(about["media"]),
            notices=tuple(Notice(**n) for n in about["notices"]),
            lost_seconds=float(about["lost_seconds"]),
            sampling=dict(about.get("sampling", {})),
        )
        return features, str(about.get("fingerprint", ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from None


# ---------------------------------------------------------------- .npz


def save_npz(features: Features, path: Path, fingerprint: str = "", dtype: str = "float32") -> None:
    """Write features as an .npz without pickles, atomically.

    Args:
        features: what to write.
        path: where.
        fingerprint: of what they depend on; says later whether they are what would be made again.
        dtype: "float32" or "float16", of embeddings and class scores.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays, about = _stored(features, dtype), json.dumps(_about(features, fingerprint))
    with atomic_stream(path) as stream:
        np.savez(stream, about=np.array(about), **arrays)


def load_npz(path: Path) -> Features:
    """Read what save_npz wrote; checked for shape, so that a foreign .npz is refused.

    Raises:
        InputError: not such a file, or its arrays do not fit together.
    """
    return _read_npz(path)[0]


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


def _read_npz(path: Path) -> tuple[Features, str]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            arrays: dict[str, Any] = {name: archive.get(name) for name in _ARRAYS}
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from None
    return _from(path, about, arrays)


# ---------------------------------------------------------------- AVE: .h5


def save_h5(features: Features, path: Path, fingerprint: str = "", dtype: str = "float32") -> None:
    """Write features as HDF5 with the arrays that AVE has of a clip: `visual` (10, 7, 7, C) and `audio` (10, D).

    `times` and `audio_times` say what the rows cover, the attribute `about` (JSON) the rest.

    Args:
        features, path, fingerprint, dtype: as `save_npz`.

    Raises:
        OutputError: the file cannot be written.
        UsageError: h5py is not installed.
    """
    h5py = need_h5py()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in _stored(features, dtype).items():
            file[name] = array
        file.attrs["about"] = json.dumps(_about(features, fingerprint))
    write_atomic(path, buffer.getvalue())


def load_h5(path: Path) -> Features:
    """Read what save_h5 wrote.

    Raises:
        InputError: not such a file, or its arrays do not fit together.
        UsageError: h5py is not installed.
    """
    return _read_h5(path)[0]


def _read_h5(path: Path) -> tuple[Features, str]:
    h5py = need_h5py()
    try:
        with path.open("rb") as stream, h5py.File(stream, "r") as file:
            about = json.loads(str(file.attrs["about"]))
            arrays: dict[str, Any] = {name: file[name][()] if name in file else None for name in _ARRAYS}
    except _UNREADABLE as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from None
    return _from(path, about, arrays)


def need_h5py() -> Any:
    """h5py, the library for HDF5.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise UsageError("HDF5 files need h5py, which is not installed", hint="pip install 'avtool[hdf5]'") from None
    return h5py


# ---------------------------------------------------------------- UnAV-100: a folder of .npy


def npy_files(about: Path, features: Features) -> dict[str, Path]:
    """Where the arrays of a `.json` file lie: `<id>_<encoder>.npy`, with `_visual` or `_audio` if the names are one."""
    stem = about.name.removesuffix(NPY_SUFFIX)
    same = features.visual_encoder == features.audio_encoder
    names = {"visual": features.visual_encoder, "audio": features.audio_encoder}
    return {
        kind: about.with_name(f"{stem}_{f'{name}_{kind}' if same else name}.npy")
        for kind, name in names.items()
        if getattr(features, kind) is not None
    }


def save_npy(features: Features, path: Path, fingerprint: str = "", dtype: str = "float32") -> None:
    """Write features as UnAV-100 and ActivityNet loaders read them: time-major `<id>_<encoder>.npy`, (T, C).

    `path`, written last, is a .json file with the window and the stride in seconds, the times of the rows, the names
    of the .npy files and all that the .npz form records. A map is averaged to a vector.

    Args:
        features, path, fingerprint, dtype: as `save_npz`.

    Raises:
        OutputError: a file cannot be written.
    """
    files = npy_files(path, features)
    for kind, file in files.items():
        array = getattr(features, kind)
        array = array.mean((1, 2)) if array.ndim == 4 else array
        with atomic_stream(file) as stream:
            np.save(stream, array.astype(dtype, copy=False))
    times = features.times
    about = {
        **_about(features, fingerprint),
        "files": {kind: file.name for kind, file in files.items()},
        "rows": features.rows,
        "window_seconds": float(times[0, 1] - times[0, 0]) if features.rows else 0.0,
        "stride_seconds": float(times[1, 0] - times[0, 0]) if features.rows > 1 else 0.0,
        "first_seconds": float(times[0, 0]) if features.rows else 0.0,
        "seen": features.seen.astype(int).tolist(),
        "heard": features.heard.astype(int).tolist(),
        "times": times.tolist(),
    }
    write_atomic(path, json.dumps(about) + "\n")


def load_npy(path: Path) -> tuple[Features, str]:
    """Read what save_npy wrote, with its fingerprint.

    Raises:
        InputError: not such a file, a .npy is missing, or the arrays do not fit together.
    """
    try:
        about = json.loads(path.read_bytes())
        arrays: dict[str, Any] = dict.fromkeys(_ARRAYS)
        for kind, name in about["files"].items():
            with path.with_name(Path(name).name).open("rb") as stream:
                arrays[kind] = np.load(stream, allow_pickle=False)
        arrays["times"] = np.array(about["times"], np.float64).reshape(-1, 2)
        arrays |= {name: np.array(about[name], bool) for name in ("seen", "heard")}
    except _UNREADABLE as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from None
    return _from(path, about, {name: arrays[name] for name in _ARRAYS})


# ---------------------------------------------------------------- what a file must be


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
