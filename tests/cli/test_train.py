"""avtool train on the command line: what it lists, what it says, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

TINY = [
    "cacenet-ave",
    *(f"--set={key}" for key in ("data.kind=synthetic", "data.pairs=16", "training.epochs=2", "name=mine")),
    *(f"--set=settings.{key}" for key in ("visual_width=16", "audio_width=8", "width=16")),
]


def test_what_there_is(avtool: Run) -> None:
    ran = avtool("train", "--list")
    assert ran.code == 0 and "cacenet-ave" in ran.out and "additive-composed" in ran.out
    rows = avtool("train", "cacenet-ave", "--list")
    assert 'settings.guide="none" settings.contrast=false' in rows.out and "78.26 %" in rows.out
    assert "has no rows" in avtool("train", "loco-folder", "--list").out


def test_check_trains_nothing(avtool: Run, tmp_path: Path) -> None:
    ran = avtool("train", *TINY, "--row", "guide-audio", "--check", "-o", tmp_path / "out")
    assert ran.code == 0 and ran.out.startswith("mine: cace on data of the kind 'synthetic'")
    assert "2 epochs in batches of 64, adam at 0.0007 (steps); the epoch that is kept: val" in ran.out
    assert not (tmp_path / "out").exists()


def test_a_training_for_programs(avtool: Run, tmp_path: Path) -> None:
    ran = avtool("train", *TINY, "--set=training.precision=float32", "--progress", "json", "-o", tmp_path)
    assert ran.code == 0 and ran.out == f"{tmp_path / 'mine.safetensors'}\n"
    records = [json.loads(line) for line in ran.lines]
    assert [r["epoch"] for r in records if "epoch" in r] == [1, 2]
    assert any(r.get("stage") == "train" and r["done"] == r["total"] for r in records)
    assert records[-1]["figures"].keys() >= {"val/accuracy"}
    again = avtool("train", *TINY, "-o", tmp_path)
    assert again.code == 2 and "--overwrite" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "no configuration"),
        (["nothing.toml"], 2, "neither a file"),
        (["cacenet-ave"], 2, "data.path"),
        (["cacenet-ave", "--set", "training.epoch=3"], 2, "did you mean 'epochs'"),
        (["cacenet-ave", "--set", "epochs"], 2, "--set training.epochs=20"),
        (["cacenet-ave", "--row", "guide-n"], 2, "guide-none"),
        (["cacenet-ave", "--set", "data.path=/nowhere"], 3, "Annotations.txt"),
    ],
)
def test_slips(avtool: Run, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    ran = avtool("train", *arguments, *(["-o", str(tmp_path)] if arguments else []))
    assert ran.code == code and said in ran.err and ran.out == ""
