"""Data to train on from where users have them: data sets, folders of videos, folders to compose scenes from."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.errors import InputError, UsageError
from avtool.extraction import Extractor
from avtool.extraction import Recipe as Extraction
from avtool.features.store import Features, load_npz, read_fingerprint, save_npz
from avtool.files import printable
from avtool.models.pyramid import standardise
from avtool.models.release import FEATURES as PUBLISHED
from avtool.settings import Settings, did_you_mean
from avtool.timegrid import Grid, windows
from avtool.training.additive import Items
from avtool.training.datasets.ave import MATCH, SPLITS, background_clips, read_ave
from avtool.training.datasets.dense import FEATURES, Dense, TrueEvent, read_features, read_folder, read_unav
from avtool.training.datasets.vggsound import read_clip, read_vggsound
from avtool.training.dense import DenseClip, DenseData
from avtool.training.engine import Indices
from avtool.training.library import FolderLibrary
from avtool.training.localizer import Pair, bank_items, save_arrays
from avtool.training.loco import events_of, scale_of
from avtool.training.segments import Rows, SegmentData, standardised
from avtool.training.synthetic import SyntheticLaw, synthetic

KINDS = ("ave", "vggsound", "unav", "folder", "composed", "synthetic")
CLIP_SECONDS = 10.0  # that a segment network sees at once
Floats = npt.NDArray[np.float32]
Sides = tuple[tuple[Floats, Floats], tuple[Floats, Floats]]
Hook = Callable[[str, float, float], None]


@dataclass(frozen=True)
class DataConfig:
    """Where data come from; `[data]` of a configuration.

    Attributes:
        kind: ave, vggsound, unav, folder, composed or synthetic.
        path: the folder: of the data set, the feature files (unav), the clips' zips (vggsound), the videos, or
            `pictures` and `sounds`.
        table: annotations: unav's JSON, the CSV of vggsound or of a folder (file,label,start,end[,split]).
        categories: vggsound's list of classes.
        features: unav: "i3d_vggish" or "onepeace".
        visual, audio: encoders (folder, composed), or files of features in `path` (ave).
        stride: seconds between rows (folder).
        validation: share of a folder's videos that is kept for validation where the table has no split.
        scenes: composed scenes of each medium; 0: 120 a class.
        pairs: composed clips out of them, for networks other than the additive one; 0: three for each scene.
        standardise: bring features to mean 0 and one scale first (folder, composed).
        match: use the splits of cross-modality localization (ave).
        seed: of what is drawn.
    """

    kind: str = "folder"
    path: str = ""
    table: str = ""
    categories: str = ""
    features: str = "i3d_vggish"
    visual: str = ""
    audio: str = ""
    stride: float = 0.5
    validation: float = 0.2
    scenes: int = 0
    pairs: int = 0
    standardise: bool = True
    match: bool = False
    seed: int = 0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> DataConfig:
        """From a table as in a TOML file.

        Raises:
            UsageError: there is no such setting, or a value is of another kind.
        """
        known = {f.name: type(f.default) for f in fields(cls)}
        for name, value in settings.items():
            if name not in known:
                raise UsageError(f"there is no setting data.{name}", hint=did_you_mean(name, list(known)))
            if not isinstance(value, (int, float) if known[name] is float else known[name]):
                raise UsageError(f"data.{name} = {value!r} is not of its kind", f"{known[name].__name__} is needed")
        config = cls(**settings)
        if config.kind not in KINDS:
            raise UsageError(f"data.kind = '{printable(config.kind)}' is not known", hint=f"one of {', '.join(KINDS)}")
        if config.stride <= 0 or not 0 <= config.validation < 1:
            raise UsageError("data.stride or data.validation is out of range", "above 0, and from 0 to below 1")
        return config

    def need(self, name: str) -> Path:
        """A path that this kind of data cannot do without.

        Raises:
            UsageError: it is not set.
        """
        value = getattr(self, name)
        if not value:
            raise UsageError(
                f"data.{name} is not set", f"data of the kind '{self.kind}' need it", f"--set data.{name}=..."
            )
        return Path(value)


@dataclass(frozen=True, eq=False)
class Source:
    """Data with what a localizer that was trained on them must know.

    Attributes:
        segments, dense: the data, in the form that the network needs; the other is None.
        grid: of the rows.
        window: rows that a localizer sees at once.
        visual, audio: encoders whose features it reads.
        options: settings of the description, e.g. that maps are read.
        sides: standardisation of the features, if any.
        identity: what the data are, for the fingerprint; plain data.
        notes: what the user should know.
    """

    segments: SegmentData | None
    dense: DenseData | None
    grid: Grid
    window: int
    visual: tuple[str, ...]
    audio: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    sides: Sides | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        data = self.segments or self.dense
        assert data is not None
        return data.classes


# ---- AVE ---------------------------------------------------------------------------------------------------


def ave_source(config: DataConfig, weak: bool) -> Source:
    """AVE with the features of its authors, or with any of its layout (`extract-features --layout ave --pack`)."""
    folder = config.need("path")
    data = read_ave(folder)
    files = config.visual or None, config.audio or None
    first = data.visual([0], files[0]), data.audio([0], files[1])
    reads = first[0].shape[-1], first[1].shape[-1]
    extra = background_clips(folder) if weak and (folder / "audio_feature_noisy.h5").is_file() else None
    count, notes = len(data.rows), []
    visual: Rows = lambda index: data.visual(index, files[0])  # noqa: E731
    audio: Rows = lambda index: data.audio(index, files[1])  # noqa: E731
    added = 0
    if extra is not None and extra[1] is not None and extra[1].shape[-1] == reads[0]:
        added = len(extra[0])
        visual, audio = appended(visual, extra[1], count), appended(audio, extra[0], count)
    elif weak:
        notes.append("no background-only clips: their features are not beside the others")
    labels = np.concatenate([data.labels, np.full((added, data.labels.shape[1]), data.background)]).astype(np.int64)
    clips = np.concatenate([data.clip_classes, np.full(added, data.background)])
    segments = SegmentData(
        data.classes, visual, audio, labels, clips, np.ones(labels.shape, bool),
        {n: data.split(n + MATCH * config.match) for n in SPLITS if n + MATCH * config.match in data.splits},
        reads, np.arange(count, count + added),
    )  # fmt: skip
    options, eyes, ears = PUBLISHED.get(reads[0], ({}, (config.visual or "ave",), (config.audio or "ave",)))
    options = dict(options) if first[0].ndim == 5 else {}
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    identity = {"labels": digest, "reads": reads, "files": files, "match": config.match}
    second = Grid(Fraction(1), Fraction(1))
    return Source(segments, None, second, 10, eyes, ears, options, None, identity, tuple(notes))


def appended(rows: Rows, more: Floats, count: int) -> Rows:
    """Rows of an array behind the `count` of another."""

    def read(index: Indices) -> Floats:
        own = index < count
        out = np.empty((len(index), *more.shape[1:]), np.float32)
        if own.any():
            out[own] = rows(index[own])
        out[~own] = more[index[~own] - count]
        return out

    return read


# ---- VGGSound-AVEL -----------------------------------------------------------------------------------------


def vggsound_source(config: DataConfig, cache: Path) -> Source:
    """VGGSound-AVEL100k or 50k; labels are gathered once, features are read clip by clip."""
    folder, table = config.need("path"), read_vggsound(config.need("table"), config.need("categories"))
    stamp = hashlib.sha256(config.need("table").read_bytes()).hexdigest()
    file = cache / f"vggsound-{stamp[:12]}.npz"
    paths = [folder / f"{clip.video}.zip" for clip in table.clips]
    if not file.exists():
        save_arrays(file, {"events": np.stack([read_clip(path).events for path in paths])})
    with np.load(file) as archive:
        events = archive["events"]
    clips = np.array([table.classes.index(clip.category) for clip in table.clips], np.int64)
    labels = np.where(events, clips[:, None], table.background)
    names = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
    splits = {
        split: np.array([i for i, c in enumerate(table.clips) if c.split.casefold() in words], np.int64)
        for split, words in names.items()
    }
    first = read_clip(paths[0])
    segments = SegmentData(
        table.classes,
        lambda index: np.stack([read_clip(paths[i]).visual for i in index]),
        lambda index: np.stack([read_clip(paths[i]).audio for i in index]),
        labels, clips, np.ones(labels.shape, bool), splits, (first.visual.shape[-1], first.audio.shape[-1]),
    )  # fmt: skip
    options, eyes, ears = PUBLISHED[512]
    second = Grid(Fraction(1), Fraction(1))
    return Source(segments, None, second, 10, eyes, ears, options, None, {"table": stamp})


# ---- UnAV-100 ----------------------------------------------------------------------------------------------

SUBSETS = {"train": "train", "training": "train", "validation": "val", "val": "val", "test": "test", "testing": "test"}


def unav_source(config: DataConfig) -> Source:
    """UnAV-100, or any annotation of that form, with its published feature files."""
    folder, table = config.need("path"), config.need("table")
    data, form = read_unav(table), FEATURES.get(config.features)
    if form is None:
        raise UsageError(f"no feature set '{printable(config.features)}'", hint=f"one of {', '.join(FEATURES)}")
    clips = tuple(
        DenseClip(v.name, v.duration, v.events, SUBSETS.get(v.subset.casefold(), v.subset)) for v in data.videos
    )
    dense = DenseData(
        data.classes, clips, lambda i: read_features(folder, clips[i].name, config.features),
        (form.visual_dim, form.audio_dim), form.grid,
    )  # fmt: skip
    identity = {"table": hashlib.sha256(table.read_bytes()).hexdigest(), "features": config.features}
    eye, ear = (f"{config.features}-{side}" for side in ("visual", "audio"))
    return Source(None, dense, form.grid, form.max_length, (eye,), (ear,), {}, None, identity)


# ---- folder of videos --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Footage:
    """Videos of a folder with their features, on one grid."""

    classes: tuple[str, ...]
    clips: tuple[DenseClip, ...]
    features: tuple[Features, ...]
    grid: Grid
    visual: str
    audio: str
    identity: Mapping[str, Any]

    def arrays(self, i: int) -> tuple[Floats, Floats]:
        """Visual (N, Dv) and audio (N, Da) of one video, zeros where it has none."""
        found = self.features[i]
        sides = [(found.visual, self.widths[0]), (found.audio, self.widths[1])]
        visual, audio = (np.zeros((found.rows, w), np.float32) if x is None else x for x, w in sides)
        return visual, audio

    @property
    def widths(self) -> tuple[int, int]:
        """Dv, Da."""
        eyes = [f.visual.shape[1] for f in self.features if f.visual is not None]
        ears = [f.audio.shape[1] for f in self.features if f.audio is not None]
        if not eyes or not ears:
            raise InputError("no video of the folder has " + ("pictures" if not eyes else "sound"))
        return eyes[0], ears[0]


def read_splits(table: Path, data: Dense, share: float, seed: int) -> list[str]:
    """The split of every video: the column `split` of the table, else every n-th of a class for validation."""
    with open(table, encoding="utf-8-sig", newline="") as stream:
        given = {row["file"]: SUBSETS.get((row.get("split") or "").casefold(), "") for row in csv.DictReader(stream)}
    if any(given.values()):
        return [given[v.name] or "train" for v in data.videos]
    order = np.random.default_rng(seed).permutation(len(data.videos))
    out, seen = ["train"] * len(data.videos), dict[int, float]()
    for i in order.tolist():
        label = data.videos[i].events[0].label if data.videos[i].events else -1
        seen[label] = seen.get(label, 0.5) + share
        if seen[label] >= 1:
            seen[label] -= 1
            out[i] = "val"
    return out


def extractor(config: DataConfig) -> Extractor:
    """What makes the features of a folder's videos."""
    stride = Fraction(str(config.stride))
    settings = Settings(visual=config.visual or None, audio=config.audio or None)
    return Extractor(settings, Extraction(segment=stride, stride=stride, tags=False))


