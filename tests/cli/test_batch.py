"""avtool batch: mirrored results, resumable, and honest about what failed."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from avtool.batch import jobs
from avtool.timeline import from_json
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def stub(request: pytest.FixtureRequest, avtool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers without a model, unless the test is marked as one of the few that want it."""
    if "with_model" not in request.fixturenames:
        monkeypatch.setattr(jobs, "WORKER", "tests.batch.workers:Stub")


@pytest.fixture
def with_model() -> None:
    """For a test that wants real workers with the stand-in for the model."""


@pytest.fixture
def folder(clip: Path, tmp_path: Path) -> Path:
    """Two good videos, one in a folder below, one bad one, and things that are no videos."""
    videos = tmp_path / "videos"
    (videos / "deep" / "er").mkdir(parents=True)
    shutil.copy(clip, videos / "a.mp4")
    shutil.copy(clip, videos / "deep" / "er" / "B.MP4")
    (videos / "bad.mp4").write_text("no video, only text; long enough to be looked at")
    (videos / "notes.txt").write_text("x")
    (videos / "._a.mp4").write_bytes(b"resource fork")
    (videos / ".hidden").mkdir()
    shutil.copy(clip, videos / ".hidden" / "c.mp4")
    return videos


def results(out: Path) -> dict[str, bytes]:
    files = (p for p in out.rglob("*") if p.is_file() and ".avtool" not in p.parts and p.name not in TABLES)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(files)}


