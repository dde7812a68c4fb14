"""avtool info, models, doctor and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import synth
from tests.cli.conftest import Run


def test_info(avtool: Run, clip: Path, tmp_path: Path) -> None:
    ran = avtool("info", clip)
    assert ran.code == 0 and ran.err == ""
    assert "h264 96x64, 25 pictures/s" in ran.out and "aac" in ran.out and "0:00:05.0" in ran.out
    ran = avtool("info", clip, tmp_path / "missing", "--json")
    assert ran.code == 3 and json.loads(ran.out)["video"]["codec"] == "h264"


def test_info_about_what_is_missing(avtool: Run, tmp_path: Path) -> None:
    source = synth.CASES_BY_NAME["sound_only_mp3"].make(tmp_path)
    assert "video     none" in avtool("info", source).out


def test_info_of_an_address(avtool: Run) -> None:
    ran = avtool("info", "https://example.org/a.mp4")
    assert ran.code == 3 and "address" in ran.lines[0]


def test_models(avtool: Run) -> None:
    ran = avtool("models")
    assert ran.code == 0 and "commercial use" in ran.out.splitlines()[0]
    known = json.loads(avtool("models", "--json").out)
    assert "tags" in [m["name"] for m in known]
    ran = avtool("models", "tags")
    assert ran.code == 0 and "dog bark" in ran.out and "licence" in ran.out
    ran = avtool("models", "tag")
    assert ran.code == 2 and "did you mean 'tags'" in ran.err


def test_doctor_on_a_sound_machine(avtool: Run) -> None:
    ran = avtool("doctor")
    assert ran.code == 0, ran.out
    assert "torch works" in ran.out and "FFmpeg" in ran.out and "BROKEN" not in ran.out


def test_doctor_names_what_is_broken(avtool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from avtool import weights
    from avtool.errors import WeightsError

    def broken() -> list[weights.Check]:
        raise WeightsError("the manifest is damaged")

    monkeypatch.setattr(weights, "verify", broken)
    ran = avtool("doctor")
    assert ran.code == 4 and "BROKEN: WeightsError: the manifest is damaged" in ran.out


def test_weights_list_and_verify(avtool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from avtool import weights

    ran = avtool("weights", "list")
    assert ran.code == 0 and all(name in ran.out for name in weights.manifest())
    assert avtool("weights", "verify").code == 0
    checks = [weights.Check("x", "damaged", None, "cut short")]
    monkeypatch.setattr(weights, "verify", lambda *_: checks)
    ran = avtool("weights", "verify")
    assert ran.code == 4 and "cut short" in ran.err


def test_weights_path_and_import(avtool: Run, tmp_path: Path) -> None:
    import torch

    ran = avtool("weights", "path", "mn04")
    assert ran.code == 4 and "avtool weights import" in ran.err
    assert avtool("weights", "path", "nothing").code == 2
    torch.save({"a": torch.zeros(2)}, tmp_path / "own.pt")
    assert avtool("weights", "import", "own", tmp_path / "own.pt").code == 4
    ran = avtool("weights", "import", "own", tmp_path / "own.pt", "--accept-unpinned", "--weights-dir", tmp_path / "w")
    assert ran.code == 0 and Path(ran.out.strip()).is_file()
    ran = avtool("weights", "path", "own", "--weights-dir", tmp_path / "w")
    assert ran.code == 0 and ran.out.endswith("own.safetensors\n")
