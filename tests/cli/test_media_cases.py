"""Odd, damaged and hostile files through the whole command: verdict, exit code, one clear error, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avtool.media.child import DecodeChild
from tests import synth
from tests.cli.conftest import Ran, Run

TOLERANCE = 0.35  # seconds; a segment lasts 0.5


def everything_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def check_result(ran: Ran, case: synth.Case, out: Path) -> None:
    files = everything_in(out)
    assert len(files) == 2 and files[0].endswith(".events.json") and files[1].endswith(".events.srt")
    text = (out / files[0]).read_text("ascii")
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    codes = {w["code"] for w in data["warnings"]}
    assert case.notices <= codes <= case.notices | case.may
    assert ran.err.count("warning: ") == len(data["warnings"])
    (events,) = data["results"].values()
    if case.flash is None or case.tone is None or not (data["media"]["has_audio"] and data["media"]["has_video"]):
        return
    for label, time in (("flash", case.flash), ("tone", case.tone)):
        found = [e["segment"] for e in events if e["label"] == label]
        assert len(found) == 1 and found[0] == pytest.approx([time, time + synth.LASTS], abs=TOLERANCE), (label, found)


def check_refusal(ran: Ran, out: Path) -> None:
    assert ran.code == 3
    assert len(ran.lines) <= 3 and ran.lines[0].startswith("error: ")
    assert all(line.isprintable() for line in ran.lines)
    assert not out.exists()


@pytest.mark.parametrize("case", synth.CASES, ids=lambda case: case.name)
def test_every_construction_gets_its_verdict(avtool: Run, case: synth.Case, tmp_path: Path) -> None:
    try:
        source = case.make(tmp_path)
    except OSError as error:
        pytest.skip(f"this file system cannot hold it: {error}")
    before = everything_in(tmp_path)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    track = [] if case.audio_track is None else ["--audio-track", str(case.audio_track)]
    ran = avtool("localize", "-o", out, *track, "--", source)
    if case.verdict == "ok":
        assert ran.code == 0, ran.err
        check_result(ran, case, out)
    else:
        check_refusal(ran, out)
    if case.verdict == "partial":
        ran = avtool("localize", "-o", out, *track, "--allow-partial", "--", source)
        assert ran.code == 0, ran.err
        check_result(ran, case, out)
    assert everything_in(tmp_path) == before
    assert synth.CANARY.decode() not in ran.out + ran.err


REFUSED = ["text", "empty", "folder", "fifo", "missing", "noise", "playlist_sibling_mp4", "cut_mp4_index_last", "zeros"]


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_at_once_and_without_torch(program: Run, name: str, tmp_path: Path) -> None:
    source = synth.CASES_BY_NAME[name].make(tmp_path)
    code = (
        "import os, sys; from avtool.cli.app import run;"
        f"code = run(['localize', {os.fspath(source)!r}]);"
        "print(code, 'torch' in sys.modules, sum(os.times()[:4]) < 2)"  # of a processor, with the decoder's process
    )
    assert program(code=code).out == "3 False True\n"


# A decoder's process in which FFmpeg crashes, or leaves, as soon as it is to open `bad.mp4`.
CRASHING = """
import os, signal, sys
import avtool.media.probe as module

def probe(path, *rest):
    if path.endswith("bad.mp4"):
        {crash}
    return real(path, *rest)

real, module.probe = module.probe, probe
from avtool.media.child import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["localize", "extract-features", "info"])
@pytest.mark.parametrize(
    ("crash", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the decoder crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the decoder was killed, most likely because memory ran out"),
        ("os._exit(9)", "the decoder ended without an answer (status 9)"),
    ],
)
def test_a_crash_while_a_file_is_opened_is_its_error_alone(
    avtool: Run, clip: Path, command: str, crash: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(arguments: list[str]) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-c", CRASHING.format(crash=crash), *arguments]
        inherited = [n for n in (int(arguments[0]),) if n >= 0]
        return subprocess.Popen(line, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=inherited)

    monkeypatch.setattr("avtool.media.child._spawn", spawn)
    monkeypatch.setattr("avtool.media.ahead.DecodeChild", DecodeChild)  # one of its own instead of one that is lent
    bad, out = clip.with_name("bad.mp4"), clip.with_name("out")
    os.link(clip, bad)
    ran = avtool(command, bad, clip, *([] if command == "info" else ["-o", out]))
    assert ran.code == 3
    assert ran.lines[:2] == [f"error: {bad} cannot be decoded", f"  why: {why}"]
    if command == "info":
        assert "bad.mp4" not in ran.out and "clip.mp4" in ran.out
    else:
        assert {name.partition(".")[0] for name in everything_in(out)} == {"clip"}


@pytest.mark.parametrize("name", ["-clip.mp4", "--quiet", "concat:a|b.mp4", "12:30:45.mp4", "http:x.mp4"])
def test_relative_names_that_look_like_something_else(
    avtool: Run, clip: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.rename(clip, clip.parent / name)
    monkeypatch.chdir(clip.parent)
    assert avtool("localize", "-o", "out", "--", name).code == 0
    if name == "-clip.mp4":
        assert "./-clip.mp4" in avtool("localize", name).err
