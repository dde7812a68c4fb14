"""The networks as models: written, loaded, run on windows of a long video, down to events."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from avtool.errors import UsageError, WeightsError
from avtool.features.store import Features, save_npz
from avtool.models import zoo
from avtool.models.cacenet import CACENet, CACENetConfig
from avtool.models.ccln import CCLN, CCLNConfig
from avtool.models.loco_segments import LoCoSegments
from avtool.models.pyramid import PyramidLocalizer
from avtool.models.release import write_model
from avtool.models.segment_localizer import SegmentLocalizer
from avtool.models.unav import UnAV, UnAVConfig
from avtool.models.zoo import ModelInfo
from avtool.pipeline import localize
from avtool.timegrid import Grid
from avtool.vocabulary import Vocabulary
from tests.features.samples import features

CPU = torch.device("cpu")
NAMES = ("bark", "bell", "horn")
SEGMENT: dict[str, Any] = {"width": 16, "heads": 2, "unimodal_blocks": 1, "mlp_ratio": 2, "layer_scale": 1.0}
CACE = CACENetConfig(12, 8, 3, visual_width=16, audio_width=8, width=16)
CCLN_SMALL = CCLNConfig(12, 8, 3, visual_width=16, audio_width=8, width=16, heads=2, supervision="weak")
UNAV = UnAVConfig(12, 8, 3, width=16, heads=2, levels=2, unimodal_blocks=1, max_length=16, mlp_ratio=2, expand=8)
MADE: dict[str, tuple[Any, dict[str, Any]]] = {
    "cace": (lambda: CACENet(CACE), asdict(CACE)),
    "ccln": (lambda: CCLN(CCLN_SMALL), asdict(CCLN_SMALL)),
    "loco-segments": (
        lambda: LoCoSegments(12, 8, 3, **SEGMENT), {"visual_dim": 12, "audio_dim": 8, "classes": 3, **SEGMENT},
    ),
    "unav": (lambda: UnAV(UNAV), asdict(UNAV)),
}  # fmt: skip


def info(kind: str, config: dict[str, Any], **settings: Any) -> ModelInfo:
    return ModelInfo(
        name="mine",
        kind=kind,
        vocabulary=Vocabulary(NAMES, ("default",) * 3, (0.3,) * 3),
        visual=("fake",),
        audio=("fake",),
        grid=Grid(Fraction(1), Fraction(1)),
        window=10,
        hop=5,
        settings={"nms": "gaussian", "sigma": 0.4, **settings, "config": json.dumps(config)},
        summary='quotes " and \\ survive',
    )


def saved(kind: str, folder: Path, **settings: Any) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    make, config = MADE[kind]
    network = make().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network, write_model(info(kind, config, **settings), network.state_dict(), folder)


def seconds(rows: int, maps: bool = True, **changes: Any) -> Features:
    """Features on a grid of whole seconds."""
    rng = np.random.default_rng(rows)
    starts = np.arange(rows, dtype=np.float64)
    made = features(
        rows,
        visual=rng.normal(size=(rows, 2, 2, 12) if maps else (rows, 12)).astype(np.float32),
        audio=rng.normal(size=(rows, 8)).astype(np.float32),
        times=np.stack([starts, starts + 1], 1),
        **changes,
    )
    return made


@pytest.mark.parametrize("kind", ["cace", "ccln", "loco-segments"])
def test_a_written_model_says_what_its_network_says(tmp_path: Path, kind: str) -> None:
    network, file = saved(kind, tmp_path)
    localizer = zoo.load(str(file), CPU)
    assert isinstance(localizer, SegmentLocalizer)
    assert localizer.info.vocabulary.names == NAMES and localizer.info.summary == 'quotes " and \\ survive'
    heard = np.arange(25) != 12
    given = seconds(25, heard=heard)
    output = localizer.run(given, 10, 20)
    with torch.no_grad():
        answer = network(*(torch.from_numpy(x[10:20])[None] for x in (given.visual, given.audio)))
    expected = answer.curve()[0].numpy() * heard[10:20, None]
    np.testing.assert_allclose(output.curve, expected, atol=1e-6)
    assert output.curve[2].max() == 0 and 0 < output.curve.max() <= 1 and output.levels is None
    judged = localizer.judge(given.visual[None, 10:20], given.audio[None, 10:20])
    assert np.array_equal(judged.labels, answer.labels().numpy())


def test_unav_is_a_model_too(tmp_path: Path) -> None:
    network, file = saved("unav", tmp_path)
    localizer = zoo.load(str(file), CPU)
    assert isinstance(localizer, PyramidLocalizer)
    given = seconds(25, maps=False)
    output = localizer.run(given, 0, 10)
    with torch.no_grad():
        expected = network(
            *(torch.from_numpy(x[None, :10]) for x in (given.visual, given.audio)), torch.ones(1, 10).bool()
        )
    assert output.levels is not None and [level.stride for level in output.levels] == [1, 2]
    np.testing.assert_allclose(output.levels[0].logits, expected.logits[0][0].numpy(), atol=1e-5)
    with pytest.raises(UsageError, match="visual features"):
        localizer.run(seconds(25), 0, 10)


@pytest.mark.parametrize(("kind", "maps"), [("cace", True), ("ccln", True), ("loco-segments", True), ("unav", False)])
def test_windows_slide_over_a_long_video_down_to_events(tmp_path: Path, kind: str, maps: bool) -> None:
    _, file = saved(kind, tmp_path)
    path = tmp_path / "long.npz"
    save_npz(seconds(37, maps), path)
    timeline = localize(path, model=str(file), min_score=0.05)
    assert timeline.run.model == "mine" and timeline.events
    assert {event.label for event in timeline.events} <= set(NAMES)
    assert all(0 <= event.start < event.end <= 37 for event in timeline.events)
    assert timeline.curves is not None and timeline.curves.values.shape[0] == 37
    again = localize(path, model=str(file), min_score=0.05)
    assert again.events == timeline.events


def test_maps_are_asked_for_where_a_model_reads_maps(tmp_path: Path) -> None:
    _, file = saved("cace", tmp_path, pool="none")
    localizer = zoo.load(str(file), CPU)
    with pytest.raises(UsageError, match="maps"):
        localizer.run(seconds(10, maps=False), 0, 10)
    from avtool.features.encoders.base import Options
    from avtool.session import _as_read

    wanted: list[Options] = []

    def make(device: torch.device, options: Options = Options()) -> Any:  # noqa: B008
        wanted.append(options)

    _as_read({"fake": make}, localizer.info, "pool")["fake"](CPU)
    _as_read({"fake": make}, localizer.info, "protocol")["fake"](CPU)
    assert wanted == [Options(pool="none"), Options()]


def test_a_description_of_another_network_is_refused(tmp_path: Path) -> None:
    _, file = saved("cace", tmp_path)
    toml = file.with_suffix(".toml")
    text = toml.read_text()
    for old, new in (('kind = "cace"', 'kind = "ccln"'), ('\\"psi\\"', '\\"phi\\"'), ('\\"co\\"', '\\"both\\"')):
        assert old in text
        toml.write_text(text.replace(old, new))
        with pytest.raises(WeightsError, match="not the network"):
            zoo.load(str(file), CPU)
