"""Results appear whole or not at all, under names that cannot collide."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtool import files
from avtool.errors import OutputError, UsageError
from avtool.files import (
    STEM_BYTES,
    LineFile,
    atomic_stream,
    check_writable,
    claim,
    clean_stale,
    clean_temporaries,
    output_names,
    printable,
    process_has_ended,
    process_name,
    scratch_folder,
    short_stem,
    take_away,
    write_atomic,
)


@pytest.fixture(autouse=True)
def _unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def temporary_name(pid: int, machine: str = files._MACHINE) -> str:
    return f".avt-{machine}-{pid:x}-0.avtmp"


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


# ---------------------------------------------------------------- writing


def test_writes_text_as_utf8_without_touching_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.srt"
    write_atomic(path, "é\r\nb\n")
    assert path.read_bytes() == "é\r\nb\n".encode()
    assert names(path.parent) == ["a.srt"]


def test_lone_surrogate_does_not_stop_a_result(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "x\udcffy")
    assert (tmp_path / "a").read_bytes() == b"x?y"


def test_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_file_is_invisible_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_atomic(path, b"old")
    with atomic_stream(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), SystemExit(130)])
def test_any_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.npz"
    write_atomic(path, b"old")
    with pytest.raises(type(error)), atomic_stream(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.npz"]


def test_order_is_write_sync_rename_sync_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def log_sync(descriptor: int) -> None:
        steps.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        sync(descriptor)

    def log_replace(source: str, target: Path) -> None:
        assert Path(source).read_bytes() == b"data", "everything is on the disk before the rename"
        assert Path(source).parent == target.parent, "a rename is atomic only inside one file system"
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", log_sync)
    monkeypatch.setattr(os, "replace", log_replace)
    write_atomic(tmp_path / "a", b"data")
    if os.path.isdir("/proc/self/fd"):
        assert steps == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
@pytest.mark.parametrize("step", ["write", "sync", "rename"])
def test_system_errors_become_output_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str, step: str
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if step == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    if step == "rename":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError) as caught, atomic_stream(path) as file:
        file.write(b"new")
        if step == "write":
            fail()
    assert "a.json" in caught.value.what
    assert why in caught.value.why
    assert "-o DIR" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_file_systems_without_fsync_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, "no sync here")

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"


def test_full_disk(tmp_path: Path) -> None:
    """A file system of 256 KiB: the second result does not fit, the first stays, and the check before a run says so."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = os.name == "posix" and subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system can be mounted only by root on Linux")
    try:
        check_writable(disk)
        write_atomic(disk / "a", b"a" * 200_000)
        with pytest.raises(OutputError, match="cannot write") as caught:
            write_atomic(disk / "b", b"b" * 200_000)
        assert "no space left" in caught.value.why
        with pytest.raises(OutputError):
            write_atomic(disk / "a", b"c" * 200_000)
        assert (disk / "a").read_bytes() == b"a" * 200_000
        assert names(disk) == ["a"]
        write_atomic(disk / "filler", b"f" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        with pytest.raises(OutputError) as caught:
            check_writable(disk / "results")
        assert "no space left" in caught.value.why
        assert names(disk) == ["a", "filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.name != "posix", reason="resource limits exist only on POSIX systems")
def test_file_size_limit(tmp_path: Path) -> None:
    """A write that the system cuts in the middle, for any user: what was there stays."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = (
        "import resource, sys; from pathlib import Path; from avtool.errors import OutputError\n"
        "from avtool.files import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: write_atomic(Path(sys.argv[1]), b'x' * 200_000)\n"
        "except OutputError as error: sys.exit(f'{error.why}|{error.exit_code}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stderr == "the file is too large for this file system|6\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a POSIX matter")
def test_kill_at_random_moments_leaves_old_or_new_and_the_next_run_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    one, two = b"1" * 300_000, b"2" * 300_000
    code = (
        "import sys; from pathlib import Path; from avtool.files import write_atomic\n"
        "path, n = Path(sys.argv[1]), 0\n"
        "while True:\n"
        "    write_atomic(path, b'12'[n % 2:n % 2 + 1] * 300_000); n += 1\n"
        "    print(n, flush=True)\n"
    )
    rng = random.Random(7)
    left_behind = 0
    for _ in range(15):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        assert path.read_bytes() in (one, two)
        left_behind += len(names(tmp_path)) > 1
    assert left_behind, "no kill hit a write: the test shows nothing"
    write_atomic(path, b"end")
    assert names(tmp_path) == ["a.json"]


def test_only_dead_temporaries_are_tidied(tmp_path: Path) -> None:
    elsewhere = "0000" if files._MACHINE != "0000" else "1111"
    dead = dead_pid()
    for name in (temporary_name(dead), temporary_name(os.getppid()), temporary_name(dead, elsewhere), ".avt-x.avtmp"):
        (tmp_path / name).write_bytes(b"")
    assert clean_stale(tmp_path) == 1
    assert names(tmp_path) == sorted([temporary_name(os.getppid()), temporary_name(dead, elsewhere), ".avt-x.avtmp"])
    old = time.time() - files.STALE_SECONDS - 60
    os.utime(tmp_path / temporary_name(dead, elsewhere), (old, old))
    assert clean_stale(tmp_path) == 1
    assert names(tmp_path) == sorted([temporary_name(os.getppid()), ".avt-x.avtmp"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which processes have ended and wait to be asked")
def test_a_process_that_nobody_has_asked_how_it_ended_writes_no_more(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        (tmp_path / temporary_name(process.pid)).write_bytes(b"")
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its number is taken still
        assert clean_stale(tmp_path) == 1


def test_interrupt_removes_what_is_being_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError), atomic_stream(tmp_path / "a") as file:
        file.write(b"half")
        assert len(names(tmp_path)) == 1
        clean_temporaries()
        assert names(tmp_path) == []
    assert names(tmp_path) == []


def test_interrupt_of_a_forked_child_leaves_the_parents_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_stream(tmp_path / "a") as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 999_999_999)
            clean_temporaries()
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_journal_lines(tmp_path: Path) -> None:
    path = tmp_path / "j" / "journal.jsonl"
    for line in ('{"a": 1}', '{"b": 2}\n'):
        journal = LineFile(path)
        journal.add(line)
        journal.close()
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'
    with pytest.raises(OutputError):
        LineFile(tmp_path).add("a folder")


@pytest.mark.skipif(os.name != "posix", reason="limits of resources")
def test_a_journal_line_is_whole_or_not_there(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from avtool.errors import OutputError
from avtool.files import LineFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
journal = LineFile(Path(sys.argv[1]))
journal.add("x" * 59)
try:
    journal.add("y" * 59)
except OutputError:
    journal.add("z" * 39)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "journal")], check=True)
    assert (tmp_path / "journal").read_text() == "x" * 59 + "\n" + "z" * 39 + "\n"


def test_one_of_several_gets_a_claim(tmp_path: Path) -> None:
    path = tmp_path / "claims" / "a"
    assert [claim(path, "first"), claim(path, "second")] == [True, False]
    assert not take_away(path, "second") and path.read_text() == "first"
    assert take_away(path, "first") and not take_away(path, "first")
    assert names(tmp_path / "claims") == []


def test_processes_that_have_ended() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    machine = process_name().partition("-")[0]
    assert not process_has_ended(process_name())
    assert process_has_ended(f"{machine}-{ended.pid:x}")
    assert not process_has_ended(f"ffff{machine}-{ended.pid:x}") and not process_has_ended("nonsense")


def test_scratch_of_dead_processes_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"avtool-stage-{process_name().partition('-')[0]}-{ended.pid:x}"
    left.mkdir()
    (left / "copy.mp4").write_bytes(b"x")
    scratch = scratch_folder("stage")
    assert not left.exists()
    with scratch.writer(scratch.path / "a", 5_000_000_000) as stream:
        stream.write(b"abc")
    assert (scratch.path / "a").stat().st_mtime_ns == 5_000_000_000
    scratch.remove(scratch.path / "a")
    scratch.close()
    assert names(tmp_path) == []


# ---------------------------------------------------------------- before a run


def test_check_writable_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []


def test_check_writable_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(OutputError) as caught:
            check_writable(folder)
        assert "is not a folder" in caught.value.why


def test_folder_without_permission(tmp_path: Path) -> None:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    try:
        for action in (lambda: check_writable(tmp_path), lambda: write_atomic(tmp_path / "a", b"")):
            with pytest.raises(OutputError) as caught:
                action()
            assert caught.value.why == "permission denied"
    finally:
        tmp_path.chmod(0o700)


def test_folder_in_the_way_and_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(OutputError) as caught:
        write_atomic(tmp_path / "a", b"")
    assert "a folder of that name" in caught.value.why
    with pytest.raises(OutputError):
        write_atomic(tmp_path / "b" / "c", b"")
    assert names(tmp_path) == ["a", "b"]


def test_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write_atomic(tmp_path / ("x" * 300), b"")
    assert "too long" in caught.value.why
    assert names(tmp_path) == []


def test_longest_name_the_file_system_takes(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("x" * 255), b"data")
    assert names(tmp_path) == ["x" * 255]


# ---------------------------------------------------------------- names


def test_template_and_dots() -> None:
    plans = output_names([Path("in/my.holiday.2024.mp4"), Path("in/plain")], Path("out"), ["json", "srt"])
    plan = plans[Path("in/my.holiday.2024.mp4")]
    assert plan.folder == Path("out")
    assert plan.files == {
        "json": Path("out/my.holiday.2024.events.json"),
        "srt": Path("out/my.holiday.2024.events.srt"),
    }
    assert plans[Path("in/plain")].files["json"] == Path("out/plain.events.json")


def test_formats_with_an_extension_of_their_own() -> None:
    plans = output_names([Path("a.mp4")], Path(), {"audacity": "audacity.txt", "npz": "npz"}, kind="features")
    assert plans[Path("a.mp4")].files == {
        "audacity": Path("a.features.audacity.txt"),
        "npz": Path("a.features.npz"),
    }


def test_beside_and_mirrored_tree() -> None:
    inputs = [Path("in/a.mp4"), Path("in/sub/a.mp4")]
    beside = output_names(inputs, Path("out"), ["json"], beside=True)
    assert [p.files["json"] for p in beside.values()] == [Path("in/a.events.json"), Path("in/sub/a.events.json")]
    mirrored = output_names(inputs, Path("out"), ["json"], root=Path("in"))
    assert [p.files["json"] for p in mirrored.values()] == [Path("out/a.events.json"), Path("out/sub/a.events.json")]


def test_input_outside_the_root() -> None:
    with pytest.raises(UsageError, match="does not lie in"):
        output_names([Path("in/../b.mp4")], Path("out"), ["json"], root=Path("in"))
    assert output_names([Path("in/..b/c.mp4")], Path("out"), ["json"], root=Path("in"))


@pytest.mark.parametrize(
    ("one", "two"),
    [("a.mp4", "a.mkv"), ("a.mp4", "sub/a.mp4"), ("x/../a.mp4", "a.avi"), ("./sub/a.mp4", "other/a.mp4")],
)
def test_collisions_name_both_inputs(one: str, two: str) -> None:
    with pytest.raises(UsageError) as caught:
        output_names([Path(one), Path(two)], Path("out"), ["json"])
    assert str(Path(one)) in caught.value.what
    assert str(Path(two)) in caught.value.what
    assert "a.events.json" in caught.value.what


@pytest.mark.parametrize(
    ("one", "two"), [("Clip.mp4", "clip.mp4"), ("stra\u00dfe.mp4", "STRASSE.mp4"), ("\u00e9", "e\u0301")]
)
def test_collisions_where_case_is_folded(one: str, two: str) -> None:
    with pytest.raises(UsageError, match="would both write"):
        output_names([Path(one), Path(two)], Path("out"), ["json"], fold_case=True)
    assert len(output_names([Path(one), Path(two)], Path("out"), ["json"], fold_case=False)) == 2


def test_file_system_decides_about_case(tmp_path: Path) -> None:
    (tmp_path / "Folder").mkdir()
    folds = (tmp_path / "fOLDER").exists()
    assert files._folds_case(tmp_path / "Folder" / "not yet there") == folds


def test_same_input_twice_counts_once() -> None:
    assert list(output_names([Path("a.mp4"), Path("a.mp4")], Path("out"), ["json"])) == [Path("a.mp4")]


def test_two_formats_with_one_name() -> None:
    with pytest.raises(UsageError, match=r"formats one and two would both write"):
        output_names([Path("a.mp4")], Path("out"), {"one": "txt", "two": "txt"})


def test_result_never_replaces_an_input() -> None:
    with pytest.raises(UsageError, match="would replace an input"):
        output_names([Path("a.mp4"), Path("a.events.json")], Path(), ["json"])


@pytest.mark.parametrize("stem", ["x" * 250, "é" * 125, "🎬" * 62, "a" + "é" * 124, os.fsdecode(b"\xff" * 250)])
def test_long_stems_are_cut_and_stay_apart(tmp_path: Path, stem: str) -> None:
    other = stem[:-1] + "z"
    plans = output_names([Path(f"{stem}.mp4"), Path(f"{other}.mp4")], tmp_path, ["json", "audacity.txt"])
    stems = {file.name.split(".events.")[0] for plan in plans.values() for file in plan.files.values()}
    assert len(stems) == 2
    for plan in plans.values():
        for file in plan.files.values():
            assert len(os.fsencode(file.name)) <= 255
            write_atomic(file, b"")


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_short_stem_properties(stem: str) -> None:
    short = short_stem(stem)
    assert len(os.fsencode(short)) <= STEM_BYTES
    short.encode("utf-8")  # never cut inside a character
    assert (short == stem) == (len(os.fsencode(stem)) <= STEM_BYTES)


HOSTILE = [
    "with space",
    "new\nline",
    "-dash",
    "tab\t",
    "concat:a|b",
    "%d",
    "\x1b[31mred",
    "\u202eevil",
    "🎬",
    os.fsdecode(b"\xff"),
]


@pytest.mark.parametrize("stem", HOSTILE)
def test_hostile_names_can_be_written(tmp_path: Path, stem: str) -> None:
    (file,) = output_names([Path(f"{stem}.mp4")], tmp_path, ["json"])[Path(f"{stem}.mp4")].files.values()
    write_atomic(file, b"{}")
    assert names(tmp_path) == [f"{stem}.events.json"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.mp4", "plain name.mp4"),
        ("new\nline\r\t", "new\\nline\\r\\t"),
        ("\x1b[31m\x07\x7f\x9b", "\\x1b[31m\\x07\\x7f\\x9b"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("line\u2028break", "line\\u2028break"),
        (os.fsdecode(b"\xff\x80"), "\\xff\\x80"),
        ("\ud800", "\\ud800"),
        ("naïve 日本 👩\u200d👧 🎬", "naïve 日本 👩\u200d👧 🎬"),
    ],
)
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(Path("dir") / name) == os.path.join("dir", shown)


@given(st.text(st.characters()))
def test_printable_can_always_be_printed(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert "\n" not in shown and "\x1b" not in shown
