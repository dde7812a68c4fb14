"""OTIO, EDL and chapters, read back with opentimelineio, FFmpeg and by hand; timecode against tables."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtool.formats import render
from avtool.formats.editors import (
    CHAPTER_SECONDS,
    chapters,
    edl,
    ffmetadata,
    first_frame,
    frame,
    frame_rate,
    is_drop,
    otio,
    timecode,
)
from avtool.formats.labels import plain
from avtool.formats.subtitles import pieces
from avtool.timeline import Event, Timeline, VideoInfo
from tests.cli.fakes import make_timeline
from tests.formats.timelines import TIMELINES

NTSC = Fraction(30000, 1001)


def at_rate(timeline: Timeline, rate: str) -> Timeline:
    return replace(timeline, media=replace(timeline.media, video=VideoInfo("h264", 64, 64, rate, False)))


# ---------------------------------------------------------------- frames and timecode


@pytest.mark.parametrize(
    ("number", "rate", "code"),
    [
        (0, NTSC, "00:00:00;00"),
        (1799, NTSC, "00:00:59;29"),
        (1800, NTSC, "00:01:00;02"),
        (17981, NTSC, "00:09:59;29"),
        (17982, NTSC, "00:10:00;00"),
        (107892, NTSC, "01:00:00;00"),
        (2589407, NTSC, "23:59:59;29"),
        (2589408, NTSC, "00:00:00;00"),
        (3599, Fraction(60000, 1001), "00:00:59;59"),
        (3600, Fraction(60000, 1001), "00:01:00;04"),
        (215784, Fraction(60000, 1001), "01:00:00;00"),
        (86400, Fraction(24000, 1001), "01:00:00:00"),
        (90000, Fraction(25), "01:00:00:00"),
        (59, Fraction(30), "00:00:01:29"),
        (25 * 86400 + 1, Fraction(25), "00:00:00:01"),
    ],
)
def test_timecode(number: int, rate: Fraction, code: str) -> None:
    assert timecode(number, rate) == code


@pytest.mark.parametrize("rate", [NTSC, Fraction(60000, 1001)])
def test_every_drop_frame_number_of_eleven_minutes_counts_on(rate: Fraction) -> None:
    """Counted by hand: names go up by one frame, and skip the first ones of each minute but the tenth."""
    base = round(rate)
    expected = [
        f"00:{minute:02}:{second:02};{number:02}"
        for minute in range(11)
        for second in range(60)
        for number in range(base)
        if not (second == 0 and number < base // 15 and minute % 10)
    ]
    assert [timecode(i, rate) for i in range(len(expected))] == expected


@pytest.mark.parametrize("rate", [NTSC, Fraction(60000, 1001), Fraction(24000, 1001), Fraction(25), Fraction(60)])
def test_the_first_hour(rate: Fraction) -> None:
    assert timecode(first_frame(rate), rate).replace(";", ":") == "01:00:00:00"


@pytest.mark.parametrize("rate", [NTSC, Fraction(60000, 1001)])
def test_drop_frame_keeps_up_with_the_clock(rate: Fraction) -> None:
    """Within a frame or two after twelve hours, where non-drop is 43 seconds behind."""
    hours, minutes, seconds, frames = map(int, re.split("[:;]", timecode(frame(12 * 3600, rate), rate)))
    assert abs(hours * 3600 + minutes * 60 + seconds + frames / float(rate) - 12 * 3600) < 0.1


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        ("30000/1001", "30000/1001"),
        ("24000/1001", "24000/1001"),
        ("2997/100", "30000/1001"),
        ("30", "30"),
        ("25/1", "25"),
        ("5994/100", "60000/1001"),
        ("15", "24000/1001"),
        ("29", "30000/1001"),
        ("120", "60"),
        ("1/0", "25"),
        ("what", "25"),
        ("-3", "25"),
    ],
)
def test_rates_that_timecode_knows(rate: str, shown: str) -> None:
    assert frame_rate(at_rate(make_timeline(), rate).media) == Fraction(shown)


def test_without_a_picture_frames_are_counted_at_25() -> None:
    assert frame_rate(replace(make_timeline().media, video=None)) == 25


def test_no_drift_at_23_976() -> None:
    """Three hours in, counting 24 a second would be 10.8 s off."""
    rate = Fraction(24000, 1001)
    assert frame(10800.0, rate) == round(10800 * 24000 / 1001)
    assert abs(float(frame(10800.0, rate) / rate) - 10800) < 1 / 24


# ---------------------------------------------------------------- OTIO


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_opentimelineio_reads_the_same_events(timeline: Timeline) -> None:
    reader = pytest.importorskip("opentimelineio")
    document = reader.adapters.read_from_string(otio(timeline), "otio_json")
    picture, sound = document.tracks
    assert (picture.kind, sound.kind) == ("Video", "Audio")
    (clip,), (heard,) = picture, sound
    assert not list(heard.markers)
    rate = Fraction(30000, 1001)
    assert clip.media_reference.target_url == "./street.mp4"
    frames = round(Fraction(timeline.media.duration) * rate)
    assert clip.media_reference.available_range.duration == reader.opentime.RationalTime(frames, float(rate))
    read = [
        (
            m.marked_range.start_time.to_seconds(),
            m.marked_range.duration.to_seconds(),
            m.name,
            m.metadata["avtool"]["score"],
        )
        for m in clip.markers
    ]
    for (start, length, name, score), event in zip(read, timeline.events, strict=True):
        assert abs(start - event.start) <= 0.5 / float(rate) + 1e-9
        assert abs(start + length - event.end) <= 0.5 / float(rate) + 1e-9
        assert (name, score) == (plain(event.label), round(event.score, 4))
    colours = {getattr(reader.schema.MarkerColor, name) for name in dir(reader.schema.MarkerColor) if name.isupper()}
    assert {m.color for m in clip.markers} <= colours


def test_the_address_of_the_media_is_relative_and_coded(tmp_path: Path) -> None:
    reader = pytest.importorskip("opentimelineio")
    text = render(make_timeline(path=str(tmp_path / "javascript:x.mp4")), "otio", tmp_path)
    ((clip,), _) = reader.adapters.read_from_string(text, "otio_json").tracks
    assert clip.media_reference.target_url == "./javascript%3Ax.mp4"


# ---------------------------------------------------------------- EDL

EVENT = re.compile(
    r"(\d+)  001      V     C        (\S+) (\S+) (\S+) (\S+)  \n(.*?) \|C:ResolveColor(\w+) \|M:(.*) \|D:(\d+)\n"
)


def number_of(code: str, rate: Fraction) -> int:
    """The frame that a timecode names (the inverse, by the rule of SMPTE ST 12-1)."""
    hours, minutes, seconds, frames = map(int, re.split("[:;]", code))
    minutes += 60 * hours
    dropped = (minutes - minutes // 10) * (round(rate) // 15) if ";" in code else 0
    return (minutes * 60 + seconds) * round(rate) + frames - dropped


@pytest.mark.parametrize("rate", ["30000/1001", "25", "24000/1001"])
@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_markers_of_an_edl_are_where_the_events_are(timeline: Timeline, rate: str) -> None:
    text, exact = edl(at_rate(timeline, rate)), Fraction(rate)
    assert text.startswith(f"TITLE: street\nFCM: {'DROP' if is_drop(exact) else 'NON-DROP'} FRAME\n")
    zero = number_of("01:00:00;00" if is_drop(exact) else "01:00:00:00", exact)
    read = EVENT.findall(text)
    assert len(read) == len(timeline.events) == text.count("|M:")
    for number, (event, fields) in enumerate(zip(timeline.events, read, strict=True), 1):
        count, begin, end, *record, note, _, name, length = fields
        first = number_of(begin, exact) - zero
        assert int(count) == number and record == [begin, end] and number_of(end, exact) - zero == first + 1
        assert abs(first / exact - Fraction(event.start)) <= 1 / (2 * exact)
        assert abs((first + int(length)) / exact - Fraction(event.end)) <= 1 / (2 * exact)
        assert name == plain(event.label).replace("|", "/") and note == f"score {event.score:.2f}"


def test_an_event_shorter_than_a_frame_has_one() -> None:
    assert "|D:1\n" in edl(make_timeline(events=(Event(1.0, 1.001, "a", 0.5),)))


# ---------------------------------------------------------------- chapters

LINE = re.compile(r"(?:(\d+):)?(\d+):(\d\d) (.+)")


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_chapters_obey_the_rules_of_video_sites(timeline: Timeline) -> None:
    found = [LINE.fullmatch(line) for line in chapters(timeline).splitlines()]
    begins = [int(m[1] or 0) * 3600 + int(m[2]) * 60 + int(m[3]) for m in found if m]
    assert len(begins) == len(found) and begins[0] == 0
    assert all(b - a >= CHAPTER_SECONDS for a, b in pairwise([*begins, timeline.media.duration]))
    titles = " ".join(m[4] for m in found if m)
    assert all(plain(event.label) in titles for event in timeline.events)


def test_the_list_of_a_short_video() -> None:
    events = (Event(20.2, 31.0, "dog bark", 0.9), Event(25.0, 30.0, "horn", 0.5), Event(60.0, 61.0, "horn", 0.5))
    assert chapters(make_timeline(events=events)) == "0:00 –\n0:20 dog bark, horn\n0:31 –\n1:00 horn\n"


def test_no_events_is_one_chapter() -> None:
    assert chapters(TIMELINES["empty"]) == "0:00 –\n"


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_ffmpeg_reads_the_same_chapters(timeline: Timeline, tmp_path: Path) -> None:
    path = tmp_path / "chapters.ffmetadata"
    path.write_text(ffmetadata(timeline), encoding="utf-8")
    with av.open(str(path), format="ffmetadata") as container:
        read = container.chapters()
    expected = pieces(timeline.events)
    assert [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in read] == [
        (Fraction(start, 1000), Fraction(end, 1000)) for start, end, _ in expected
    ]
    for chapter, (_, _, active) in zip(read, expected, strict=True):
        assert all(plain(event.label) in chapter["metadata"]["title"] for event in active)


# ---------------------------------------------------------------- any text

labels = st.text(st.characters(codec="utf-8"), max_size=12)
times = st.integers(0, 90_000).map(lambda ms: ms / 1000)


@given(st.lists(st.builds(Event, times, times, labels, st.floats(0, 1)), max_size=6))
def test_any_labels_stay_in_their_place(events: list[Event]) -> None:
    timeline = make_timeline(events=tuple(events))
    assert len(EVENT.findall(edl(timeline))) == len(events)
    assert all(LINE.fullmatch(line) for line in chapters(timeline).splitlines())
    assert ffmetadata(timeline).count("\n[CHAPTER]\n") == len(pieces(events))
