"""The report page in a real browser: it loads without a network, plays, seeks, selects, and runs no other script."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from avtool.formats import render
from avtool.formats.tables import csv
from avtool.media.decoding import decode
from avtool.media.preview import preview
from avtool.media.probe import probe
from avtool.timeline import Curves, Event, Evidence, Timeline, at_score
from tests import synth
from tests.cli.fakes import HOSTILE, make_timeline
from tests.formats import browser
from tests.formats.timelines import HARD_LABELS, thousand

websocket = pytest.importorskip("websocket")
pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here (Debian package chromium)")


@pytest.fixture(scope="module")
def new_tab() -> Iterator[Callable[[], browser.Page]]:
    with browser.chromium() as tab:
        yield tab


@pytest.fixture(scope="module")
def page(new_tab: Callable[[], browser.Page]) -> browser.Page:
    return new_tab()


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    """A clip of five seconds, and events in it."""
    import numpy as np

    media = probe(synth.good(tmp_path_factory.mktemp("page") / "clip.mp4"))
    events = (Event(1.0, 1.6, "flash", 0.8), Event(2.0, 2.5, "tone", 0.9), Event(2.2, 4.0, "flash", 0.31))
    candidates = (*events, Event(0.5, 0.75, "tone", 0.07), Event(3.0, 4.5, "horn", 0.2))
    values = np.linspace(0, 255, 30).astype(np.uint8).reshape(10, 3)
    return make_timeline(
        media=media,
        events=events,
        candidates=tuple(sorted(candidates)),
        curves=Curves(("flash", "horn", "tone"), 0.5, values),
    )


@pytest.fixture(scope="module")
def report(timeline: Timeline) -> Path:
    """The page beside the clip."""
    path = Path(timeline.media.path).with_suffix(".html")
    path.write_text(render(timeline, "html", path.parent, preview(timeline.media, decode)), encoding="utf-8")
    return path


def shown(page: browser.Page) -> int:
    """Events whose boxes are on the lanes; the list and the count above it must agree."""
    page.wait("document.documentElement.dataset.filled")
    boxes, lines, count = page.run(
        "[document.querySelectorAll('.ev').length, document.querySelectorAll('#list li').length,"
        " parseInt(document.getElementById('count').textContent)]"
    )
    assert boxes == lines == count
    return int(count)


def copied(page: browser.Page) -> str:
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("#copy")
    page.wait("window.copied !== undefined")
    text: str = page.run("[window.copied, delete window.copied][0]")
    return text


def test_it_loads_from_disk_without_a_word_or_a_request(page: browser.Page, report: Path) -> None:
    page.load(report)
    page.wait("document.getElementById('video').readyState >= 1")
    assert page.complaints() == []
    assert set(page.requests()) == {(report.parent / "clip.mp4").as_uri()}
    assert shown(page) == 3
    assert page.run("document.querySelectorAll('#strip-track img:not([hidden])').length") > 3
    assert page.run("Math.round(document.getElementById('video').duration)") == 5
    assert page.run("document.getElementById('missing').hidden")


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out(page: browser.Page, report: Path, width: int) -> None:
    page.load(report, width)
    assert page.run("document.documentElement.scrollWidth") == width


def test_a_click_on_an_event_plays_it_to_its_end(page: browser.Page, report: Path) -> None:
    page.load(report)
    page.wait("document.getElementById('video').readyState >= 3")
    assert page.run("document.getElementById('video').currentTime") == 0
    page.click(".ev", 0)
    page.wait("document.getElementById('video').currentTime >= 1")
    page.wait("document.getElementById('video').paused && document.getElementById('video').currentTime >= 1.6")
    assert page.run("document.getElementById('video').currentTime") < 2.5
    assert page.run("document.getElementById('detail-name').textContent") == "flash 0.80"


def test_a_click_on_a_lane_seeks(page: browser.Page, report: Path) -> None:
    page.load(report)
    page.wait("document.getElementById('video').readyState >= 1")
    left, top, wide = page.run(
        "(() => { const r = document.querySelector('.lane .track').getBoundingClientRect();"
        " return [r.left, r.top + r.height / 2, r.width]; })()"
    )
    page.click_at(left + 0.9 * wide, top)
    page.wait("Math.abs(document.getElementById('video').currentTime - 4.5) < 0.1")
    assert page.run("document.getElementById('video').paused")


def test_keys(page: browser.Page, report: Path) -> None:
    page.load(report)
    page.wait("document.getElementById('video').readyState >= 3")
    time = "document.getElementById('video').currentTime"
    page.press("n")
    page.wait(f"Math.abs({time} - 1.0) < 0.05")
    page.press("n")
    page.wait(f"Math.abs({time} - 2.0) < 0.05")
    page.press("p")
    page.wait(f"Math.abs({time} - 1.0) < 0.05")
    page.press("ArrowRight")
    page.wait(f"Math.abs({time} - 2.0) < 0.05")
    page.press("+")
    page.wait("document.querySelector('.inner').offsetWidth > 1.5 * document.querySelector('.track').offsetWidth")
    page.press("0")
    page.wait("document.querySelector('.inner').offsetWidth <= document.querySelector('.track').offsetWidth + 1")
    page.press(" ", "Space", " ")
    page.wait("!document.getElementById('video').paused")
    page.press(" ", "Space", " ")
    page.wait("document.getElementById('video').paused")
    before = shown(page)
    page.press("]")
    page.wait("document.documentElement.dataset.filled")
    assert shown(page) < before


def test_the_slider_shows_the_events_of_that_threshold(page: browser.Page, report: Path, timeline: Timeline) -> None:
    page.load(report)
    placed = replace(timeline, media=replace(timeline.media, path="clip.mp4"))
    assert copied(page) == csv(placed)
    for least in (0.05, 0.07, 0.08, 0.31, 0.32, 0.8, 0.81, 1.0):
        page.slide("#score", least)
        expected = at_score(placed, least)
        assert shown(page) == len(expected.events)
        assert copied(page) == csv(expected)
    page.click("#own")
    assert copied(page) == csv(placed)


def test_the_slider_over_many_events_with_a_limit(page: browser.Page, tmp_path: Path) -> None:
    timeline = thousand(800)
    timeline = replace(timeline, run=replace(timeline.run, settings={"max_events": 120, "min_score": 0.3}))
    path = tmp_path / "x.html"
    path.write_text(render(timeline, "html"), encoding="utf-8")
    page.load(path)
    for least in (0.05, 0.5, 0.83, 0.9):
        page.slide("#score", least)
        assert shown(page) == len(at_score(timeline, least).events)
        assert copied(page) == csv(at_score(timeline, least))


def test_classes_can_be_switched_off(page: browser.Page, report: Path) -> None:
    page.load(report)
    page.click(".lane input", 0)
    page.wait("document.getElementById('count').textContent === '1 event'")
    assert page.run("[...document.querySelectorAll('#list b')].map((b) => b.textContent)") == ["tone"]
    page.click("#clear")
    assert shown(page) == 0 and page.run("!document.getElementById('none').hidden")
    page.click("#all")
    assert shown(page) == 3


def test_a_video_that_moved_can_be_chosen_again(page: browser.Page, report: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.html"
    alone.write_text(report.read_text(encoding="utf-8"), encoding="utf-8")
    page.load(alone)
    page.wait("!document.getElementById('missing').hidden")
    assert "clip.mp4" in page.run("document.getElementById('missing-text').textContent")
    assert shown(page) == 3
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(report.parent / "clip.mp4")])
    page.wait("document.getElementById('video').duration > 4")
    assert page.run("document.getElementById('missing').hidden")
    page.click(".ev", 0)
    page.wait("document.getElementById('video').currentTime >= 1")


def test_markup_in_names_stays_text(page: browser.Page, tmp_path: Path) -> None:
    labels = [*HARD_LABELS, *HOSTILE[:-1]]
    events = tuple(Event(float(i), i + 0.9, label, 0.5) for i, label in enumerate(labels))
    name = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>.mp4'
    path = tmp_path / "x.html"
    path.write_text(render(make_timeline(path=name, events=events, candidates=events), "html"), encoding="utf-8")
    page.load(path)
    page.click("#list button", 0)
    assert page.run("window.hit") is None
    assert page.run("document.querySelectorAll('script').length") == 2
    assert page.run("document.querySelector('h1').textContent").startswith("script>.mp4")
    names = page.run("[...document.querySelectorAll('#list b')].map((b) => b.textContent)")
    from avtool.formats.labels import plain

    assert names == [plain(label) for label in labels]
    assert not [text for text in page.complaints() if "ERR_FILE_NOT_FOUND" not in text]


@pytest.mark.parametrize(
    "evil",
    [
        "<script>window.hit=1</script>",
        "<img src=x onerror='window.hit=1'>",
        "<a id=bait href='javascript:window.hit=1'>x</a>",
        "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    ],
)
def test_the_policy_blocks_a_script_that_gets_in_all_the_same(
    page: browser.Page, report: Path, tmp_path: Path, evil: str
) -> None:
    path = tmp_path / "evil.html"
    path.write_text(report.read_text(encoding="utf-8").replace("</body>", f"{evil}</body>"), encoding="utf-8")
    page.load(path)
    page.run("document.getElementById('bait')?.click()")
    end = time.monotonic() + 20
    while not any("Content Security Policy" in text for text in page.complaints()):
        assert time.monotonic() < end, page.complaints()
    assert page.run("window.hit") is None
    assert shown(page) == 3


def test_without_scripts_the_events_are_a_table(new_tab: Callable[[], browser.Page], report: Path) -> None:
    page = new_tab()
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.size(1280, 900)
    page.call("Page.navigate", url=report.as_uri())
    page.wait("document.readyState === 'complete' && document.querySelector('td')")
    text = page.run("document.body.innerText")
    assert "flash" in text and "0.90" in text and "Choose the video" not in text
    assert page.run("document.querySelectorAll('tr').length") == 4
    assert page.run("document.querySelector('svg').getBoundingClientRect().width") > 500


def test_print_shows_the_events_selected(page: browser.Page, report: Path) -> None:
    page.load(report)
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("document.querySelectorAll('#print tr').length") == 4
    assert page.run("document.querySelectorAll('#print svg').length") == 1
    page.slide("#score", 0.5)
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("document.querySelectorAll('#print tr').length") == 3
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.run("getComputedStyle(document.getElementById('app')).display") == "none"
    assert page.run("document.getElementById('print').getBoundingClientRect().height") > 40
    page.call("Emulation.setEmulatedMedia", media="")


def test_light_and_dark(page: browser.Page, report: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.load(report)
        found[scheme] = page.run(background)
    assert found["light"] != found["dark"]
    page.click("#theme")
    assert page.run(background) == found["light"]
    page.call("Emulation.setEmulatedMedia", features=[])


def test_what_was_heard_or_seen_alone(page: browser.Page, tmp_path: Path) -> None:
    import numpy as np

    values = np.full((20, 2), 200, np.uint8)
    audio = Curves(("bird", "dog"), 0.5, values)
    alone = (Event(1.0, 2.0, "bird", 0.7),)
    event = (Event(3.0, 5.0, "dog", 0.6),)
    evidence = Evidence(audio, Curves(("bird", "dog"), 0.5, values // 2), alone, ())
    timeline = make_timeline(events=event, candidates=event, evidence=evidence)
    path = tmp_path / "x.html"
    path.write_text(render(timeline, "html"), encoding="utf-8")
    page.load(path)
    assert page.run("document.querySelectorAll('.lane').length") == 1
    page.click("#more")
    assert page.run("[...document.querySelectorAll('.ev.alone')].map((b) => b.textContent)") == ["heard 0.70"]
    page.click(".ev:not(.alone)")
    assert "sound alone 0.78, in the picture alone 0.39" in page.run("document.getElementById('why').textContent")


def test_captions_are_escaped(page: browser.Page, tmp_path: Path) -> None:
    events = (Event(0.0, 1.0, "<b>&amp;", 0.5),)
    path = tmp_path / "x.html"
    path.write_text(render(make_timeline(events=events, candidates=events), "html"), encoding="utf-8")
    page.load(path)
    cues = page.run("[...document.getElementById('video').textTracks[0].cues].map((cue) => cue.text)")
    assert cues == ["&lt;b&gt;&amp;amp;"]
