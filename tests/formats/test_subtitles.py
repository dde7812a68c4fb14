"""SRT, read back with parsers that are not ours."""

from __future__ import annotations

import html
import re
from itertools import pairwise

import pysubs2
import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.formats.labels import plain, spans
from avtool.formats.subtitles import cues, srt, vtt
from avtool.timeline import Event, Timeline
from tests.cli.fakes import HOSTILE, make_timeline
from tests.formats.timelines import TIMELINES


def read(events: tuple[Event, ...]) -> list[tuple[int, int, str]]:
    """(start, end, text) in milliseconds as pysubs2 sees them."""
    parsed = pysubs2.SSAFile.from_string(srt(make_timeline(events=events)), format_="srt")
    return [(line.start, line.end, line.plaintext) for line in parsed]


def test_overlapping_events_share_cues_the_strongest_first() -> None:
    events = (Event(12.34, 15.02, "dog bark", 0.91), Event(13.0, 20.5, "speech", 0.77), Event(13.0, 14.0, "horn", 0.95))
    assert read(events) == [
        (12340, 13000, "dog bark (0.91)"),
        (13000, 14000, "horn (0.95)\ndog bark (0.91)\nspeech (0.77)"),
        (14000, 15020, "dog bark (0.91)\nspeech (0.77)"),
        (15020, 20500, "speech (0.77)"),
    ]


def test_the_exact_bytes() -> None:
    events = (Event(0.0, 1.5, "dog bark", 0.914), Event(3725.25, 3726.0, "horn", 0.5))
    assert srt(make_timeline(events=events)) == (
        "1\n00:00:00,000 --> 00:00:01,500\ndog bark (0.91)\n\n2\n01:02:05,250 --> 01:02:06,000\nhorn (0.50)\n"
    )


def test_no_events_is_an_empty_file_that_parsers_take() -> None:
    assert srt(make_timeline(events=())) == ""
    assert len(pysubs2.SSAFile.from_string("", format_="srt")) == 0


def test_a_gap_between_events_stays_empty() -> None:
    assert [(a, b) for a, b, _ in cues((Event(0, 1, "a", 1.0), Event(2, 3, "a", 1.0)))] == [(0, 1000), (2000, 3000)]


def test_events_that_touch_do_not_share_a_cue() -> None:
    assert [c[2] for c in cues((Event(0, 1, "a", 0.5), Event(1, 2, "b", 0.5)))] == [["a (0.50)"], ["b (0.50)"]]


def test_hours_past_ninety_nine() -> None:
    text = srt(make_timeline(events=(Event(400_000.0, 400_001.5, "a", 0.5),)))
    assert "111:06:40,000 --> 111:06:41,500" in text


def test_events_shorter_than_a_millisecond_vanish() -> None:
    assert cues((Event(1.0, 1.0001, "a", 0.5), Event(-2.0, 0.0, "b", 0.5))) == []


@pytest.mark.parametrize("label", HOSTILE)
def test_a_hostile_label_stays_one_line_of_one_cue(label: str) -> None:
    text = srt(make_timeline(events=(Event(0.0, 1.0, label, 0.5), Event(1.0, 2.0, "calm", 0.5))))
    assert text.count("-->") == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    captions = webvtt.from_string("WEBVTT\n\n" + text.replace(",", ".")).captions
    assert [(c.start_in_seconds, c.end_in_seconds) for c in captions] == [(0, 1), (1, 2)]
    blocks = text.strip().split("\n\n")
    assert [len(block.split("\n")) for block in blocks] == [3, 3]
    assert blocks[0].split("\n")[2] == f"{plain(label)} (0.50)"


def test_signs_that_become_an_arrow_when_others_are_dropped() -> None:
    assert "-->" not in plain("a -\x00-> b ---> c -\u202e->")
    assert plain("\x00\n\t") == "(no name)"


times = st.integers(0, 20).map(float)
events = st.lists(st.builds(Event, times, times, st.sampled_from("abc"), st.floats(0, 1)), max_size=8)


@settings(deadline=None)
@given(events)
def test_at_every_moment_the_cue_lists_exactly_the_active_events(found: list[Event]) -> None:
    shown = cues(found)
    assert all(a[1] <= b[0] for a, b in pairwise(shown))
    for moment in range(500, 20_000, 1000):
        active = {e.label for e in found if e.start * 1000 <= moment < e.end * 1000}
        lines = [line for start, end, text in shown if start <= moment < end for line in text]
        assert {line.split(" (")[0] for line in lines} == active
        assert len(lines) == len(active)


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_webvtt_reads_the_same_events(timeline: Timeline) -> None:
    captions = webvtt.from_string(vtt(timeline)).captions
    lines = [line for line in vtt(timeline).split("\n") if "-->" in line]
    clocks = [re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d{3}) --> (\d+):(\d\d):(\d\d\.\d{3})", line) for line in lines]
    times = [
        tuple(round(1000 * (int(m[i]) * 3600 + int(m[i + 1]) * 60 + float(m[i + 2]))) for i in (1, 4))
        for m in clocks
        if m
    ]
    assert times == [(start, end) for start, end, _ in spans(timeline.events)]
    shown = [re.fullmatch(r"<c\.[\w-]+>(.*)</c> \((\d\.\d\d)\)", text) for text in (c.raw_text for c in captions)]
    assert [(html.unescape(m[1]), m[2]) for m in shown if m] == [
        (plain(e.label), f"{e.score:.2f}") for _, _, e in spans(timeline.events)
    ]


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_pysubs2_reads_webvtt_too(timeline: Timeline) -> None:
    parsed = pysubs2.SSAFile.from_string(vtt(timeline), format_="vtt")
    assert sorted((line.start, line.end) for line in parsed) == sorted(
        (start, end) for start, end, _ in spans(timeline.events)
    )


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_pysubs2_reads_srt(timeline: Timeline) -> None:
    parsed = pysubs2.SSAFile.from_string(srt(timeline), format_="srt")
    assert [(line.start, line.end) for line in parsed] == [(start, end) for start, end, _ in cues(timeline.events)]


def test_the_exact_webvtt() -> None:
    assert vtt(make_timeline()) == ("WEBVTT\n\n1\n00:00:12.340 --> 00:00:15.020\n<c.dog-bark>dog bark</c> (0.91)\n")
    assert vtt(make_timeline(events=())) == "WEBVTT\n"


@given(st.text(st.characters(codec="utf-8")))
def test_any_label_is_one_cue(label: str) -> None:
    timeline = make_timeline(events=(Event(0.0, 1.0, label, 0.5), Event(1.0, 2.0, "calm", 0.5)))
    text = vtt(timeline)
    assert text.count("-->") == 2 and len(webvtt.from_string(text).captions) == 2
