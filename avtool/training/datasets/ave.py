"""The AVE data set: 4,143 clips of ten seconds, 28 classes and background (avel.md sections 1, 2 and 8)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avtool.errors import InputError
from avtool.files import printable
from avtool.training.datasets.hdf5 import read_rows, shape_of

SEGMENTS = 10  # one second each
LABELS_SHA256 = "c9578b9d1577fc69ec3d541181d103cd62bc88b5a386cbd2c339df3bba746119"  # of the labels of all 4,143 rows
SPLITS = ("train", "val", "test")
MATCH = "_match"  # splits of cross-modality localization
VISUAL_FILES = ("visual_feature.h5", "visual_feature_vec.h5")
AUDIO_FILES = ("audio_feature.h5",)

Labels = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One line of Annotations.txt: seconds [start, end) of the clip show and sound `category`."""

    category: str
    video: str
    quality: str
    start: int
    end: int


def read_annotations(file: Path) -> tuple[Row, ...]:
    """Rows of `class&youtube_id&quality&start&end`, one a line, without a head line.

    Raises:
        InputError: the file cannot be read, or a line is of another form.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{printable(file)} cannot be read", str(error).splitlines()[0]) from error
    rows = []
    for number, line in enumerate(lines, 1):
        parts = line.split("&")
        try:
            category, video, quality, start, end = parts
            row = Row(category, video, quality, int(start), int(end))
            if not 0 <= row.start <= row.end <= SEGMENTS:
                raise ValueError
        except ValueError:
            why = f"'{printable(line[:80])}' is not class&youtube_id&quality&start&end within {SEGMENTS} seconds"
            raise InputError(f"{printable(file)}, line {number} is no annotation", why) from None
        rows.append(row)
    return tuple(rows)


def rebuild_labels(rows: Sequence[Row]) -> tuple[tuple[str, ...], Labels]:
    """Classes and segment labels (avel.md 1.2).

    Args:
        rows: annotations.

    Returns:
        Class names in the order of their first appearance, and (N, 10) uint8 class indices, background = number of
        classes (28 for the whole set).
    """
    classes = tuple(dict.fromkeys(row.category for row in rows))
    labels = np.full((len(rows), SEGMENTS), len(classes), np.uint8)
    for i, row in enumerate(rows):
        labels[i, row.start : row.end] = classes.index(row.category)
    return classes, labels


def labels_digest(labels: Labels) -> str:
    """sha256 of the labels' bytes, to be compared with `LABELS_SHA256`."""
    return hashlib.sha256(np.ascontiguousarray(labels, np.uint8).tobytes()).hexdigest()


@dataclass(frozen=True)
class Leaks:
    """Clips that occur more than once (avel.md 1.4).

    Attributes:
        videos: distinct ids over all rows.
        repeated: id -> number of rows, of ids with more than one.
        between: (one split, other split) -> ids in both.
        affected: split -> its rows whose id is also in the training split.
    """

    videos: int
    repeated: Mapping[str, int]
    between: Mapping[tuple[str, str], tuple[str, ...]]
    affected: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class AVE:
    """The data set as it lies in a folder; features are read when they are asked for.

    Attributes:
        folder: where its files are.
        rows: annotations; row i of every array of the data set is row i.
        classes: 28 names.
        labels: (N, 10) class indices, `background` outside the event.
        splits: name ("train", "val", "test", and with "_match" those of cross-modality localization) -> (K,) rows, in
            the order of the file.
    """

    folder: Path
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    labels: Labels
    splits: Mapping[str, Indices]

    @property
    def background(self) -> int:
        """Index of the label "no event"."""
        return len(self.classes)

    @cached_property
    def clip_classes(self) -> Indices:
        """(N,) class of every row, also of a row without an event segment."""
        return np.array([self.classes.index(row.category) for row in self.rows], np.int64)

    @property
    def events(self) -> npt.NDArray[np.bool_]:
        """(N, 10) whether a segment is an event."""
        return np.asarray(self.labels != self.background)

    def one_hot(self, rows: npt.ArrayLike) -> Floats:
        """(K, 10, 29) float32 labels as in labels.h5."""
        return np.asarray(np.eye(self.background + 1, dtype=np.float32)[self.labels[np.asarray(rows)]])

    def weak(self, rows: npt.ArrayLike) -> Floats:
        """(K, 29) float32 class of the clip alone, as in mil_labels.h5; what weak training may see."""
        return np.asarray(np.eye(self.background + 1, dtype=np.float32)[self.clip_classes[np.asarray(rows)]])

    def split(self, name: str) -> Indices:
        """Rows of a split.

        Raises:
            InputError: its file is not there.
        """
        if name not in self.splits:
            file = _order_file(name)
            raise InputError(f"there is no split '{printable(name)}' in {printable(self.folder)}", f"{file} is missing")
        return self.splits[name]

    def leaks(self, match: bool = False) -> Leaks:
        """Which clips repeat, and which are in more than one of the splits (or the match splits)."""
        names = [s + MATCH * match for s in SPLITS if s + MATCH * match in self.splits]
        ids = {name: {self.rows[i].video for i in self.splits[name]} for name in names}
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        counts = Counter(row.video for row in self.rows)
        learnt = ids.get(f"train{MATCH * match}", set())
        return Leaks(
            videos=len(counts),
            repeated={video: count for video, count in counts.items() if count > 1},
            between={(a, b): tuple(sorted(ids[a] & ids[b])) for a, b in pairs},
            affected={
                name: tuple(int(i) for i in self.splits[name] if self.rows[i].video in learnt)
                for name in names
                if not name.startswith("train")
            },
        )

    def visual(self, rows: npt.ArrayLike, file: str | Path | None = None) -> Floats:
        """(K, 10, 7, 7, C) or (K, 10, C) float32 visual features of some rows; `file` if it has another name."""
        return self._features(rows, file, VISUAL_FILES)

    def audio(self, rows: npt.ArrayLike, file: str | Path | None = None) -> Floats:
        """(K, 10, C) float32 audio features of some rows; `file` if it has another name."""
        return self._features(rows, file, AUDIO_FILES)

    def _features(self, rows: npt.ArrayLike, file: str | Path | None, known: tuple[str, ...]) -> Floats:
        path = self.folder / file if file else next((f for n in known if (f := self.folder / n).is_file()), None)
        if path is None:
            hint = "its authors offer the features; avtool cannot fetch them"
            raise InputError(f"{printable(self.folder)} has no {' or '.join(known)}", "", hint)
        shape = shape_of(path)
        if len(shape) < 3 or shape[:2] != (len(self.rows), SEGMENTS):
            raise InputError(
                f"{printable(path)} has the shape {shape}", f"({len(self.rows)}, {SEGMENTS}, ...) is needed"
            )
        return read_rows(path, rows).astype(np.float32)


