"""What is said once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avtool import weights
from avtool.cli import hints
from avtool.session import Session
from tests.cli.conftest import Run

ADVICE = "get a better one"


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache folder of a session that has advice to give."""
    monkeypatch.setattr(Session, "hint", ADVICE)
    monkeypatch.setenv("AVTOOL_WEIGHTS", str(tmp_path / "cache"))
    return tmp_path / "cache"


def said(lines: list[str]) -> list[str]:
    return [line for line in lines if ADVICE in line]


def test_a_better_model_is_advised_once(avtool: Run, clip: Path, tmp_path: Path, advised: Path) -> None:
    first = avtool("localize", clip, "-o", tmp_path / "a")
    assert first.lines[1] == f"hint    {ADVICE}" and len(said(first.lines)) == 1
    assert not said(avtool("localize", clip, "-o", tmp_path / "b").lines)
    assert [p.name for p in advised.iterdir()] == [hints.BETTER_MODEL]


def test_other_advice_is_news(
    avtool: Run, clip: Path, tmp_path: Path, advised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avtool("localize", clip, "-o", tmp_path / "a")
    monkeypatch.setattr(Session, "hint", f"{ADVICE} still")
    assert said(avtool("localize", clip, "-o", tmp_path / "b").lines) == [f"hint    {ADVICE} still"]


def test_what_nobody_saw_is_said_later(avtool: Run, clip: Path, tmp_path: Path, advised: Path) -> None:
    avtool("localize", clip, "-o", tmp_path / "a", "--quiet")
    avtool("localize", clip, "-o", tmp_path / "b", "--quiet", "--progress", "json")
    assert not advised.exists()
    clip.with_name("bad.mp4").write_bytes(b"x")
    avtool("localize", clip.with_name("bad.mp4"), "-o", tmp_path / "c")
    assert said(avtool("localize", clip, "-o", tmp_path / "d").lines)


def test_programs_are_told_once_too(avtool: Run, clip: Path, tmp_path: Path, advised: Path) -> None:
    runs = [avtool("localize", clip, "-o", tmp_path / n, "--progress", "json") for n in ("a", "b")]
    records = [[json.loads(line) for line in ran.lines] for ran in runs]
    assert [[r["hint"] for r in some if "hint" in r] for some in records] == [[ADVICE], []]


def test_where_nothing_can_be_kept_it_is_said_each_time(avtool: Run, clip: Path, tmp_path: Path, advised: Path) -> None:
    advised.write_text("a file where the cache folder should be")
    for name in ("a", "b"):
        ran = avtool("localize", clip, "-o", tmp_path / name)
        assert ran.code == 0 and len(said(ran.lines)) == 1


def test_the_stamp_is_no_weights_file(advised: Path) -> None:
    assert hints.once(ADVICE) == ADVICE and hints.once(ADVICE) == "" and hints.once("") == ""
    assert all(check.state != "damaged" for check in weights.verify())