def read_footage(config: DataConfig, cache: Path, hook: Hook) -> Footage:
    """Features of all videos, made where they are not cached.

    Raises:
        InputError: a file or the table cannot be read.
    """
    folder, table = config.need("path"), config.need("table")
    data = read_folder(folder, table)
    splits = read_splits(table, data, config.validation, config.seed)
    clips, features = [], []
    with extractor(config) as tool:
        for number, (video, split) in enumerate(zip(data.videos, splits, strict=True)):
            hook("features", number, len(data.videos))
            found = _cached(folder / video.name, tool, cache)
            features.append(found)
            clips.append(DenseClip(video.name, found.media.duration, video.events, split))
        hook("features", len(data.videos), len(data.videos))
        identity = {
            "table": hashlib.sha256(table.read_bytes()).hexdigest(),
            "features": tool.identity(),
            "splits": splits,
        }
        return Footage(
            data.classes, tuple(clips), tuple(features), tool.grid, tool.visual.name, tool.audio.name, identity
        )


def _cached(path: Path, tool: Extractor, cache: Path) -> Features:
    fingerprint = tool.fingerprint(tool.probe(path))
    file = cache / f"{fingerprint[:24]}.npz"
    if file.exists() and read_fingerprint(file) == fingerprint:
        return load_npz(file)
    found = tool.features(path, lambda *_: None)
    save_npz(found, file, fingerprint)
    return found


