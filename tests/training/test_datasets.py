"""Readers of data sets: AVE's own facts (avel.md 1, 2, 8), and what other sets may do wrong."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avtool.errors import InputError, UsageError
from avtool.training.datasets import ave, dense, vggsound
from avtool.training.datasets.ave import AVE, LABELS_SHA256, labels_digest, read_ave
from avtool.vocabulary import AVE as CLASSES

# ---- AVE ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(shared: Path) -> AVE:
    pytest.importorskip("h5py", reason="AVE's files are HDF5")
    return read_ave(shared / "ave")


def test_labels_are_rebuilt_bit_for_bit(data: AVE) -> None:
    """Opening has already compared them with labels_closs.h5 and mil_labels.h5."""
    assert labels_digest(data.labels) == LABELS_SHA256
    assert data.classes == CLASSES and data.background == 28
    counts = np.bincount(data.clip_classes)
    assert counts.sum() == 4143 and counts[[0, 1, 22, 27]].tolist() == [188, 176, 60, 156]
    lengths = np.bincount(data.events.sum(1))
    assert lengths.tolist() == [1, 0, 214, 220, 217, 196, 200, 139, 111, 95, 2750]


def test_one_row_has_no_event_but_a_class(data: AVE) -> None:
    assert data.rows[26].video == "VWi2ENBuTbw" and not data.events[26].any()
    assert data.weak([26])[0].argmax() == 0 and (data.one_hot([26])[0, :, 28] == 1).all()


@pytest.mark.parametrize(
    ("split", "videos", "share", "full"),
    [("train", 3339, 83.14, 2231), ("val", 402, 81.79, 258), ("test", 402, 82.21, 261)],
)
def test_splits_have_the_published_sizes(data: AVE, split: str, videos: int, share: float, full: int) -> None:
    events = data.events[data.split(split)]
    assert len(events) == videos
    assert round(100 * events.mean(), 2) == share
    assert events.all(1).sum() == full


def test_leaks_are_reported(data: AVE) -> None:
    main, match = data.leaks(), data.leaks(match=True)
    assert main.videos == 4097 and sorted(main.repeated.values()) == [2] * 44 + [3]
    assert {pair: len(ids) for pair, ids in main.between.items()} == {
        ("train", "val"): 10,
        ("train", "test"): 8,
        ("val", "test"): 0,
    }
    assert len(main.affected["test"]) == 8
    sizes = {tuple(s.removesuffix("_match") for s in pair): len(ids) for pair, ids in match.between.items()}
    assert sizes == {("train", "val"): 8, ("train", "test"): 0, ("val", "test"): 1}
    assert len(set(data.split("test_match")) & set(data.split("train"))) == 314


def test_background_clips_are_the_vggish_kind(shared: Path) -> None:
    pytest.importorskip("h5py")
    audio, visual = ave.background_clips(shared / "ave")
    assert audio.shape == (178, 10, 128) and visual is None
    assert audio.min() == 0 and 0.65 < (audio == 0).mean() < 0.66


def small_ave(folder: Path, **changes: Any) -> Path:
    """Three clips with pooled features, as the data set's authors store them."""
    h5py = pytest.importorskip("h5py")
    (folder / "Annotations.txt").write_text("Bark&a&good&2&5\nCat&b&good&0&10\nBark&c&good&0&0\n")
    events = np.zeros((3, 10), np.float32)
    events[0, 2:5] = events[1] = 1
    files = {
        "train_order.h5": ("order", np.array([2, 0])),
        "test_order.h5": ("order", np.array([1])),
        "labels_closs.h5": ("avadataset", events),
        "audio_feature.h5": ("avadataset", np.arange(3 * 10 * 4, dtype=np.float64).reshape(3, 10, 4)),
        "visual_feature.h5": ("dataset", np.ones((3, 10, 2, 2, 5), np.float32)),
    }
    for name, (key, array) in {**files, **changes}.items():
        with h5py.File(folder / name, "w") as file:
            file[key] = array
    return folder


