"""avtool localize from the command line to the files, with a stand-in for the model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pysubs2
import pytest

from avtool.timeline import from_json
from tests import synth
from tests.cli.conftest import Run


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_two_files_a_summary_and_nothing_on_standard_output(avtool: Run, clip: Path, tmp_path: Path) -> None:
    ran = avtool("localize", clip, "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (0, "")
    assert names(tmp_path / "out") == ["clip.events.json", "clip.events.srt"]
    assert ran.lines == [
        "device  cpu      model  fake (sha 00000000)",
        f"wrote {tmp_path}/out/clip.events.json, {tmp_path}/out/clip.events.srt      2 events, 0:05 of 0:05 analysed",
    ]


def test_what_the_json_says(avtool: Run, clip: Path, tmp_path: Path) -> None:
    avtool("localize", clip, "-o", tmp_path / "out", "--sigma", "0.7")
    data = json.loads((tmp_path / "out" / "clip.events.json").read_bytes())
    flash, tone = data["results"]["clip"]
    assert (flash["label"], tone["label"]) == ("flash", "tone")
    assert flash["segment"] == pytest.approx([2.0, 2.5], abs=0.3)
    assert tone["segment"] == pytest.approx([3.0, 3.5], abs=0.3)
    assert data["media"]["path"] == "../clip.mp4"
    assert data["media"]["analysed_until"] == pytest.approx(5.0, abs=0.1)
    assert data["run"]["model"] == "fake"
    assert data["run"]["weights"] == {"fake.safetensors": "0" * 64, "fake (visual)": "1" * 64, "fake (audio)": "2" * 64}
    assert data["run"]["encoders"] == {"visual": "fake", "audio": "fake"}
    assert data["run"]["settings"]["sigma"] == 0.7 and data["run"]["settings"]["nms"] == "gaussian"
    assert data["external_data"] == {"used": True, "details": "nothing"}
    assert data["curves"]["rows"] == 10


def test_the_subtitles_say_the_same(avtool: Run, clip: Path, tmp_path: Path) -> None:
    avtool("localize", clip, "-o", tmp_path)
    events = from_json((tmp_path / "clip.events.json").read_bytes()).events
    lines = pysubs2.load(str(tmp_path / "clip.events.srt"))
    assert [(s.start / 1000, s.end / 1000, s.text) for s in lines] == [
        (e.start, e.end, f"{e.label} ({e.score:.2f})") for e in events
    ]


def test_the_same_bytes_every_time(avtool: Run, clip: Path, tmp_path: Path) -> None:
    results = []
    for name in ("one", "two"):
        avtool("localize", clip, "-o", tmp_path / name)
        results.append([(p.name, p.read_bytes()) for p in sorted((tmp_path / name).iterdir())])
    assert results[0] == results[1]


def test_json_on_standard_output_for_other_programs(avtool: Run, clip: Path, tmp_path: Path) -> None:
    before = names(tmp_path)
    ran = avtool("localize", clip, "-o", "-", "-f", "json")
    assert ran.code == 0 and list(ran.json()["results"]) == ["clip"]
    assert names(tmp_path) == before
    assert avtool("localize", clip, "-o", "-").json()["version"] == "avtool timeline 1"
    assert avtool("localize", clip, "-o", "-", "-f", "srt").out.startswith("1\n00:00:0")


def test_standard_output_takes_one_result(avtool: Run, clip: Path) -> None:
    assert avtool("localize", clip, "-o", "-", "-f", "json,srt").code == 2
    assert avtool("localize", clip, clip, "-o", "-", "-f", "srt").code == 2


def test_beside_and_formats(avtool: Run, clip: Path) -> None:
    assert avtool("localize", clip, "--beside", "-f", "srt").code == 0
    assert names(clip.parent) == ["clip.events.srt", "clip.mp4"]


def test_the_current_folder_is_the_default(
    avtool: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert avtool("localize", "../clip.mp4").code == 0
    assert names(tmp_path / "here") == ["clip.events.json", "clip.events.srt"]


def test_existing_results_are_not_replaced_unasked(avtool: Run, clip: Path, tmp_path: Path) -> None:
    result = tmp_path / "clip.events.srt"
    result.write_text("mine")
    ran = avtool("localize", clip, "-o", tmp_path)
    assert ran.code == 6 and "exists already" in ran.err and "--overwrite" in ran.err
    assert result.read_text() == "mine" and not (tmp_path / "clip.events.json").exists()
    assert avtool("localize", clip, "-o", tmp_path, "--overwrite").code == 0
    assert result.read_text() != "mine"


def test_two_inputs_of_one_name_stop_before_any_work(avtool: Run, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    shutil.copy(clip, tmp_path / "b" / "clip.mkv")
    ran = avtool("localize", clip, tmp_path / "b" / "clip.mkv", "-o", tmp_path / "out")
    assert ran.code == 2 and str(clip) in ran.err and str(tmp_path / "b" / "clip.mkv") in ran.err
    assert not (tmp_path / "out").exists()


def test_the_output_folder_is_tested_before_the_model_loads(
    avtool: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avtool.models import zoo

    monkeypatch.setattr(zoo, "load", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    ran = avtool("localize", clip, "-o", tmp_path / "file" / "out")
    assert ran.code == 6 and len(ran.lines) == 3


def test_several_inputs_go_on_after_a_failure(avtool: Run, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video at all, but some text that is long enough")
    out = tmp_path / "out"
    ran = avtool("localize", tmp_path / "bad.mp4", clip, tmp_path / "missing.mp4", "http://x.example/y.mp4", "-o", out)
    assert ran.code == 3
    assert names(out) == ["clip.events.json", "clip.events.srt"]
    assert ran.err.count("error: ") == 3


def test_different_failures_end_as_seven(avtool: Run, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.events.json").touch()
    assert avtool("localize", clip, tmp_path / "missing.mp4", "-o", tmp_path).code == 7


def test_one_input_given_twice_counts_once(avtool: Run, clip: Path, tmp_path: Path) -> None:
    assert avtool("localize", clip, clip, "-o", tmp_path / "out").code == 0


@pytest.mark.parametrize("case", ["picture_only", "sound_only_mp3", "cover_art_mp3", "black_and_silent"])
def test_nothing_can_be_both_heard_and_seen(avtool: Run, case: str, tmp_path: Path) -> None:
    source = synth.CASES_BY_NAME[case].make(tmp_path)
    ran = avtool("localize", source, "-o", tmp_path / "out")
    assert ran.code == 0
    (path,) = (tmp_path / "out").glob("*.json")
    timeline = from_json(path.read_bytes())
    assert timeline.events == () and timeline.media.analysed_until > 0
    assert {w.code for w in timeline.warnings} >= set(synth.CASES_BY_NAME[case].notices)
    assert "0 events" in ran.lines[-1]
    (srt,) = (tmp_path / "out").glob("*.srt")
    assert srt.read_bytes() == b""


def test_why_nothing_was_found(avtool: Run, clip: Path, tmp_path: Path) -> None:
    ran = avtool("localize", clip, "-o", tmp_path, "--classes", "flash and tone")
    assert ran.code == 0
    assert ran.lines[-1].endswith("0 events, 0:05 of 0:05 analysed, 1 heard only, 1 seen only")
    ran = avtool("localize", clip, "-o", tmp_path, "--classes", "flash", "--min-score", "1", "--overwrite")
    assert "0 events" in ran.lines[-1] and "highest score 0." in ran.lines[-1]


def test_the_slider_shows_what_min_score_selects(avtool: Run, clip: Path, tmp_path: Path) -> None:
    avtool("localize", clip, "-o", tmp_path / "all", "--min-score", "0.05", "--classes", "all")
    candidates = from_json((tmp_path / "all" / "clip.events.json").read_bytes()).candidates
    for score in sorted({c.score for c in candidates}):
        avtool(
            "localize", clip, "-o", tmp_path / "x", "--min-score", score_text(score), "--classes", "all", "--overwrite"
        )
        events = from_json((tmp_path / "x" / "clip.events.json").read_bytes()).events
        assert list(events) == [c for c in candidates if c.score >= score]


def score_text(score: float) -> str:
    return f"{score:.4f}"


def test_max_events_keeps_the_strongest(avtool: Run, clip: Path) -> None:
    (event,) = avtool("localize", clip, "-o", "-", "--max-events", "1").json()["results"]["clip"]
    both = avtool("localize", clip, "-o", "-").json()["results"]["clip"]
    assert len(both) == 2 and event["score"] == max(e["score"] for e in both)


def test_a_span_of_the_file(avtool: Run, clip: Path) -> None:
    data = avtool("localize", clip, "-o", "-", "--start", "0:02.6", "--end", "4").json()
    assert [e["label"] for e in data["results"]["clip"]] == ["tone"]
    assert data["results"]["clip"][0]["segment"] == pytest.approx([3.0, 3.5], abs=0.3)
    assert (data["run"]["settings"]["start"], data["run"]["settings"]["end"]) == (2.6, 4.0)
    data = avtool("localize", clip, "-o", "-", "--start", "100").json()
    assert data["results"] == {"clip": []} and [w["code"] for w in data["warnings"]] == ["start_after_end"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--classes", "flsh"], "did you mean 'flash'"),
        (["--visual", "fak"], "did you mean 'fake'"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--min-score", "high"], "--min-score: 'high' is not a number"),
        (["--min-score", "1.5"], "from 0 to 1"),
        (["--formats", "stl"], "did you mean 'srt'"),
        (["--progress", "dots"], "auto, plain, json, none"),
        (["--start", "5", "--end", "4"], "after the start"),
        (["--audio-track", "7"], "no audio track 7"),
        (["--beside", "-o", "x"], "contradict"),
        (["--min-scor", "1"], "--min-score"),
        (["--nms", "soft"], "gaussian"),
        (["--config", "no.toml"], "no.toml"),
    ],
)
def test_wrong_usage_is_two_and_says_what_was_meant(avtool: Run, clip: Path, arguments: list[str], said: str) -> None:
    ran = avtool("localize", clip, *arguments)
    assert ran.code == 2 and said in ran.err
    assert ran.out == "" and len(ran.lines) <= 3


def test_a_device_that_is_not_there_is_no_silent_fallback(
    avtool: Run, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = avtool("localize", clip, "--device", "cuda")
    assert ran.code == 5 and "not available" in ran.lines[0] and len(ran.lines) == 3


def test_settings_from_the_environment_and_a_file(
    avtool: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_text("classes = ['tone']\nmax_events = 5\n")
    monkeypatch.setenv("AVTOOL_MAX_EVENTS", "4")
    data = avtool("localize", clip, "-o", "-", "--config", tmp_path / "a.toml", "--sigma", "0.2").json()
    settings = data["run"]["settings"]
    assert (settings["classes"], settings["max_events"], settings["sigma"]) == (["tone"], 4, 0.2)
    assert [e["label"] for e in data["results"]["clip"]] == ["tone"]


def test_partly_decodable_files(avtool: Run, tmp_path: Path) -> None:
    source = synth.CASES_BY_NAME["cut_mp4_index_first"].make(tmp_path)
    ran = avtool("localize", source, "-o", tmp_path / "out")
    assert ran.code == 3 and len(ran.lines) == 3
    assert "--allow-partial" in ran.lines[-1]
    assert not (tmp_path / "out").exists()
    ran = avtool("localize", source, "-o", tmp_path / "out", "--allow-partial")
    assert ran.code == 0 and "warning: " in ran.err
    (path,) = (tmp_path / "out").glob("*.json")
    assert "lost_span" in {w.code for w in from_json(path.read_bytes()).warnings}


def test_features_as_input_give_the_same_events(avtool: Run, clip: Path, tmp_path: Path) -> None:
    assert avtool("extract-features", clip, "-o", tmp_path).code == 0
    from_features = avtool("localize", tmp_path / "clip.features.npz", "-o", "-").json()
    from_media = avtool("localize", clip, "-o", "-").json()
    assert list(from_features["results"].values()) == list(from_media["results"].values())
    assert from_features["media"] == from_media["media"]


def test_features_need_neither_decoder_nor_encoders(
    avtool: Run, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avtool("extract-features", clip, "-o", tmp_path)
    monkeypatch.setattr("avtool.session.choose_encoder", lambda *_: pytest.fail("an encoder was loaded"))
    monkeypatch.setattr("avtool.media.child.DecodeChild.start", lambda _: pytest.fail("a decoder was started"))
    assert avtool("localize", tmp_path / "clip.features.npz", "-o", "-").code == 0


def test_classes_by_name(avtool: Run, clip: Path) -> None:
    for arguments in (["flash,tone"], ["flash, Tone"], ["flash", "tone"], ["flash,tone", "flash and tone"], ["all"]):
        flags = [word for classes in arguments for word in ("--classes", classes)]
        data = avtool("localize", clip, "-o", "-", *flags).json()
        assert [e["label"] for e in data["results"]["clip"]] == ["flash", "tone"]


def test_quiet_says_errors_only(avtool: Run, clip: Path, tmp_path: Path) -> None:
    ran = avtool("localize", clip, "-o", tmp_path / "a", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert avtool("localize", tmp_path / "missing", "-q").err.startswith("error: ")


def test_progress_for_programs(avtool: Run, clip: Path, tmp_path: Path) -> None:
    ran = avtool("localize", clip, tmp_path / "missing", "-o", tmp_path / "out", "--progress", "json")
    records = [json.loads(line) for line in ran.lines]
    assert any("error" in r and r["exit_code"] == 3 for r in records)
    stages = [r["stage"] for r in records if "stage" in r]
    assert {"features", "localize"} <= set(stages)
    assert records[-1]["events"] == 2 and len(records[-1]["wrote"]) == 2


def test_plain_progress_for_logs(avtool: Run, clip: Path, tmp_path: Path) -> None:
    ran = avtool("localize", clip, "-o", tmp_path / "out", "--progress", "plain")
    assert any("localize 100%  0:05 of 0:05" in line for line in ran.lines)
    assert all("\x1b" not in line and "\r" not in line for line in ran.lines)


def test_hostile_names_reach_no_terminal(avtool: Run, clip: Path, tmp_path: Path) -> None:
    source = tmp_path / "a\x1b[31m\n\u202eb.mp4"
    shutil.copy(clip, source)
    ran = avtool("localize", source, "-o", tmp_path / "out")
    assert ran.code == 0 and "\x1b" not in ran.err and "\u202e" not in ran.err and len(ran.lines) == 2


@pytest.mark.skipif(os.name != "posix", reason="bytes in names")
def test_names_that_are_not_text(avtool: Run, clip: Path, tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(clip, source)
    assert avtool("localize", source, "-o", tmp_path / "out").code == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert json.loads(path.read_bytes())["media"]["path"] == "../caf\udce9.mp4"
