"""From a path to a timeline: the story of avtool on one screen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avtool import __version__
from avtool.calibration import KIND, VERSION
from avtool.detect.events import NO_THRESHOLD, select
from avtool.detect.proposals import Proposals, decode_window
from avtool.detect.softnms import suppress
from avtool.detect.stitch import Stitched, stitch
from avtool.errors import UsageError
from avtool.session import OnProgress, Session, is_features
from avtool.settings import Settings, did_you_mean
from avtool.timegrid import Grid, windows
from avtool.timeline import CANDIDATE_FLOOR, Curves, Event, Evidence, RunInfo, Timeline
from avtool.vocabulary import Vocabulary

if TYPE_CHECKING:
    from avtool.features.store import Features

CALIBRATION = f"{KIND} {VERSION}"  # how scores became probabilities, for the record
CURVE_CLASSES = 8  # classes whose curves are stored besides those that have events


def localize(
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
    *,
    session: Session | None = None,
    **options: Any,
) -> Timeline:
    """Finds what can be both heard and seen in one file; a bad file is refused before anything is loaded.

    Args:
        path: a video, or features that avtool wrote (.npz).
        settings: all settings at once; single ones may be given by name instead, e.g. `min_score=0.4`.
        on_progress: called with (stage, done, total), both in seconds of media.
        session: what is loaded already, for many files; its settings hold.
        **options: fields of `Settings`.

    Raises:
        UsageError: a setting is unknown or out of range.
        InputError: the file is not readable as media, or too much of it is not decodable.
        WeightsError: weights are missing or damaged.
        DeviceError: the device is not available or out of memory.
    """
    say = on_progress or _nothing
    if session is None:
        with Session(_with_options(settings, options)) as session:
            return localize(path, None, say, session=session)
    features = session.features(path, say, pair=True)
    info, grid = session.info, session.info.grid
    first, last = _rows(grid, features, session.settings)
    part = features.part(first, last)
    plan = list(windows(part.rows, info.window, info.hop)) if _has_both(part) else []
    outputs = []
    for window in plan:
        outputs.append(decode_window(session.localizer.run(part, window.start, window.stop), grid))
        say("localize", float(grid.start(window.stop)), float(grid.start(part.rows)))
    stitched = stitch(outputs, plan, part.rows, grid)
    proposals = _moved(stitched.proposals, grid.start(first), session.settings)
    candidates = suppress(proposals, **_soft_nms(session))
    _calibrate(stitched, info.vocabulary)
    fingerprint = session.fingerprint(features.media, features.weights if is_features(path) else None)
    return _timeline(session, features, first, stitched, candidates, fingerprint)


def extract_features(
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
    *,
    session: Session | None = None,
    **options: Any,
) -> Features:
    """What the encoders make of one file, a row per segment of the model's grid. Arguments and errors as `localize`."""
    if session is not None:
        return session.features(path, on_progress or _nothing)
    with Session(_with_options(settings, options)) as session:
        return session.features(path, on_progress or _nothing)


def _nothing(stage: str, done: float, total: float) -> None:
    """The progress hook of those who want none."""


def _with_options(settings: Settings | None, options: dict[str, Any]) -> Settings:
    known = [f.name for f in fields(Settings)]
    for name in options:
        if name not in known:
            raise UsageError(f"no setting '{name}'", hint=did_you_mean(name, known))
    return replace(settings or Settings(), **options)


def _rows(grid: Grid, features: Features, settings: Settings) -> tuple[int, int]:
    """Rows [first, last) that lie at least partly in the span the user asked for."""
    first = floor((settings.start or Fraction(0)) / grid.stride)
    last = features.rows if settings.end is None else min(features.rows, ceil(settings.end / grid.stride))
    return min(first, last), last


def _has_both(part: Features) -> bool:
    """False where an audible and visible event cannot exist."""
    return bool(part.rows and part.heard.any() and part.seen.any())


def _calibrate(stitched: Stitched, vocabulary: Vocabulary) -> None:
    """Brings the curves, whose proposals are made, to the scale of the events and thresholds, in place."""
    if vocabulary.calibration is not None and stitched.curve.size:
        for curve in (stitched.curve, stitched.audio_curve, stitched.visual_curve):
            vocabulary.calibration.apply(curve)


def _moved(proposals: Proposals, offset: Fraction, settings: Settings) -> Proposals:
    """Times counted from the start of the file, cut to the span the user asked for."""
    low, high = float(settings.start or 0), float(settings.end) if settings.end is not None else np.inf
    starts = np.clip(proposals.starts + float(offset), low, high)
    ends = np.clip(proposals.ends + float(offset), low, high)
    return Proposals(starts, ends, proposals.labels, proposals.scores).take(ends > starts)


