"""Features of files in a form of the user's choice: which encoders, which rows, how many pictures a row."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError
from avtool.media.ahead import Ahead, Decoders
from avtool.media.request import DecodeRequest
from avtool.session import (
    QUIET_PICTURES,
    QUIET_RATE,
    OnProgress,
    choose_device,
    choose_encoder,
    fingerprint_of,
    limits,
    probe_input,
    refuse_partial,
)
from avtool.settings import Settings
from avtool.timegrid import Grid
from avtool.timeline import MediaInfo, Notice

if TYPE_CHECKING:
    import torch

    from avtool.features.encoders.catalog import Encoder
    from avtool.features.store import Features
    from avtool.media.child import DecodeChild

LAYOUTS = ("npz", "ave", "unav")
DTYPES = ("float32", "float16")
AVE_ROWS = 10  # segments of a clip, of a second each
AVE_PICTURES = 16  # in a segment, averaged
AVE_SOUND = Fraction(24, 25)  # seconds of a VGGish example and between two: 0.04 s less than a segment
FINGERPRINTED = ("audio_track", "start", "end", "allow_partial")  # settings that change features
_SCHEMA = "features 2"


@dataclass(frozen=True)
class Recipe:
    """What is wanted of every file.

    Attributes:
        layout: "npz", "ave" or "unav"; "ave" sets the rows and the pictures as the data set has them.
        segment, stride: seconds of a row and between two; None: those of the model, or half a second.
        fps: pictures a second, averaged in each row; None: one picture a row, from its middle.
        pool: "gap" for a vector a row, "none" for the encoder's map; "": "none" for AVE where the encoder has a map,
            else "gap".
        precision: of the networks, "float32" or "bf16".
        dtype: of what is written, "float32" or "float16".
        tags: keep class scores too.

    Raises:
        UsageError: a value is outside its range, or two contradict each other.
    """

    layout: str = "npz"
    segment: Fraction | None = None
    stride: Fraction | None = None
    fps: Fraction | None = None
    pool: str = ""
    precision: str = "float32"
    dtype: str = "float32"
    tags: bool = True

    def __post_init__(self) -> None:
        _require(self.layout in LAYOUTS, f"no layout '{self.layout}'", f"one of {', '.join(LAYOUTS)}")
        _require(self.dtype in DTYPES, f"no dtype '{self.dtype}'", f"one of {', '.join(DTYPES)}")
        _require(self.pool in ("", "gap", "none"), f"no pooling '{self.pool}'", "gap or none")
        for name in ("segment", "stride", "fps"):
            value = getattr(self, name)
            _require(value is None or 0 < value <= 3600, f"--{name} is out of range", "more than 0, at most 3600")
            fixed = self.layout == "ave" and value is not None
            _require(not fixed, f"--layout ave and --{name} contradict each other", "AVE's rows are fixed")
        vectors = self.layout != "unav" or self.pool != "none"
        _require(vectors, "--layout unav and --pool none contradict each other", "its rows are vectors")


@dataclass(frozen=True)
class _Pass:
    """One decoding: the grid of the pictures or of the windows of sound, and what to encode."""

    grid: Grid
    visual: Encoder | None
    audio: Encoder | None


class Extractor:
    """Makes features of many files; loads each part when it is first needed.

    Args:
        settings: encoders ("NAME" or "NAME:PROTOCOL"), model, device, span, limits.
        recipe: what is wanted.
    """

    def __init__(self, settings: Settings, recipe: Recipe) -> None:
        self.settings, self.recipe = settings, recipe
        self._decoders = Decoders()

    def load(self, decoder: bool = True) -> None:
        """Loads everything now: the decoder's process first, so that it starts while torch loads.

        Args:
            decoder: False where files will be begun by `look_ahead`; then nothing but this process is touched.

        Raises:
            UsageError, WeightsError, DeviceError: there is no such encoder, model or device, or no weights.
        """
        if decoder:
            self._decoder()
        _ = self.grid, self.visual, self.audio

    @cached_property
    def device(self) -> torch.device:
        """Where the networks run."""
        return choose_device(self.settings.device)

    @cached_property
    def visual(self) -> Encoder:
        """The encoder of pictures."""
        from avtool.features.encoders.catalog import with_file

        known, wanted = with_file(self.settings.visual)
        return self._encoder("visual", wanted, known)

    @cached_property
    def audio(self) -> Encoder:
        """The encoder of sound."""
        from avtool.features.encoders.catalog import AUDIO

        return self._encoder("audio", self.settings.audio, AUDIO)

    @cached_property
    def grid(self) -> Grid:
        """The rows; those of the model if one is named, as far as the recipe leaves them open."""
        own = self._model.grid if self._model else Grid()
        if self.recipe.layout == "ave":
            return Grid(Fraction(1), Fraction(1))
        segment = self.recipe.segment or self.recipe.stride or own.segment
        return Grid(segment, self.recipe.stride or self.recipe.segment or own.stride)

    @property
    def title(self) -> str:
        """The encoders for people."""
        return f"{self.visual.name} (visual), {self.audio.name} (audio)"

    @cached_property
    def _model(self) -> Any:
        """What is known of the model that the features are for, None if none is named."""
        if self.settings.model in (None, "auto"):
            return None
        from avtool.models import zoo

        return zoo.find(self.settings.model)[0]

    def _encoder(self, modality: str, wanted: str | None, known: Any) -> Encoder:
        name, _, protocol = (wanted or "").partition(":")
        if self.recipe.layout == "ave":
            name = {"resnet50": "resnet50-v2"}.get(name, name)
            protocol = protocol or {"cnn14": "per-second"}.get(name, "")
        readable = getattr(self._model, modality) if self._model else tuple(known)
        asked = self._model.settings if self._model else {}
        protocol = protocol or (asked.get("protocol", "") if modality == "audio" else "")
        pools = {n: self._pool(make, asked) if modality == "visual" else "gap" for n, make in known.items()}
        makers = {n: partial(_make, make, pools[n], protocol, self.recipe) for n, make in known.items()}
        return choose_encoder(modality, name or None, readable, makers, self.device)

    def _pool(self, entry: Any, asked: Mapping[str, Any]) -> str:
        """How this encoder's map becomes a row: as the recipe says, else as the model asks."""
        if self.recipe.layout == "unav":
            return "gap"
        default = "none" if self.recipe.layout == "ave" and entry.maps else "gap"
        return self.recipe.pool or str(asked.get("pool", default))

    def identity(self) -> dict[str, Any]:
        """What the features depend on besides the input; plain data."""
        record, settings = asdict(self.recipe), self.settings.record()
        encoders = {e.modality: [e.name, e.sha256, repr(e.options)] for e in (self.visual, self.audio)}
        return {
            "schema": _SCHEMA,
            "encoders": encoders,
            "recipe": {name: str(value) for name, value in record.items()},
            "grid": [str(self.grid.segment), str(self.grid.stride)],
            "settings": {name: settings[name] for name in FINGERPRINTED},
        }

    def fingerprint(self, media: MediaInfo) -> str:
        """What the features of this file carry; equal fingerprints mean equal features."""
        return fingerprint_of(self.identity(), media.bytes, media.mtime_ns)

    def probe(self, path: str | os.PathLike[str]) -> MediaInfo:
        """What is in an input; see `session.probe_input`."""
        return probe_input(path, self.settings, self._decoder)

    def features(self, path: str | os.PathLike[str], on_progress: OnProgress) -> Features:
        """Features of one file, made from the streams it has.

        Raises:
            InputError: not readable, or too much of it is not decodable.
        """
        ahead = self._decoders.take(path)
        try:
            media = ahead.media() if ahead else self.probe(path)
            features = self._made(path, media, ahead, on_progress)
        finally:
            self._decoders.give_back(ahead)
        start, duration = self.settings.start, features.media.duration
        if start is not None and start >= duration:  # nothing was asked for, so nothing is lost
            text = f"the part asked for begins at {float(start):g} s, the file ends at {duration:.1f} s"
            features = replace(features, notices=(Notice("start_after_end", text),), lost_seconds=0.0)
        refuse_partial(features, self.settings.allow_partial, path)
        return replace(features, sampling={**features.sampling, **self._sampling()})

    def prepare(self, processors: int) -> None:
        """Starts a decoder for the first `look_ahead`, of as many as so many processors need; does not wait."""
        self._decoders.prepare(processors)

    def look_ahead(self, path: str | os.PathLike[str]) -> None:
        """Begins to probe and decode a video in the background; `features` of this path then takes what is there.

        Returns at once, and without effect where the recipe needs more than one pass over a file.
        """
        if self.recipe.layout != "ave" and self.recipe.fps is None:
            span = limits(self.settings), self.settings.audio_track
            self._decoders.begin(path, *span, lambda media: self._request(_Pass(self.grid, *self._encoders_for(media))))

    def give_up(self, path: str | os.PathLike[str]) -> None:
        """Takes a `look_ahead` back."""
        self._decoders.give_up(path)

    def _encoders_for(self, media: MediaInfo) -> tuple[Encoder | None, Encoder | None]:
        """Those of pictures and of sound that have something to encode."""
        return self.visual if media.has_video else None, self.audio if media.has_audio else None

    def _made(
        self, path: str | os.PathLike[str], media: MediaInfo, ahead: Ahead | None, on_progress: OnProgress
    ) -> Features:
        """The rows of the recipe's layout."""
        visual, audio = self._encoders_for(media)
        if self.recipe.layout == "ave":
            return self._ave(path, media, visual, audio, on_progress)
        if self.recipe.fps is None or visual is None:
            return self._decode(path, media, _Pass(self.grid, visual, audio), on_progress, ahead)
        return self._averaged(path, media, visual, audio, self.recipe.fps, on_progress)

    def _averaged(
        self,
        path: str | os.PathLike[str],
        media: MediaInfo,
        visual: Encoder,
        audio: Encoder | None,
        fps: Fraction,
        on_progress: OnProgress,
    ) -> Features:
        """Sound and the mean of several pictures on one grid."""
        fine = Grid(1 / fps, 1 / fps)
        seen = self._decode(path, media, _Pass(fine, visual, None), on_progress)
        heard = self._decode(path, media, _Pass(self.grid, None, audio), on_progress)
        own = [_rows_within(fine, self.grid, row, seen.rows) for row in range(heard.rows)]
        return _joined(seen, heard, own)

    def _ave(
        self,
        path: str | os.PathLike[str],
        media: MediaInfo,
        visual: Encoder | None,
        audio: Encoder | None,
        on_progress: OnProgress,
    ) -> Features:
        """The first ten seconds as the AVE data set has them (its feature scripts; VGGish's stock hop)."""
        begin = self.settings.start or Fraction(0)
        if begin:
            raise UsageError("--layout ave takes a clip from its beginning", hint="cut the clip first, without --start")
        fine = ave_pictures(media)
        seen = self._decode(path, media, _Pass(fine, visual, None), on_progress)
        sound = Grid(AVE_SOUND, AVE_SOUND) if audio and audio.name == "vggish" else self.grid
        heard = self._decode(path, media, _Pass(sound, None, audio), on_progress)
        own = [range(AVE_PICTURES * row, min(seen.rows, AVE_PICTURES * (row + 1))) for row in range(AVE_ROWS)]
        features = _joined(seen, _exactly(heard, AVE_ROWS), own)
        starts = np.arange(AVE_ROWS) * float(fine.stride * AVE_PICTURES)
        times = np.stack([starts, starts + float(fine.stride * AVE_PICTURES)], 1)
        if media.duration < AVE_ROWS - 0.5:
            text = f"the clip has {media.duration:.1f} s, AVE's have {AVE_ROWS}: what is missing is zero"
            features = replace(features, notices=(*features.notices, Notice("short_clip", text)))
        return replace(features, times=times, audio_times=_times(sound, AVE_ROWS))

    def _decode(
        self,
        path: str | os.PathLike[str],
        media: MediaInfo,
        one: _Pass,
        on_progress: OnProgress,
        ahead: Ahead | None = None,
    ) -> Features:
        from avtool.features.extract import extract

        request = self._request(one)
        items = ahead.items(on_progress) if ahead else self._decoder().decode(path, request, on_progress, lend=True)
        encoders, span = (one.visual, one.audio), (request.start, request.end)
        tags = self.recipe.tags
        return extract(items, *encoders, one.grid, self.device, *span, on_progress, media.duration, tags)

    def _request(self, one: _Pass) -> DecodeRequest:
        settings = self.settings
        end = settings.end
        if self.recipe.layout == "ave":
            end = min(Fraction(AVE_ROWS), end or Fraction(AVE_ROWS))
        return DecodeRequest(
            pictures=one.visual.pictures if one.visual else QUIET_PICTURES,
            sample_rate=one.audio.rate if one.audio else QUIET_RATE,
            grid=one.grid,
            audio_track=settings.audio_track,
            start=settings.start,
            end=end,
            limits=limits(settings),
        )

    def _sampling(self) -> dict[str, Any]:
        """For the record, in the files."""
        recipe = self.recipe
        fps = float(AVE_PICTURES) if recipe.layout == "ave" else None if recipe.fps is None else float(recipe.fps)
        return {
            "layout": recipe.layout,
            "pool": self.visual.options.pool,
            "precision": recipe.precision,
            "pictures_per_second": fps,
            "segment_seconds": float(self.grid.segment),
            "stride_seconds": float(self.grid.stride),
            "sound_window_seconds": self.audio.seconds,
            "sound_rate": self.audio.rate,
        }

    def _decoder(self) -> DecodeChild:
        return self._decoders.at_hand()

    def close(self) -> None:
        """Ends the decoders' processes."""
        self._decoders.close()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make(make: Any, pool: str, protocol: str, recipe: Recipe, device: torch.device) -> Encoder:
    """One encoder of the catalog, with options only where some are asked for."""
    from avtool.features.encoders.catalog import Options

    options = Options(pool, recipe.precision, protocol, recipe.tags and recipe.layout != "ave")
    encoder: Encoder = make(device, options)
    return encoder