def journal(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / ".avtool").glob("journal-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def failures(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / ".avtool" / "failures.csv").read_text().splitlines()))


TABLES = ["events.csv", "events.parquet"]
GOOD = ["a.events.json", "a.events.srt", "deep/er/B.events.json", "deep/er/B.events.srt"]


def test_a_mirrored_tree_and_seven_for_the_bad_file(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = avtool("batch", folder, "-o", out)
    assert (ran.code, ran.out) == (7, "")
    assert list(results(out)) == GOOD
    assert ran.err.count("error: ") == 1 and "bad.mp4" in ran.err
    assert ran.lines[-1] == "2 done, 1 failed"
    states = {line["name"]: line["state"] for line in journal(out)}
    assert states == {"bad.mp4": "failed", "a.mp4": "done", "deep/er/B.MP4": "done"}
    summary = json.loads((out / ".avtool" / "summary.json").read_text())
    expected = {"done": 2, "skipped": 0, "failed": 1, "quarantined": 0, "events": 2, "files": 3, "exit_code": 7}
    assert summary.items() >= expected.items() and summary["kinds"] == {"unreadable": 1}
    rows = failures(out)
    assert [(r["file"], r["exit_code"]) for r in rows] == [("bad.mp4", "3")]
    assert from_json((out / GOOD[2]).read_bytes(), out / "deep" / "er").media.path == str(
        folder / "deep" / "er" / "B.MP4"
    )


def test_the_same_results_as_localize(with_model: None, avtool: Run, folder: Path, tmp_path: Path) -> None:
    avtool("batch", folder, "-o", tmp_path / "out", "--workers", "1", "--threads", "1")
    avtool("localize", folder / "a.mp4", "-o", tmp_path / "single")
    assert results(tmp_path / "single")["a.events.json"] == results(tmp_path / "out")["a.events.json"]


def test_finished_results_are_skipped(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "bad.mp4").unlink()
    assert avtool("batch", folder, "-o", out).code == 0
    first = {p: p.stat().st_mtime_ns for p in out.rglob("*.json") if ".avtool" not in p.parts}
    ran = avtool("batch", folder, "-o", out)
    assert ran.code == 0 and ran.lines[-1] == "2 skipped"
    assert len(journal(out)) == 2  # nothing was added
    assert {p: p.stat().st_mtime_ns for p in first} == first


def test_a_missing_format_is_made_from_the_json(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    avtool("batch", folder, "-o", out)
    whole = results(out)
    (out / "a.events.srt").unlink()
    assert avtool("batch", folder, "-o", out).lines[-1] == "2 skipped, 1 failed before"
    assert results(out) == whole


def stale(kind: str, folder: Path, out: Path) -> list[str]:
    """Makes the result of a.mp4 stale; returns further arguments."""
    if kind == "setting":
        return ["--min-score", "0.9"]
    if kind == "input":
        os.utime(folder / "a.mp4", ns=(1, 1))
    elif kind == "torn":
        path = out / "a.events.json"
        path.write_bytes(path.read_bytes()[:200])
        return ["--overwrite"]
    elif kind == "gone":
        (out / "a.events.json").unlink()
    return []


@pytest.mark.parametrize("kind", ["setting", "input", "torn", "gone"])
def test_stale_results_are_made_again(avtool: Run, folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    avtool("batch", folder, "-o", out)
    made = (out / GOOD[2]).stat().st_mtime_ns
    ran = avtool("batch", folder, "-o", out, *stale(kind, folder, out))
    both = kind == "setting"
    assert ran.lines[-1] == ("2 done, 1 failed" if both else "1 done, 1 skipped, 1 failed before"), ran.err
    assert ((out / GOOD[2]).stat().st_mtime_ns != made) == both
    assert from_json((out / "a.events.json").read_bytes()).run.fingerprint


def test_device_format_and_progress_do_not_make_results_stale(avtool: Run, folder: Path, tmp_path: Path) -> None:
    avtool("batch", folder, "-o", tmp_path / "out")
    ran = avtool("batch", folder, "-o", tmp_path / "out", "-f", "json", "--device", "cpu", "--progress", "none")
    assert ran.lines[-1] == "2 skipped, 1 failed before"


def test_a_foreign_file_in_the_way_is_not_replaced_unasked(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.events.json").write_text('{"mine": true}')
    ran = avtool("batch", folder, "-o", out)
    assert ran.code == 7 and "not a timeline" in ran.err
    assert (out / "a.events.json").read_text() == '{"mine": true}'
    assert avtool("batch", folder, "-o", out, "--overwrite").lines[-1] == "1 done, 1 skipped, 1 failed before"


def test_a_bug_in_one_file_does_not_end_the_night(avtool: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "a.mp4").rename(folder / "raise.mp4")
    ran = avtool("batch", folder, "-o", tmp_path / "out")
    assert ran.code == 7 and "IndexError: a bug" in ran.err
    assert list(results(tmp_path / "out")) == GOOD[2:]


def test_usage(avtool: Run, folder: Path, tmp_path: Path) -> None:
    assert avtool("batch", folder).code == 2
    assert avtool("batch", folder, "-o", "-").code == 2
    assert avtool("batch", tmp_path / "missing", "-o", tmp_path / "out").code == 3
    assert avtool("batch", "-o", tmp_path / "out").code == 2
    for wrong in ("0/3", "4/3", "3", "a/b", "slurm"):
        assert avtool("batch", folder, "-o", tmp_path / "out", "--shard", wrong).code == 2, wrong
    for wrong in (("--engine", "x"), ("--task", "x"), ("--workers", "0"), ("--address", "x"), ("--limit", "0")):
        assert avtool("batch", folder, "-o", tmp_path / "out", *wrong).code == 2, wrong
    (tmp_path / "empty").mkdir()
    ran = avtool("batch", tmp_path / "empty", "-o", tmp_path / "out")
    assert ran.code == 0 and "no videos" in ran.err
    assert not (tmp_path / "out").exists()


def test_two_videos_of_one_name_stop_before_any_work(avtool: Run, folder: Path, clip: Path, tmp_path: Path) -> None:
    shutil.copy(clip, folder / "a.mkv")
    ran = avtool("batch", folder, "-o", tmp_path / "out")
    assert ran.code == 2 and "a.mkv" in ran.err and "a.mp4" in ran.err
    assert not (tmp_path / "out").exists()


def test_results_in_the_folder_itself(avtool: Run, folder: Path) -> None:
    assert avtool("batch", folder, "-o", folder).code == 7
    assert avtool("batch", folder, "-o", folder).lines[-1] == "2 skipped, 1 failed before"


def test_hostile_names_in_the_list_of_failures(avtool: Run, folder: Path, tmp_path: Path) -> None:
    (folder / '=HYPERLINK("x","y").mp4').write_text("not a video")
    avtool("batch", folder, "-o", tmp_path / "out")
    rows = failures(tmp_path / "out")
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_progress_for_programs(avtool: Run, folder: Path, tmp_path: Path) -> None:
    ran = avtool("batch", folder, "-o", tmp_path / "out", "--progress", "json")
    records = [json.loads(line) for line in ran.lines]
    assert records[-1]["failed"] == 1
    assert sum(r.get("state") == "done" for r in records) == 2


def test_files_are_mirrored_below_what_holds_them_all(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert avtool("batch", folder / "a.mp4", folder / "deep" / "er" / "B.MP4", "-o", out).code == 0
    assert list(results(out)) == GOOD
    assert avtool("batch", folder / "deep", folder / "a.mp4", "-o", out).lines[-1] == "2 skipped"
    assert avtool("batch", folder / "a.mp4", "-o", out, "--root", folder).lines[-1] == "1 skipped"
    assert avtool("batch", folder / "a.mp4", "-o", out, "--root", folder / "deep").code == 2


def test_a_list_names_inputs(avtool: Run, folder: Path, tmp_path: Path) -> None:
    names = [folder / "a.mp4", folder / "deep" / "er" / "B.MP4", folder / "not there.mp4"]
    for separator in ("\n", "\0"):
        list_ = tmp_path / "list"
        list_.write_text("".join(f"{name}{separator}" for name in names))
        out = tmp_path / f"out{ord(separator)}"
        ran = avtool("batch", "--list", list_, "-o", out)
        assert ran.code == 7 and list(results(out)) == GOOD
        assert ran.lines[-1] == "2 done, 1 failed" and failures(out)[0]["kind"] == "unreachable"
        # it may be there tomorrow
        assert avtool("batch", "--list", list_, "-o", out).lines[-1] == "2 skipped, 1 failed"


def test_a_list_on_standard_input(program: Run, folder: Path, tmp_path: Path) -> None:
    ran = program("batch", "-", "-o", "out", "--dry-run", faked=True, input=f"{folder / 'a.mp4'}\n".encode())
    assert "would do 1 of 1 files: 1 new" in ran.err
    assert not (tmp_path / "out").exists()


def test_what_would_be_done(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    avtool("batch", folder, "-o", out, "--exclude", "deep/*")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    os.utime(folder / "a.mp4", ns=(1, 1))
    ran = avtool("batch", folder, "-o", out, "--dry-run", "--progress", "json")
    counts = {"new": 1, "stale": 1, "done": 0, "failed_before": 1, "unreadable": 0}
    assert ran.code == 0 and json.loads(ran.lines[-1]) == counts
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_failures_are_tried_again_when_asked(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    avtool("batch", folder, "-o", out)
    ran = avtool("batch", folder, "-o", out)
    assert ran.code == 7 and ran.lines[-1] == "2 skipped, 1 failed before"
    assert ran.err.count("error: ") == 0 and "bad.mp4" in ran.err
    assert [row["state"] for row in failures(out)] == ["failed_before"]
    ran = avtool("batch", folder, "-o", out, "--retry-failed")
    assert ran.code == 7 and ran.err.count("error: ") == 1
    (folder / "bad.mp4").write_bytes((folder / "a.mp4").read_bytes())  # another file now: tried without being asked
    assert avtool("batch", folder, "-o", out).lines[-1] == "1 done, 2 skipped"
    assert failures(out) == []


def test_some_files_only(avtool: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.mp4", folder / "c.mp4")

    def done(*arguments: str) -> list[str]:
        out = tmp_path / "-".join(arguments).replace("/", "_")
        avtool("batch", folder, "-o", out, "--exclude", "bad.mp4", "-f", "json", *arguments)
        return list(results(out))

    assert done("--no-recursive") == ["a.events.json", "c.events.json"]
    assert done("--include", "deep/*") == ["deep/er/B.events.json"]
    assert done("--include", "c.*", "--include", "a.*") == ["a.events.json", "c.events.json"]
    assert len(done("--limit", "2")) == 2
    assert sorted([*done("--shard", "1/2"), *done("--shard", "2/2")]) == [
        "a.events.json",
        "c.events.json",
        "deep/er/B.events.json",
    ]


def test_nothing_new_after_a_failure_if_asked(avtool: Run, folder: Path, clip: Path, tmp_path: Path) -> None:
    for i in range(20):
        shutil.copy(clip, folder / f"{i:02}.mp4")
    ran = avtool("batch", folder, "-o", tmp_path / "out", "--fail-fast", "--workers", "1")
    assert ran.code == 7 and len(results(tmp_path / "out")) < 20


def test_one_table_of_all_events(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    avtool("batch", folder, "-o", out)
    assert (out / "events.csv").read_text().splitlines() == [
        "file,start,end,label,score",
        "a.mp4,12.340,15.020,dog bark,0.91",
        "deep/er/B.MP4,12.340,15.020,dog bark,0.91",
    ]


def test_features(with_model: None, avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("batch", folder, "-o", out, "--task", "features", "--workers", "1", "--exclude", "deep/*")
    assert avtool(*command).code == 7
    assert list(results(out)) == ["a.features.npz"]
    avtool("extract-features", folder / "a.mp4", "-o", tmp_path / "single")
    assert results(tmp_path / "single") == results(out)
    assert avtool("extract-features", folder / "a.mp4", "-o", out).lines[-1].endswith("is there and whole")
    assert avtool("batch", folder, "-o", tmp_path / "single", *command[4:]).lines[-1] == "1 skipped, 1 failed"
    assert avtool(*command, "--min-score", "0.9").lines[-1] == "1 skipped, 1 failed before"
    assert avtool(*command, "--end", "2").lines[-1] == "1 done, 1 failed"


def test_report(with_model: None, avtool: Run, folder: Path, tmp_path: Path) -> None:
    """A page for each video and one over all of them; what failed is on top; links lead somewhere."""
    out = tmp_path / "out"
    command = ("batch", folder, "-o", out, "--report", "--workers", "1")
    assert avtool(*command).code == 7
    pages = {"a.events.html", "deep/er/B.events.html", "index.html"}
    assert {name for name in results(out) if name.endswith(".html")} == pages
    index = (out / "index.html").read_text()
    links = re.findall(r'href="\./([^"]*)"', index)
    assert sorted(set(links)) == ["a.events.html", "deep/er/B.events.html"]
    assert index.index("bad.mp4") < min(index.index(link) for link in links)
    for link in links:
        assert "flash" in (out / link).read_text()
    (out / "index.html").unlink()
    (out / "a.events.html").unlink()
    assert avtool(*command).lines[-1] == "1 done, 1 skipped, 1 failed before"
    assert (out / "index.html").read_text() == index and (out / "a.events.html").is_file()