def _soft_nms(session: Session) -> dict[str, Any]:
    """Arguments of `suppress`: what neither user nor model says is left to its defaults."""
    names = {
        "method": "nms",
        "sigma": "sigma",
        "iou_threshold": "iou_threshold",
        "min_score": "nms_floor",
        "voting": "voting",
        "class_wise": "class_wise",
    }
    values = session.settings_in_effect()
    return {argument: values[name] for argument, name in names.items() if values.get(name) is not None}


def _timeline(
    session: Session, features: Features, first: int, stitched: Stitched, candidates: Proposals, fingerprint: str
) -> Timeline:
    """What was found, with where it came from."""
    settings, vocabulary, media = session.settings, session.info.vocabulary, features.media
    found = select(candidates, vocabulary, session.shown, 0.0, duration=media.duration)
    events = select(
        candidates, vocabulary, session.shown, settings.min_score, settings.max_events, duration=media.duration
    )
    shown = set(events)
    heard_only, seen_only = _unconfirmed(session, first, stitched, events)
    labels = _curve_labels(events, found)
    return Timeline(
        media=media,
        events=events,
        candidates=tuple(event for event in found if event.score >= CANDIDATE_FLOOR or event in shown),
        run=_run_info(session, features, fingerprint),
        warnings=features.notices,
        best_score=max((event.score for event in found), default=None),
        heard_only=len(heard_only),
        seen_only=len(seen_only),
        curves=_curves(session, first, stitched.curve, labels),
        evidence=_evidence(session, first, stitched, labels, heard_only, seen_only) if settings.explain else None,
    )


def _run_info(session: Session, features: Features, fingerprint: str) -> RunInfo:
    info = session.info
    return RunInfo(
        tool=f"avtool {__version__}",
        model=info.name,
        weights={**info.weights, **features.weights},
        settings={
            **session.settings_in_effect(),
            "visual": features.visual_encoder,
            "audio": features.audio_encoder,
            "calibration": None if info.vocabulary.calibration is None else CALIBRATION,
        },
        device=session.device.type,
        fingerprint=fingerprint,
        details=info.details,
        encoders={"visual": features.visual_encoder, "audio": features.audio_encoder},
    )


def _unconfirmed(
    session: Session, first: int, stitched: Stitched, events: Sequence[Event]
) -> tuple[list[Event], list[Event]]:
    """Stretches above the threshold in one medium alone, in which no event of the class lies: in sound, in picture."""
    names, grid = session.info.vocabulary.names, session.info.grid
    found: tuple[list[Event], list[Event]] = [], []
    for label in session.shown if stitched.curve.size else ():
        own = [e for e in events if e.label == names[label]]
        for alone, curve in zip(found, (stitched.audio_curve, stitched.visual_curve), strict=True):
            for start, stop in _stretches(curve[:, label] >= _threshold(session, label)):
                begin, end = float(grid.start(first + start)), float(grid.start(first + stop))
                if not any(e.start < end and e.end > begin for e in own):
                    alone.append(Event(begin, end, names[label], float(curve[start:stop, label].max())))
    return sorted(found[0]), sorted(found[1])


def _threshold(session: Session, label: int) -> float:
    if session.settings.min_score is not None:
        return session.settings.min_score
    thresholds = session.info.vocabulary.thresholds
    return thresholds[label] if thresholds else NO_THRESHOLD


def _stretches(above: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs of True as (first row, row after the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _curve_labels(events: Sequence[Event], found: Sequence[Event]) -> list[str]:
    """The classes that have events and the strongest others."""
    strongest = sorted(found, key=lambda event: -event.score)
    others = list(dict.fromkeys(event.label for event in strongest))[:CURVE_CLASSES]
    return sorted({event.label for event in events} | set(others))


def _curves(session: Session, first: int, scores: npt.NDArray[np.float32], labels: Sequence[str]) -> Curves | None:
    """Scores (n, C of the vocabulary) of some classes, from the start of the file on."""
    if not labels:
        return None
    columns = [session.info.vocabulary.index(label) for label in labels]
    values = np.round(255 * np.clip(scores[:, columns], 0, 1)).astype(np.uint8)  # (n, C)
    before = np.zeros((first, len(labels)), np.uint8)
    return Curves(tuple(labels), float(session.info.grid.stride), np.concatenate([before, values]))


def _evidence(
    session: Session,
    first: int,
    stitched: Stitched,
    labels: Sequence[str],
    heard_only: Sequence[Event],
    seen_only: Sequence[Event],
) -> Evidence | None:
    """What each medium says by itself, of the classes whose curves are stored and of the strongest unconfirmed ones."""
    alone = _curve_labels((), (*heard_only, *seen_only))
    wanted = sorted({*labels, *alone})
    audio = _curves(session, first, stitched.audio_curve, wanted)
    visual = _curves(session, first, stitched.visual_curve, wanted)
    if audio is None or visual is None:
        return None
    return Evidence(audio, visual, tuple(heard_only), tuple(seen_only))
