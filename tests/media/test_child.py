"""The decoding child: it says what in-process decoding says, and nothing it does can harm or outlive its parent."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avtool.errors import InputError, UsageError
from avtool.media import child as child_module
from avtool.media.child import DecodeChild, decode_in_child
from avtool.media.decoding import decode
from avtool.media.request import DecodeReport, DecodeRequest, Limits, Picture, PictureSpec, Sound
from avtool.timegrid import Grid
from tests.synth import Audio, Video, long_film, write

GONE_SECONDS = 30.0  # within which a process that was killed is gone, on a busy machine too
BOTH = DecodeRequest(PictureSpec(), 16_000)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("film") / "a.mp4")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_film(tmp_path_factory.mktemp("film") / "long.mp4", 600, 320, 180)


def pid(child: DecodeChild) -> int:
    assert child._process is not None
    return child._process.pid


def same(a: list[Any], b: list[Any]) -> bool:
    """Whether two decodings gave the same items in the same order."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Picture):
            equal = (x.row, x.time) == (y.row, y.time) and np.array_equal(x.pixels, y.pixels)
        elif isinstance(x, Sound):
            equal = x.start == y.start and np.array_equal(x.samples, y.samples)
        else:
            equal = x == y
        if not equal:
            return False
    return True


@pytest.mark.parametrize(
    "request_",
    [
        BOTH,
        DecodeRequest(PictureSpec(short=48, crop=32), None),
        DecodeRequest(None, 32_000),
        DecodeRequest(PictureSpec(), 8000, Grid(Fraction(1, 7), Fraction(1, 7)), start=Fraction(7, 3), end=Fraction(4)),
    ],
)
def test_the_same_items(film: Path, request_: DecodeRequest) -> None:
    assert same(list(decode_in_child(film, request_)), list(decode(film, request_)))


def test_one_child_for_many_files(film: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "b.mkv", Video(width=200, height=120), Audio())
    with DecodeChild() as child:
        first = pid(child)
        for path in (film, other, film):
            assert same(list(child.decode(path, BOTH)), list(decode(path, BOTH)))
            with pytest.raises(InputError, match=r"gone\.mp4"):
                child.probe(tmp_path / "gone.mp4")
            with pytest.raises(UsageError):
                child.probe(path, audio_track=9)
        assert pid(child) == first