def row_labels(clip: DenseClip, rows: int, grid: Grid, classes: int) -> npt.NDArray[np.bool_]:
    """(rows, C): a row belongs to an event that covers its centre; a shorter event gets the row it lies in."""
    out = np.zeros((rows, classes), bool)
    centres = np.array([float(grid.centre(k)) for k in range(rows)])
    for event in clip.events:
        inside = (centres >= event.start) & (centres < event.end)
        if not inside.any() and rows:
            inside[min(rows - 1, grid.row((event.start + event.end) / 2))] = True
        out[inside, event.label] = True
    return out


def footage_segments(footage: Footage, weak: bool, standardise: bool) -> Source:
    """Windows of ten seconds, each of the class that fills most of it.

    A window without events is of no class: weak training uses it as such, full training leaves it out.
    """
    grid, none = footage.grid, len(footage.classes)
    size = max(1, round(CLIP_SECONDS / float(grid.stride)))
    parts: dict[str, list[Any]] = {name: [] for name in ("visual", "audio", "labels", "classes", "valid", "split")}
    for i, clip in enumerate(footage.clips):
        arrays, rows = footage.arrays(i), footage.features[i].rows
        truth = row_labels(clip, rows, grid, none)
        for window in windows(rows, size, size):
            own = truth[window.start : window.stop]
            label = int(own.sum(0).argmax()) if own.any() else none
            if label == none and not weak:
                continue
            labels = np.where(own[:, label], label, none) if label < none else np.full(len(own), none)
            parts["visual"].append(_fill(arrays[0][window.start : window.stop], size))
            parts["audio"].append(_fill(arrays[1][window.start : window.stop], size))
            parts["labels"].append(np.pad(labels, (0, size - len(labels)), constant_values=none))
            parts["valid"].append(np.arange(size) < len(labels))
            parts["classes"].append(label)
            parts["split"].append(clip.split)
    if not parts["split"]:
        raise InputError("the videos have no events", "there is nothing to learn")
    visual, audio = np.stack(parts["visual"]), np.stack(parts["audio"])
    classes, split = np.array(parts["classes"], np.int64), np.array(parts["split"])
    splits = {name: np.flatnonzero((split == name) & (classes < none)) for name in ("train", "val", "test")}
    data = SegmentData(
        footage.classes, lambda index: visual[index], lambda index: audio[index],
        np.stack(parts["labels"]).astype(np.int64), classes, np.stack(parts["valid"]), splits,
        footage.widths, np.flatnonzero((split == "train") & (classes == none)), float(grid.stride),
    )  # fmt: skip
    sides = _sides(visual, audio, data.valid & (split == "train")[:, None]) if standardise else None
    data = data if sides is None else standardised(data, sides)
    return Source(data, None, grid, size, (footage.visual,), (footage.audio,), {}, sides, footage.identity)