def ave_pictures(media: MediaInfo) -> Grid:
    """Where the AVE data set takes its 160 pictures: frame floor(k I / 16), I = floor(frames / 10), k = 0 ... 159.

    A row's centre lies just behind the time of that frame, nearer than a sixteenth of a frame, so that times that a
    container rounds do not give the one before.
    """
    rate = _rate(media)
    seconds = min(Fraction(media.duration).limit_denominator(1000), Fraction(AVE_ROWS))
    frames = round(seconds * rate)  # of the clip, as far as its rate tells
    step = Fraction(max(AVE_ROWS, frames) // AVE_ROWS) / rate  # seconds of I frames
    return Grid(segment=1 / (AVE_PICTURES * rate), stride=step / AVE_PICTURES)


def _rate(media: MediaInfo) -> Fraction:
    """Frames a second; that of PAL where the file does not say."""
    try:
        rate = Fraction(media.video.average_rate) if media.video else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    return rate if rate > 0 else Fraction(25)


def _rows_within(fine: Grid, coarse: Grid, row: int, count: int) -> range:
    """The fine rows whose centre lies in a coarse row."""
    begin, end = coarse.start(row), coarse.start(row) + coarse.segment
    first = max(0, -((fine.centre(0) - begin) // fine.stride))
    stop = max(0, -((fine.centre(0) - end) // fine.stride))
    return range(min(first, count), min(stop, count))


def _joined(seen: Features, heard: Features, own: Sequence[range]) -> Features:
    """Rows of sound with the mean of the pictures of each; a row without a picture is zero and not seen."""
    rows = [[k for k in part if seen.seen[k]] for part in own]

    def mean(array: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32] | None:
        if array is None:
            return None
        out = np.zeros((len(rows), *array.shape[1:]), np.float32)
        for row, part in enumerate(rows):
            if part:
                out[row] = array[part].mean(0, dtype=np.float64)
        return out

    return replace(
        heard,
        visual=mean(seen.visual),
        visual_tags=mean(seen.visual_tags),
        visual_encoder=seen.visual_encoder,
        seen=np.array([bool(part) for part in rows], bool),
        weights={**seen.weights, **heard.weights},
        scaling=seen.scaling,
        notices=tuple(dict.fromkeys((*heard.notices, *seen.notices))),
        lost_seconds=max(seen.lost_seconds, heard.lost_seconds),
    )


def _exactly(features: Features, rows: int) -> Features:
    """Cut, or filled up with zeros, to a number of rows."""
    cut = features.part(0, rows)
    if cut.rows == rows:
        return cut

    def fit(array: Any) -> Any:
        return (
            None
            if array is None
            else np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
        )

    names = ("audio", "audio_tags", "seen", "heard", "times")
    return replace(cut, **{name: fit(getattr(cut, name)) for name in names})


def _times(grid: Grid, rows: int) -> npt.NDArray[np.float64]:
    starts = np.arange(rows) * float(grid.stride)
    return np.stack([starts, starts + float(grid.segment)], 1)


def _require(fine: bool, what: str, wanted: str) -> None:
    if not fine:
        raise UsageError(what, wanted, "see the help: avtool extract-features --help")


def target_of(layout: str) -> str:
    """What follows the stem in the name of the file: ".features." and this."""
    return {"npz": "npz", "ave": "h5", "unav": "json"}[layout]


def save(features: Features, path: Path, recipe: Recipe, fingerprint: str) -> tuple[Path, ...]:
    """Writes features in the recipe's layout; returns the files, the one named `path` last.

    Raises:
        OutputError: a file cannot be written.
    """
    from avtool.features import store

    if recipe.layout == "unav":
        store.save_npy(features, path, fingerprint, recipe.dtype)
        return (*store.npy_files(path, features).values(), path)
    write = store.save_h5 if recipe.layout == "ave" else store.save_npz
    write(features, path, fingerprint, recipe.dtype)
    return (path,)
