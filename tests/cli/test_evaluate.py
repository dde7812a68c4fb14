"""avtool evaluate: figures of known predictions, spread over seeds, and words for wrong files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avtool.detect.softnms import detect_on_grid
from avtool.evaluation.map import Segments, mean_ap
from avtool.models.cacenet import CACENet, CACENetConfig
from avtool.models.pyramid import pyramid_levels
from avtool.models.release import write_model
from avtool.models.unav import UnAV, UnAVConfig
from avtool.training.datasets.dense import FEATURES, read_features
from avtool.vocabulary import Vocabulary
from tests.cli.conftest import Run
from tests.models.test_segment_localizer import info


def ave_folder(folder: Path, **features: Any) -> Path:
    """Six clips of three classes as the data set's authors store them; clip 5 repeats clip 0, which is trained on."""
    h5py = pytest.importorskip("h5py", reason="AVE's files are HDF5")
    rows = [
        "bark&a&good&0&4",
        "bell&b&good&2&8",
        "horn&c&good&0&10",
        "bark&d&good&1&3",
        "bell&e&good&5&9",
        "horn&a&good&6&10",
    ]
    (folder / "Annotations.txt").write_text("\n".join(rows) + "\n")
    orders = {"train": [0], "val": [1], "test": [5, 2, 3, 4], "test_match": [0, 1, 3, 4]}
    for name, order in orders.items():
        split, _, match = name.partition("_")
        with h5py.File(folder / f"{split}_order{'_' + match if match else ''}.h5", "w") as file:
            file["order"] = np.array(order)
    for name, array in features.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["avadataset"] = array
    return folder


TRUTH = np.array([[3] * 6 + [2] * 4, [2] * 10, [3, 0, 0] + [3] * 7, [3] * 5 + [1] * 4 + [3]])


def figures(ran: Any) -> dict[str, float]:
    assert ran.code == 0, ran.err
    measures: dict[str, Any] = ran.json()["measures"]
    return {name: value["mean"] for name, value in measures.items()}


