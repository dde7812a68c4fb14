"""Contrastive tuning of an encoder: the loss, the pictures it draws, and a file that `--visual` takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avtool.errors import UsageError, WeightsError
from avtool.extraction import Extractor, Recipe
from avtool.features.encoders import catalog
from avtool.models import zoo
from avtool.settings import Settings
from avtool.training import experiment as lab
from avtool.training.experiment import experiment, read_table
from avtool.training.finetune import Contrast, ContrastConfig, contrast, draw_pictures, trainable
from tests.training import small

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    lines = ["file,label,start,end,split"]
    for k in range(6):
        name = ("alpha", "beta", "gamma")[k % 3]
        small.event_clip(folder / f"{k}.mp4", name, 0.0, 2.0 + k % 2, k, 4.0)
        lines.append(f"{k}.mp4,{name},0,2,{'train' if k < 4 else 'val'}")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_loss_is_infonce() -> None:
    torch.manual_seed(0)
    v, a = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    table = (v @ a.T / 0.2).exp()
    rows = -(table.diag() / table.sum(1)).log().mean()
    columns = -(table.diag() / table.sum(0)).log().mean()
    torch.testing.assert_close(contrast(v, a, 0.2, one_sided=True), rows)
    torch.testing.assert_close(contrast(v, a, 0.2), (rows + columns) / 2)
    torch.testing.assert_close(contrast(a, v, 0.2), contrast(v, a, 0.2))


def test_pictures_are_drawn_anew_in_every_part(videos: Path) -> None:
    eye = catalog.VISUAL["mini"](CPU)
    draws = [draw_pictures(videos / "0.mp4", 4.0, eye, 4, np.random.default_rng(s)).astype(int) for s in range(4)]
    assert draws[0].shape == (4, 128, 171, 3)
    for first, last in ((0, 0), (3, 1)):  # red up to 2 s, green from then on
        assert all(d[first, :, :, last].mean() > 2 * d[first, :, :, 1 - last].mean() for d in draws)
    moments = [draw_pictures(videos / "0.mp4", 4.0, eye, 1, np.random.default_rng(s)) for s in range(8)]
    anywhere = {int(m[0, 0, 0].argmax()) for m in moments}
    assert anywhere == {0, 1}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_sides_learn(checkpointing: bool) -> None:
    torch.manual_seed(0)
    config = ContrastConfig(checkpointing=checkpointing)
    network = Contrast(trainable("mini"), 5, config).train()
    pictures = torch.randint(0, 255, (2, 3, 32, 32, 3), dtype=torch.uint8)
    visual, audio = network(pictures, torch.randn(2, 5))
    assert visual.shape == audio.shape == (2, 128)
    torch.testing.assert_close(visual.norm(dim=1), torch.ones(2))
    contrast(visual, audio, 0.2).backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"visual.weight", "audio.weight", "encoder.network.stem.0.weight"} <= moved


def test_a_tuned_encoder_is_a_file_that_visual_takes(videos: Path, tmp_path: Path) -> None:
    own = {"data.path": str(videos), "data.table": str(videos / "events.csv"), "data.audio": "mini", "name": "tuned"}
    own |= {"data.visual": "mini", "settings.frames": 3, "training.batch": 2, "training.epochs": 2}
    work = experiment(read_table("encoder-folder"), None, own)

    class Killed(BaseException):
        pass

    def stop(_: object) -> None:
        raise Killed

    with pytest.raises(Killed):  # after the first epoch
        lab.train(work, tmp_path, CPU, lab.Hooks(epoch=stop))
    records: list[dict[str, float]] = []
    result = lab.train(work, tmp_path, CPU, lab.Hooks(epoch=records.append))
    assert [r["epoch"] for r in records] == [2] and 0 <= result.figures["val/recall"] <= 1

    found = {}
    for visual in ("mini", str(result.model)):
        with Extractor(Settings(visual=visual, audio="mini"), Recipe()) as tool:
            found[tool.visual.name] = tool.features(videos / "0.mp4", lambda *_: None)
    assert set(found) == {"mini", "tuned"} and found["tuned"].visual_encoder == "tuned"
    assert not np.allclose(found["mini"].visual, found["tuned"].visual)
    np.testing.assert_array_equal(found["mini"].audio, found["tuned"].audio)

    changes = {key: own[key] for key in ("data.path", "data.table", "data.audio")}
    mine = experiment(read_table("additive-folder"), None, changes | {"data.visual": str(result.model)})
    model = lab.train(mine, tmp_path, CPU).model
    assert zoo.load(str(model), CPU).info.visual == ("tuned",)


def test_what_cannot_be_tuned_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be tuned"):
        trainable("vgg19")
    with pytest.raises(UsageError, match="one of symmetric"):
        try:
            ContrastConfig(loss="both")  # type: ignore[arg-type]
        except UsageError as error:
            raise UsageError(error.hint) from None
    with pytest.raises(UsageError, match=r"settings\.fames"):
        ContrastConfig.from_settings({"fames": 3})
    known, name = catalog.with_file(str(tmp_path / "nothing.safetensors"))
    assert name == "nothing"
    with pytest.raises(WeightsError):
        known["nothing"](CPU)
