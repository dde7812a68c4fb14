"""docs/training.md, command by command, on made videos, pictures and sounds."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_png

from avtool.cli.app import run
from avtool.training.compose import RATE
from tests.synth import wav
from tests.training import small

LABELS = {"dog": "alpha", "bell": "beta"}  # label -> colour and pitch of tests.training.small


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Ten videos with their table, a new one, and a folder of pictures and sounds."""
    rng, lines = np.random.default_rng(0), ["file,label,start,end"]
    for k in range(10):
        label, start = ("dog", "bell")[k % 2], float(rng.integers(0, 3))
        small.event_clip(tmp_path / "videos" / f"{k}.mp4", LABELS[label], start, start + 3, k)
        lines.append(f"{k}.mp4,{label},{start},{start + 3}")
    (tmp_path / "videos" / "events.csv").write_text("\n".join(lines) + "\n")
    small.event_clip(tmp_path / "new.mp4", LABELS["bell"], 2.0, 5.0, 77)
    for label, name in LABELS.items():
        for kind in ("pictures", "sounds"):
            (tmp_path / "material" / kind / label).mkdir(parents=True)
        for k in range(4):
            picture = torch.from_numpy(small.picture(small.COLOURS[name], 96, 128, k)).permute(2, 0, 1)
            (tmp_path / "material/pictures" / label / f"{k}.png").write_bytes(bytes(encode_png(picture).numpy()))
            wav(tmp_path / "material/sounds" / label / f"{k}.wav", small.tone(small.PITCHES[name], 2.0 + k), RATE)
    return tmp_path


def test_the_tutorial(
    made: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from avtool.training import experiment

    monkeypatch.setattr(experiment, "QUADRUPLES", 2)
    monkeypatch.chdir(made)
    text = (repo / "docs" / "training.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines() if line]
    assert len(commands) == 6
    said = {}
    for line in commands:
        name, *arguments = shlex.split(line)
        assert name == "avtool"
        code = run(arguments)
        out, err = capfd.readouterr()
        assert code == 0, f"{line}\n{err}"
        said[line] = out
    first, *_, evaluated, composed = said.values()
    assert "8 training clips of 6.0 to 6.0 s, 8 events of 2 classes" in first and "every 0.5 s" in first
    assert "models/mine.safetensors" in composed and "mAP" in evaluated
    found = json.loads((made / "timelines" / "new.events.json").read_text())
    (events,) = found["results"].values()
    assert {e["label"] for e in events} == {"bell"}  # heard and seen in a video that was not trained on
    assert any(abs(e["segment"][0] - 2) < 1.1 and abs(e["segment"][1] - 5) < 1.1 for e in events)
    lines = (made / "models" / "garden-loco.metrics.jsonl").read_text().splitlines()
    assert len(lines) == 5 and json.loads(lines[-1])["train/loss"] < json.loads(lines[0])["train/loss"]
