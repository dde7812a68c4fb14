"""Configurations: every shipped one and every published row trains a step; models load; wrong files are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avtool.errors import InputError, UsageError
from avtool.evaluation.cml import random_accuracy
from avtool.models import zoo
from avtool.models.segment_localizer import SegmentLocalizer
from avtool.training import experiment as lab
from avtool.training import sources
from avtool.training.datasets.dense import FEATURES
from avtool.training.dense import DenseTask
from avtool.training.engine import Trainer
from avtool.training.experiment import Experiment, experiment, parse_change, read_table, rows_of, shipped
from avtool.training.towers import TowerTask

CPU = torch.device("cpu")
TINY: dict[str, dict[str, Any]] = {
    "cace": {"visual_width": 16, "audio_width": 8, "width": 16},
    "ccln": {"visual_width": 16, "audio_width": 8, "width": 16, "heads": 2, "layers": 1},
    "loco-segments": {"width": 16, "heads": 2, "unimodal_blocks": 1, "mlp_ratio": 1},
    "towers": {"hidden": 8, "width": 8},
    "loco": {"width": 32, "levels": 3, "unimodal_blocks": 1, "mlp_ratio": 1, "head_depth": 2},
    "unav": {"width": 32, "levels": 3, "unimodal_blocks": 1, "mlp_ratio": 1, "head_depth": 2, "expand": 4},
}
ROWS = [(name, row) for name in shipped() for row in (None, *rows_of(read_table(name)))]


@pytest.fixture(scope="module")
def unav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos with features of both kinds, and their annotations."""
    folder, rng, database = tmp_path_factory.mktemp("unav"), np.random.default_rng(0), {}
    for k, subset in enumerate(("train", "train", "validation", "test")):
        for form in FEATURES.values():
            for side, width in ((form.visual, form.visual_dim), (form.audio, form.audio_dim)):
                for ending in side:
                    x = rng.random((30, width // len(side)), dtype=np.float32)
                    np.save(folder / f"v{k}_{ending}.npy", x)
        notes = [{"segment": [1.0, 4.0], "label": "dog"}, {"segment": [2.0, 3.0 + k], "label": "car"}]
        database[f"v{k}"] = {"subset": subset, "duration": 9.0, "annotations": notes}
    (folder / "unav.json").write_text(json.dumps({"database": database}))
    return folder


def small(name: str, row: str | None, unav: Path) -> Experiment:
    """A configuration with its row, on little data and at a small width; what the row says stays.

    A warm-up would make the rate of the only step 0.
    """
    table = read_table(name)
    network, wanted = table["network"], rows_of(table)[row].changes if row else {}
    changes: dict[str, Any] = {"training.epochs": 1, "training.batch": 4, "training.warm_up": 0}
    changes["training.precision"] = "float32"
    changes |= {f"settings.{key}": value for key, value in TINY[network].items()}
    if network in lab.DENSE_NETWORKS:
        changes |= {"data.kind": "unav", "data.path": str(unav), "data.table": str(unav / "unav.json")}
        changes["settings.max_length"] = 32
    else:
        changes |= {"data.kind": "synthetic", "data.pairs": 8}
    return experiment(table, row, {k: v for k, v in changes.items() if k not in wanted or k == "settings.max_length"})


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name} {row or ''}".strip() for name, row in ROWS])
def test_every_row_trains_a_step(name: str, row: str | None, unav: Path, tmp_path: Path) -> None:
    table = read_table(name)
    if table["network"] in ("additive", "encoder"):
        experiment(table, row)  # no features to step on: see the tests of the tutorial and of tuning
        return
    work = small(name, row, unav)
    source = lab.open_source(work, tmp_path, lambda *_: None)
    assert isinstance(source, sources.Source)
    towers = work.network == "towers" and source.segments is not None
    task = lab.TowerTask(work.settings, source.segments) if towers else lab.make_task(work, source)
    for key, value in (rows_of(table)[row].changes if row else {}).items():
        part, _, inner = key.partition(".")
        held = {"settings": task.settings, "training": vars(work.training), "data": vars(work.data)}[part]
        assert held[inner] == value or inner == "max_length"
    before = {k: v.clone() for k, v in task.network.state_dict().items()}
    outcome = Trainer(task, work.training).run()
    assert np.isfinite(outcome.history[0]["train/loss"])
    assert any(not torch.equal(before[k], v) for k, v in task.network.state_dict().items())


def test_published_rows_are_all_there() -> None:
    """Names of the tables' rows (avel.md 5.7 and 9.3, dave.md 2.9)."""
    rows = {name: set(rows_of(read_table(name))) for name in shipped()}
    cace = {"guide-none", "guide-audio", "guide-visual", "guide-co", "class-head", "guide-audio-contrast"}
    cace |= {f"lambda-0_{n}" for n in (2, 4, 6, 8)} | {"resnet50-cnn14", "resnet50-tuned-cnn14"}
    cace |= {"audio-only", "visual-only", "psi-0", "psi-0_15", "psi-0_3", "psi-0_45", "best-epoch-on-test"}
    assert cace | {f"contrast-weight-{n}" for n in (2, 3, 4, 5)} == rows["cacenet-ave"]
    ccln = {
        "sbi-gated",
        "sbi-ungated",
        "sbi-off",
        "no-fusion-in-gate",
        "no-fee",
        "no-wccl",
        "no-branch",
        "full",
        "weak",
    }
    assert ccln == rows["ccln-ave"]
    loco = {f"{f}-{a}-lcf-{s}" for f in ("i3d", "onepeace") for a in ("none", "adaptive") for s in ("on", "off")}
    loco |= {f"target-{t}" for t in ("diagonal", "smoothed", "fixed-gaussian", "learned-gaussian")}
    loco |= {f"window-{w}" for w in (4, 8, 16, 32, "full")} | {f"heads-{h}" for h in (1, 2, 4, 8, 16)}
    loco |= {"attention-global", "attention-fixed", "attention-adaptive", "base-global", "base-global-lcf"}
    assert loco <= rows["loco-unav"]
    assert rows["loco-ave"] == rows["loco-vggsound"] == {"full", "weak"}
    assert not rows["cacenet-vggsound"]  # figures of AVE say nothing about other data


@pytest.mark.parametrize("name", ["cacenet-ave", "ccln-ave", "loco-ave"])
def test_a_step_at_full_size(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data.kind": "synthetic", "data.pairs": 4, "training.batch": 2, "training.epochs": 1}
    work = experiment(read_table(name), None, changes | {"training.precision": "float32"})
    data = sources.synthetic(sources.SyntheticLaw(28, (2, 1, 1), visual=512, audio=128, positions=49))
    source = lab.Source(data, None, sources.Grid(), 10, ("vgg19-caffe",), ("vggish",))
    outcome = Trainer(lab.make_task(work, source), work.training).run()
    assert np.isfinite(outcome.history[0]["train/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loco-unav", "unav-unav"])
def test_a_dense_step_at_full_size(name: str, unav: Path, tmp_path: Path) -> None:
    """Every published width; T_max is shorter, which no parameter depends on."""
    changes = {"data.path": str(unav), "data.table": str(unav / "unav.json"), "settings.max_length": 32}
    work = experiment(read_table(name), None, changes | {"training.epochs": 1, "training.batch": 2})
    source = lab.open_source(work, tmp_path, lambda *_: None)
    assert isinstance(source, sources.Source)
    task = lab.make_task(work, source)
    assert isinstance(task, DenseTask)
    assert np.isfinite(Trainer(task, work.training).run().history[0]["train/loss"])


SYNTHETIC = {"data.kind": "synthetic", "data.pairs": 16, "training.epochs": 2, "training.precision": "float32"}


def test_a_trained_model_is_what_the_zoo_loads(tmp_path: Path) -> None:
    changes = SYNTHETIC | {f"settings.{key}": value for key, value in TINY["cace"].items()} | {"name": "mine"}
    work, records = experiment(read_table("cacenet-ave"), "guide-audio", changes), []
    result = lab.train(work, tmp_path, CPU, lab.Hooks(epoch=records.append))
    assert result.model == tmp_path / "mine.safetensors"
    localizer = zoo.load(str(result.model), CPU)
    assert isinstance(localizer, SegmentLocalizer) and localizer.info.vocabulary.names[0] == "class 0"
    source = lab.open_source(work, tmp_path, lambda *_: None)
    assert isinstance(source, sources.Source) and source.segments is not None
    data, clips = source.segments, source.segments.split("val")
    judged = localizer.judge(data.visual(clips), data.audio(clips))
    assert (judged.labels == data.labels[clips]).mean() == pytest.approx(result.figures["val/accuracy"])
    lines = (tmp_path / "mine.metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2] == [r["epoch"] for r in records]
    assert (tmp_path / "mine.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.checkpoint*"))
    with pytest.raises(UsageError, match="exists"):
        lab.train(work, tmp_path, CPU)
    again = read_table(tmp_path / "mine.train.toml")  # what was trained can be trained again
    assert experiment(again).settings == work.settings and experiment(again).training == work.training
    lab.train(work, tmp_path, CPU, overwrite=True)


def test_an_unfinished_training_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    changes = SYNTHETIC | {f"settings.{key}": value for key, value in TINY["cace"].items()} | {"name": "mine"}
    work = experiment(read_table("cacenet-ave"), None, changes)

    class Killed(BaseException):
        pass

    def stop(record: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        lab.train(work, tmp_path, CPU, lab.Hooks(epoch=stop))
    other = experiment(read_table("cacenet-ave"), None, changes | {"training.rate": 1e-3})
    with pytest.raises(UsageError, match="another training"):
        lab.train(other, tmp_path, CPU)
    records: list[dict[str, Any]] = []
    lab.train(work, tmp_path, CPU, lab.Hooks(epoch=records.append))
    assert [r["epoch"] for r in records] == [2]


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "dogs.toml"
    file.write_text('base = "loco-folder"\n[data]\npath = "videos"\ntable = "events.csv"\n[training]\nepochs = 7\n')
    work = experiment(read_table(file))
    assert work.name == "dogs" and work.training.epochs == 7 and work.training.optimiser == "adamw"
    assert work.data.path == str(tmp_path / "videos") and work.network == "loco"


def test_changes() -> None:
    assert parse_change("training.rate=1e-3") == ("training.rate", 1e-3)
    assert parse_change("data.path=/some where") == ("data.path", "/some where")
    assert parse_change("settings.fee=false") == ("settings.fee", False)
    assert parse_change('data.visual="mini"') == ("data.visual", "mini")
    assert experiment(read_table("ccln-ave"), "weak").weak


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.epoch": 3}, "training.epoch"),
        ({"data.kind": "kinetics"}, "kinetics"),
        ({"data.pth": "x"}, "data.pth"),
        ({"data.scenes": "many"}, "kind"),
        ({"epochs": 3}, "epochs"),
        ({"network": "resnet"}, "resnet"),
        ({"name": "../up"}, "name"),
        ({"data.stride": 0.0}, "range"),
    ],
)
def test_wrong_settings_are_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        experiment(read_table("cacenet-ave"), None, changes)


def test_wrong_names_and_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no configuration") as caught:
        read_table("cacenet-av")
    assert "cacenet-ave" in caught.value.hint
    with pytest.raises(UsageError, match="no row"):
        experiment(read_table("cacenet-ave"), "guide-nobody")
    with pytest.raises(UsageError, match="sets nothing"):
        parse_change("training.epochs")
    (tmp_path / "x.toml").write_text("a = [")
    with pytest.raises(UsageError, match="TOML"):
        read_table(tmp_path / "x.toml")
    (tmp_path / "y.toml").write_text("netwerk = 'cace'\n")
    with pytest.raises(UsageError, match="netwerk"):
        read_table(tmp_path / "y.toml")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("loco-unav", {"data.kind": "ave"}, "does not read"),
        ("cacenet-ave", {"data.kind": "unav"}, "does not read"),
        ("cacenet-ave", {}, "data.path"),
        ("cacenet-ave", {**SYNTHETIC, "settings.supervision": "weak"}, "weak"),
        ("cacenet-ave", {**SYNTHETIC, "settings.gide": "co"}, "gide"),
        ("ccln-ave", {**SYNTHETIC, "settings.sib": "off"}, "CCLN"),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, InputError), match=said):
        lab.train(experiment(read_table(name), None, changes), tmp_path, CPU)


