"""avtool export from the command line: names, standard output, thresholds, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avtool.formats import PICTURED, WRITERS
from avtool.settings import FORMATS
from avtool.timeline import from_json, to_json
from tests.cli.conftest import Run
from tests.formats.timelines import thousand


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A timeline with many candidates, beside the video it was made from."""
    path = tmp_path / "street.events.json"
    path.write_text(to_json(thousand(200)))
    return path


def test_every_format_has_a_writer() -> None:
    assert [*WRITERS, *PICTURED] == list(FORMATS)


def test_every_text_format_at_once(avtool: Run, written: Path, tmp_path: Path) -> None:
    texts = [name for name in FORMATS if name not in ("json", *PICTURED)]
    ran = avtool("export", written, "-f", ",".join(texts), "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (0, "") and len(ran.lines) == 1
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"street.events.{FORMATS[name]}" for name in texts}
    assert (tmp_path / "out" / "street.events.csv").read_text().splitlines()[1].startswith("../street.mp4,")


def test_standard_output(avtool: Run, written: Path) -> None:
    assert avtool("export", written, "-f", "vtt", "-o", "-").out.startswith("WEBVTT\n")
    assert avtool("export", written, "-f", "json", "-o", "-").json()["version"] == "avtool timeline 1"
    assert avtool("export", written, "-f", "vtt,srt", "-o", "-").code == 2


def test_a_higher_threshold_takes_from_the_candidates(avtool: Run, written: Path) -> None:
    candidates = from_json(written.read_text()).candidates
    for least in ("0.05", "0.5", "0.9"):
        ran = avtool("export", written, "-f", "tsv", "-o", "-", "--min-score", least)
        assert len(ran.out.splitlines()) - 1 == sum(c.score >= float(least) for c in candidates)
    assert avtool("export", written, "-f", "tsv", "-o", "-", "--min-score", "0.01").code == 2
    assert avtool("export", written, "-f", "json", "-o", "-", "--min-score", "0.5").code == 2


def test_the_environment_does_not_choose_events_unasked(
    avtool: Run, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVTOOL_MIN_SCORE", "0.99")
    shown = avtool("export", written, "-f", "tsv", "-o", "-").out
    assert len(shown.splitlines()) - 1 == len(from_json(written.read_text()).events)


def test_as_many_events_as_localize_would_keep(avtool: Run, tmp_path: Path) -> None:
    timeline = thousand(200)
    timeline.run.settings["max_events"] = 7  # type: ignore[index]
    path = tmp_path / "x.json"
    path.write_text(to_json(timeline))
    rows = avtool("export", path, "-f", "tsv", "-o", "-", "--min-score", "0.2").out.splitlines()[1:]
    best = sorted(timeline.candidates, key=lambda e: -e.score)[:7]
    assert {round(float(row.split("\t")[3]), 4) for row in rows} == {e.score for e in best}


def test_results_are_not_replaced_and_inputs_never(avtool: Run, written: Path, tmp_path: Path) -> None:
    assert avtool("export", written, "-f", "srt", "--beside").code == 0
    assert avtool("export", written, "-f", "srt", "--beside").code == 6
    assert avtool("export", written, "-f", "srt", "--beside", "--overwrite").code == 0
    assert avtool("export", written, "-f", "json", "--beside", "--overwrite").code == 2
    assert json.loads(written.read_text())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "avtool timeline 9"}', "no JSON", '{"version": 1e999}'])
def test_what_is_no_timeline(avtool: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    ran = avtool("export", path, "-f", "vtt", "-o", tmp_path / "out")
    assert ran.code == 3 and ran.lines[0].startswith(f"error: {path} is not ") and len(ran.lines) == 3


def test_other_slips(avtool: Run, written: Path, tmp_path: Path) -> None:
    assert "formats: json, srt, vtt" in avtool("export", written).err
    assert "did you mean 'textgrid'" in avtool("export", written, "-f", "textgird").err
    assert avtool("export", tmp_path / "none.json", "-f", "vtt").code == 3
    assert avtool("export", "http://x.example/y.json", "-f", "vtt").code == 3


def test_localize_writes_any_format(avtool: Run, clip: Path, tmp_path: Path) -> None:
    assert avtool("localize", clip, "-o", tmp_path, "-f", "vtt,eaf,edl").code == 0
    assert {p.suffix for p in tmp_path.glob("clip.events.*")} == {".vtt", ".eaf", ".edl"}


def test_a_page_without_its_video_is_written_and_said(avtool: Run, written: Path, tmp_path: Path) -> None:
    ran = avtool("export", written, "-f", "html", "-o", tmp_path / "out")
    assert ran.code == 0 and "no pictures in html" in ran.lines[0]
    assert "<img" not in (tmp_path / "out" / "street.events.html").read_text()


def test_a_page_with_pictures(avtool: Run, clip: Path, tmp_path: Path) -> None:
    assert avtool("localize", clip, "-o", tmp_path / "out", "-f", "json,html").code == 0
    page = (tmp_path / "out" / "clip.events.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 10 and 'src="../clip.mp4"' in page
    json_file = tmp_path / "out" / "clip.events.json"
    assert avtool("export", json_file, "-f", "html", "-o", tmp_path / "out", "--overwrite").code == 0
    assert (tmp_path / "out" / "clip.events.html").read_text() == page
