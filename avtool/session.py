"""What is loaded once for many files: the decoder's process, the localizer, its encoders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from avtool.errors import DeviceError, PartialInputError, UsageError, WeightsError
from avtool.features.store import SUFFIXES
from avtool.files import printable
from avtool.media.ahead import Ahead, Decoders
from avtool.media.child import DecodeChild
from avtool.media.request import DecodeRequest, Limits, PictureSpec
from avtool.settings import Settings, did_you_mean
from avtool.timeline import SCHEMA, MediaInfo, Notice, Preview

if TYPE_CHECKING:
    import torch

    from avtool.features.encoders.catalog import Encoder
    from avtool.features.store import Features
    from avtool.models.zoo import Localizer, ModelInfo

OnProgress = Callable[[str, float, float], None]  # stage, done, total; both in seconds of media
LOST_SHARE = 0.02  # of the file's span ...
LOST_SECONDS = 1.0  # ... and at least this long: then a result would claim more than was analysed
QUIET_PICTURES = PictureSpec(short=32)  # where only the state of a file matters, not what is in it
QUIET_RATE = 8000
WITHOUT_EFFECT = ("device", "model")  # on a result, but for rounding; the model is named by what it says about itself


class Session:
    """Loads each part when it is first needed, so that a bad file is refused before torch is imported."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._decoders = Decoders()

    def load(self, media: bool = True, decoder: bool = True) -> None:
        """Loads everything now: the decoder's process first, so that it starts while torch loads.

        Args:
            media: False where all inputs are feature files, which need no decoder and no encoders.
            decoder: False where files will be begun by `look_ahead`; then nothing but this process is touched.

        Raises:
            UsageError, WeightsError, DeviceError: as `pipeline.localize`.
        """
        if media:
            if decoder:
                self._decoder()
            _ = self.localizer, self.visual, self.audio
        _ = self.localizer

    @cached_property
    def device(self) -> torch.device:
        """Where the networks run."""
        return choose_device(self.settings.device)

    @cached_property
    def localizer(self) -> Localizer:
        """The model."""
        from avtool.models import zoo

        wanted = self.settings
        localizer = zoo.load(zoo.choose(wanted.model, wanted.visual, wanted.audio), self.device)
        self._select(localizer.info)  # a wrong class name is said before any work
        return localizer

    @property
    def shown(self) -> tuple[int, ...]:
        """Indices of the classes asked for."""
        return self._select(self.info)

    def _select(self, info: ModelInfo) -> tuple[int, ...]:
        """One text, since a name may hold commas itself."""
        return info.vocabulary.select(",".join(self.settings.classes))

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""
        return self.localizer.info

    @cached_property
    def visual(self) -> Encoder:
        """The encoder of pictures."""
        from avtool.features.encoders.catalog import with_file

        every, wanted = with_file(self.settings.visual)
        known = _as_read(every, self.info, "pool")
        return choose_encoder("visual", wanted, self.info.visual, known, self.device)

    @cached_property
    def audio(self) -> Encoder:
        """The encoder of sound."""
        from avtool.features.encoders.catalog import AUDIO

        known = _as_read(AUDIO, self.info, "protocol")
        return choose_encoder("audio", self.settings.audio, self.info.audio, known, self.device)

    @property
    def title(self) -> str:
        """The model for people: its name and the beginning of its hash."""
        digests = " ".join(digest[:8] for digest in self.info.weights.values())
        return f"{self.info.name} (sha {digests})" if digests else self.info.name

    @property
    def hint(self) -> str:
        """How to get a better model where the default was chosen; "" otherwise."""
        from avtool.models import zoo

        left_open = self.settings.model in (None, zoo.AUTO) and self.info.name == zoo.DEFAULT
        if not left_open or zoo.LARGER not in [info.name for info in zoo.available()]:
            return ""
        return (
            f"avtool weights fetch {' '.join(zoo.LIGHT)}, then --model {zoo.LARGER}: fewer classes, and surer of them"
        )

    @property
    def encoder_title(self) -> str:
        """The encoders for people."""
        return f"{self.visual.name} (visual), {self.audio.name} (audio)"

    def probe(self, path: str | os.PathLike[str]) -> MediaInfo:
        """What is in an input; see `probe_input`."""
        return probe_input(path, self.settings, self._decoder)

    def features(self, path: str | os.PathLike[str], on_progress: OnProgress, pair: bool = False) -> Features:
        """Features of one file, read if it holds features, else made from the streams it has.

        Args:
            path: a video or a feature file.
            on_progress: see `OnProgress`.
            pair: for the localizer: class scores only if it reads them, and nothing is encoded unless the file has both
                sound and picture; it is decoded to the end all the same.

        Raises:
            InputError: not readable, or too much of it is not decodable.
        """
        if is_features(path):
            from avtool.features.store import load

            given = load(Path(path))
            refuse_unreadable(given, self.info, self.settings, path)
            return given
        ahead = self._decoders.take(path)
        try:
            media = ahead.media() if ahead else self.probe(path)
            tags = not pair or self.info.reads_tags
            features = self._extract(path, media, self._encoders_for(media, pair), ahead, on_progress, tags)
        finally:
            self._decoders.give_back(ahead)
        start, duration = self.settings.start, features.media.duration
        if start is not None and start >= duration:  # nothing was asked for, so nothing is lost
            text = f"the part asked for begins at {float(start):g} s, the file ends at {duration:.1f} s"
            return replace(features, notices=(Notice("start_after_end", text),), lost_seconds=0.0)
        refuse_partial(features, self.settings.allow_partial, path)
        return features

    def preview(self, media: MediaInfo, on_progress: OnProgress | None = None) -> Preview:
        """Small pictures and a waveform of a file, for the formats that show them.

        Raises:
            InputError: the file is not there any more, or not readable.
        """
        from avtool.media.preview import preview

        settings = self.settings
        decode = self._decoder().decode
        return preview(media, decode, on_progress, audio_track=settings.audio_track, limits=limits(settings))

    def prepare(self, processors: int) -> None:
        """Starts a decoder for the first `look_ahead`, of as many as so many processors need; does not wait."""
        self._decoders.prepare(processors)

    def look_ahead(self, path: str | os.PathLike[str]) -> None:
        """Begins to probe and decode a video in the background; `features` with `pair` then takes what is there.

        Returns at once. Feature files are left alone.
        """
        if not is_features(path):
            span = limits(self.settings), self.settings.audio_track
            self._decoders.begin(path, *span, lambda media: self._request(self._encoders_for(media, pair=True)))

    def give_up(self, path: str | os.PathLike[str]) -> None:
        """Takes a `look_ahead` back."""
        self._decoders.give_up(path)

    def _encoders_for(self, media: MediaInfo, pair: bool) -> tuple[Encoder | None, Encoder | None]:
        """Those of pictures and of sound that have something to encode."""
        silent = pair and not (media.has_audio and media.has_video)
        visual = self.visual if media.has_video and not silent else None
        return visual, self.audio if media.has_audio and not silent else None

    def _request(self, encoders: tuple[Encoder | None, Encoder | None]) -> DecodeRequest:
        settings, (visual, audio) = self.settings, encoders
        return DecodeRequest(
            pictures=visual.pictures if visual else QUIET_PICTURES,
            sample_rate=audio.rate if audio else QUIET_RATE,
            grid=self.info.grid,
            audio_track=settings.audio_track,
            start=settings.start,
            end=settings.end,
            limits=limits(settings),
        )

    def _extract(
        self,
        path: str | os.PathLike[str],
        media: MediaInfo,
        encoders: tuple[Encoder | None, Encoder | None],
        ahead: Ahead | None,
        on_progress: OnProgress,
        tags: bool,
    ) -> Features:
        from avtool.features.extract import extract

        settings, grid = self.settings, self.info.grid
        if ahead is not None:
            items = ahead.items(on_progress)
        else:
            items = self._decoder().decode(path, self._request(encoders), on_progress, lend=True)
        span = settings.start, settings.end
        return extract(items, *encoders, grid, self.device, *span, on_progress, media.duration, tags)

    def settings_in_effect(self) -> dict[str, Any]:
        """All settings by name: what the user left open has the model's own value."""
        own = {**self.info.settings, "model": self.info.name}
        given = {name: value for name, value in self.settings.record().items() if value is not None or name not in own}
        return {**own, **given}

    def fingerprint(self, media: MediaInfo, encoders: Mapping[str, str] | None = None) -> str:
        """What a result for this file carries, with these models and settings; equal fingerprints mean equal results.

        It covers the schema, the model, its weights, thresholds and calibration, the encoders' weights, every setting
        that can change a result, and the size and time of change of the input.

        Args:
            media: the input.
            encoders: name -> sha256 of the weights of those that made the features; None: those in use.
        """
        return fingerprint_of(self.identity(encoders), media.bytes, media.mtime_ns)

    def identity(self, encoders: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What results depend on besides the input; plain data.

        Args:
            encoders: as in `fingerprint`.
        """
        own = {f"{e.name} ({e.modality})": e.sha256 for e in (self.visual, self.audio)} if encoders is None else {}
        vocabulary = self.info.vocabulary
        maps = None if vocabulary.calibration is None else vocabulary.calibration.maps
        return {
            "schema": SCHEMA,
            "model": self.info.name,
            "weights": dict(self.info.weights),
            "encoders": {**own, **(encoders or {})},
            "scores": hashlib.sha256(json.dumps([vocabulary.thresholds, maps]).encode()).hexdigest(),
            "settings": {k: v for k, v in self.settings_in_effect().items() if k not in WITHOUT_EFFECT},
        }

    def _decoder(self) -> DecodeChild:
        return self._decoders.at_hand()

    def close(self) -> None:
        """Ends the decoders' processes."""
        self._decoders.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fingerprint_of(identity: Mapping[str, Any], size: int, mtime_ns: int) -> str:
    """The sha256 that a result carries.

    Args:
        identity: see `Session.identity`.
        size: of the input in bytes.
        mtime_ns: when it was changed.
    """
    parts = {**identity, "bytes": size, "mtime_ns": mtime_ns}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_features(path: str | os.PathLike[str]) -> bool:
    """True for a name that says: features, not media."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def limits(settings: Settings) -> Limits:
    """What a file may ask of the machine."""
    return Limits(max_pixels=settings.max_pixels, max_seconds=settings.max_seconds)


def probe_input(path: str | os.PathLike[str], settings: Settings, decoder: Callable[[], DecodeChild]) -> MediaInfo:
    """What is in an input, in well under two seconds and without loading torch.

    Args:
        path: a video, or features.
        settings: limits, audio track.
        decoder: gives the process that opens videos, so that a crash in there is an error; not asked for features.

    Raises:
        InputError: it is neither media nor a feature file.
    """
    if is_features(path):
        from avtool.features.store import load

        return load(Path(path)).media
    return decoder().probe(path, limits(settings), settings.audio_track)


def refuse_unreadable(features: Features, info: ModelInfo, settings: Settings, path: str | os.PathLike[str]) -> None:
    """A model says nonsense about features that it was not made for.

    Raises:
        UsageError: other encoders or another grid made the features.
    """
    made = (
        ("visual", features.visual, features.visual_tags, features.visual_encoder, info.visual, settings.visual),
        ("audio", features.audio, features.audio_tags, features.audio_encoder, info.audio, settings.audio),
    )
    for modality, array, tags, encoder, readable, wanted in made:
        if array is None:
            continue
        what = f"{printable(path)} holds {modality} features of the encoder '{printable(encoder)}'"
        if wanted not in (None, encoder):
            raise UsageError(what, f"--{modality} {printable(str(wanted))} asks for others", "give the video instead")
        if encoder not in readable and ("*" not in readable or tags is None):
            raise UsageError(what, f"the model {info.name} reads {', '.join(readable)}", "choose another --model")
    wrong = abs(features.times - _times(info, features.rows)).max(initial=0.0)
    if wrong > float(info.grid.stride) / 100:
        stride = f"{float(info.grid.stride):g} s"
        raise UsageError(
            f"{printable(path)} has other segments than the model {info.name}", f"its rows are {stride} apart"
        )


def _times(info: ModelInfo, rows: int) -> Any:
    """(N, 2) start and end seconds of the model's rows."""
    starts = np.arange(rows) * float(info.grid.stride)
    return np.stack([starts, starts + float(info.grid.segment)], 1)


def refuse_partial(features: Features, allowed: bool, path: str | os.PathLike[str]) -> None:
    """A result must not look like one for the whole file when it is not.

    Raises:
        PartialInputError: more than LOST_SHARE and LOST_SECONDS of the file are lost, and this is not allowed.
    """
    media, lost = features.media, features.lost_seconds
    span = max(media.duration, media.analysed_until + lost)
    if allowed or lost <= LOST_SECONDS or lost <= LOST_SHARE * span:
        return
    why = next((n.message for n in features.notices if n.code in ("lost_span", "damaged_packets")), "")
    name = printable(path)
    raise PartialInputError(
        f"{name}: {lost:.1f} s of {span:.1f} s cannot be decoded",
        why or "the file is damaged or cut short",
        f"avtool localize --allow-partial {name}      or: avtool info {name}",
    )


def choose_device(name: str) -> torch.device:
    """The device that "auto" means (cuda, then mps, then cpu), or the one that is named; never a silent fallback.

    Raises:
        DeviceError: it is not available.
        UsageError: there is no such kind of device.
    """
    import torch

    if name == "auto":
        kinds = (("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available))
        return torch.device(next((kind for kind, is_there in kinds if is_there()), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"no device '{printable(name)}'", hint="auto, cpu, cuda, cuda:1 or mps")
    if why := _why_missing(device):
        raise DeviceError(f"device {name} is not available", why, "--device auto or --device cpu")
    return device


def _why_missing(device: torch.device) -> str:
    """Why a device cannot be used; "" if it can."""
    import torch

    if device.type == "mps":
        return "" if torch.backends.mps.is_available() else "this torch or this system has no Metal"
    if device.type == "cpu":
        return ""
    if not torch.version.cuda:
        return "this torch was built for the CPU only"
    if not torch.cuda.is_available():
        return f"no driver or no GPU was found (torch is built for CUDA {torch.version.cuda})"
    count = torch.cuda.device_count()
    return "" if (device.index or 0) < count else f"there are {count}, counted from 0"


def _as_read(
    known: Mapping[str, Callable[..., Encoder]], info: ModelInfo, option: str
) -> Mapping[str, Callable[[torch.device], Encoder]]:
    """Encoders with the option that the model says it reads, e.g. pool = "none" for maps; else as they are."""
    if option not in info.settings:
        return known
    from avtool.features.encoders.base import Options

    options = replace(Options(), **{option: str(info.settings[option])})  # type: ignore[arg-type]
    return {name: partial(make, options=options) for name, make in known.items()}


def choose_encoder(
    modality: str,
    wanted: str | None,
    readable: Sequence[str],
    known: Mapping[str, Callable[[torch.device], Encoder]],
    device: torch.device,
) -> Encoder:
    """The encoder that is named, else the first the model can read whose weights are here.

    Args:
        modality: "visual" or "audio", for messages.
        wanted: a name; None: the best installed.
        readable: names that the model can read, the best first; "*" is any encoder with class scores.
        known: name -> constructor.
        device: where it will run.

    Raises:
        UsageError: there is no such encoder, or the model cannot read it.
        WeightsError: its weights are not here.
    """
    names = list(dict.fromkeys(n for name in readable for n in (known if name == "*" else (name,))))
    if wanted is not None:
        if wanted not in known:
            raise UsageError(f"no {modality} encoder '{printable(wanted)}'", hint=did_you_mean(wanted, list(known)))
        if wanted not in names:
            raise UsageError(f"the model cannot read --{modality} {wanted}", f"it reads {', '.join(names)}")
        return known[wanted](device)
    missing = WeightsError(f"no {modality} encoder that the model can read is installed")
    for name in names:
        try:
            return known[name](device)
        except WeightsError as error:
            missing = error
    raise missing
