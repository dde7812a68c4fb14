"""avtool extract-features: one row per segment, readable without avtool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import synth
from tests.cli.conftest import Run


def test_arrays_that_numpy_reads(avtool: Run, clip: Path, tmp_path: Path) -> None:
    ran = avtool("extract-features", clip, "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (0, "")
    assert ran.lines == [
        "device  cpu      model  fake (visual), fake (audio)",
        f"wrote {tmp_path}/out/clip.features.npz      10 rows, 0:05 analysed",
    ]
    with np.load(tmp_path / "out" / "clip.features.npz", allow_pickle=False) as arrays:
        visual, audio, times = arrays["visual"], arrays["audio"], arrays["times"]
    assert visual.shape == (10, 1) and audio.shape == (10, 1) and times.shape == (10, 2)
    assert np.array_equal(times, np.stack([np.arange(10) / 2, np.arange(10) / 2 + 0.5], 1))
    assert visual.argmax() == 4 and audio.argmax() == 6  # the flash at 2 s, the tone at 3 s


def test_one_stream_alone(avtool: Run, tmp_path: Path) -> None:
    source = synth.CASES_BY_NAME["sound_only_mp3"].make(tmp_path)
    ran = avtool("extract-features", source, "-o", tmp_path / "out")
    assert ran.code == 0 and "warning: " in ran.err
    (path,) = (tmp_path / "out").iterdir()
    with np.load(path, allow_pickle=False) as arrays:
        assert "visual" not in arrays and arrays["audio"].argmax() == 6


def test_failures(avtool: Run, clip: Path, tmp_path: Path) -> None:
    assert avtool("extract-features", clip, "-o", "-").code == 2
    assert avtool("extract-features", tmp_path / "missing", clip, "-o", tmp_path / "out").code == 3
    assert (tmp_path / "out" / "clip.features.npz").is_file()
    ran = avtool("extract-features", clip, "-o", tmp_path / "out")
    assert ran.code == 0 and "is there and whole" in ran.err and "wrote" not in ran.err
    assert avtool("extract-features", clip, "-o", tmp_path / "out", "--start", "1").code == 6
    assert avtool("extract-features", clip, "-o", tmp_path / "out", "--overwrite").code == 0
    source = synth.CASES_BY_NAME["cut_mp4_index_first"].make(tmp_path)
    assert avtool("extract-features", source, "-o", tmp_path / "partial").code == 3
    assert not (tmp_path / "partial").exists()


def test_foreign_feature_files_are_refused(avtool: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    (tmp_path / "b.npz").write_text("text")
    ran = avtool("localize", tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "missing.npz")
    assert ran.code == 3 and ran.err.count("error: ") == 3 and ran.out == ""


def test_features_as_input_in_every_form(avtool: Run, clip: Path, tmp_path: Path) -> None:
    """The same events from the video, its .npz and its .h5; other rows than the model's are refused."""
    pytest.importorskip("h5py", reason="h5py, which reads them, is not installed")
    from avtool.features import store

    assert avtool("extract-features", clip, "-o", tmp_path).code == 0
    store.save_h5(store.load(tmp_path / "clip.features.npz"), tmp_path / "same.h5")
    events = []
    for source in (clip, tmp_path / "clip.features.npz", tmp_path / "same.h5"):
        ran = avtool("localize", source, "-o", "-", "-f", "json")
        assert ran.code == 0, ran.err
        (found,) = json.loads(ran.out)["results"].values()
        events.append([(e["segment"], e["label"]) for e in found])
    assert events[0] == events[1] == events[2] and events[0]
    assert avtool("extract-features", clip, "-o", tmp_path, "--layout", "ave").code == 0
    ran = avtool("localize", tmp_path / "clip.features.h5", "-o", "-", "-f", "json")
    assert ran.code == 2 and "other segments" in ran.err
