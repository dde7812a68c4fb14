"""From a path to a timeline, and what a session decides on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import avtool
from avtool.calibration import Calibration
from avtool.errors import DeviceError, InputError, PartialInputError, UsageError, WeightsError
from avtool.features.store import Features
from avtool.models.zoo import ModelInfo, WindowOutput
from avtool.pipeline import _stretches, localize
from avtool.session import Session, choose_device, choose_encoder, refuse_partial, refuse_unreadable
from avtool.settings import Settings
from avtool.timeline import MediaInfo, Notice
from avtool.vocabulary import Vocabulary
from tests import synth
from tests.cli import fakes


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return synth.good(tmp_path / "clip.mp4")


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, lent_decoders: None) -> None:
    from avtool.features.encoders import catalog
    from avtool.models import zoo

    for owner, name in ((zoo, "load"), (catalog, "VISUAL"), (catalog, "AUDIO")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    fakes.install()


def media(duration: float = 10.0) -> MediaInfo:
    return MediaInfo("x.mp4", 100, 1, True, True, duration, duration, None, None, duration)


def features(audio: list[float], visual: list[float], **changes: Any) -> Features:
    """One number per half second for each medium."""
    rows = len(audio)
    starts = np.arange(rows) / 2
    made = Features(
        visual=np.array(visual, np.float32)[:, None],
        audio=np.array(audio, np.float32)[:, None],
        visual_tags=None,
        audio_tags=None,
        seen=np.ones(rows, bool),
        heard=np.ones(rows, bool),
        times=np.stack([starts, starts + 0.5], 1),
        visual_encoder="v",
        audio_encoder="a",
        weights={"v (visual)": "1"},
        scaling="",
        media=media(rows / 2),
    )
    return replace(made, **changes)


class Loaded(Session):
    """A session whose features and model are given."""

    def __init__(self, given: Features, settings: Settings, window: int = 20) -> None:
        super().__init__(settings)
        self._given = given
        self.localizer = fakes.FakeLocalizer()  # type: ignore[assignment]
        self.localizer.info = replace(self.localizer.info, window=window, hop=max(1, window // 2))
        self.visual, self.audio = fakes.fake_encoder("visual"), fakes.fake_encoder("audio")

    def features(self, path: Any, on_progress: Any, pair: bool = False) -> Features:
        return self._given


def run(given: Features, window: int = 20, **settings: Any) -> Any:
    return localize("x.mp4", session=Loaded(given, Settings(**{"classes": ("all",), **settings}), window))


def test_the_python_interface(faked: None, clip: Path) -> None:
    said: list[tuple[str, float, float]] = []
    timeline = avtool.localize(clip, min_score=0.4, on_progress=lambda *step: said.append(step))
    assert isinstance(timeline, avtool.Timeline) and isinstance(timeline.events[0], avtool.Event)
    assert {e.label for e in timeline.events} == {"flash", "tone"}
    assert {stage for stage, _, _ in said} >= {"features", "localize"}
    assert timeline.run.settings["min_score"] == 0.4
    made = avtool.extract_features(clip)
    assert made.visual is not None and made.audio is not None and len(made.visual) == len(made.times) == 10
    assert made.times[3].tolist() == [1.5, 2.0]


def test_class_scores_are_kept_for_who_reads_them(clip: Path) -> None:
    for model, kept in ((None, False), ("tags", True)):
        with Session(Settings(model=model)) as session:
            made = session.features(clip, lambda *_: None, pair=True)
            assert (made.visual_tags is not None, made.audio_tags is not None) == (kept, kept)
            assert localize(clip, session=session).media.duration == pytest.approx(5.0, abs=0.1)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(UsageError, match="min_scor") as caught:
        avtool.localize("x", min_scor=1)
    assert "min_score" in caught.value.hint


def test_a_bad_file_is_refused_before_the_model_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from avtool.models import zoo

    monkeypatch.setattr(zoo, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InputError):
        avtool.localize(tmp_path / "missing.mp4")


def test_the_windows_of_a_long_file_do_not_show() -> None:
    loud = [0.9 if 10 <= k < 30 else 0.0 for k in range(60)]
    whole, cut = run(features(loud, loud), window=100), run(features(loud, loud), window=8)
    assert [(e.label, e.start, e.end) for e in whole.events] == [(e.label, e.start, e.end) for e in cut.events]
    both = next(e for e in whole.events if e.label == "flash and tone")
    assert (both.start, both.end) == pytest.approx((5.0, 15.0), abs=0.5)


def test_nothing_where_only_one_medium_is_there() -> None:
    loud = [0.9] * 20
    timeline = run(features(loud, loud, heard=np.zeros(20, bool)))
    assert (timeline.events, timeline.candidates, timeline.best_score, timeline.curves) == ((), (), None, None)
    timeline = run(features([], []))
    assert timeline.events == ()


MAPS = Calibration(((2.0, 0.5, -1.0), (1.0, 1.0, 0.5), (0.7, 1.5, -0.2)))


def calibrated(given: Features, **settings: Any) -> tuple[Any, Any]:
    """Timelines before and after the scores become probabilities, with thresholds that take the same way."""
    found = []
    for maps in (None, MAPS):
        session = Loaded(given, Settings(classes=("all",), **settings))
        old = session.info.vocabulary
        if maps is not None:
            moved = tuple(float(t) for t in maps(old.thresholds, range(3)))
            session.localizer.info = replace(session.info, vocabulary=replace(old, thresholds=moved, calibration=maps))
        found.append(localize("x.mp4", session=session))
    return found[0], found[1]


def test_calibration_changes_scores_and_no_decision() -> None:
    rng = np.random.default_rng(4)
    loud, bright = (np.clip(np.repeat(rng.random(40) ** 2 * 1.4, 4), 0, 1).tolist() for _ in range(2))
    plain, sure = calibrated(features(loud, bright), explain=True)
    assert len(plain.events) > 10 and len({e.label for e in plain.events}) == 3
    assert [(e.start, e.end, e.label) for e in plain.events] == [(e.start, e.end, e.label) for e in sure.events]
    labels = [fakes.CLASSES.index(e.label) for e in plain.events]
    expected = MAPS([e.score for e in plain.events], labels)
    np.testing.assert_allclose([e.score for e in sure.events], expected, atol=1e-4)
    assert (plain.heard_only, plain.seen_only) == (sure.heard_only, sure.seen_only) != (0, 0)


def test_curves_are_on_the_scale_of_events() -> None:
    loud = [0.9 if 10 <= k < 16 else 0.0 for k in range(30)]
    plain, sure = calibrated(features(loud, loud), explain=True)
    for a, b in ((plain.curves, sure.curves), (plain.evidence.audio, sure.evidence.audio)):
        assert a.labels == b.labels
        maps = [fakes.CLASSES.index(name) for name in a.labels]
        for column, label in enumerate(maps):
            wanted = MAPS(a.values[:, column] / 255, np.full(len(a.values), label))
            np.testing.assert_allclose(b.values[:, column] / 255, wanted, atol=0.01)
            assert (b.values[a.values[:, column] == 0, column] == 0).all()


def test_results_say_how_scores_became_probabilities() -> None:
    plain, sure = calibrated(features([0.9] * 9, [0.9] * 9))
    assert (plain.run.settings["calibration"], sure.run.settings["calibration"]) == (None, "beta 1")
    assert plain.run.fingerprint != sure.run.fingerprint


def test_nothing_to_calibrate() -> None:
    for given in (features([], []), features([0.9] * 5, [0.9] * 5, seen=np.zeros(5, bool))):
        assert calibrated(given)[1].events == ()


def test_stretches_of_one_medium_alone_are_counted() -> None:
    loud = [0.9 if k in (2, 3, 10, 11, 12) else 0.0 for k in range(30)]
    bright = [0.9 if k in (10, 11, 12, 20, 21) else 0.0 for k in range(30)]
    timeline = run(features(loud, bright), classes=("flash and tone",))
    assert [e.label for e in timeline.events] == ["flash and tone"]
    assert (timeline.heard_only, timeline.seen_only) == (1, 1)


def test_explained_stretches_and_curves_of_each_medium() -> None:
    loud = [0.9 if k in (2, 3, 10, 11, 12) else 0.0 for k in range(30)]
    bright = [0.8 if k in (10, 11, 12, 20, 21) else 0.0 for k in range(30)]
    assert run(features(loud, bright)).evidence is None
    evidence = run(features(loud, bright), classes=("flash and tone",), explain=True).evidence
    assert [(e.label, e.start, e.end) for e in evidence.heard_only] == [("flash and tone", 1.0, 2.0)]
    assert [(e.label, e.start, e.end) for e in evidence.seen_only] == [("flash and tone", 10.0, 11.0)]
    assert (evidence.heard_only[0].score, evidence.seen_only[0].score) == pytest.approx((0.9, 0.8), abs=0.01)
    assert evidence.audio.labels == evidence.visual.labels == ("flash and tone",)
    assert np.flatnonzero(evidence.audio.values[:, 0]).tolist() == [2, 3, 10, 11, 12]
    assert np.flatnonzero(evidence.visual.values[:, 0]).tolist() == [10, 11, 12, 20, 21]


def test_an_explained_span_counts_from_the_start_of_the_file() -> None:
    loud = [0.9 if k in (22, 23) else 0.0 for k in range(40)]
    evidence = run(features(loud, [0.0] * 40), classes=("flash and tone",), start=Fraction(10), explain=True).evidence
    assert [(e.start, e.end) for e in evidence.heard_only] == [(11.0, 12.0)]
    assert np.flatnonzero(evidence.audio.values[:, 0]).tolist() == [22, 23]


def test_a_span_numbers_times_from_the_start_of_the_file() -> None:
    loud = [0.9 if k in (2, 3, 20, 21) else 0.0 for k in range(40)]
    timeline = run(features(loud, loud), classes=("tone",), start=Fraction(5), end=Fraction(21, 2))
    (event,) = timeline.events
    assert event.start == pytest.approx(10.0, abs=0.3) and event.end <= 10.5
    assert timeline.curves is not None and len(timeline.curves.values) == 21
    assert not timeline.curves.values[:10].any() and timeline.curves.values[20:].any()


def test_candidates_reach_down_to_the_floor_and_events_to_the_threshold() -> None:
    loud = [0.9 if k in (2, 3) else 0.3 if k in (20, 21) else 0.06 if k == 30 else 0.0 for k in range(40)]
    timeline = run(features(loud, [0.0] * 40), classes=("tone",))
    assert len(timeline.events) == 1 and len(timeline.candidates) >= 2
    assert all(c.score >= 0.05 for c in timeline.candidates)
    assert timeline.best_score == max(c.score for c in timeline.candidates)


def test_runs_of_true() -> None:
    assert _stretches(np.array([1, 1, 0, 1, 0, 0, 1], bool)) == [(0, 2), (3, 4), (6, 7)]
    assert _stretches(np.array([], bool)) == [] == _stretches(np.zeros(3, bool))


# ---------------------------------------------------------------- features as input


def test_features_of_other_encoders_or_grids_are_refused() -> None:
    info = replace(fakes.FakeLocalizer().info, visual=("v",), audio=("a", "*"))
    given = features([1.0] * 4, [1.0] * 4)
    refuse_unreadable(given, info, Settings(), "x.npz")
    refuse_unreadable(replace(given, visual=None, visual_encoder="w"), info, Settings(), "x.npz")
    tagged = replace(given, audio_encoder="b", audio_tags=np.zeros((4, 527), np.float32))
    refuse_unreadable(tagged, info, Settings(audio="b"), "x.npz")
    wrong = [
        (replace(given, visual_encoder="w"), Settings()),
        (replace(given, audio_encoder="b"), Settings()),
        (tagged, Settings(audio="a")),
        (replace(given, times=given.times * 2), Settings()),
        (replace(given, times=given.times + 1), Settings()),
    ]
    for other, settings in wrong:
        with pytest.raises(UsageError, match=r"x\.npz"):
            refuse_unreadable(other, info, settings, "x.npz")


# ---------------------------------------------------------------- what is lost


@pytest.mark.parametrize(
    ("span", "lost", "refused"),
    [(10, 0.9, False), (10, 1.1, True), (100, 1.9, False), (100, 2.1, True), (20, 1.01, True), (60, 1.1, False)],
)
def test_more_than_two_percent_and_more_than_a_second(span: float, lost: float, refused: bool) -> None:
    given = features([], [], media=media(span), lost_seconds=lost, notices=(Notice("lost_span", "gone"),))
    given = replace(given, media=replace(given.media, analysed_until=span - lost))
    refuse_partial(given, True, "x.mp4")
    if not refused:
        return refuse_partial(given, False, "x.mp4")
    with pytest.raises(PartialInputError) as caught:
        refuse_partial(given, False, "x.mp4")
    assert caught.value.why == "gone" and "--allow-partial" in caught.value.hint
    return None


# ---------------------------------------------------------------- fingerprints


def fingerprint(settings: Settings | None = None, about: MediaInfo | None = None, **info: Any) -> str:
    session = Loaded(features([], []), settings or Settings())
    session.localizer.info = replace(session.info, **info)
    return session.fingerprint(about or media())


OTHER: dict[str, Any] = {
    "visual": "other",
    "audio": "other",
    "classes": ("all",),
    "min_score": 0.2,
    "nms": "hard",
    "sigma": 0.7,
    "max_events": 3,
    "start": Fraction(1),
    "end": Fraction(2),
    "audio_track": 1,
    "allow_partial": True,
    "explain": True,
    "max_pixels": 5,
    "max_seconds": 5.0,
}


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_every_setting_that_can_change_a_result_changes_the_fingerprint(name: str) -> None:
    if name in ("device", "model"):
        assert fingerprint(replace(Settings(), **{name: "cpu"})) == fingerprint()
    else:
        assert fingerprint(replace(Settings(), **{name: OTHER[name]})) != fingerprint()


def test_what_else_changes_the_fingerprint() -> None:
    prints = [
        fingerprint(),
        fingerprint(name="other"),
        fingerprint(weights={"fake.safetensors": "f" * 64}),
        fingerprint(settings=None, about=replace(media(), bytes=101)),
        fingerprint(about=replace(media(), mtime_ns=2)),
    ]
    session = Loaded(features([], []), Settings())
    prints.append(session.fingerprint(media(), {"v (visual)": "1"}))
    session.localizer.info = replace(session.info, settings={"sigma": 0.9, "nms": "gaussian"})
    prints.append(session.fingerprint(media()))
    assert len(set(prints)) == len(prints)
    assert fingerprint() == fingerprint(about=replace(media(), path="moved.mp4"))
    assert fingerprint(Settings(sigma=0.4)) == fingerprint()  # the model's own value, said aloud


def test_the_timeline_carries_the_planned_fingerprint(faked: None, clip: Path) -> None:
    with Session(Settings()) as session:
        session.load()
        planned = session.fingerprint(session.probe(clip))
        assert localize(clip, session=session).run.fingerprint == planned


# ---------------------------------------------------------------- device and encoders


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(DeviceError):
            choose_device(name)
    for name in ("abacus", "meta", "", "cuda:x"):
        with pytest.raises(UsageError):
            choose_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == "cuda" and choose_device("cuda:0").index == 0
    with pytest.raises(DeviceError):
        choose_device("cuda:1")


def absent(device: object) -> Any:
    raise WeightsError("not here")


def here(name: str) -> Callable[[object], Any]:
    return lambda device: name


KNOWN = {"best": absent, "mini": here("mini"), "other": here("other")}
CPU = torch.device("cpu")


def test_the_best_installed_encoder_that_the_model_reads() -> None:
    assert choose_encoder("visual", None, ("best", "mini"), KNOWN, CPU) == "mini"
    assert choose_encoder("visual", None, ("best", "*"), KNOWN, CPU) == "mini"
    assert choose_encoder("visual", "other", ("mini", "*"), KNOWN, CPU) == "other"
    with pytest.raises(WeightsError, match="not here"):
        choose_encoder("visual", None, ("best",), KNOWN, CPU)
    with pytest.raises(WeightsError, match="not here"):
        choose_encoder("visual", "best", ("best", "mini"), KNOWN, CPU)
    with pytest.raises(UsageError, match="cannot read"):
        choose_encoder("visual", "other", ("mini",), KNOWN, CPU)
    with pytest.raises(UsageError) as caught:
        choose_encoder("visual", "mni", ("mini",), KNOWN, CPU)
    assert "mini" in caught.value.hint


def test_the_fakes_are_what_they_stand_for() -> None:
    localizer = fakes.FakeLocalizer()
    assert isinstance(localizer.info, ModelInfo) and isinstance(localizer.info.vocabulary, Vocabulary)
    assert isinstance(localizer.run(features([1.0] * 4, [1.0] * 4), 1, 3), WindowOutput)
