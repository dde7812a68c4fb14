"""From an official checkpoint to a model, and from there to a timeline: two commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avtool.errors import UsageError
from avtool.features.store import save_npz
from avtool.models import zoo
from avtool.models.cacenet import CACENet, CACENetConfig
from avtool.models.release import cace_info, read_cace
from tests.cli.conftest import Run
from tests.features.samples import features

CPU = torch.device("cpu")


def checkpoint(folder: Path, **changes: Any) -> tuple[CACENet, Path]:
    """As the authors save it: float64, under DataParallel's prefix, with weights that nothing uses; small."""
    torch.manual_seed(0)
    network = CACENet(CACENetConfig(visual_width=16, width=16)).eval()
    state = {f"module.{k}": v.double() for k, v in network.state_dict().items()}
    state["module.spatial_channel_att.v_norm2.weight"] = torch.ones(16).double()
    file = folder / "model_epoch_46.pth.tar"
    torch.save({**state, **changes}, file)
    return network, file


def test_import_then_localize(tmp_path: Path, program: Run) -> None:
    network, file = checkpoint(tmp_path)
    ran = program("import-model", file, "-o", tmp_path / "models", "--name", "mine")
    assert ran.code == 0, ran.err
    written = tmp_path / "models" / "mine.safetensors"
    assert ran.out == f"{written}\n" and "vgg19-caffe and vggish" in ran.err
    rng, starts = np.random.default_rng(0), np.arange(13, dtype=np.float64)
    visual, audio = rng.random((13, 7, 7, 512), np.float32), rng.random((13, 128), np.float32)
    given = features(
        13, visual=visual, audio=audio, times=np.stack([starts, starts + 1], 1), visual_encoder="vgg19-caffe",
        audio_encoder="vggish",
    )  # fmt: skip
    save_npz(given, tmp_path / "clip.features.npz")
    found = program("localize", tmp_path / "clip.features.npz", "--model", written, "-o", tmp_path, "-f", "json")
    assert found.code == 0, found.err
    assert len(list(tmp_path.glob("clip*.json"))) == 1
    localizer = zoo.load(str(written), CPU)
    with torch.no_grad():
        expected = network(torch.from_numpy(visual[None, :10]), torch.from_numpy(audio[None, :10])).curve()[0]
    np.testing.assert_allclose(localizer.run(given, 0, 10).curve, expected.numpy(), atol=1e-5)
    assert localizer.info.vocabulary.names[:2] == ("Church bell", "Male speech, man speaking")
    again = program("import-model", file, "-o", tmp_path / "models", "--name", "mine")
    assert again.code == 6 and "exists" in again.err


def test_foreign_checkpoints_are_refused_in_a_sentence(tmp_path: Path, avtool: Run) -> None:
    _, file = checkpoint(tmp_path, extra=torch.zeros(2))
    ran = avtool("import-model", file, "-o", tmp_path)
    assert ran.code == 4 and "extra is not part of CACE-Net" in ran.err and len(ran.lines) <= 3
    (tmp_path / "text.pth").write_text("hello")
    assert avtool("import-model", tmp_path / "text.pth", "-o", tmp_path).code == 4
    assert avtool("import-model", tmp_path / "none.pth", "-o", tmp_path).code == 4
    assert avtool("import-model", file, "-o", tmp_path, "--name", "a/b").code == 2
    _, good = checkpoint(tmp_path)
    assert avtool("import-model", good, "-o", tmp_path, "--guide", "both").code == 2


def test_settings_that_no_checkpoint_tells(tmp_path: Path) -> None:
    _, file = checkpoint(tmp_path)
    network = read_cace(file, guide="audio", psi=0.15, **{"lambda": 0.2})
    assert (network.config.guide, network.config.psi, network.config.lambda_) == ("audio", 0.15, 0.2)
    assert json.loads(str(cace_info(network, "x").settings["config"]))["guide"] == "audio"
    with pytest.raises(UsageError):
        cace_info(CACENet(CACENetConfig(12, 8, 3, visual_width=16, audio_width=8, width=16)), "x")
