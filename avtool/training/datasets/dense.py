"""Data sets of untrimmed videos: ActivityNet-like JSON with feature folders (UnAV-100), and folders with a table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.errors import InputError, UsageError
from avtool.files import printable
from avtool.timegrid import Grid

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureSet:
    """How a set of feature files is named and timed (dave.md section 1).

    Attributes:
        visual: endings of the files whose columns are joined, first to last; `<id>_rgb.npy` has the ending "rgb".
        audio: the same for sound.
        visual_dim, audio_dim: columns after joining.
        grid: where the rows lie.
        max_length: rows of the longest clip in training, T_max.
        raw_audio: audio is raw VGGish, never quantised to 0..255.
    """

    visual: tuple[str, ...]
    audio: tuple[str, ...]
    visual_dim: int
    audio_dim: int
    grid: Grid
    max_length: int
    raw_audio: bool = False


FEATURES = {
    "i3d_vggish": FeatureSet(
        ("rgb", "flow"), ("vggish",), 2048, 128, Grid(Fraction(24, 25), Fraction(8, 25)), 224, raw_audio=True
    ),
    "onepeace": FeatureSet(
        ("one_peace_video_finetune",), ("one_peace_audio",), 1536, 1536, Grid(Fraction(1), Fraction(1, 4)), 256
    ),
}
MAX_CLASSES = 100_000
QUANTISED = 100.0  # raw VGGish stays below about 5; a value above this one is of the 8-bit form


@dataclass(frozen=True)
class TrueEvent:
    """Seconds [start, end) of a class."""

    start: float
    end: float
    label: int


@dataclass(frozen=True)
class Video:
    """One untrimmed video and its events, possibly none."""

    name: str
    subset: str
    duration: float
    events: tuple[TrueEvent, ...]


@dataclass(frozen=True)
class Dense:
    """Videos with dense events.

    Attributes:
        classes: names in index order.
        videos: all of them, see `subset`.
    """

    classes: tuple[str, ...]
    videos: tuple[Video, ...]

    def subset(self, name: str) -> tuple[Video, ...]:
        """Videos of a subset, e.g. "train", "validation" or "test"; case does not matter."""
        return tuple(v for v in self.videos if v.subset.casefold() == name.casefold())


def read_unav(file: str | Path) -> Dense:
    """An annotation file in the form of ActivityNet and UnAV-100.

    Classes are ordered by `label_id` where every annotation has one, else by name. A video without annotations is a
    video without events.

    Args:
        file: JSON, `{"database": {id: {"subset", "duration", "annotations": [{"segment", "label", "label_id"}]}}}`.

    Raises:
        InputError: not readable, or not of that form.
    """
    path = Path(file)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        database: Mapping[str, Any] = table.get("database", table)
        notes = [note for entry in database.values() for note in entry.get("annotations") or ()]
        index = _label_index(notes)
        videos = tuple(_video(name, entry, index) for name, entry in database.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{printable(path)} is no annotation file of UnAV-100's form", why) from error
    return Dense(tuple(sorted(index, key=lambda name: index[name])), videos)


def _label_index(notes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Class name -> index, one name each; a number that no annotation uses is called "class N"."""
    names = sorted({str(note["label"]) for note in notes})
    if not all("label_id" in note for note in notes):
        return {name: i for i, name in enumerate(names)}
    index = {str(note["label"]): int(note["label_id"]) for note in notes}
    if any(index[str(note["label"])] != int(note["label_id"]) for note in notes) or len(set(index.values())) != len(
        index
    ):
        raise ValueError("a label has two numbers, or a number two labels")
    if not all(0 <= number < MAX_CLASSES for number in index.values()):
        raise ValueError(f"the numbers of labels must lie in 0 to {MAX_CLASSES - 1}")
    taken = set(index.values())
    # a part of a data set keeps the numbers of the whole
    index |= {f"class {number}": number for number in range(max(taken, default=-1)) if number not in taken}
    return index


def _video(name: str, entry: Mapping[str, Any], index: Mapping[str, int]) -> Video:
    events = []
    for note in entry.get("annotations") or ():
        start, end = (float(t) for t in note["segment"])
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise ValueError(f"{name} has an event from {start} to {end}")
        events.append(TrueEvent(start, end, index[str(note["label"])]))
    return Video(str(name), str(entry.get("subset", "")), float(entry.get("duration", 0.0)), tuple(events))


