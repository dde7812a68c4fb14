"""Data of the user's own: splits, windows, crops, plans, labelled folders, composed pairs."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_png

from avtool.errors import InputError, UsageError
from avtool.features.store import Features
from avtool.timegrid import Grid
from avtool.timeline import MediaInfo
from avtool.training import sources
from avtool.training.additive import Items
from avtool.training.compose import RATE
from avtool.training.datasets.dense import Dense, TrueEvent, Video
from avtool.training.dense import DenseClip, choose_crop, on_grid, plan
from avtool.training.experiment import check, experiment, explain, read_table
from avtool.training.library import FolderLibrary
from avtool.training.sources import Footage, appended, composed_pairs, footage_dense, footage_items, footage_segments
from tests.synth import wav
from tests.training import small

HALF = Grid()


def test_a_plan_follows_the_durations() -> None:
    """dave.md 2.8: T_max holds 95 % of the clips, a multiple of 2^(L-1); the last level has 6 rows or more."""
    sizes = plan([10.0] * 19 + [100.0], [0.5, 3.0, 3.0, 3.0], HALF)
    assert (sizes.max_length, sizes.levels) == (20, 2) and sizes.covered == 0.95 and sizes.short == 0.25
    assert sizes.ranges.tolist() == [[0, 4], [4, 10000]]
    longer = plan([60.0] * 5, [], Grid(Fraction(24, 25), Fraction(8, 25)))
    assert longer.levels == 6 and longer.max_length == 192 and longer.max_length % 32 == 0
    assert plan([0.5], [], HALF).levels == 1
    with pytest.raises(UsageError, match="no clips"):
        plan([], [], HALF)


def test_the_plan_is_explained() -> None:
    text = "\n".join(explain([10.0] * 4, [0.4, 0.4, 3.0], 2, HALF, pyramid=True))
    assert "4 training clips of 10.0 to 10.0 s, 3 events of 2 classes" in text
    assert "67 % of the events are shorter than two rows: --set data.stride=0.25" in text
    assert "T_max: 20 rows = 10 s" in text and "level 2: every 1 s, ends 2 s to any length away" in text
    assert "window: 20 rows = 10 s" in "\n".join(explain([10.0], [3.0], 2, HALF, pyramid=False))


def test_check_reads_annotations_alone(tmp_path: Path) -> None:
    notes = [{"segment": [1.0, 9.0], "label": "dog"}]
    database = {f"v{k}": {"subset": "train", "duration": 40.0, "annotations": notes} for k in range(3)}
    (tmp_path / "x.json").write_text(json.dumps({"database": database}))
    changes = {"data.path": str(tmp_path / "nowhere"), "data.table": str(tmp_path / "x.json")}
    lines = check(experiment(read_table("loco-unav"), None, changes))
    assert "3 training clips of 40.0 to 40.0 s" in lines[1] and "45 epochs in batches of 16, adamw" in lines[-1]


def test_rows_of_events() -> None:
    segments, labels = on_grid([TrueEvent(0.48, 2.08, 3)], Grid(Fraction(24, 25), Fraction(8, 25)))
    np.testing.assert_allclose(segments, [[0, 5]])
    assert labels.tolist() == [3]


@pytest.mark.parametrize(("rows", "longest"), [(100, 60), (40, 60), (7, 60)])
def test_crops_keep_an_event(rows: int, longest: int) -> None:
    segments = np.array([[2.0, 6.0], [rows - 4.0, rows - 1.0]])
    seen = set()
    for seed in range(60):
        start, stop = choose_crop(rows, longest, segments, np.random.default_rng(seed))
        inside = np.minimum(segments[:, 1], stop) - np.maximum(segments[:, 0], start)
        assert 0 <= start < stop <= rows and (inside / (segments[:, 1] - segments[:, 0])).max() >= 0.5
        seen.add(stop - start)
    assert seen == {longest} if rows > longest else min(seen) >= round(0.9 * rows) and len(seen) > (rows > 20)


def test_splits_of_a_table(tmp_path: Path) -> None:
    data = Dense(("a", "b"), tuple(Video(f"{k}", "", 0.0, (TrueEvent(0, 1, k % 2),)) for k in range(20)))
    table = tmp_path / "t.csv"
    table.write_text("file,label,start,end\n" + "".join(f"{k},a,0,1\n" for k in range(20)))
    drawn = sources.read_splits(table, data, 0.2, 0)
    assert drawn.count("val") == 4 and drawn == sources.read_splits(table, data, 0.2, 0)
    assert [sum(s == "val" and k % 2 == c for k, s in enumerate(drawn)) for c in (0, 1)] == [2, 2]  # of each class
    assert sources.read_splits(table, data, 0.2, 1) != drawn
    table.write_text("file,label,start,end,split\n" + "".join(f"{k},a,0,1,{'Test' if k else ''}\n" for k in range(20)))
    assert sources.read_splits(table, data, 0.2, 0) == ["train"] + ["test"] * 19


def made(rows: int, value: float, silent: bool = False) -> Features:
    times = np.stack([np.arange(rows) * 0.5, np.arange(rows) * 0.5 + 0.5], 1)
    media = MediaInfo("x", 1, 1, not silent, True, rows / 2, None, None, None, rows / 2)
    here = np.ones(rows, bool)
    audio = None if silent else np.full((rows, 2), value, np.float32)
    visual = np.full((rows, 3), value, np.float32)
    return Features(visual, audio, None, None, here, here & (not silent), times, "v", "a", {}, "", media)


@pytest.fixture
def footage() -> Footage:
    events = ((TrueEvent(0, 3, 0), TrueEvent(2, 3, 1)), (TrueEvent(11.0, 11.2, 1),), ())
    clips = tuple(
        DenseClip(f"{k}", 12.0, e, s) for k, (e, s) in enumerate(zip(events, ("train", "train", "val"), strict=True))
    )
    return Footage(
        ("dog", "car"), clips, (made(24, 1.0), made(24, 2.0), made(10, 3.0, silent=True)), HALF, "v", "a", {}
    )


def test_windows_of_ten_seconds(footage: Footage) -> None:
    """A window is of the class that fills most of it; one without events is of none."""
    full = footage_segments(footage, weak=False, standardise=False)
    data = full.segments
    assert data is not None and full.window == 20 and data.classes == ("dog", "car")
    assert data.clip_classes.tolist() == [0, 0, 1] and data.valid.all()  # the last window ends with the video
    assert data.labels[0].tolist() == [0] * 6 + [2] * 14  # the shorter car is background in a window of dogs
    assert data.labels[1].tolist() == [0] * 2 + [2] * 18
    assert data.labels[2].tolist() == [2] * 18 + [1, 2]  # too short for a row's centre: the row it lies in
    weak = footage_segments(footage, weak=True, standardise=False).segments
    assert weak is not None and weak.clip_classes.tolist() == [0, 0, 2, 1, 2]
    assert weak.background_clips.tolist() == [2] and weak.split("train").tolist() == [0, 1, 3]
    assert weak.valid[4].tolist() == [True] * 10 + [False] * 10 and not weak.audio(np.array([4])).any()
    same = footage_segments(footage, weak=False, standardise=True)
    assert same.sides is not None and same.segments is not None
    np.testing.assert_allclose(same.sides[0][0], [4 / 3] * 3, rtol=1e-6)


def test_whole_videos(footage: Footage) -> None:
    source = footage_dense(footage, standardise=False)
    assert source.dense is not None and source.dense.read(0)[0].shape == (24, 3)
    assert source.dense.split("train").tolist() == [0, 1]
    visual, audio, index = footage_items(footage, "train")
    assert index.tolist() == [0, 1] and visual.x.shape == (2, 24, 3) and audio.labels.sum() == 6 + 2 + 1


def test_rows_behind_rows() -> None:
    first, more = np.arange(6, dtype=np.float32).reshape(3, 2), np.full((2, 2), 9, np.float32)
    read = appended(lambda index: first[index], more, 3)
    assert read(np.array([4, 0, 3, 2])).tolist() == [[9, 9], [0, 1], [9, 9], [4, 5]]


# ---- composing -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in (("dog", "alpha"), ("bell", "beta")):
        for k in range(8):
            for kind in ("pictures", "sounds"):
                (tmp_path / kind / label).mkdir(parents=True, exist_ok=True)
            pixels = torch.from_numpy(small.picture(small.COLOURS[name], 24, 32, k)).permute(2, 0, 1)
            (tmp_path / "pictures" / label / f"{k}.png").write_bytes(bytes(encode_png(pixels).numpy()))
            wav(tmp_path / "sounds" / label / f"{k}.wav", small.tone(small.PITCHES[name], 0.2 + k / 10), RATE)
    (tmp_path / "pictures" / "cat").mkdir()
    return tmp_path


def test_a_folder_of_labels(folder: Path, tmp_path: Path) -> None:
    library = FolderLibrary(folder, tmp_path / "work")
    assert library.names == ("bell", "dog") and library.lonely == ("cat",)
    for files in (library.pictures, library.sounds):
        train, val = files("train"), files("val")
        for k in (0, 1):
            assert len(val[k]) == 2 and len(train[k]) == 6 and not set(val[k]) & set(train[k])
            assert all(f.parent.name == library.names[k] for f in (*train[k], *val[k]))
    sounds, pictures = library.backgrounds("train")
    assert sounds and pictures and not set(sounds) & set(library.backgrounds("val")[0])
    made_up = {f: f.read_bytes() for f in (*sounds, *pictures)}
    FolderLibrary(folder, tmp_path / "work").backgrounds("train")
    assert all(f.read_bytes() == data for f, data in made_up.items())
    before = library.identity
    (folder / "pictures" / "dog" / "0.png").write_bytes(b"other")
    assert FolderLibrary(folder, tmp_path / "work").identity != before


def test_folders_that_cannot_be_composed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        FolderLibrary(tmp_path / "nowhere", tmp_path)
    for k in range(6):
        (folder / "sounds" / "dog" / f"{k}.wav").unlink()
    with pytest.raises(InputError, match="has 2 files"):
        FolderLibrary(folder, tmp_path)


def test_composed_pairs_match_or_do_not() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((30, 6, 3)) < 0.15
    items = Items(
        np.zeros((30, 6, 2), np.float32), np.ones((30, 6), bool), labels, np.ones(30, np.float32), np.arange(30)
    )
    pairs, classes = composed_pairs(items, items, 200, rng)
    shared = [bool((labels[i, :, c] & labels[j, :, c]).any()) for (i, j), c in zip(pairs, classes, strict=True)]
    heard = [bool(labels[j, :, c].any()) for (_, j), c in zip(pairs, classes, strict=True)]
    assert shared == heard and 0.7 < np.mean(shared) < 0.95  # matched ones share a row, the others not even the class
