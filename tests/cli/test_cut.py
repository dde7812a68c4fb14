"""avtool cut from the command line: names, collisions, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from avtool.cli.cut import clip_names
from avtool.media.probe import probe
from avtool.timeline import Event
from tests.cli.conftest import Run
from tests.cli.fakes import HOSTILE, make_timeline


@pytest.fixture
def found(avtool: Run, clip: Path, tmp_path: Path) -> Path:
    assert avtool("localize", clip, "-o", tmp_path / "out").code == 0
    return tmp_path / "out" / "clip.events.json"


def test_every_event_is_a_clip(avtool: Run, found: Path, tmp_path: Path) -> None:
    ran = avtool("cut", found, "-o", tmp_path / "clips", "--exact")
    assert (ran.code, ran.out) == (0, "") and len(ran.lines) == 2
    clips = sorted((tmp_path / "clips").iterdir())
    assert [c.name for c in clips] == ["clip.001.flash.mp4", "clip.002.tone.mp4"]
    assert all(probe(c).has_video and probe(c).has_audio and probe(c).duration < 1.2 for c in clips)


def test_clips_are_not_replaced_unasked(avtool: Run, found: Path, tmp_path: Path) -> None:
    assert avtool("cut", found, "-o", tmp_path / "clips").code == 0
    ran = avtool("cut", found, "-o", tmp_path / "clips")
    assert ran.code == 6 and "--overwrite" in ran.err
    assert avtool("cut", found, "-o", tmp_path / "clips", "--overwrite").code == 0
    assert avtool("cut", found, "-o", "-").code == 2


def test_a_video_that_is_gone(avtool: Run, found: Path, clip: Path, tmp_path: Path) -> None:
    clip.unlink()
    ran = avtool("cut", found, "-o", tmp_path / "clips")
    assert ran.code == 3 and "clip.mp4" in ran.err
    assert not list((tmp_path / "clips").iterdir())


@pytest.mark.parametrize("label", HOSTILE)
def test_names_of_clips_are_harmless(label: str) -> None:
    (clip,) = clip_names(make_timeline(events=(Event(0.0, 1.0, label, 0.5),)), Path("x"), exact=False)
    assert clip.parent == Path("x") and clip.name.startswith("street.001.") and clip.suffix == ".mp4"
    assert len(clip.name) < 80 and not set(clip.name) & set('/\\:*?"<>|\t\r\n\0\x1b\u202e')
