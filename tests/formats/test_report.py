"""The report page as text: whole, small, and nothing in it that a label or a file name wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtool.formats import pages
from avtool.formats.labels import plain, url
from avtool.formats.report import html
from avtool.timeline import Event, Notice, Preview, Timeline
from tests.cli.fakes import HOSTILE, make_timeline
from tests.formats.timelines import HARD_LABELS, TIMELINES, thousand


class Parts(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


def named(text: str) -> Timeline:
    """A timeline in which everything that a stranger may choose is `text`."""
    timeline = make_timeline(path=text, events=(Event(0.0, 1.0, text, 0.5),), warnings=(Notice("code", text),))
    run = replace(timeline.run, model=text, device=text, settings={text: text}, weights={text: text})
    return replace(timeline, run=run)


OWN_TAGS = [tag for tag, _ in Parts(html(named("x"))).tags]


@pytest.mark.parametrize("text", [*HARD_LABELS, *HOSTILE[:-1]])
def test_no_text_becomes_markup(text: str) -> None:
    parts = Parts(html(named(text)))
    assert [tag for tag, _ in parts.tags] == OWN_TAGS
    assert not [name for _, attributes in parts.tags for name in attributes if name.startswith("on")]
    assert any(tag == "title" and plain(Path(text).name or "timeline") in shown for tag, shown in parts.texts)


@given(st.text())
def test_no_text_at_all_becomes_markup(text: str) -> None:
    parts = Parts(html(named(text)))
    assert [tag for tag, _ in parts.tags] == OWN_TAGS


@given(st.text())
def test_embedded_data_comes_back_and_holds_no_markup(text: str) -> None:
    written = pages.embedded({"a": [text, {text: 1.5}]})
    assert not set(written) & set("<>&\u2028\u2029") and written.isascii()
    assert json.loads(written) == {"a": [text, {text: 1.5}]}


def test_slots_inside_what_is_filled_in_stay_text() -> None:
    assert pages.fill("<!--a--><!--b-->", {"a": "<!--b-->", "b": "x"}) == "<!--b-->x"
    with pytest.raises(KeyError):
        pages.fill("<!--a-->", {})


def test_the_policy_admits_this_script_and_style_alone() -> None:
    page = html(make_timeline())
    (policy,) = [m["content"] for m in Parts(page).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "unsafe" not in policy and policy.startswith("default-src 'none'")
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (code,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"\sstyle=", page.split("<script")[0])  # the policy would block it


def test_nothing_in_the_page_points_to_a_network() -> None:
    page = html(make_timeline())
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_without_scripts_there_is_a_table(timeline: Timeline) -> None:
    parts = Parts(html(timeline))
    cells = [text for tag, text in parts.texts if tag == "td"]
    assert cells[2::4] == [plain(e.label) for e in timeline.events]
    assert [float(score) for score in cells[3::4]] == [round(e.score, 2) for e in timeline.events]
    assert bool(parts.all("svg")) == bool(timeline.events)
    if not timeline.events:
        assert any("No event was found" in text for _, text in parts.texts)


def test_where_the_result_comes_from_is_said() -> None:
    shown = " ".join(text for _, text in Parts(html(make_timeline())).texts)
    assert all(word in shown for word in ("avtool 0.1.0", "loco-mini", "min_score 0.3", "123.5 s of 123.5 s"))


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("street.mp4", "./street.mp4"),
        ("../a b/ü#?.mp4", "../a%20b/%C3%BC%23%3F.mp4"),
        ("javascript:alert(1).mp4", "./javascript%3Aalert%281%29.mp4"),
        ("//host/x.mp4", "file:////host/x.mp4"),
        ("/x/y.mp4", "file:///x/y.mp4"),
        ("C:/x y/z.mp4", "file:///C:/x%20y/z.mp4"),
        ("\udcff.mp4", "./%FF.mp4"),
        ("\ud800.mp4", "./%3F.mp4"),
    ],
)
def test_addresses(path: str, address: str) -> None:
    assert url(path) == address
    assert data_of(html(make_timeline(path=path)))["source"] == address


def test_an_hour_of_twelve_classes_stays_small() -> None:
    picture = b"\xff" * 6000  # the most that one may have
    preview = Preview(tuple((60.0 * i, picture) for i in range(60)), np.ones(2000, np.float32))
    assert len(html(thousand(3000), preview)) < 3_000_000


def test_pictures_and_waveform_are_in_the_page() -> None:
    preview = Preview(((1.0, b"one"), (2.0, b"two")), np.array([0, 0.5, 1], np.float32))
    page = html(make_timeline(), preview)
    sources = [image["src"] for image in Parts(page).all("img")]
    assert sources == [f"data:image/jpeg;base64,{base64.b64encode(b).decode()}" for b in (b"one", b"two")]
    data = data_of(page)
    assert data["thumbnails"] == [1.0, 2.0]
    assert base64.b64decode(str(data["peaks"])) == bytes([0, 128, 255])


def test_the_same_page_every_time() -> None:
    assert html(TIMELINES["overlapping"]) == html(TIMELINES["overlapping"])