def test_known_predictions_give_known_figures_with_spread_and_leaks(tmp_path: Path, avtool: Run) -> None:
    data = ave_folder(tmp_path)
    half = TRUTH.copy()
    half[0] = 3
    np.save(tmp_path / "a.npy", TRUTH)
    np.savez(tmp_path / "b.npz", labels=half, confidence=np.full(TRUTH.shape, 0.9))
    files = [x for name in ("a.npy", "b.npz") for x in ("--predictions", tmp_path / name)]
    ran = avtool("evaluate", "ave", data, *files, "--json")
    report = ran.json()
    assert figures(ran)["segment accuracy"] == pytest.approx((1 + 0.9) / 2)
    assert report["measures"]["segment accuracy"]["std"] == pytest.approx(0.1 / 2**0.5)
    assert report["leaked_clips"] == 1 and report["without_leaked"]["mean"] == 1
    assert report["calibration"] == {"all_background": pytest.approx(0.5), "oracle_class": pytest.approx(0.5)}
    assert report["reliability"]["error"] == pytest.approx(0.0, abs=1e-9)
    text = avtool("evaluate", "ave", data, *files, "-o", tmp_path / "out")
    assert "segment accuracy" in text.out and "95.00" in text.out and "oracle class" in text.out
    assert (tmp_path / "out" / "report.txt").read_text() == text.out
    assert (tmp_path / "out" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_baselines_are_the_calibration_lines(tmp_path: Path, avtool: Run) -> None:
    data = ave_folder(tmp_path)
    for name, expected in (("all-background", 20 / 40), ("oracle-class", 20 / 40)):
        assert figures(avtool("evaluate", "ave", data, "--baseline", name, "--json"))["segment accuracy"] == expected


def test_a_model_runs_on_the_features_of_a_split(tmp_path: Path, avtool: Run, program: Run) -> None:
    rng = np.random.default_rng(0)
    visual, audio = rng.random((6, 10, 2, 2, 12)), rng.random((6, 10, 8))
    data = ave_folder(tmp_path, visual_feature=visual, audio_feature=audio)
    torch.manual_seed(0)
    config = CACENetConfig(12, 8, 3, visual_width=16, audio_width=8, width=16)
    network = CACENet(config).eval()
    file = write_model(info("cace", asdict(config)), network.state_dict(), tmp_path)
    order = [5, 2, 3, 4]
    with torch.no_grad():
        labels = network(*(torch.from_numpy(x[order]).float() for x in (visual, audio))).labels().numpy()
    ran = program("evaluate", "ave", data, "--model", file, "--json")
    assert figures(ran)["segment accuracy"] == pytest.approx((labels == TRUTH).mean())
    assert ran.json()["reliability"]["error"] is not None and sum(ran.json()["reliability"]["counts"]) == 40


def test_wrong_files_are_said(tmp_path: Path, avtool: Run) -> None:
    data = ave_folder(tmp_path)
    np.save(tmp_path / "short.npy", TRUTH[:2])
    np.save(tmp_path / "high.npy", TRUTH + 1)
    (tmp_path / "text.npy").write_text("no")
    for name in ("short", "high", "text", "none"):
        ran = avtool("evaluate", "ave", data, "--predictions", tmp_path / f"{name}.npy")
        assert ran.code == 3 and f"{name}.npy" in ran.err and len(ran.lines) <= 3
    assert avtool("evaluate", "ave", data).code == 2
    assert avtool("evaluate", "ave", data, "--baseline", "luck").code == 2
    assert avtool("evaluate", "ave", tmp_path / "none", "--baseline", "oracle-class").code == 3
    assert avtool("evaluate", "ave", data, "--split", "dev", "--baseline", "oracle-class").code == 3
    assert avtool("evaluate", "ave", data, "--model", "fake").code == 2  # no model of ten-second clips


def test_the_published_lines_of_ave(shared: Path, avtool: Run) -> None:
    pytest.importorskip("h5py")
    ran = avtool("evaluate", "ave", shared / "ave", "--baseline", "oracle-class")
    assert (
        ran.code == 0
        and "17.79" in ran.out
        and "82.21" in ran.out
        and "8 clips are also in the training split" in ran.out
    )


# ---- cross-modality localization ---------------------------------------------------------------------------


def test_embeddings_that_match_hit_and_random_ones_guess(tmp_path: Path, avtool: Run) -> None:
    data = ave_folder(tmp_path)
    x = np.random.default_rng(0).normal(size=(4, 10, 5))
    np.savez(tmp_path / "e.npz", visual=x, audio=x)
    ran = avtool("evaluate", "cml", data, "--embeddings", tmp_path / "e.npz", "--json")
    assert set(figures(ran).values()) == {1.0}
    assert ran.json()["random_start"] == pytest.approx((1 / 7 + 1 / 5 + 1 / 9 + 1 / 7) / 4)
    assert "random start" in avtool("evaluate", "cml", data, "--random", "2").out
    np.savez(tmp_path / "bad.npz", visual=x)
    assert avtool("evaluate", "cml", data, "--embeddings", tmp_path / "bad.npz").code == 3
    assert avtool("evaluate", "cml", data).code == 2
    assert avtool("evaluate", "cml", data, "--random", "1", "--distance", "city").code == 2


# ---- detections --------------------------------------------------------------------------------------------

DATABASE = {
    "v1": {"subset": "test", "annotations": [{"segment": [0, 4], "label": "dog"}, {"segment": [6, 9], "label": "car"}]},
    "v2": {"subset": "train", "annotations": [{"segment": [0, 1], "label": "dog"}]},
}


def test_detections_in_a_file_and_in_a_folder(tmp_path: Path, avtool: Run) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"database": DATABASE}))
    folder = tmp_path / "runs"
    folder.mkdir()
    found = {
        "v1": [{"segment": [0, 4], "label": "dog", "score": 0.9}, {"segment": [6, 7.5], "label": "car", "score": 0.5}]
    }
    (folder / "v1.json").write_text(json.dumps({"results": found}))
    ran = avtool("evaluate", "detections", truth, folder, folder / "v1.json", "--subset", "test", "--json")
    assert ran.code == 0, ran.err
    report = ran.json()
    assert report["average_mAP"]["mean"] == pytest.approx((1 + 5 / 9) / 2) and report["average_mAP"]["std"] == 0
    assert report["mAP"]["0.5"]["mean"] == 1 and report["ap"]["car"] == pytest.approx(5 / 9)
    assert report["recall"]["1"][0]["mean"] == 1
    assert "recall@5x" in avtool("evaluate", "detections", truth, folder, "--subset", "test").out
    assert avtool("evaluate", "detections", truth, folder, "--subset", "dev").code == 2
    assert avtool("evaluate", "detections", truth, truth).code == 3


