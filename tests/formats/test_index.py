"""The page over a folder of results: rows, failures on top, nothing a file name can do; sorted in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from avtool.formats.index import Entry, Failure, index
from avtool.timeline import Event
from tests.cli.fakes import HOSTILE
from tests.formats import browser
from tests.formats.test_report import Parts
from tests.formats.timelines import HARD_LABELS, thousand

ENTRIES = [
    Entry("b/two.mp4", "b/two.events.html", 60.0, (Event(1, 2, "dog", 0.9), Event(3, 9, "horn", 0.5))),
    Entry("a/one.mp4", "a/one.events.json", 3700.0, (), ("the file has no sound",)),
    Entry("c.mp4", "c.events.html", 5.0, tuple(Event(i, i + 0.5, "cat", 0.5) for i in range(4))),
]
FAILED = [Failure("bad.mp4", "bad.mp4 cannot be read", "it is empty")]


def page_of(text: str) -> str:
    """A page in which everything that a stranger may choose is `text`."""
    entry = Entry(text, text, 10.0, (Event(0.0, 1.0, text, 0.5),), (text,))
    return index([entry], [Failure(text, text, text)], text, "avtool")


OWN_TAGS = [tag for tag, _ in Parts(page_of("x")).tags]


def test_rows_failures_and_counts() -> None:
    page = index(ENTRIES, FAILED, "holiday", "avtool 1")
    parts = Parts(page)
    text = " ".join(text for _, text in parts.texts)
    assert "3 files · 1:02:45 · 6 events of 3 classes · 1 failed" in text
    assert [a["href"] for a in parts.all("a")] == ["./b/two.events.html", "./a/one.events.json", "./c.events.html"]
    assert page.index("1 failed</h2>") < page.index("<table")
    assert "bad.mp4 cannot be read: it is empty" in text and "the file has no sound" in text
    assert [row["data-events"] for row in parts.all("tr") if "data-events" in row] == ["2", "0", "4"]


def test_an_empty_folder() -> None:
    assert "0 files" in index([], [], "x", "avtool")


@pytest.mark.parametrize("text", [*HARD_LABELS, *HOSTILE[:-1]])
def test_no_text_becomes_markup(text: str) -> None:
    parts = Parts(page_of(text))
    assert [tag for tag, _ in parts.tags] == OWN_TAGS
    assert all((a["href"] or "").startswith(("./", "../", "file:///")) for a in parts.all("a"))


def test_thousands_of_files_stay_a_page() -> None:
    events = thousand(30, seconds=600.0).events
    page = index([Entry(f"f{i}.mp4", "x", 600.0, events) for i in range(2000)], [], "x", "avtool")
    assert len(page) < 2000 * 2000


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    pytest.importorskip("websocket")
    if browser.PROGRAM is None:
        pytest.skip("no Chromium here (Debian package chromium)")
    with browser.chromium() as tab:
        yield tab()


def test_sorted_and_searched(page: browser.Page, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(index(ENTRIES, FAILED, "holiday", "avtool 1"), encoding="utf-8")
    page.load(path, ready="!document.getElementById('find').hidden")
    names = "[...document.querySelectorAll('tbody tr:not([hidden]) a')].map((a) => a.textContent)"
    assert page.run(names) == ["b/two.mp4", "a/one.mp4", "c.mp4"]
    page.click("th[data-key=name] button")
    assert page.run(names) == ["a/one.mp4", "b/two.mp4", "c.mp4"]
    page.click("th[data-key=name] button")
    assert page.run(names) == ["c.mp4", "b/two.mp4", "a/one.mp4"]
    page.click("th[data-key=events] button")
    assert page.run(names) == ["c.mp4", "b/two.mp4", "a/one.mp4"]
    page.click("th[data-key=duration] button")
    assert page.run(names) == ["a/one.mp4", "b/two.mp4", "c.mp4"]
    page.run("document.getElementById('words').value = 'horn'")
    page.run("document.getElementById('words').dispatchEvent(new Event('input'))")
    assert page.run(names) == ["b/two.mp4"]
    assert page.complaints() == [] and page.requests() == []


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out(page: browser.Page, tmp_path: Path, width: int) -> None:
    path = tmp_path / "index.html"
    path.write_text(index(ENTRIES, FAILED, "holiday", "avtool 1"), encoding="utf-8")
    page.load(path, width, ready="!document.getElementById('find').hidden")
    assert page.run("document.documentElement.scrollWidth") == width
