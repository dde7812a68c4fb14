"""The nouns of avtool: what was found in one file, when, and in which medium."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avtool.errors import InputError, UsageError
from avtool.files import printable

if TYPE_CHECKING:
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
class Evidence:
    """Why events were kept and other stretches were not: what sound alone and the picture alone say of each class."""

    audio: Curves
    visual: Curves  # same labels and step
    heard_only: tuple[Event, ...]  # stretches above the threshold in sound, with the highest score there
    seen_only: tuple[Event, ...]


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
    evidence: Evidence | None = None


def to_json(timeline: Timeline, folder: Path | None = None) -> str:
    """The timeline as ActivityNet-shaped JSON: one event a line, pure ASCII, the same bytes for the same timeline.

    Times are rounded to milliseconds and scores to 4 decimals here and nowhere else.

    Args:
        timeline: what to write.
        folder: where the text will lie; `media.path` becomes relative to it. None: `media.path` as it is.

    Raises:
        ValueError: a time or a score is not a finite number.
    """
    media = asdict(timeline.media)
    for name in ("duration", "declared_duration", "analysed_until"):
        media[name] = _milliseconds(media[name])
    stem = Path(timeline.media.path).stem
    media["path"] = relative_path(timeline.media.path, folder) if folder is not None else timeline.media.path
    run = asdict(timeline.run)
    details = run.pop("details")
    parts = {
        "version": _dump(SCHEMA),
        "external_data": _dump({"used": bool(details), "details": details}),
        "results": "{" + _dump(stem) + ": " + _lines([_event_record(e) for e in timeline.events]) + "}",
        "media": _dump(media),
        "run": _dump(run),
        "warnings": _lines([asdict(w) for w in timeline.warnings]),
        "best_score": _dump(_score(timeline.best_score)),
        "heard_only": _dump(timeline.heard_only),
        "seen_only": _dump(timeline.seen_only),
        "candidates": _lines([_event_record(c) for c in timeline.candidates]),
    }
    if timeline.curves is not None:
        parts["curves"] = _dump(_curves_record(timeline.curves))
    if timeline.evidence is not None:
        parts["evidence"] = _dump(_evidence_record(timeline.evidence))
    return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "\n}\n"


def from_json(text: str | bytes, folder: Path | None = None) -> Timeline:
    """Reads what `to_json` wrote.

    Args:
        text: the JSON.
        folder: where it lay; a relative `media.path` is resolved against it. None: left as it is.

    Raises:
        InputError: not a timeline of this schema.
    """
    try:
        data = json.loads(text)
        if data["version"] != SCHEMA:
            raise InputError("not a timeline this version of avtool reads", f"its version is {data['version']!r}")
        timeline = _parse(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise InputError("not an avtool timeline", f"{type(error).__name__}: {error}") from error
    if folder is None or "://" in timeline.media.path:
        return timeline
    return replace(timeline, media=replace(timeline.media, path=os.path.normpath(folder / timeline.media.path)))


def read_timeline(path: Path) -> Timeline:
    """Reads a result file; `media.path` is then as seen from here.

    Raises:
        InputError: it cannot be read, or is not a timeline of this schema.
    """
    shown = printable(path)
    hint = "a timeline is what localize writes: NAME.events.json"
    try:
        return from_json(path.read_bytes(), path.parent)
    except OSError as error:
        raise InputError(f"cannot read {shown}", error.strerror or str(error), hint) from error
    except InputError as error:
        raise InputError(f"{shown} is {error.what}", error.why, hint) from error


def at_score(timeline: Timeline, min_score: float) -> Timeline:
    """The timeline with the events that `localize --min-score` would have found, taken from its candidates.

    Raises:
        UsageError: candidates of so low a score are not stored.
    """
    if not CANDIDATE_FLOOR <= min_score <= 1:
        why = f"a timeline holds candidates from a score of {CANDIDATE_FLOOR} on"
        raise UsageError(f"--min-score {min_score:g} is out of range", why, "localize the video again")
    strong = [c for c in timeline.candidates if c.score >= min_score]
    best = sorted(strong, key=lambda e: (-e.score, e.start, e.end, e.label))[: timeline.run.settings.get("max_events")]
    return replace(timeline, events=tuple(sorted(best, key=lambda e: (e.start, e.end, e.label, -e.score))))


def relative_path(path: str | os.PathLike[str], folder: Path) -> str:
    """`path` as seen from `folder`, with forward slashes; links of folders are followed first. Addresses stay."""
    if "://" in os.fspath(path):
        return os.fspath(path)
    parent, name = os.path.split(os.path.abspath(path))
    try:
        return Path(os.path.relpath(os.path.join(os.path.realpath(parent), name), os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive
        return Path(parent, name).as_posix()


def _parse(data: Mapping[str, Any]) -> Timeline:
    media, run = dict(data["media"]), dict(data["run"])
    media["video"] = VideoInfo(**media["video"]) if media["video"] else None
    media["audio"] = AudioInfo(**media["audio"]) if media["audio"] else None
    (events,) = data["results"].values()
    return Timeline(
        media=MediaInfo(**media),
        events=_parse_events(events),
        candidates=_parse_events(data["candidates"]),
        run=RunInfo(**run, details=data["external_data"]["details"]),
        warnings=tuple(Notice(**notice) for notice in data["warnings"]),
        best_score=data["best_score"],
        heard_only=data["heard_only"],
        seen_only=data["seen_only"],
        curves=_parse_curves(data["curves"]) if "curves" in data else None,
        evidence=_parse_evidence(data["evidence"]) if "evidence" in data else None,
    )


def _parse_events(records: Sequence[Mapping[str, Any]]) -> tuple[Event, ...]:
    return tuple(_parse_event(record) for record in records)


def _parse_event(record: Mapping[str, Any]) -> Event:
    start, end = record["segment"]
    return Event(float(start), float(end), str(record["label"]), float(record["score"]))


def _parse_curves(record: Mapping[str, Any]) -> Curves:
    import numpy as np  # not loaded for those who look at events only

    labels = tuple(record["labels"])
    values = np.frombuffer(base64.b64decode(record["values"], validate=True), dtype=np.uint8)
    return Curves(labels, float(record["step"]), values.reshape(record["rows"], len(labels)))


def _parse_evidence(record: Mapping[str, Any]) -> Evidence:
    alone = (_parse_events(record[name]) for name in ("heard_only", "seen_only"))
    return Evidence(_parse_curves(record["audio"]), _parse_curves(record["visual"]), *alone)


def _event_record(event: Event) -> dict[str, Any]:
    segment = [_milliseconds(event.start), _milliseconds(event.end)]
    return {"label": event.label, "segment": segment, "score": _score(event.score)}


def _curves_record(curves: Curves) -> dict[str, Any]:
    import numpy as np

    values = np.ascontiguousarray(curves.values, dtype=np.uint8)  # (N, C)
    return {
        "labels": list(curves.labels),
        "step": curves.step,
        "rows": len(values),
        "values": base64.b64encode(values.tobytes()).decode("ascii"),
    }


def _evidence_record(evidence: Evidence) -> dict[str, Any]:
    return {
        "audio": _curves_record(evidence.audio),
        "visual": _curves_record(evidence.visual),
        "heard_only": [_event_record(e) for e in evidence.heard_only],
        "seen_only": [_event_record(e) for e in evidence.seen_only],
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(float(seconds), 3) + 0.0  # + 0.0: no "-0.0"


def _score(score: float | None) -> float | None:
    return None if score is None else round(float(score), 4) + 0.0


def _dump(value: Any) -> str:
    """Compact JSON; ASCII only, so no control sign and no lone surrogate reaches a terminal or an encoder."""
    return json.dumps(value, allow_nan=False, ensure_ascii=True)


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "[\n  " + ",\n  ".join(map(_dump, records)) + "\n]" if records else "[]"
