"""avtool view: what it makes, what it takes over, what it opens."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that a browser was asked to open."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


def test_a_video_is_localized_once(
    avtool: Run, clip: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from avtool.models import zoo

    out = tmp_path / "out"
    assert avtool("view", clip, "-o", out).code == 0
    assert opened == [(out / "clip.events.html").as_uri()]
    page = (out / "clip.events.html").read_text()
    assert 'src="../clip.mp4"' in page and "data:image/jpeg" in page
    monkeypatch.setattr(zoo, "load", lambda *_: pytest.fail("the model was loaded"))
    assert avtool("view", clip, "-o", out, "--no-open").code == 0
    assert len(opened) == 1 and (out / "clip.events.html").read_text() == page


def test_a_result_of_other_settings_is_not_taken_for_this_one(
    avtool: Run, clip: Path, tmp_path: Path, opened: list[str]
) -> None:
    out = tmp_path / "out"
    assert avtool("view", clip, "-o", out).code == 0
    assert avtool("view", clip, "-o", out, "--min-score", "0.9").code == 6
    assert avtool("view", clip, "-o", out, "--min-score", "0.9", "--overwrite").code == 0
    assert avtool("view", clip, "-o", out, "--min-score", "0.9").code == 0
    clip.write_bytes(clip.read_bytes() + b"\0")
    assert avtool("view", clip, "-o", out, "--min-score", "0.9").code == 6
    assert len(opened) == 3


def test_a_timeline_gets_its_page_beside_it(avtool: Run, clip: Path, tmp_path: Path, opened: list[str]) -> None:
    assert avtool("localize", clip, "-o", tmp_path / "out", "-f", "json").code == 0
    assert avtool("view", tmp_path / "out" / "clip.events.json", "--no-open").code == 0
    assert (tmp_path / "out" / "clip.events.html").is_file() and not opened


def test_other_pages_are_left_alone(avtool: Run, clip: Path, tmp_path: Path, opened: list[str]) -> None:
    page = tmp_path / "out" / "clip.events.html"
    page.parent.mkdir()
    page.write_text("mine")
    assert avtool("view", clip, "-o", page.parent).code == 6 and page.read_text() == "mine" and not opened


def test_slips(avtool: Run, tmp_path: Path, opened: list[str]) -> None:
    assert avtool("view", tmp_path / "none.mp4", "-o", tmp_path).code == 3
    assert avtool("view", tmp_path / "none.json").code == 3
    assert avtool("view", "x.mp4", "-o", "-").code == 2
    assert not opened


def test_without_a_browser_the_address_is_said(
    avtool: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    ran = avtool("view", clip, "-o", tmp_path / "out")
    assert ran.code == 0 and (tmp_path / "out" / "clip.events.html").as_uri() in ran.lines[-1]
