"""VGGSound-AVEL100k and 50k: 141 classes, ten seconds, one zip of pickled arrays per clip (dave.md 2.7)."""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.errors import InputError
from avtool.files import printable

SEGMENTS = 10
MAX_BYTES = 64 << 20  # unpacked size of one array; (10, 2048, 7, 7) float64 is 8 MB
# what NumPy's own pickles name; nothing else may be called
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}

Floats = npt.NDArray[np.float32]


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays; a pickle that names anything else is refused before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, not only arrays")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_pickled_array(data: bytes, name: str) -> npt.NDArray[Any]:
    """The array that a pickle holds; code is refused.

    Raises:
        InputError: it is not a pickle of one array of numbers.
    """
    try:
        array = _ArraysOnly(io.BytesIO(data)).load()
    except Exception as error:  # a hostile or damaged pickle raises whatever it likes
        raise InputError(f"{printable(name)} was refused", str(error).splitlines()[0] if str(error) else "") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise InputError(f"{printable(name)} was refused", "it holds no array of numbers")
    return array


@dataclass(frozen=True)
class Clip:
    """One line of the table."""

    video: str
    category: str
    split: str


@dataclass(frozen=True)
class VGGSoundAVEL:
    """Classes (141; background is the index after the last) and clips."""

    classes: tuple[str, ...]
    clips: tuple[Clip, ...]

    @property
    def background(self) -> int:
        """Index of the label "no event"."""
        return len(self.classes)

    def split(self, name: str) -> tuple[Clip, ...]:
        """Clips of "train" or another split."""
        return tuple(clip for clip in self.clips if clip.split.casefold() == name.casefold())


def read_vggsound(table: str | Path, categories: str | Path) -> VGGSoundAVEL:
    """The list of clips, of the 100k or the 50k version.

    Args:
        table: CSV with the columns category, video_id, split.
        categories: text, one class a line; its order gives the indices.

    Raises:
        InputError: a file cannot be read, a column is missing, or a category is unknown.
    """
    try:
        names = Path(categories).read_text(encoding="utf-8").splitlines()
        classes = tuple(name.strip() for name in names if name.strip())
        with open(table, encoding="utf-8-sig", newline="") as stream:
            clips = tuple(
                Clip(r["video_id"], r["category"].strip(), r["split"].strip()) for r in csv.DictReader(stream)
            )
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise InputError(f"{printable(table)} is no table of clips", f"{type(error).__name__}: {error}") from error
    if foreign := sorted({clip.category for clip in clips} - set(classes)):
        raise InputError(f"{printable(table)} has the category '{printable(foreign[0])}'", "the list does not have it")
    return VGGSoundAVEL(classes, clips)


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """Arrays of one clip.

    Attributes:
        audio: (10, 128) float32.
        visual: (10, 7, 7, C) float32, channels last as AVE's.
        events: (10,) bool, audible and visible.
    """

    audio: Floats
    visual: Floats
    events: npt.NDArray[np.bool_]


def read_clip(file: str | Path) -> ClipFeatures:
    """The zip of one clip: a pickle for audio (T, 128), one for visual (10, C, 7, 7), one for the label (1, 10).

    Where T is not 10, the last row is repeated or the rest cut off, as the data set's own loader does.

    Raises:
        InputError: damaged, a part is missing or of another shape, or it holds code.
    """
    parts = _parts(Path(file))
    audio, visual, events = (_part(parts, Path(file), name) for name in ("audio", "visual", "label"))
    if audio.ndim != 2 or visual.ndim != 4 or not len(audio) or not len(visual) or events.size != SEGMENTS:
        shapes = f"audio {audio.shape}, visual {visual.shape}, label {events.shape}"
        raise InputError(f"{printable(file)} holds arrays of another shape", shapes)
    return ClipFeatures(
        _ten(audio).astype(np.float32), _ten(np.moveaxis(visual, 1, 3)).astype(np.float32), events.ravel() > 0.5
    )


def _parts(file: Path) -> Mapping[str, bytes]:
    """Contents by file name, sizes checked before anything is unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if any(entry.file_size > MAX_BYTES for entry in entries):
                raise InputError(f"{printable(file)} was refused", f"a part would unpack to over {MAX_BYTES >> 20} MB")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{printable(file)} cannot be read as zip", str(error).splitlines()[0]) from error


def _part(parts: Mapping[str, bytes], file: Path, name: str) -> npt.NDArray[Any]:
    found = [n for n in parts if name in Path(n).name.casefold()] or [n for n in parts if name in n.casefold()]
    if len(found) != 1:
        raise InputError(f"{printable(file)} has {len(found)} parts called {name}", "one is needed")
    return load_pickled_array(parts[found[0]], f"{file}: {found[0]}")


def _ten(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The first ten rows, the last one repeated where there are fewer."""
    return rows[np.minimum(np.arange(SEGMENTS), len(rows) - 1)]
