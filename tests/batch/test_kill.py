"""Runs that are killed, interrupted, doubled, or out of space: nothing torn, nothing lost, nothing done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avtool.batch.crew import STILLBORN
from avtool.timeline import from_json
from tests.batch.conftest import (
    SECONDS,
    Start,
    begun_by,
    lines,
    nurseries_of,
    of_session,
    results,
    temporaries,
    wait_until,
    workers_of,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kill -9, /proc")
Videos = Callable[..., Path]
NAMES = [f"{i % 3}/slow-0.05-{i:02}.mp4" for i in range(16)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code; nothing of the run is left."""
    code = process.wait(SECONDS)
    wait_until(lambda: not of_session(process.pid))
    return code


def killed_again_and_again(
    run: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, log: Path, kills: int
) -> None:
    """Kills drivers in the middle; checks what they leave after each, and the end."""
    generator = random.Random(5)
    assert ended(run("calm")) == 0
    log.unlink()
    out, whole = tmp_path / "out", dict[str, int]()
    for kill in range(kills):
        process = run("out")
        goal = len(lines(log, "begin")) + 1 + kill % 3
        wait_until(lambda process=process, goal=goal: process.poll() is not None or len(lines(log, "begin")) >= goal)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        ended(process)
        begun = Counter(lines(log, "begin"))
        for path in out.rglob("*.events.json"):
            from_json(path.read_bytes())
            name = path.relative_to(out).as_posix().replace(".events.json", ".mp4")
            whole.setdefault(name, begun[name])
    assert ended(run("out")) == 0
    assert results(out) == results(tmp_path / "calm")
    assert temporaries(out) == []
    complete, begun = Counter(lines(log, "done")), Counter(lines(log, "begin"))
    assert set(NAMES) - set(complete) <= set(whole)  # ended after its result, before it said so
    assert all(begun[name] == times for name, times in whole.items())
    # a file is written, then said to be done: only one that was in hand at a kill may be begun again
    assert begun.total() <= len(NAMES) + 2 * kills
    assert all(count == 1 for count in complete.values())


def test_drivers_are_killed(videos: Videos, start: Start, tmp_path: Path, log: Path) -> None:
    folder = videos(*NAMES)

    def run(out: str) -> subprocess.Popen[bytes]:
        return start("Stub", folder, "-o", out, "--workers", "2", "--model", log, "-q")

    killed_again_and_again(run, tmp_path, log, 3)


@pytest.mark.parametrize("worker", ["Stub", "Stub, unforked"])
def test_workers_are_killed(videos: Videos, start: Start, tmp_path: Path, log: Path, worker: str) -> None:
    """One death of a file's worker is forgiven, so each worker that is killed costs a retry and nothing else."""
    folder = videos(*NAMES)
    process = start(worker, folder, "-o", "out", "--workers", "2", "--model", log)
    generator, killed = random.Random(3), set[str]()
    while process.poll() is None and len(killed) < 3:
        wait_until(lambda: process.poll() is not None or workers_of(process.pid))
        time.sleep(generator.uniform(0, 0.1))
        begun = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        busy = [(name, int(pid)) for what, name, pid in begun if what == "begin" and name not in killed]
        for name, pid in busy[-1:]:
            if pid in workers_of(process.pid):
                os.kill(pid, signal.SIGKILL)
                killed.add(name)
    assert ended(process) == 0
    assert sorted(results(tmp_path / "out")) == sorted(
        [f"{name[:-4]}.events.{kind}" for name in NAMES for kind in ("json", "srt")] + ["events.csv"]
    )
    assert temporaries(tmp_path / "out") == []


