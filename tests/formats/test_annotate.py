"""Audacity, ELAN and Praat files, read back with pympi and praatio."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtool.formats import render
from avtool.formats.annotate import audacity, eaf, textgrid
from avtool.formats.labels import caption, lanes, plain
from avtool.timeline import Event, Timeline
from tests.cli.fakes import make_timeline
from tests.formats.timelines import TIMELINES


@contextmanager
def warnings_of_readers() -> Iterator[None]:
    """Third-party readers warn about their own dependencies; the project's tests take warnings for errors."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def milliseconds(timeline: Timeline) -> list[tuple[int, int, str]]:
    return sorted((round(e.start * 1000), round(e.end * 1000), plain(e.label)) for e in timeline.events)


# ---------------------------------------------------------------- Audacity


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_a_label_track_has_three_fields_a_line(timeline: Timeline) -> None:
    rows = [line.split("\t") for line in audacity(timeline).split("\n")[:-1]]
    assert [(float(start), float(end), text) for start, end, text in rows] == [
        (e.start, e.end, caption(e)) for e in timeline.events
    ]


# ---------------------------------------------------------------- ELAN


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_pympi_reads_the_same_events(timeline: Timeline, tmp_path: Path) -> None:
    pympi = pytest.importorskip("pympi")
    path = tmp_path / "x.eaf"
    path.write_text(eaf(timeline), encoding="utf-8")
    with warnings_of_readers():
        document = pympi.Elan.Eaf(str(path))
    found, scores = [], []
    for tier in [t for t in document.get_tier_names() if document.get_parameters_for_tier(t).get("PARENT_REF") is None]:
        found += [a[:3] for a in document.get_annotation_data_for_tier(tier)]
    for tier in [t for t in document.get_tier_names() if document.get_parameters_for_tier(t).get("PARENT_REF")]:
        scores += [(a[0], a[1], float(a[2])) for a in document.get_ref_annotation_data_for_tier(tier)]
    assert sorted(found) == milliseconds(timeline)
    expected = ((round(e.start * 1000), round(e.end * 1000), round(e.score, 4)) for e in timeline.events)
    assert sorted(scores) == sorted(expected)


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_no_tier_overlaps_itself_and_every_reference_exists(timeline: Timeline) -> None:
    root = ElementTree.fromstring(eaf(timeline).encode())
    slots = {s.get("TIME_SLOT_ID"): int(s.get("TIME_VALUE") or -1) for s in root.iter("TIME_SLOT")}
    ids = [a.get("ANNOTATION_ID") for tag in ("ALIGNABLE_ANNOTATION", "REF_ANNOTATION") for a in root.iter(tag)]
    assert len(ids) == len(set(ids))
    names = [tier.get("TIER_ID") for tier in root.iter("TIER")]
    assert len(names) == len(set(names)) and names
    for tier in root.iter("TIER"):
        spans = [
            (slots[a.get("TIME_SLOT_REF1")], slots[a.get("TIME_SLOT_REF2")]) for a in tier.iter("ALIGNABLE_ANNOTATION")
        ]
        assert spans == sorted(spans) and all(a[1] <= b[0] for a, b in pairwise(spans))
    assert {a.get("ANNOTATION_REF") for a in root.iter("REF_ANNOTATION")} <= set(ids)
    assert list(slots.values()) == sorted(slots.values())


def test_one_class_twice_at_once_takes_two_tiers() -> None:
    assert [lane.name for lane in lanes(TIMELINES["overlapping"].events)] == ["speech", "speech 2", "dog bark"]


def test_the_media_is_linked_near_and_far(tmp_path: Path) -> None:
    video = tmp_path / "in" / 'a "b" & #1?.mp4'
    text = render(make_timeline(path=str(video)), "eaf", tmp_path / "out")
    link = ElementTree.fromstring(text.encode()).find("HEADER/MEDIA_DESCRIPTOR")
    assert link is not None
    assert link.get("RELATIVE_MEDIA_URL") == "../in/a%20%22b%22%20%26%20%231%3F.mp4"
    assert link.get("MEDIA_URL", "").startswith("file:///") and link.get("MIME_TYPE") == "video/mp4"


# ---------------------------------------------------------------- Praat


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_praatio_reads_the_same_events(timeline: Timeline, tmp_path: Path) -> None:
    reader = pytest.importorskip("praatio.textgrid")
    path = tmp_path / "x.TextGrid"
    path.write_text(textgrid(timeline), encoding="utf-8")
    grid = reader.openTextgrid(str(path), includeEmptyIntervals=True, duplicateNamesMode="error")
    read = []
    for tier in grid.tiers:
        entries = list(tier.entries)
        assert entries[0].start == 0 and entries[-1].end == grid.maxTimestamp  # they tile the tier
        assert all(a.end == b.start for a, b in pairwise(entries))
        read += [(round(e.start * 1000), round(e.end * 1000), e.label) for e in entries if e.label]
    expected = [(round(e.start * 1000), round(e.end * 1000), caption(e)) for e in timeline.events]
    assert sorted(read) == sorted(expected)


def test_a_file_of_no_length_still_has_a_span() -> None:
    timeline = make_timeline(events=())
    text = textgrid(replace(timeline, media=replace(timeline.media, duration=0.0)))
    assert "xmax = 0.001" in text and "size = 1" in text


# ---------------------------------------------------------------- any text

labels = st.text(st.characters(codec="utf-8"), max_size=12)
times = st.integers(0, 9000).map(lambda ms: ms / 1000)


@given(st.lists(st.builds(Event, times, times, labels, st.floats(0, 1)), max_size=6))
def test_any_labels_give_well_formed_files(events: list[Event]) -> None:
    timeline = make_timeline(events=tuple(events))
    root = ElementTree.fromstring(eaf(timeline).encode())
    kept = [plain(e.label) for e in events if round(e.end * 1000) > round(e.start * 1000)]
    assert sorted(a.findtext("ANNOTATION_VALUE") or "" for a in root.iter("ALIGNABLE_ANNOTATION")) == sorted(kept)
    assert all(line.count("\t") == 2 for line in audacity(timeline).split("\n")[:-1])
    strings = re.findall(r'^ *(?:text|name) = "((?:[^"]|"")*)"$', textgrid(timeline), re.MULTILINE)
    assert len(strings) == textgrid(timeline).count(" text = ") + textgrid(timeline).count(" name = ")
