"""The demo clip is what its script makes and what its truth says; the short examples run on it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from avtool.models import zoo

LARGEST = 600_000  # bytes
SEEDS = range(10)
RATE, FPS = 32_000, 15
HEAD = 1.0  # seconds of the clip that are made again


@pytest.fixture(scope="session")
def folder(repo: Path) -> Path:
    """The examples."""
    return repo / "examples"


@pytest.fixture(scope="session")
def demo(folder: Path) -> Path:
    """The committed clip."""
    return folder / "demo.mp4"


@pytest.fixture(scope="session")
def script(folder: Path) -> Iterator[ModuleType]:
    """examples/make_demo.py as a module."""
    sys.path.insert(0, str(folder))
    yield importlib.import_module("make_demo")
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def truth(demo: Path) -> dict[str, Any]:
    """What the clip's truth file says."""
    return dict(json.loads(demo.with_suffix(".truth.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def frames(demo: Path) -> npt.NDArray[np.uint8]:
    """Every picture of the committed clip, each third pixel: (n, 90, 160, 3)."""
    with av.open(str(demo)) as file:
        return np.stack([frame.to_ndarray(format="rgb24")[::3, ::3] for frame in file.decode(video=0)])


@pytest.fixture(scope="session")
def samples(demo: Path) -> npt.NDArray[np.float32]:
    """The sound of the committed clip, where its timestamps put it: (n,)."""
    with av.open(str(demo)) as file:
        pieces = [(round(float(f.pts * f.time_base) * f.sample_rate), f.to_ndarray()[0]) for f in file.decode(audio=0)]
    total = np.zeros(max(first + len(piece) for first, piece in pieces), np.float32)
    for first, piece in pieces:
        total[max(0, first) : first + len(piece)] = piece[max(0, -first) :]
    return total


def rows(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """All parts in order."""
    return sorted(truth["events"] + truth["seen_only"] + truth["heard_only"], key=lambda part: float(part["start"]))


def decibels(wave: npt.NDArray[Any]) -> float:
    return float(10 * np.log10(np.mean(wave.astype(float) ** 2) + 1e-12))


# ---------------------------------------------------------------- the committed clip


def test_streams_size_and_duration(demo: Path, truth: dict[str, Any]) -> None:
    assert demo.stat().st_size < LARGEST
    with av.open(str(demo)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert len(file.streams) == 2
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (480, 270, FPS)
        assert audio.rate == RATE
        assert 16 <= truth["duration"] <= 26
        assert float(file.duration or 0) / av.time_base == pytest.approx(truth["duration"], abs=0.1)


def test_truth_has_every_kind(truth: dict[str, Any]) -> None:
    assert len(truth["events"]) >= 2 and truth["seen_only"] and truth["heard_only"]
    for first, second in pairwise(rows(truth)):
        assert first["end"] == second["start"]
    assert rows(truth)[-1]["end"] == truth["duration"]


def test_sound_is_where_the_truth_says(truth: dict[str, Any], samples: npt.NDArray[np.float32]) -> None:
    for part in rows(truth):
        inside = samples[round((part["start"] + 0.3) * RATE) : round((part["end"] - 0.3) * RATE)]
        loudest = max(decibels(piece) for piece in np.array_split(inside, 8))
        assert (loudest > -40) == bool(part["heard"]), part


def test_sound_begins_and_ends_to_the_tenth(truth: dict[str, Any], samples: npt.NDArray[np.float32]) -> None:
    for part in (p for p in rows(truth) if not p["heard"]):
        first, last = round(part["start"] * RATE), round(part["end"] * RATE)
        tenth = RATE // 10
        assert decibels(samples[first + tenth : last - tenth]) < -50
        assert decibels(samples[first - 4 * tenth : first - tenth]) > -45
        assert decibels(samples[last + tenth : last + 4 * tenth]) > -45


def test_picture_changes_only_at_the_cuts(truth: dict[str, Any], frames: npt.NDArray[np.uint8]) -> None:
    small = frames[:, ::2, ::2].astype(np.float32)
    moved = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))
    cuts = [round(part["start"] * FPS) for part in rows(truth)[1:]]
    assert sorted(np.argsort(moved)[-len(cuts) :] + 1) == cuts
    assert len(frames) == round(truth["duration"] * FPS)


# ---------------------------------------------------------------- the script


def test_truth_is_the_scripts(script: ModuleType, demo: Path) -> None:
    assert demo.with_suffix(".truth.json").read_text(encoding="utf-8") == script.script(0)[0].to_json()


def test_committed_pictures_and_sound_are_the_scripts(
    script: ModuleType, frames: npt.NDArray[np.uint8], samples: npt.NDArray[np.float32]
) -> None:
    """The first pictures of every shot and the whole sound, as far as the codecs keep them."""
    truth, shots = script.script(0)
    for shot in shots:
        pictures, first = script.film(0, (shot,)), round(shot.part.start * FPS)
        for k in range(4):
            drawn = next(pictures)[::3, ::3].astype(float)
            assert np.abs(drawn - frames[first + k]).mean() < 5, (shot.part, k)
    made = script.soundtrack(0, truth, shots)
    kept = samples[: len(made)]
    assert np.corrcoef(made[: len(kept)], kept)[0, 1] > 0.97


def test_same_seed_same_clip(script: ModuleType, tmp_path: Path) -> None:
    """Pictures to the byte; sound as it goes into the encoder, whose bit rate control is not repeatable."""

    def made(name: str) -> tuple[list[bytes], bytes]:
        truth, shots = script.script(3)
        path = tmp_path / name
        sound = script.soundtrack(3, truth, shots)[: round(HEAD * RATE)]
        pictures = script.film(3, shots)
        script.write(path, (next(pictures) for _ in range(round(HEAD * FPS))), sound)
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0)], sound.tobytes()

    assert made("a.mp4") == made("b.mp4")


def test_other_seeds_differ_in_picture_sound_and_time(script: ModuleType) -> None:
    scripts = [script.script(seed) for seed in SEEDS]
    assert len({tuple(part.end for part in truth.parts) for truth, _ in scripts}) > len(SEEDS) // 2
    assert len(
        {next(script.film(seed, shots)).tobytes() for seed, (_, shots) in zip(SEEDS, scripts, strict=True)}
    ) == len(SEEDS)
    assert len({script.soundtrack(seed, *scripts[seed])[:RATE].tobytes() for seed in (0, 1, 2)}) == 3
    for truth, _ in scripts:
        assert 16 <= truth.duration <= 21 and len(truth.events) == 2


def test_every_label_is_one_that_the_words_of_the_project_know(script: ModuleType) -> None:
    labels = {label for part in script.script(0)[0].parts for label in (part.seen, part.heard) if label}
    assert labels == {"accordion", "siren", "bird", "clock"}


# ---------------------------------------------------------------- the model


@pytest.fixture(scope="session")
def embedded() -> zoo.ModelInfo:
    """The model that ships with avtool; without it there is nothing to run the examples with."""
    info = zoo.available()[0]
    if not info.weights:
        pytest.skip("no embedded model is installed: weights/ holds no localizer")
    return info


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of two intervals."""
    shared = min(a.end, b["end"]) - max(a.start, b["start"])
    return float(max(0.0, shared) / (max(a.end, b["end"]) - min(a.start, b["start"])))


def run(folder: Path, name: str, *arguments: Any) -> Any:
    """What main() of a short example returns."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(*arguments)


def test_localize_finds_what_is_seen_and_heard(
    embedded: zoo.ModelInfo, folder: Path, truth: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    timeline = run(folder, "localize")
    for part in truth["events"]:
        assert any(e.label == part["seen"] and overlap(e, part) > 0.5 for e in timeline.events), (part, timeline.events)
    right = {part["seen"] for part in truth["events"]}
    assert {event.label for event in timeline.events} == right  # nothing that is only seen or only heard, nothing else
    assert len(capsys.readouterr().out.splitlines()) == len(timeline.events) + 1


def test_moments_of_one_class(embedded: zoo.ModelInfo, folder: Path, truth: dict[str, Any]) -> None:
    events = run(folder, "moments")
    part = next(p for p in truth["events"] if p["seen"] == "siren")
    assert {event.label for event in events} == {"siren"}
    assert overlap(events[0], part) > 0.5


def test_changes_are_the_cuts(embedded: zoo.ModelInfo, folder: Path, truth: dict[str, Any]) -> None:
    found = run(folder, "changes")
    cuts = [part["start"] for part in rows(truth)[1:]]
    assert [min(abs(cut - time) for time in found["picture"]) <= 0.5 for cut in cuts] == [True] * len(cuts)