def test_starting_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that never gets ready would hold up whoever waited for it."""

    def never_ready(arguments: list[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(1000)"]
        return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(child_module, "_spawn", never_ready)
    child = DecodeChild(stall_seconds=1000)
    child.start()
    assert _alive(pid(child))
    child.close()


def test_pictures_larger_than_the_ring_and_changing_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write(tmp_path / "a.mkv", Video("ffv1", seconds=2))
    huge = write(tmp_path / "b.mkv", Video("rawvideo", seconds=0.2, width=4096, height=3072))
    with DecodeChild() as child:
        for path in (small, huge, small):
            assert same(list(child.decode(path, BOTH)), list(decode(path, BOTH)))


def test_without_shared_memory(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_shared_memory", lambda: None)
    assert same(list(decode_in_child(film, BOTH)), list(decode(film, BOTH)))


def test_rows_of_one_still_are_sent_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", Video(times=[0, 2.0, 4.9]), Audio())
    got = [item for item in decode_in_child(path, BOTH) if isinstance(item, Picture)]
    assert got[0].pixels is got[1].pixels and got[3].pixels is not got[4].pixels


def test_thousands_of_small_messages(tmp_path: Path) -> None:
    """One still over many rows, silence beside it."""
    path = write(tmp_path / "a.mp4", Video(times=[0, 4.9]), Audio(tone=None))
    request = DecodeRequest(PictureSpec(), 1000, Grid(Fraction(1, 2000), Fraction(1, 2000)))
    got = [item for item in decode_in_child(path, request) if isinstance(item, Picture)]
    assert len(got) > 9000 and [p.row for p in got] == list(range(len(got)))


def test_pictures_stay_as_they_are(long: Path) -> None:
    """More pictures are kept than the shared memory has places."""
    request = DecodeRequest(PictureSpec(), None, end=Fraction(30))
    kept = [item for item in decode_in_child(long, request) if isinstance(item, Picture)]
    assert len(kept) == 60
    assert same(kept, [item for item in decode(long, request) if isinstance(item, Picture)])


def test_lent_pictures_are_right_while_they_are_lent(long: Path, film: Path, tmp_path: Path) -> None:
    """More pictures than places, pictures too large for one, changing sizes, stills; nothing waits for ever."""
    huge = write(tmp_path / "b.mkv", Video("rawvideo", seconds=0.2, width=4096, height=3072))
    still = write(tmp_path / "c.mp4", Video(times=[0, 2.0, 4.9]), Audio())
    request = DecodeRequest(PictureSpec(), 16_000, end=Fraction(30))
    with DecodeChild() as child:
        for path in (long, huge, film, still):
            rows: dict[int, Any] = {}
            for item, other in zip(child.decode(path, request, lend=True), decode(path, request), strict=True):
                if isinstance(item, Picture) and item.pixels is rows.get(item.row - 1):
                    assert isinstance(other, Picture) and item.row == other.row
                else:
                    assert same([item], [other])
                if isinstance(item, Picture):
                    rows = {item.row: item.pixels}


def test_lent_pictures_are_not_copied_and_their_places_are_given_back(long: Path) -> None:
    request = DecodeRequest(PictureSpec(), None, end=Fraction(30))
    with DecodeChild() as child:
        items = [i for i in child.decode(long, request, lend=True) if isinstance(i, Picture)]
        assert child._taken is not None and int(child._taken[0]) == len(items) == 60
        ring = np.frombuffer(child._ring, np.uint8)  # type: ignore[arg-type]
        assert all(np.shares_memory(i.pixels, ring) and not i.pixels.flags.writeable for i in items)


def test_the_child_waits_for_its_parent(long: Path) -> None:
    """It does not run ahead by more than a few megabytes, and waiting is no hang."""
    with DecodeChild(stall_seconds=4.0) as child:
        be_patient(child, 60.0)  # as it starts on a busy machine
        items = child.decode(long, BOTH)
        next(items)
        time.sleep(9)  # longer than the child may be silent while somebody listens
        waiting = _cpu_seconds(pid(child))
        assert sum(isinstance(item, Picture) for item in items) > 1100
        assert waiting < _cpu_seconds(pid(child)) / 2


def be_patient(child: DecodeChild, seconds: float) -> None:
    """Changes how long the parent waits for a sign of life, from now on."""
    child._stall = seconds
    if child._reader is not None:
        child._reader._stall = seconds


def _cpu_seconds(process: int) -> float:
    parts = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def test_leaving_early_ends_the_child_and_the_next_file_gets_a_new_one(long: Path, film: Path) -> None:
    with DecodeChild() as child:
        items = child.decode(long, BOTH)
        next(items)
        first = pid(child)
        items.close()  # type: ignore[attr-defined]
        assert not _alive(first)
        assert same(list(child.decode(film, BOTH)), list(decode(film, BOTH)))


# ---------------------------------------------------------------- deaths


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _gone(process: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not _alive(process):
            return True
        time.sleep(0.05)
    return False


def decode_and(child: DecodeChild, path: Path, harm: Callable[[int], None]) -> InputError:
    """The error after something happens to the child in mid-file."""
    items = child.decode(path, BOTH)
    next(items)
    harm(pid(child))
    with pytest.raises(InputError) as refusal:
        for _ in items:
            pass
    assert "long.mp4" in refusal.value.what and refusal.value.hint
    return refusal.value


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT"), (signal.SIGKILL, "memory")]
)
def test_a_crash_is_an_error_and_the_next_file_works(long: Path, film: Path, number: int, word: str) -> None:
    with DecodeChild() as child:
        assert word in decode_and(child, long, lambda p: os.kill(p, number)).why
        assert same(list(child.decode(film, BOTH)), list(decode(film, BOTH)))


def test_a_child_that_died_between_two_files_is_replaced(film: Path) -> None:
    with DecodeChild() as child:
        for dead_for_sure in (True, False):  # a death may show only when the child is spoken to
            list(child.decode(film, BOTH))
            os.kill(pid(child), signal.SIGKILL)
            assert not dead_for_sure or _gone(pid(child), GONE_SECONDS)
            assert isinstance(list(child.decode(film, BOTH))[-1], DecodeReport)


def test_a_child_whose_death_does_not_show_is_replaced(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DecodeChild() as child:
        list(child.decode(film, BOTH))
        dead = child._process
        assert dead is not None
        os.kill(dead.pid, signal.SIGKILL)
        monkeypatch.setattr(dead, "poll", lambda: None)  # what waitpid says while one of its threads is left
        assert isinstance(list(child.decode(film, BOTH))[-1], DecodeReport)


def test_a_child_that_cannot_run_is_replaced_once(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, started = child_module._spawn, []

    def broken(arguments: list[str]) -> subprocess.Popen[bytes]:
        started.append(spawn([*arguments[:2], "no number"]))
        return started[-1]

    monkeypatch.setattr(child_module, "_spawn", broken)
    with DecodeChild() as child, pytest.raises(InputError) as refusal:
        child.probe(film)
    # one that is found dead before anything is asked of it does not count
    assert "status 1" in refusal.value.why and len(started) in (2, 3)


def test_a_hang_is_an_error(long: Path, film: Path) -> None:
    with DecodeChild() as child:
        process = []

        def stop(number: int) -> None:
            process.append(number)
            os.kill(number, signal.SIGSTOP)
            be_patient(child, 1.0)

        assert "did nothing for 1 s" in decode_and(child, long, stop).why
        assert _gone(process[0], GONE_SECONDS)
        be_patient(child, 60.0)
        assert isinstance(list(child.decode(film, BOTH))[-1], DecodeReport)


def test_a_memory_bomb_is_an_error(tmp_path: Path, film: Path) -> None:
    """A picture just under the limit of pixels, and less memory than it needs."""
    path = tmp_path / "a.y4m"
    path.write_bytes(b"YUV4MPEG2 W9000 H7000 F25:1 Ip C420\nFRAME\n")
    os.truncate(path, 9000 * 7000 * 3 // 2 + 50)
    with DecodeChild(memory_bytes=700 << 20) as child:
        with pytest.raises(InputError):
            list(child.decode(path, BOTH))
        assert isinstance(list(child.decode(film, BOTH))[-1], DecodeReport)
    with DecodeChild() as child:
        items = list(child.decode(path, DecodeRequest(PictureSpec(short=224), None)))
        assert isinstance(items[0], Picture)


def test_the_pixel_limit_holds_in_the_child(film: Path) -> None:
    with DecodeChild() as child, pytest.raises(InputError, match="refused"):
        child.probe(film, Limits(max_pixels=1000))


def test_a_bug_in_the_child_is_told_as_one(film: Path) -> None:
    with DecodeChild() as child:
        with pytest.raises(RuntimeError, match="the decoding process failed"):
            list(child._ask(film, {"do": "decode"}))
        assert isinstance(list(child.decode(film, BOTH))[-1], DecodeReport)


# ---------------------------------------------------------------- parents


def test_interrupts_are_the_parents_to_handle(long: Path) -> None:
    with DecodeChild() as child:
        items = child.decode(long, DecodeRequest(PictureSpec(), 16_000, end=Fraction(60)))
        next(items)
        os.kill(pid(child), signal.SIGINT)
        assert os.getpgid(pid(child)) != os.getpgid(0)
        assert isinstance(list(items)[-1], DecodeReport)


def test_kill_needs_no_lock_and_leaves_nobody(long: Path) -> None:
    child = DecodeChild()
    child.start()
    process = pid(child)
    items = child.decode(long, BOTH)
    next(items)
    child.kill()
    assert _gone(process, GONE_SECONDS)
    with pytest.raises(InputError):
        list(items)
    child.close()


def test_a_forgotten_child_is_ended() -> None:
    child = DecodeChild()
    child.start()
    process = pid(child)
    del child
    gc.collect()
    assert _gone(process, GONE_SECONDS)


PARENT = """
    import os, sys, time
    from avtool.media.child import DecodeChild
    from avtool.media.request import DecodeRequest, PictureSpec
    child = DecodeChild()
    child.start()
    print(child._process.pid, flush=True)
    items = child.decode(sys.argv[1], DecodeRequest(PictureSpec(), 16_000)) if sys.argv[2] == "busy" else None
    while items is not None and next(items, None) is not None:
        pass
    time.sleep(60)
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_no_child_outlives_its_parent(long: Path, repo: Path, state: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(repo)}
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(long), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        time.sleep(1.0)
        assert _alive(process)
        parent.kill()
    assert _gone(process, GONE_SECONDS)


def test_a_hung_child_ends_itself_without_a_parent() -> None:
    """The alarm clock of the kernel rings while nothing is done, whatever the child hangs in."""
    code = "import avtool.media.child as c, time; s = c.Server(1, -1, 0.25); s._patience(s._limit); time.sleep(30)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGALRM and time.monotonic() - start < 25


def test_the_working_folder_is_not_trusted(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "av", "json", "avtool"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the folder was trusted')")
    monkeypatch.chdir(tmp_path)
    assert isinstance(list(decode_in_child(film, BOTH))[-1], DecodeReport)


def test_the_child_is_light() -> None:
    code = "import sys, avtool.media.child, avtool.media.decoding; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "typer", "rich", "ray"} & set(loaded)
    code = "import sys, avtool.media.child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "av" not in loaded, "the parent need not load FFmpeg"


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    yield
    gc.collect()
    left = [p for p in Path("/proc").glob("[0-9]*") if _is_our_child(p)]
    assert not left


def _is_our_child(process: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
        parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
    except OSError:
        return False
    return b"avtool.media.child" in command and parent == str(os.getpid())