def _fill(x: Floats, rows: int) -> Floats:
    return np.pad(x, ((0, rows - len(x)), (0, 0))) if len(x) < rows else x


def _sides(visual: Floats, audio: Floats, valid: npt.NDArray[np.bool_]) -> Sides:
    return scale_of(visual[valid]), scale_of(audio[valid])


def footage_dense(footage: Footage, standardise: bool) -> Source:
    """Whole videos."""
    train = [i for i, clip in enumerate(footage.clips) if clip.split == "train"]
    every = [footage.arrays(i) for i in range(len(footage.clips))]
    sides: Sides | None = None
    if standardise and train:
        visual, audio = (np.concatenate([every[i][side] for i in train]) for side in (0, 1))
        sides = scale_of(visual), scale_of(audio)
        every = [_standard(pair, sides) for pair in every]
    dense = DenseData(footage.classes, footage.clips, every.__getitem__, footage.widths, footage.grid)
    return Source(None, dense, footage.grid, 0, (footage.visual,), (footage.audio,), {}, sides, footage.identity)


def _standard(pair: tuple[Floats, Floats], sides: Sides) -> tuple[Floats, Floats]:
    return standardise(pair[0], *sides[0]), standardise(pair[1], *sides[1])


def footage_items(footage: Footage, split: str) -> tuple[Items, Items, Indices]:
    """Videos of a split as items of the additive localizer, with their indices."""
    index = np.array([i for i, c in enumerate(footage.clips) if c.split == split], np.int64)
    rows, classes = max((footage.features[i].rows for i in index), default=0), len(footage.classes)
    sides = []
    for side, here in ((0, "seen"), (1, "heard")):
        x = np.stack([_fill(footage.arrays(i)[side], rows) for i in index]) if len(index) else np.zeros((0, 0, 0))
        valid = np.stack([_flags(getattr(footage.features[i], here), rows) for i in index])
        truth = np.stack(
            [_flags(row_labels(footage.clips[i], footage.features[i].rows, footage.grid, classes), rows) for i in index]
        )
        weight = np.ones(len(index), np.float32)
        sides.append(Items(x.astype(np.float32), valid, truth & valid[..., None], weight, np.arange(len(index))))
    return sides[0], sides[1], index