def test_the_origin_of_the_workers_is_killed(videos: Videos, start: Start, tmp_path: Path, log: Path) -> None:
    """Its workers die with it, which is no fault of the files in hand: they are not counted as tried."""
    names = [f"slow-0.3-{i}.mp4" for i in range(8)]
    process = start("Stub", videos(*names), "-o", "out", "--workers", "2", "--model", log)
    for count in (1, 2, 3):
        wait_until(lambda count=count: len(lines(log, "done")) >= count)
        wait_until(lambda: nurseries_of(process.pid))
        before = {*begun_by(log), *workers_of(process.pid)}
        os.kill(nurseries_of(process.pid)[0], signal.SIGKILL)
        wait_until(lambda before=before: begun_by(log) - before)
    assert ended(process) == 0
    journal = [
        json.loads(t) for p in (tmp_path / "out" / ".avtool").glob("journal-*") for t in p.read_text().split("\n") if t
    ]
    assert sorted(entry["name"] for entry in journal) == names
    assert {entry["attempt"] for entry in journal} == {1}
    assert temporaries(tmp_path / "out") == []


def test_the_origin_of_many_workers_is_killed_before_they_are_ready(
    videos: Videos, start: Start, tmp_path: Path, log: Path
) -> None:
    """That counts once, not once for each: a run ends only if none can be started again and again."""
    names = [f"slow-0.05-{i}.mp4" for i in range(4)]
    process, seen = start("Stub", videos(*names), "-o", "out", "--workers", "4", "--model", log), set[int]()
    for _ in range(STILLBORN - 1):
        wait_until(lambda: {*nurseries_of(process.pid)} - seen)
        for fresh in {*nurseries_of(process.pid)} - seen:
            os.kill(fresh, signal.SIGKILL)
            seen.add(fresh)
    assert ended(process) == 0
    assert len(list((tmp_path / "out").glob("*.events.json"))) == len(names)


@pytest.mark.parametrize("worker", ["Stub", "Stub, unforked"])
def test_workers_end_with_their_driver(videos: Videos, start: Start, log: Path, worker: str) -> None:
    process = start(worker, videos("hang-1.mp4", "hang-2.mp4"), "-o", "out", "--workers", "2", "--model", log)
    wait_until(lambda: len(lines(log, "begin")) == 2)
    assert len(workers_of(process.pid)) == 2
    process.kill()
    ended(process)


def test_decoders_end_with_the_driver(videos: Videos, start: Start, tmp_path: Path) -> None:
    process = start("Fake", videos("hang-1.mp4", "b.mp4", "c.mp4"), "-o", "out", "--workers", "1")
    wait_until(lambda: workers_of(process.pid) and of_session(process.pid, "avtool.media.child"))
    process.kill()
    ended(process)


def test_one_ctrl_c_finishes_what_is_in_hand(videos: Videos, start: Start, tmp_path: Path, log: Path) -> None:
    names = [f"slow-0.5-{i}.mp4" for i in range(60)]  # more than can be done before the signal comes
    process = start("Stub", videos(*names), "-o", "out", "--workers", "2", "--model", log)
    wait_until(lambda: len(lines(log, "begin")) == 2)
    process.send_signal(signal.SIGINT)
    assert ended(process) == 130
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert "finishing the files in hand" in said and "not begun" in said
    begun, done = lines(log, "begin"), lines(log, "done")
    assert sorted(begun) == sorted(done) and 2 <= len(done) < len(names)
    assert len(results(tmp_path / "out")) == 2 * len(done) + 1
    summary = json.loads((tmp_path / "out" / ".avtool" / "summary.json").read_text())
    assert (summary["done"], summary["exit_code"]) == (len(done), 130)
    assert temporaries(tmp_path / "out") == []


def test_one_ctrl_c_before_anything_is_begun(videos: Videos, start: Start, tmp_path: Path) -> None:
    process = start("Late", videos("a.mp4"), "-o", "out")
    wait_until(lambda: nurseries_of(process.pid))
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130  # its worker would be ready after a minute
    assert ended(process) == 130 and not results(tmp_path / "out")


def test_two_ctrl_c_stop_at_once(videos: Videos, start: Start, tmp_path: Path, log: Path) -> None:
    process = start("Stub", videos("hang-1.mp4", "hang-2.mp4"), "-o", "out", "--workers", "2", "--model", log)
    wait_until(lambda: len(lines(log, "begin")) == 2)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while b"finishing" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process) == 130
    assert not list(tmp_path.rglob("*.avtmp"))


