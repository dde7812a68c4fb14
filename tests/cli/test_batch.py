"""avtool batch: mirrored results, resumable, and honest about what failed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from avtool.timeline import from_json
from tests.cli.conftest import FAKED, Run


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
    files = (p for p in out.rglob("*") if p.is_file() and ".avtool" not in p.parts)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(files)}


def journal(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / ".avtool").glob("journal-*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
    return [json.loads(line) for line in files[-1].read_text().splitlines()]


def failures(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / ".avtool" / "failures.csv").read_text().splitlines()))


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
    assert summary == {"done": 2, "skipped": 0, "failed": 1, "quarantined": 0, "events": 4}
    rows = failures(out)
    assert [(r["file"], r["exit_code"]) for r in rows] == [("bad.mp4", "3")]
    assert from_json((out / GOOD[2]).read_bytes(), out / "deep" / "er").media.path == str(
        folder / "deep" / "er" / "B.MP4"
    )


def test_the_same_results_as_localize(avtool: Run, folder: Path, tmp_path: Path) -> None:
    avtool("batch", folder, "-o", tmp_path / "out")
    avtool("localize", folder / "a.mp4", "-o", tmp_path / "single")
    assert results(tmp_path / "single")["a.events.json"] == results(tmp_path / "out")["a.events.json"]


def test_finished_results_are_skipped(
    avtool: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (folder / "bad.mp4").unlink()
    assert avtool("batch", folder, "-o", out).code == 0
    first = {p: p.stat().st_mtime_ns for p in out.rglob("*.json") if ".avtool" not in p.parts}
    import avtool.batch.worker as worker

    monkeypatch.setattr(worker, "localize", lambda *a, **k: pytest.fail("done twice"))
    ran = avtool("batch", folder, "-o", out)
    assert ran.code == 0 and ran.lines[-1] == "2 skipped"
    assert {p: p.stat().st_mtime_ns for p in first} == first


def test_a_missing_format_is_made_from_the_json(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    avtool("batch", folder, "-o", out)
    whole = results(out)
    (out / "a.events.srt").unlink()
    assert avtool("batch", folder, "-o", out).lines[-1] == "2 skipped, 1 failed"
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
    ran = avtool("batch", folder, "-o", out, *stale(kind, folder, out))
    states = {line["name"]: line["state"] for line in journal(out)}
    assert states["a.mp4"] == "done", ran.err
    assert states["deep/er/B.MP4"] == ("done" if kind == "setting" else "skipped")
    from_json((out / "a.events.json").read_bytes())


def test_device_format_and_progress_do_not_make_results_stale(avtool: Run, folder: Path, tmp_path: Path) -> None:
    avtool("batch", folder, "-o", tmp_path / "out")
    ran = avtool("batch", folder, "-o", tmp_path / "out", "-f", "json", "--device", "cpu", "--progress", "none")
    assert ran.lines[-1] == "2 skipped, 1 failed"


def test_a_foreign_file_in_the_way_is_not_replaced_unasked(avtool: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.events.json").write_text('{"mine": true}')
    ran = avtool("batch", folder, "-o", out)
    assert ran.code == 7 and "not a timeline" in ran.err
    assert (out / "a.events.json").read_text() == '{"mine": true}'
    assert avtool("batch", folder, "-o", out, "--overwrite").lines[-1] == "1 done, 1 skipped, 1 failed"


def test_a_bug_in_one_file_does_not_end_the_night(
    avtool: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import avtool.batch.worker as worker

    real = worker.localize

    def sometimes(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.mp4":
            raise IndexError("a bug")
        return real(path, *arguments, **options)

    monkeypatch.setattr(worker, "localize", sometimes)
    ran = avtool("batch", folder, "-o", tmp_path / "out")
    assert ran.code == 7 and "IndexError: a bug" in ran.err
    assert list(results(tmp_path / "out")) == GOOD[2:]


def test_a_disk_that_fills_up_ends_the_run(
    avtool: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import avtool.batch.worker as worker
    import avtool.cli.batch as batch
    from avtool.errors import OutputError

    def full(*_: object) -> None:
        raise OutputError("cannot write", "no space left on the device")

    calls = []
    monkeypatch.setattr(worker, "write_all", lambda *a: (calls.append(a), full()))
    checks = iter([None])
    monkeypatch.setattr(batch, "check_writable", lambda out: next(checks, None) if not calls else full())
    assert avtool("batch", folder, "-o", tmp_path / "out").code == 6
    assert len(calls) == 1


def test_usage(avtool: Run, folder: Path, tmp_path: Path) -> None:
    assert avtool("batch", folder).code == 2
    assert avtool("batch", folder, "-o", "-").code == 2
    assert avtool("batch", tmp_path / "missing", "-o", tmp_path / "out").code == 3
    assert avtool("batch", folder / "a.mp4", "-o", tmp_path / "out").code == 3
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
    assert avtool("batch", folder, "-o", folder).lines[-1] == "2 skipped, 1 failed"


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


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_again_and_again(clip: Path, repo: Path, tmp_path: Path) -> None:
    """Nothing torn, nothing lost, no temporary left once it is done, and the same results as undisturbed."""
    videos = tmp_path / "videos"
    for i in range(12):
        (videos / str(i % 3)).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, videos / str(i % 3) / f"{i}.mp4")
    env = {**os.environ, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}

    def batch(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", FAKED, "batch", "videos", "-o", out, "--quiet"]
        return subprocess.Popen(command, cwd=tmp_path, env=env)

    assert batch("calm").wait(300) == 0
    done, kills, deadline = 0, 0, time.monotonic() + 300
    while done < 12:
        process = batch("disturbed")
        seen = done
        while process.poll() is None and done < seen + 3:
            time.sleep(0.002 * kills)
            done = len(list((tmp_path / "disturbed").rglob("*.events.json")))
            assert time.monotonic() < deadline
        process.kill()
        process.wait()
        kills += 1
        for path in (tmp_path / "disturbed").rglob("*.events.json"):
            from_json(path.read_bytes())
    assert batch("disturbed").wait(300) == 0
    assert results(tmp_path / "disturbed") == results(tmp_path / "calm")
    assert not list((tmp_path / "disturbed").rglob("*.avtmp"))
