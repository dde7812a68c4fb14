"""Features survive the way through a file; anything else that calls itself .npz is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avtool import files
from avtool.errors import InputError, OutputError
from avtool.features.store import FORMAT, Features, load_npz, save_npz
from avtool.timeline import AudioInfo, MediaInfo, Notice, VideoInfo

ROWS = 7
ARRAYS = ("visual", "audio", "visual_tags", "audio_tags", "seen", "heard", "times")


def example(**changes: Any) -> Features:
    rng = np.random.default_rng(0)
    starts = np.arange(ROWS) / 2
    return replace(
        Features(
            visual=rng.standard_normal((ROWS, 5)).astype(np.float32),
            audio=rng.standard_normal((ROWS, 3)).astype(np.float32),
            visual_tags=rng.standard_normal((ROWS, 4)).astype(np.float32),
            audio_tags=None,
            seen=np.arange(ROWS) % 2 == 0,
            heard=np.arange(ROWS) > 2,
            times=np.stack([starts, starts + 0.5], 1),
            visual_encoder="mini",
            audio_encoder="mn04",
            weights={"mini (visual)": "ab" * 32},
            scaling="source size",
            media=MEDIA,
            notices=(Notice("damaged_packets", "3 packets — lost"),),
            lost_seconds=0.25,
        ),
        **changes,
    )


def info(kind: type) -> Any:
    """A record with something in every field."""
    values = {"str": "aac", "int": 2, "float": 25.0, "bool": True}
    return kind(
        **{f: next((v for k, v in values.items() if k in str(t)), None) for f, t in kind.__annotations__.items()}
    )


MEDIA = MediaInfo("a b/ü.mp4", 10, 20, True, True, 3.5, None, info(VideoInfo), info(AudioInfo), 3.5)


def assert_equal(got: Features, expected: Features) -> None:
    for name in ARRAYS:
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    for name in ("visual_encoder", "audio_encoder", "scaling", "media", "notices", "lost_seconds"):
        assert getattr(got, name) == getattr(expected, name), name
    assert dict(got.weights) == dict(expected.weights)


@pytest.mark.parametrize(
    "features",
    [
        example(),
        example(visual=None, visual_tags=None, visual_encoder=""),
        example(visual=np.ones((ROWS, 2, 3, 4), np.float32)),
        example(media=replace(MEDIA, video=None, has_video=False), notices=()),
        example().part(0, 0),
    ],
    ids=["all", "no picture", "maps", "no video", "no rows"],
)
def test_round_trip(tmp_path: Path, features: Features) -> None:
    save_npz(features, tmp_path / "f.npz")
    assert_equal(load_npz(tmp_path / "f.npz"), features)
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]


def test_numpy_alone_can_read_it_without_pickles(tmp_path: Path) -> None:
    save_npz(example(), tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
        assert archive["times"].shape == (ROWS, 2) and archive["visual"].shape == (ROWS, 5)
        assert json.loads(str(archive["about"]))["weights"] == {"mini (visual)": "ab" * 32}


def test_a_part_is_a_view() -> None:
    whole = example()
    part = whole.part(2, 5)
    assert part.rows == 3 and part.audio_tags is None and part.media == whole.media
    assert part.visual is not None and np.shares_memory(part.visual, whole.visual)
    np.testing.assert_array_equal(part.times, whole.times[2:5])


# ---------------------------------------------------------------- refusals


def written(path: Path, about: Any = None, **arrays: Any) -> Path:
    """What save_npz writes, with changes; None takes an array out."""
    whole = example()
    table = {"format": FORMAT, "visual_encoder": "", "audio_encoder": "", "weights": {}, "scaling": ""}
    table |= {"media": asdict(MEDIA), "notices": [], "lost_seconds": 0.0, **(about or {})}
    parts = {name: getattr(whole, name) for name in ARRAYS} | arrays
    np.savez(path, about=np.array(json.dumps(table)), **{k: v for k, v in parts.items() if v is not None})
    return path


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def squeezed(path: Path) -> bytes:
    np.savez_compressed(path, about=np.array("x" * 500))
    return path.read_bytes()


def saved(path: Path) -> bytes:
    return written(path).read_bytes()


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "missing": lambda p: None,
    "a folder": lambda p: p.mkdir(),
    "empty": lambda p: put(p, b""),
    "text": lambda p: put(p, b"not features"),
    "an array": lambda p: put(p, npy(np.zeros((3, 2)))),
    "a pickle": lambda p: put(p, pickle.dumps({"a": 1})),
    "an empty zip": lambda p: zipped(p),
    "another npz": lambda p: np.savez(p, x=np.zeros(3)),
    "cut short": lambda p: put(p, saved(p)[:-200]),
    "damaged inside": lambda p: put(p, (d := saved(p))[:700] + bytes(200) + d[900:]),
    "damaged compression": lambda p: put(p, (d := squeezed(p))[:60] + bytes(40) + d[100:]),
    "about is no json": lambda p: np.savez(p, about=np.array("{")),
    "about is a list": lambda p: np.savez(p, about=np.array("[]")),
    "about is nested too deeply": lambda p: np.savez(p, about=np.array("[" * 100_000)),
    "about is no array": lambda p: zipped(p, about=b"text"),
    "objects": lambda p: np.savez(p, about=np.array({"format": FORMAT}, dtype=object), allow_pickle=True),
    "an array of objects": lambda p: written(p, visual=np.array([{}] * ROWS, dtype=object)),
    "wrong mark": lambda p: written(p, {"format": "avtool features 99"}),
    "no times": lambda p: written(p, times=None),
    "no seen": lambda p: written(p, seen=None),
    "times of one column": lambda p: written(p, times=np.zeros((ROWS, 1))),
    "times not numbers": lambda p: written(p, times=np.full((ROWS, 2), np.nan)),
    "rows differ": lambda p: written(p, audio=np.zeros((ROWS + 1, 3), np.float32)),
    "a single number": lambda p: written(p, audio=np.float32(1)),
    "text for numbers": lambda p: written(p, audio=np.array([["a"]] * ROWS)),
    "whole numbers": lambda p: written(p, audio=np.zeros((ROWS, 3), np.int64)),
    "heard is no bool": lambda p: written(p, heard=np.zeros(ROWS)),
    "three dimensions": lambda p: written(p, visual=np.zeros((ROWS, 3, 3), np.float32)),
    "NaN": lambda p: written(p, visual=np.full((ROWS, 5), np.nan, np.float32)),
    "infinity in class scores": lambda p: written(p, audio_tags=np.full((ROWS, 5), np.inf, np.float32)),
    "media of another kind": lambda p: written(p, {"media": {"path": "x"}}),
    "media is no table": lambda p: written(p, {"media": 3}),
    "media without numbers": lambda p: written(p, {"media": {**asdict(MEDIA), "duration": "long"}}),
    "endless media": lambda p: written(p, {"media": {**asdict(MEDIA), "duration": float("inf")}}),
    "unknown video field": lambda p: written(p, {"media": {**asdict(MEDIA), "video": {"x": 1}}}),
    "weights are no table": lambda p: written(p, {"weights": [1]}),
    "notices of another kind": lambda p: written(p, {"notices": [{"x": 1}]}),
    "lost is no number": lambda p: written(p, {"lost_seconds": "much"}),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_foreign_and_damaged_files_are_refused(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    path = tmp_path / "f.npz"
    make(path)
    with pytest.raises(InputError) as caught:
        load_npz(path)
    assert str(path) in caught.value.what and caught.value.why and "\n" not in caught.value.why


def test_the_untouched_form_of_these_files_is_read(tmp_path: Path) -> None:
    assert load_npz(written(tmp_path / "f.npz")).rows == ROWS


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    data = io.BytesIO()
    np.save(data, np.array([Trap()], dtype=object), allow_pickle=True)
    for make in (data.getvalue(), pickle.dumps(Trap())):
        (tmp_path / "f.npz").write_bytes(make)
        with pytest.raises(InputError):
            load_npz(tmp_path / "f.npz")
    zipped(tmp_path / "f.npz", **{"about.npy": data.getvalue()})
    with pytest.raises(InputError):
        load_npz(tmp_path / "f.npz")
    assert not (tmp_path / "sprung").exists()


# ---------------------------------------------------------------- atomicity


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    save_npz(example(), path)
    before = path.read_bytes()

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(OutputError):
        save_npz(example(lost_seconds=9.0), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["f.npz"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_npz(example(), tmp_path / "file" / "f.npz")