def test_a_network_on_a_folder_of_published_features(tmp_path: Path, program: Run) -> None:
    truth = tmp_path / "truth.json"
    database = {"v1": {**DATABASE["v1"], "duration": 9.9}}
    truth.write_text(json.dumps({"database": database}))
    rng = np.random.default_rng(0)
    for ending, width in (("rgb", 1024), ("flow", 1024), ("vggish", 128)):
        np.save(tmp_path / f"v1_{ending}.npy", rng.random((28, width), np.float32))
    torch.manual_seed(0)
    config = UnAVConfig(classes=2, width=8, heads=2, levels=2, unimodal_blocks=1, max_length=32, expand=4, prior=0.3)
    network = UnAV(config).eval()
    vocabulary = Vocabulary(("car", "dog"), ("default",) * 2, (0.3,) * 2)
    described = replace(info("unav", asdict(config)), vocabulary=vocabulary, grid=FEATURES["i3d_vggish"].grid)
    file = write_model(described, network.state_dict(), tmp_path)
    ran = program("evaluate", "dense", truth, tmp_path, "--model", file, "--json")
    assert ran.code == 0, ran.err
    visual, audio = (torch.from_numpy(x)[None] for x in read_features(tmp_path, "v1"))
    with torch.no_grad():
        output = network(visual, audio, torch.ones(1, 28, dtype=torch.bool))
    found = detect_on_grid(pyramid_levels(output), FEATURES["i3d_vggish"].grid, 9.9)
    names = np.array(["car", "dog"])
    expected = mean_ap(
        Segments(["v1"] * 2, [0, 6], [4, 9], ["dog", "car"]),
        Segments(["v1"] * len(found), found.starts, found.ends, names[found.labels], found.scores),
    )
    assert ran.json()["average_mAP"]["mean"] == pytest.approx(expected.average) and len(found) > 10


def test_a_folder_of_videos_with_a_table(tmp_path: Path, avtool: Run, clip: Path) -> None:
    """The stand-in for the model finds the flash at 2 s and the tone at 3 s."""
    table = tmp_path / "events.csv"
    table.write_text(f"file,label,start,end\n{clip.name},flash,2.0,2.5\n{clip.name},tone,3.0,3.5\n")
    ran = avtool("evaluate", "clips", tmp_path, table, "--json")
    assert ran.code == 0, ran.err
    report = ran.json()
    assert report["events"] == 2 and report["mAP"]["0.1"]["mean"] == 1 and report["recall"]["1"][0]["mean"] == 1
    table.write_text(f"file,label,start,end\n{clip.name},thunder,2.0,2.5\n")
    ran = avtool("evaluate", "clips", tmp_path, table, "--json")
    assert "does not know thunder" in ran.err and ran.json()["average_mAP"]["mean"] == 0
    assert avtool("evaluate", "clips", tmp_path, tmp_path / "none.csv").code == 3


def test_pictures_of_a_video(tmp_path: Path, avtool: Run, clip: Path) -> None:
    table = tmp_path / "events.csv"
    table.write_text(f"file,label,start,end\n{clip.name},flash,2.0,2.5\n")
    ran = avtool("evaluate", "pictures", clip, "--truth", table, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [str(tmp_path / "out" / "lanes.png")]  # the stand-in has no network to look into
    assert (tmp_path / "out" / "lanes.png").read_bytes().startswith(b"\x89PNG")


def test_cost_names_every_network(avtool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from avtool.models import cost

    small = {"tiny": (lambda: CACENet(CACENetConfig(12, 8, 3, 16, 8, 16)), ((1, 10, 2, 2, 12), (1, 10, 8)))}
    monkeypatch.setattr(cost, "TABLE", small)
    ran = avtool("evaluate", "cost", "--json", "--time")
    assert ran.code == 0
    (row,) = ran.json()["networks"]
    assert row["name"] == "tiny" and row["parameters"] > 0 and row["flops"] > 0 and row["seconds"] >= 0
    assert "multiply-add" in ran.json()["counted"]
