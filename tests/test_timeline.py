"""The timeline as JSON: the shape of ActivityNet, exact round trips, hostile names."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.errors import InputError
from avtool.timeline import Curves, Event, Evidence, Notice, from_json, relative_path, to_json
from tests.cli.fakes import HOSTILE, make_timeline


def test_the_shape_is_activitynets_with_the_documented_keys() -> None:
    data = json.loads(to_json(make_timeline()))
    assert data["version"] == "avtool timeline 1"
    assert data["external_data"] == {"used": True, "details": "encoders"}
    assert data["results"] == {"street": [{"label": "dog bark", "segment": [12.34, 15.02], "score": 0.91}]}
    assert data["media"]["video"]["average_rate"] == "30000/1001"
    assert data["media"]["mtime_ns"] == 1763690000000000001
    assert data["run"]["settings"] == {"min_score": 0.3}
    assert "details" not in data["run"]
    assert (data["warnings"], data["best_score"], data["heard_only"], data["seen_only"]) == ([], None, 0, 0)
    assert len(data["candidates"]) == 2
    assert "curves" not in data


def test_numbers_are_rounded_at_write_time_only() -> None:
    timeline = make_timeline(events=(Event(-0.0000001, 1.23456, "a", 0.123456),), best_score=0.999999)
    data = json.loads(to_json(timeline))
    assert data["results"]["street"][0] == {"label": "a", "segment": [0.0, 1.235], "score": 0.1235}
    assert data["best_score"] == 1.0
    assert "-0.0" not in to_json(timeline)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused(bad: float) -> None:
    with pytest.raises(ValueError):
        to_json(make_timeline(best_score=bad))


def test_curves_are_bytes_in_base64() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(3, 2)
    text = to_json(make_timeline(curves=Curves(("a", "b"), 0.5, values)))
    record = json.loads(text)["curves"]
    assert record["labels"] == ["a", "b"] and record["step"] == 0.5 and record["rows"] == 3
    assert base64.b64decode(record["values"]) == bytes(range(6))
    curves = from_json(text).curves
    assert curves is not None and np.array_equal(curves.values, values)


def test_evidence_survives() -> None:
    audio = Curves(("a", "b"), 0.5, np.arange(6, dtype=np.uint8).reshape(3, 2))
    visual = replace(audio, values=audio.values + 1)
    evidence = Evidence(audio, visual, (Event(0.0, 1.0, "a", 0.5),), ())
    found = from_json(to_json(make_timeline(evidence=evidence))).evidence
    assert found is not None and (found.heard_only, found.seen_only) == (evidence.heard_only, ())
    assert np.array_equal(found.audio.values, audio.values) and np.array_equal(found.visual.values, visual.values)
    assert "evidence" not in json.loads(to_json(make_timeline()))


def test_empty_curves_survive() -> None:
    curves = from_json(to_json(make_timeline(curves=Curves((), 0.5, np.zeros((4, 0), np.uint8))))).curves
    assert curves is not None and curves.values.shape == (4, 0)


def test_a_file_without_streams_survives() -> None:
    media = replace(
        make_timeline().media, video=None, audio=None, has_audio=False, has_video=False, declared_duration=None
    )
    timeline = make_timeline(media=media, events=(), candidates=(), warnings=(Notice("no_audio_stream", "no sound"),))
    assert from_json(to_json(timeline)) == timeline


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_come_back_as_they_were(text: str) -> None:
    timeline = make_timeline(events=(Event(0.0, 1.0, text, 0.5),), warnings=(Notice("code", text),))
    written = to_json(timeline)
    assert written.isascii() and not any(ord(c) < 32 and c != "\n" for c in written)
    assert from_json(written.encode()) == timeline


@pytest.mark.parametrize("name", ["a.b.mp4", "tab\tname.mp4", "\udcff.mkv", "-x.mp4", "🎬.mov", ".hidden"])
def test_the_stem_names_the_result(name: str) -> None:
    data = json.loads(to_json(make_timeline(name)))
    assert list(data["results"]) == [Path(name).stem]


times = st.integers(0, 10**9).map(lambda ms: ms / 1000)
scores = st.integers(0, 10_000).map(lambda s: s / 10_000)
events = st.lists(st.builds(Event, times, times, st.text(max_size=20), scores), max_size=5).map(tuple)


@settings(deadline=None)
@given(events, events, st.none() | scores, st.integers(0, 9))
def test_round_trip(found: tuple[Event, ...], candidates: tuple[Event, ...], best: float | None, count: int) -> None:
    timeline = make_timeline(events=found, candidates=candidates, best_score=best, heard_only=count)
    assert from_json(to_json(timeline)) == timeline
    assert to_json(from_json(to_json(timeline))) == to_json(timeline)


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"version": "avtool timeline 2"}', b'{"version": "avtool timeline 1"}',
     b"[" * 100_000],
)  # fmt: skip
def test_other_files_are_no_timelines(text: bytes) -> None:
    with pytest.raises(InputError):
        from_json(text)


def test_every_cut_of_a_timeline_is_refused_in_one_way() -> None:
    text = to_json(make_timeline())
    for cut in range(0, len(text) - 2, 7):
        with pytest.raises(InputError):
            from_json(text[:cut])


def test_the_path_is_relative_to_the_folder_of_the_json(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "deep").mkdir(parents=True)
    text = to_json(make_timeline(str(tmp_path / "in" / "a.mp4")), tmp_path / "out" / "deep")
    assert json.loads(text)["media"]["path"] == "../../in/a.mp4"
    assert from_json(text, tmp_path / "out" / "deep").media.path == str(tmp_path / "in" / "a.mp4")


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights elsewhere")
def test_a_linked_folder_leads_back_to_the_media(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "a.mp4").touch()
    path = relative_path(tmp_path / "a.mp4", tmp_path / "link")
    assert (tmp_path / "link" / path).samefile(tmp_path / "a.mp4")