def test_two_runs_share_the_work(videos: Videos, start: Start, tmp_path: Path, log: Path) -> None:
    folder = videos(*NAMES)
    runs = [start("Stub", folder, "-o", "out", "--workers", "1", "--model", log) for _ in range(2)]
    assert [ended(process) for process in runs] == [0, 0]
    assert Counter(lines(log, "done")) == dict.fromkeys(NAMES, 1)
    assert Counter(lines(log, "begin")) == dict.fromkeys(NAMES, 1)
    assert len(list(tmp_path.glob("out/.avtool/journal-*"))) == 2
    assert temporaries(tmp_path / "out") == []


def test_a_full_disk(videos: Videos, start: Start, tmp_path: Path, log: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        folder = videos(*[f"{i:02}.mp4" for i in range(40)])

        def run() -> subprocess.Popen[bytes]:
            return start("Stub", folder, "-o", "out", "--workers", "2", "--model", log, "-f", "json")

        process = run()
        assert ended(process) == 6
        assert process.stderr is not None
        assert "no space left on the device" in process.stderr.read().decode()
        for path in (out / ".avtool").glob("journal-*"):
            assert all(json.loads(line)["name"] for line in path.read_text().splitlines())
        done = len(lines(log, "done"))
        assert 0 < done < 40 and not list(out.rglob("*.avtmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(out)], check=True)
        assert ended(run()) == 0
        assert Counter(lines(log, "done")) == {f"{i:02}.mp4": 1 for i in range(40)}
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_a_folder_that_becomes_read_only(videos: Videos, start: Start, tmp_path: Path, log: Path) -> None:
    """Read-only for everything opened from then on; a file system with open files cannot be remounted as a whole."""
    out, sealed = tmp_path / "out", tmp_path / "sealed"
    out.mkdir()
    sealed.mkdir()
    if subprocess.run(["mount", "--bind", str(out), str(sealed)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(sealed)], check=True)
        names = [f"0-{i}.mp4" for i in range(4)] + [f"slow-1.0-{i}.mp4" for i in range(6)]
        folder = videos(*names)

        def run() -> subprocess.Popen[bytes]:
            return start("Stub", folder, "-o", "out", "--workers", "2", "--model", log)

        process = run()
        wait_until(lambda: len(lines(log, "done")) >= 3)  # three seconds of work are left
        subprocess.run(["mount", "--bind", str(sealed), str(out)], check=True)
        try:
            assert ended(process) == 6
            assert process.stderr is not None
            assert "read-only" in process.stderr.read().decode()
            for path in (out / ".avtool").glob("journal-*"):
                assert all(json.loads(line)["name"] for line in path.read_text().splitlines())
        finally:
            subprocess.run(["umount", "-l", str(out)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(sealed)], check=True)
    assert ended(run()) == 0
    assert set(lines(log, "done")) == set(names) and temporaries(out) == []


def test_what_a_worker_cannot_write_ends_the_run_if_nobody_could(
    videos: Videos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without a file system to fill up."""
    from avtool.batch import jobs, night
    from avtool.errors import OutputError
    from avtool.settings import Settings
    from tests.batch.test_engines import Ears

    monkeypatch.setattr(jobs, "WORKER", "tests.batch.workers:Stub")
    folder, out = videos("full-1.mp4", "full-2.mp4", "full-3.mp4"), tmp_path / "out"
    asked: list[Any] = []

    def check(place: Path) -> None:
        asked.append(place)
        if len(asked) > 1:
            raise OutputError("cannot write", "no space left on the device")

    monkeypatch.setattr(night, "check_writable", check)
    with pytest.raises(OutputError):
        night.run(night.Night([str(folder)], out, workers=1), Settings(), Ears())
    (journal,) = (out / ".avtool").glob("journal-*")
    assert len(journal.read_text().splitlines()) == 1
    monkeypatch.setattr(night, "check_writable", lambda place: None)
    closed = night.run(night.Night([str(folder)], out, workers=1), Settings(), Ears())
    assert closed.tally.states == {"failed": 3}  # tried again without being asked, since the file was not to blame