def read_features(folder: str | Path, video: str, kind: str = "i3d_vggish") -> tuple[Floats, Floats]:
    """Features of one video, cut to the shorter of both streams.

    Args:
        folder: with `<id>_<ending>.npy` files, (T, C) each.
        video: its id.
        kind: "i3d_vggish" or "onepeace", see `FEATURES`.

    Returns:
        visual (T, Dv) and audio (T, Da), float32.

    Raises:
        InputError: a file is missing, of another form, or holds quantised VGGish.
        UsageError: there is no such kind.
    """
    if kind not in FEATURES:
        raise UsageError(f"no feature set '{printable(kind)}'", hint=f"one of {', '.join(FEATURES)}")
    form = FEATURES[kind]
    visual, audio = (
        _joined(Path(folder), video, endings, width)
        for endings, width in ((form.visual, form.visual_dim), (form.audio, form.audio_dim))
    )
    if form.raw_audio and audio.size and audio.max() > QUANTISED:
        why = f"values reach {audio.max():.0f}: the 8-bit form of VGGish, not the raw one"
        raise InputError(f"the sound of {printable(video)} has other features than the model reads", why)
    rows = min(len(visual), len(audio))
    return visual[:rows], audio[:rows]


def _joined(folder: Path, video: str, endings: tuple[str, ...], width: int) -> Floats:
    parts = [_array(folder / f"{video}_{ending}.npy") for ending in endings]
    rows = min(len(part) for part in parts)
    whole = np.concatenate([part[:rows] for part in parts], axis=1)
    if whole.shape[1] != width:
        why = f"{' + '.join(endings)} have {whole.shape[1]} columns, not {width}"
        raise InputError(f"the features of {printable(video)} are of another set", why)
    return whole


def _array(file: Path) -> Floats:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(file)} cannot be read", str(error).splitlines()[0]) from error
    if array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise InputError(
            f"{printable(file)} holds no features", f"finite (T, C) is needed, not {array.dtype} {array.shape}"
        )
    return np.asarray(array, np.float32)


COLUMNS = ("file", "label", "start", "end")


def read_folder(folder: str | Path, table: str | Path, classes: Sequence[str] | None = None) -> Dense:
    """Any folder of videos with a CSV of its events.

    Args:
        folder: the videos lie in or below it.
        table: CSV with the columns file, label, start, end (seconds); others are ignored. A line with an empty label
            names a video without events.
        classes: names in index order; None: those of the table, sorted.

    Returns:
        Videos named by their path below the folder, in the table's order; their duration is unknown, 0.

    Raises:
        InputError: the table cannot be read, a line is wrong, or a file is not there.
        UsageError: the table has a label that is not among `classes`.
    """
    path = Path(table)
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            lines = [(reader.line_num, line) for line in reader]
            head = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{printable(path)} cannot be read as CSV", str(error).splitlines()[0]) from error
    if missing := [column for column in COLUMNS if column not in head]:
        raise InputError(f"{printable(path)} has no column '{missing[0]}'", hint=f"its first line: {','.join(COLUMNS)}")
    names = (
        tuple(classes) if classes is not None else tuple(sorted({line["label"] for _, line in lines if line["label"]}))
    )
    videos: dict[str, list[TrueEvent]] = {}
    for number, line in lines:
        events = videos.setdefault(_known_file(Path(folder), line["file"], path, number), [])
        if line["label"]:
            events.append(_event(line, names, path, number))
    return Dense(names, tuple(Video(name, "", 0.0, tuple(events)) for name, events in videos.items()))


def _known_file(folder: Path, name: str, table: Path, number: int) -> str:
    if not name or not (folder / name).is_file():
        raise InputError(f"{printable(table)}, line {number}: no file {printable(str(folder / (name or '?')))}")
    return name


def _event(line: Mapping[str, str], names: tuple[str, ...], table: Path, number: int) -> TrueEvent:
    try:
        start, end = float(line["start"]), float(line["end"])
    except (TypeError, ValueError):
        start = end = math.nan
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        given = " to ".join(printable(str(line[column])) for column in ("start", "end"))
        why = f"'{given}': seconds are needed, start before end"
        raise InputError(f"{printable(table)}, line {number} is no event", why)
    if line["label"] not in names:
        raise UsageError(f"{printable(table)}, line {number}: no class '{printable(line['label'])}'")
    return TrueEvent(start, end, names.index(line["label"]))