def test_features_are_read_row_by_row_in_the_order_asked_for(tmp_path: Path) -> None:
    data = read_ave(small_ave(tmp_path))
    assert data.split("train").tolist() == [2, 0]
    assert data.audio([2, 0, 2])[:, 0, 0].tolist() == [80, 0, 80]
    assert data.visual([1]).shape == (1, 10, 2, 2, 5)
    with pytest.raises(InputError, match="split 'val'"):
        data.split("val")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels_closs.h5": ("avadataset", np.zeros((3, 10), np.float32))},
        {"test_order.h5": ("order", np.array([0]))},
        {"test_order.h5": ("order", np.array([3]))},
    ],
)
def test_files_that_contradict_the_annotations_are_refused(tmp_path: Path, changes: Any) -> None:
    with pytest.raises(InputError):
        read_ave(small_ave(tmp_path, **changes))


@pytest.mark.parametrize("line", ["Bark&a&good&2", "Bark&a&good&5&2", "Bark&a&good&0&11", "Bark&a&good&x&2"])
def test_a_broken_annotation_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "Annotations.txt").write_text(f"Cat&b&good&0&10\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        read_ave(tmp_path)


def test_missing_and_misshapen_features_are_said(tmp_path: Path) -> None:
    data = read_ave(small_ave(tmp_path, **{"audio_feature.h5": ("avadataset", np.zeros((3, 9, 4)))}))
    with pytest.raises(InputError, match="shape"):
        data.audio([0])
    (tmp_path / "visual_feature.h5").write_bytes(b"no")
    with pytest.raises(InputError, match="HDF5"):
        data.visual([0])
    (tmp_path / "visual_feature.h5").unlink()
    with pytest.raises(InputError, match="visual_feature"):
        data.visual([0])


# ---- UnAV-100 and its like ---------------------------------------------------------------------------------

DATABASE = {
    "v1": {"subset": "Train", "duration": 12.5, "annotations": [{"segment": [1, 4.5], "label": "dog", "label_id": 2}]},
    "v2": {"subset": "test", "duration": 8.0, "annotations": [{"segment": [0, 8], "label": "car", "label_id": 0}]},
    "v3": {"subset": "test", "duration": 3.0},
}


def annotation_file(folder: Path, database: Any) -> Path:
    (folder / "unav.json").write_text(json.dumps({"database": database}))
    return folder / "unav.json"


def test_annotations_keep_their_class_numbers_and_need_no_events(tmp_path: Path) -> None:
    data = dense.read_unav(annotation_file(tmp_path, DATABASE))
    assert data.classes == ("car", "class 1", "dog")
    assert [v.name for v in data.subset("TEST")] == ["v2", "v3"]
    assert data.subset("train")[0].events == (dense.TrueEvent(1.0, 4.5, 2),)
    assert data.subset("test")[1].events == ()


@pytest.mark.parametrize(
    "note",
    [
        {"segment": [4, 1], "label": "a"},
        {"segment": [0, 1]},
        {"segment": [0], "label": "a"},
        {"segment": [0, "x"], "label": "a"},
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, note: Any) -> None:
    with pytest.raises(InputError, match="UnAV"):
        dense.read_unav(annotation_file(tmp_path, {"v": {"annotations": [note]}}))


def test_feature_folders_join_their_streams_and_check_them(tmp_path: Path) -> None:
    for ending, shape in (("rgb", (7, 1024)), ("flow", (6, 1024)), ("vggish", (9, 128))):
        np.save(tmp_path / f"v_{ending}.npy", np.full(shape, 0.5 if ending == "flow" else 1.0, np.float32))
    visual, audio = dense.read_features(tmp_path, "v")
    assert visual.shape == (6, 2048) and audio.shape == (6, 128)
    assert (visual[0, 0], visual[0, 1024]) == (1.0, 0.5)
    np.save(tmp_path / "v_vggish.npy", np.full((9, 128), 200.0))
    with pytest.raises(InputError, match="other features"):
        dense.read_features(tmp_path, "v")
    with pytest.raises(InputError, match="cannot be read"):
        dense.read_features(tmp_path, "v", "onepeace")
    with pytest.raises(UsageError, match="no feature set"):
        dense.read_features(tmp_path, "v", "clip")


def test_published_grids() -> None:
    i3d, onepeace = (dense.FEATURES[k].grid for k in ("i3d_vggish", "onepeace"))
    assert (float(i3d.centre(10)), float(onepeace.centre(10))) == (3.68, 3.0)


def test_a_folder_with_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.mp4").touch()
    table = tmp_path / "events.csv"
    table.write_text("file,label,start,end,note\na.mp4,dog,1,2.5,x\nsub/b.mp4,,,\na.mp4,cat,0,9,\n")
    data = dense.read_folder(tmp_path, table)
    assert data.classes == ("cat", "dog")
    assert [(v.name, len(v.events)) for v in data.videos] == [("a.mp4", 2), ("sub/b.mp4", 0)]
    for text, said in (
        ("file,label,start\n", "no column 'end'"),
        ("file,label,start,end\nnone.mp4,dog,1,2\n", "line 2"),
        ("file,label,start,end\na.mp4,dog,3,2\n", "line 2"),
        ("file,label,start,end\na.mp4,dog,x,2\n", "line 2"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=said):
            dense.read_folder(tmp_path, table)
    table.write_text("file,label,start,end\na.mp4,dog,1,2\n")
    with pytest.raises(UsageError, match="dog"):
        dense.read_folder(tmp_path, table, classes=["cat"])


# ---- VGGSound-AVEL -----------------------------------------------------------------------------------------


def clip_file(folder: Path, **parts: Any) -> Path:
    file = folder / "clip.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in parts.items():
            archive.writestr(f"{name}.pkl", value if isinstance(value, bytes) else pickle.dumps(value))
    return file


PARTS = {
    "audio": np.ones((8, 128)), "visual": np.arange(10 * 3 * 4.0).reshape(10, 3, 2, 2),
    "label": np.array([[1, 1] + [0] * 8]),
}  # fmt: skip


def test_a_clip_is_ten_rows_with_channels_last(tmp_path: Path) -> None:
    clip = vggsound.read_clip(clip_file(tmp_path, **PARTS))
    assert clip.audio.shape == (10, 128) and clip.visual.shape == (10, 2, 2, 3)
    assert clip.visual[0, 0, 1].tolist() == [1, 5, 9]
    assert clip.events.tolist() == [True] * 2 + [False] * 8


class Harm:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def test_pickles_that_hold_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bad in (pickle.dumps(Harm()), b"junk", pickle.dumps([1]), pickle.dumps(np.array([object()]))):
        with pytest.raises(InputError, match="refused"):
            vggsound.read_clip(clip_file(tmp_path, **{**PARTS, "audio": bad}))
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="parts called label"):
        vggsound.read_clip(clip_file(tmp_path, audio=PARTS["audio"], visual=PARTS["visual"]))
    (tmp_path / "no.zip").write_bytes(b"no")
    with pytest.raises(InputError, match="zip"):
        vggsound.read_clip(tmp_path / "no.zip")


def test_arrays_pickled_by_old_numpy_load() -> None:
    stream = io.BytesIO()
    pickle.dump(np.arange(3.0), stream, protocol=2)
    old = stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert vggsound.load_pickled_array(old, "x").tolist() == [0, 1, 2]


def test_the_list_of_clips(tmp_path: Path) -> None:
    table, names = tmp_path / "t.csv", tmp_path / "c.txt"
    table.write_text("category,video_id,split\ndog,v1,train\ncat,v2,test\n")
    names.write_text("dog\ncat\n")
    data = vggsound.read_vggsound(table, names)
    assert data.classes == ("dog", "cat") and data.background == 2
    assert [clip.video for clip in data.split("train")] == ["v1"]
    names.write_text("dog\n")
    with pytest.raises(InputError, match="cat"):
        vggsound.read_vggsound(table, names)