def test_towers_learn_to_match_seconds(tmp_path: Path) -> None:
    """Far above chance, with embeddings of the test split beside the weights."""
    changes = SYNTHETIC | {"data.pairs": 200, "training.epochs": 12, "settings.hidden": 32}
    work = experiment(read_table("ccln-cml-ave"), None, changes)
    result = lab.train(work, tmp_path, CPU)
    source = lab.open_source(work, tmp_path, lambda *_: None)
    assert isinstance(source, sources.Source) and source.segments is not None
    data, clips = source.segments, source.segments.split("test")
    with np.load(tmp_path / "ccln-cml-ave.test.npz") as arrays:
        visual, audio = arrays["visual"], arrays["audio"]
    events = data.labels[clips] != data.background
    assert visual.shape == audio.shape == (len(clips), 10, 64)
    with pytest.raises(UsageError, match="exists"):  # results are not replaced by themselves
        lab.train(work, tmp_path, CPU)
    assert result.figures["val/cml"] > 2 * random_accuracy(data.labels[data.split("val")] != data.background)
    same = np.flatnonzero(events[0])[:1]  # one second alone gives the same vector: no context enters
    alone = TowerTask(work.settings, data).embed(_loaded(work, data, result.model), clips[:1])[0][0, same]
    np.testing.assert_allclose(alone, visual[0, same], atol=1e-6)


def _loaded(work: Experiment, data: sources.SegmentData, file: Path) -> torch.nn.Module:
    network = TowerTask(work.settings, data).network
    network.load_state_dict(load_file(file))
    return network.eval()
