"""The figure, read back with Pillow: its size, what is drawn where, labels that are hard to draw."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from avtool.formats.plot import png
from avtool.formats.strips import COLOURS, figure, miniature
from avtool.media.preview import jpeg
from avtool.timeline import Event, Preview, Timeline
from tests.cli.fakes import make_timeline
from tests.formats.timelines import TIMELINES

pytest.importorskip("matplotlib")
image = pytest.importorskip("PIL.Image")


def pixels(timeline: Timeline, preview: Preview | None = None) -> np.ndarray:
    return np.asarray(image.open(io.BytesIO(png(timeline, preview))).convert("RGB")).astype(int)


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_every_timeline_gives_a_picture(timeline: Timeline) -> None:
    drawn = pixels(timeline)
    assert drawn.shape[1] == 1500 and drawn.min() < 60 and drawn.max() == 255


def test_an_event_is_where_its_time_is() -> None:
    """The box of the only event lies between 20 % and 40 % of the lanes' width."""
    timeline = make_timeline(events=(Event(20.0, 40.0, "dog bark", 0.5),))
    timeline = replace(timeline, media=replace(timeline.media, duration=100.0))
    drawn = pixels(timeline)
    blue = np.array([int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    found = np.abs(drawn - (blue * 0.35 + 255 * 0.65)).sum(2) < 12
    columns = np.flatnonzero(found.any(0))
    left, right = 1.75 * 150, 0.985 * 1500
    assert columns.min() == pytest.approx(left + 0.2 * (right - left), abs=3)
    assert columns.max() == pytest.approx(left + 0.4 * (right - left), abs=3)


def test_pictures_and_waveform_make_it_taller() -> None:
    red = np.zeros((96, 170, 3), np.uint8)
    red[..., 0] = 255
    preview = Preview(((10.0, jpeg(red)), (60.0, jpeg(red))), np.full(2000, 0.5, np.float32))
    plain, rich = pixels(make_timeline()), pixels(make_timeline(), preview)
    assert rich.shape[0] > plain.shape[0] + 100
    assert ((rich[..., 0] > 230) & (rich[..., 1] < 40)).sum() > 2000


def test_the_same_bytes_every_time() -> None:
    assert png(TIMELINES["overlapping"]) == png(TIMELINES["overlapping"])


def test_mathematics_in_a_label_is_text() -> None:
    events = tuple(
        Event(float(i), i + 1.0, label, 0.5) for i, label in enumerate(["$\\frac{", "a_$b$", "\\", "$", "漢字 🎺"])
    )
    assert pixels(make_timeline(events=events)).size


# ---------------------------------------------------------------- the drawings in pages


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_drawings_are_well_formed_and_within_their_frame(timeline: Timeline) -> None:
    root = ElementTree.fromstring(figure(timeline.events, timeline.media.duration))
    wide = float(root.attrib["viewBox"].split()[2])
    bars = [element for element in root.iter() if element.tag.endswith("rect")]
    assert len(bars) == len(timeline.events)
    assert all(float(bar.attrib["x"]) + float(bar.attrib["width"]) <= wide + 1.1 for bar in bars)


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_a_strip_has_a_row_for_each_class(timeline: Timeline) -> None:
    labels = {event.label for event in timeline.events}
    root = ElementTree.fromstring(miniature(timeline.events, 3600.0, dict.fromkeys(labels, "#123456")))
    paths = [element.attrib["d"] for element in root.iter() if element.tag.endswith("path")]
    assert len(paths) == len(labels)
    wide = float(root.attrib["viewBox"].split()[2])
    bars = [re.fullmatch(r"(\d+) [\d.]+h(\d+)", bar) for path in paths for bar in path.split("M")[1:]]
    assert all(bar and int(bar[1]) + int(bar[2]) <= wide + 1 for bar in bars)