def read_ave(folder: str | Path) -> AVE:
    """Opens the data set: labels are rebuilt from Annotations.txt and compared with every label file that is there.

    Args:
        folder: with Annotations.txt, the `*_order.h5` splits and, where present, `*_order_match.h5`, labels.h5,
            labels_closs.h5, mil_labels.h5 and the features.

    Raises:
        InputError: a file is missing, damaged, or contradicts the annotations.
    """
    path = Path(folder)
    rows = read_annotations(path / "Annotations.txt")
    classes, labels = rebuild_labels(rows)
    names = [name for s in SPLITS for name in (s, s + MATCH) if (path / _order_file(name)).is_file()]
    splits = {name: read_rows(path / _order_file(name)).astype(np.int64).ravel() for name in names}
    data = AVE(path, rows, classes, labels, splits)
    _check_splits(data)
    _check_labels(data)
    return data


def _order_file(name: str) -> str:
    return f"{name.removesuffix(MATCH)}_order{MATCH if name.endswith(MATCH) else ''}.h5"


def _check_splits(data: AVE) -> None:
    for group in (SPLITS, tuple(s + MATCH for s in SPLITS)):
        present = [data.splits[name] for name in group if name in data.splits]
        every = np.concatenate([*present, np.empty(0, np.int64)])
        if len(np.unique(every)) != len(every) or (len(every) and not 0 <= every.min() <= every.max() < len(data.rows)):
            why = "a row is in two of them, or does not exist"
            raise InputError(f"the splits in {printable(data.folder)} do not fit the annotations", why)


def _check_labels(data: AVE) -> None:
    """Compares the rebuilt labels with the files that are there."""
    everything = np.arange(len(data.rows))
    for name, expected in (
        ("labels_closs.h5", data.events.astype(np.float32)),
        ("mil_labels.h5", data.weak(everything)),
        ("labels.h5", data.one_hot(everything)),
    ):
        file = data.folder / name
        if file.is_file() and not np.array_equal(read_rows(file), expected):
            why = "its labels are not those that Annotations.txt gives"
            raise InputError(f"{printable(file)} contradicts Annotations.txt", why)


def background_clips(folder: str | Path) -> tuple[Floats, Floats | None]:
    """The clips without any event that weakly supervised training adds.

    Returns:
        Audio (178, 10, 128) float32, and visual (178, 10, 7, 7, 512), or None where its file is not there.

    Raises:
        InputError: audio_feature_noisy.h5 is missing or damaged.
    """
    path = Path(folder)
    visual = path / "visual_feature_noisy.h5"
    audio = read_rows(path / "audio_feature_noisy.h5").astype(np.float32)
    return audio, read_rows(visual).astype(np.float32) if visual.is_file() else None