def _flags(x: npt.NDArray[np.bool_], rows: int) -> npt.NDArray[np.bool_]:
    return np.pad(x, [(0, rows - len(x)), *[(0, 0)] * (x.ndim - 1)])


# ---- composed ----------------------------------------------------------------------------------------------

SCENES_PER_CLASS = 120
PAIRS_PER_SCENE = 3
TRIES = 500  # draws for each pair that is wanted, before giving up
UNMATCHED = 0.15  # share of the composed clips whose picture and sound are of different classes: no event


@dataclass(frozen=True, eq=False)
class Bank:
    """Composed scenes of both media, for training and for validation."""

    library: FolderLibrary
    pair: Pair
    train: tuple[Items, Items]
    val: tuple[Items, Items]
    identity: Mapping[str, Any]


def read_bank(config: DataConfig, cache: Path, hook: Hook) -> Bank:
    """Composes scenes from the folder's files and encodes them; cached."""
    library = FolderLibrary(config.need("path"), cache)
    with extractor(config) as tool:
        pair = Pair("composed", tool.visual, tool.audio)
        identity = {"files": library.identity, "features": tool.identity(), "seed": config.seed}
    count = config.scenes or SCENES_PER_CLASS * len(library.names)
    work = cache / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    parts = []
    for number, (split, scenes) in enumerate((("train", count), ("val", max(count // 4, 8)))):
        hook(f"scenes ({split})", number, 2)
        parts.append(bank_items(library, pair, split, scenes, work, 20))
        hook(f"scenes ({split})", number + 1, 2)
    return Bank(library, pair, parts[0], parts[1], identity)


def composed_pairs(
    visual: Items, audio: Items, count: int, rng: np.random.Generator, unmatched: float = UNMATCHED
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs (visual scene, audio scene) and the class of each: all but `unmatched` share it for at least one row."""
    shown, heard = np.asarray(visual.labels.any(1)), np.asarray(audio.labels.any(1))  # (M, C)
    pairs: list[tuple[int, int]] = []
    classes: list[int] = []
    busy, matched = np.flatnonzero(shown.any(1)), rng.random(count) >= unmatched
    for _ in range(TRIES * count):
        if len(pairs) == count:
            return np.array(pairs, np.int64), np.array(classes, np.int64)
        i = int(rng.choice(busy))
        label = int(rng.choice(np.flatnonzero(shown[i])))
        fitting = np.flatnonzero(heard[:, label] == matched[len(pairs)])
        j = int(rng.choice(fitting)) if len(fitting) else -1
        overlaps = j >= 0 and bool((visual.labels[i, :, label] & audio.labels[j, :, label]).any())
        if j >= 0 and overlaps == matched[len(pairs)]:
            pairs.append((i, j))
            classes.append(label)
    raise InputError("the composed scenes fit too rarely", "hardly two of one class overlap", "--set data.scenes=1000")


def composed_segments(bank: Bank, config: DataConfig, weak: bool) -> Source:
    """Composed clips with a label per segment; clips whose media do not match have no event in any segment."""
    chosen, labels, classes, offset = [], [], [], 0
    none, splits, count = len(bank.library.names), dict[str, Indices](), config.pairs
    empty: list[int] = []
    for name, (visual, audio) in (("train", bank.train), ("val", bank.val)):
        wanted = (count or PAIRS_PER_SCENE * len(visual.x)) // (1 if name == "train" else 4)
        pairs, own = composed_pairs(visual, audio, max(wanted, 8), np.random.default_rng((config.seed, len(splits))))
        both = visual.labels[pairs[:, 0]] & audio.labels[pairs[:, 1]]  # (K, T, C)
        inside = both[np.arange(len(own)), :, own]
        labels.append(np.where(inside, own[:, None], none))
        base = 0 if name == "train" else len(bank.train[0].x), 0 if name == "train" else len(bank.train[1].x)
        chosen.append(pairs + base)
        here = np.arange(offset, offset + len(pairs))
        unmatched = ~inside.any(1)
        splits[name] = here[~unmatched] if weak and name == "train" else here
        if weak and name == "train":
            empty += here[unmatched].tolist()
            own = np.where(unmatched, none, own)
        classes.append(own)
        offset += len(pairs)
    visual_x, audio_x = (np.concatenate([bank.train[s].x, bank.val[s].x]) for s in (0, 1))
    index, table = np.concatenate(chosen), np.concatenate(labels).astype(np.int64)
    data = SegmentData(
        bank.library.names, lambda rows: visual_x[index[rows, 0]], lambda rows: audio_x[index[rows, 1]], table,
        np.concatenate(classes), np.ones(table.shape, bool), splits, (visual_x.shape[2], audio_x.shape[2]),
        np.array(empty, np.int64), 0.5,
    )  # fmt: skip
    sides = (scale_of(_flat(bank.train[0])), scale_of(_flat(bank.train[1]))) if config.standardise else None
    data = data if sides is None else standardised(data, sides)
    return Source(data, None, Grid(), 20, (bank.pair.visual.name,), (bank.pair.audio.name,), {}, sides, bank.identity)


def _flat(items: Items) -> Floats:
    return np.asarray(items.x[items.valid])


def composed_dense(bank: Bank, config: DataConfig) -> Source:
    """The same pairs with events in seconds; every class that both media share counts."""
    clips: list[DenseClip] = []
    reads: list[tuple[Items, Items, int, int]] = []
    step = 0.5
    sides = (scale_of(_flat(bank.train[0])), scale_of(_flat(bank.train[1]))) if config.standardise else None
    for number, (name, (visual, audio)) in enumerate((("train", bank.train), ("val", bank.val))):
        wanted = (config.pairs or PAIRS_PER_SCENE * len(visual.x)) // (1 if name == "train" else 4)
        pairs, _ = composed_pairs(visual, audio, max(wanted, 8), np.random.default_rng((config.seed, number)))
        for i, j in pairs.tolist():
            found = events_of(visual.labels[i] & audio.labels[j])
            spans = zip(found.segments.tolist(), found.labels.tolist(), strict=True)
            events = tuple(TrueEvent((a + 0.5) * step, (b + 0.5) * step, c) for (a, b), c in spans)
            clips.append(DenseClip(f"{name} {len(clips)}", visual.x.shape[1] * step, events, name))
            reads.append((visual, audio, i, j))

    def read(k: int) -> tuple[Floats, Floats]:
        visual, audio, i, j = reads[k]
        pair = (visual.x[i], audio.x[j])
        return pair if sides is None else _standard(pair, sides)

    widths = bank.train[0].x.shape[2], bank.train[1].x.shape[2]
    dense = DenseData(bank.library.names, tuple(clips), read, widths, Grid())
    return Source(None, dense, Grid(), 0, (bank.pair.visual.name,), (bank.pair.audio.name,), {}, sides, bank.identity)


# ---- made up -----------------------------------------------------------------------------------------------


def synthetic_source(config: DataConfig, weak: bool) -> Source:
    """Made-up features, to see whether a network learns at all."""
    law = SyntheticLaw(seed=config.seed, empty=60 if weak else 0)
    data = synthetic(replace(law, clips=(config.pairs, config.pairs // 4, config.pairs // 4)) if config.pairs else law)
    second = Grid(Fraction(1), Fraction(1))
    return Source(data, None, second, 10, ("synthetic",), ("synthetic",), {}, None, {"law": repr(law)})


def durations_of(config: DataConfig) -> tuple[list[float], list[float], Sequence[str]]:
    """Seconds of the training clips and of their events, and the classes, without making any feature."""
    if config.kind == "unav":
        source = unav_source(config)
        assert source.dense is not None
        chosen = [c for c in source.dense.clips if c.split == "train"]
        return [c.duration for c in chosen], [e.end - e.start for c in chosen for e in c.events], source.classes
    data = read_folder(config.need("path"), config.need("table"))
    splits = read_splits(config.need("table"), data, config.validation, config.seed)
    train = [v for v, split in zip(data.videos, splits, strict=True) if split == "train"]
    with extractor(config) as tool:
        seconds = [tool.probe(config.need("path") / v.name).duration for v in train]
    return seconds, [e.end - e.start for v in train for e in v.events], data.classes
