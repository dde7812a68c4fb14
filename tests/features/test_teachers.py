"""The two teachers give what their authors' networks give, and their records say how to feed them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avtool import weights
from avtool.errors import WeightsError
from avtool.features.encoders import catalog, mn04, mobilenet
from avtool.features.encoders.catalog import Encoder

CPU = torch.device("cpu")
FILES = {"mn04": "mn04_as.pt", "mobilenetv2-coral": "mobilenet_v2_imagenet.pt"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "corpus" / "teachers" / "teachers_golden.npz") as archive:
        return {name: archive[name] for name in archive.files if not name.endswith("_name")}


def encoder(shared: Path, name: str) -> Encoder:
    """Through the road that users take: import the published file, then load by name."""
    weights.import_weights(shared / "corpus" / "teachers" / FILES[name], name)
    return {**catalog.AUDIO, **catalog.VISUAL}[name](CPU)


def test_audio_teacher_is_exact(shared: Path, golden: dict[str, np.ndarray]) -> None:
    teacher = encoder(shared, "mn04")
    assert (teacher.modality, teacher.dim, teacher.tags, teacher.rate, teacher.seconds) == (
        "audio",
        384,
        527,
        32_000,
        2,
    )
    for i in range(5):
        wave = torch.from_numpy(golden[f"wav{i}"].astype(np.float32) / 32768)
        with torch.inference_mode():
            embedding, logits = teacher.run(wave[None])
        assert logits is not None
        np.testing.assert_allclose(embedding[0], golden["audio_embedding"][i], atol=1e-4)
        np.testing.assert_allclose(logits[0], golden["audio_logits"][i], atol=1e-4)


def test_picture_teacher_is_exact(shared: Path, golden: dict[str, np.ndarray]) -> None:
    teacher = encoder(shared, "mobilenetv2-coral")
    assert (teacher.modality, teacher.dim, teacher.tags) == ("visual", 1280, 1000)
    assert teacher.pictures is not None and teacher.pictures.crop is None
    with torch.inference_mode():
        embedding, logits = teacher.run(torch.from_numpy(golden["pix"]))
    assert logits is not None
    np.testing.assert_allclose(embedding, golden["image_embedding"], atol=1e-4)
    np.testing.assert_allclose(logits, golden["image_logits"], atol=1e-4)


@pytest.mark.parametrize("name", ["mn04", "mobilenetv2-coral"])
def test_a_teacher_that_is_not_here_says_where_it_comes_from(name: str) -> None:
    make = {**catalog.AUDIO, **catalog.VISUAL}[name]
    with pytest.raises(WeightsError, match="not on this machine"):
        make(CPU)


def test_prepared_pictures_span_the_range() -> None:
    assert mobilenet.prepare(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("size", [(224, 224), (180, 320), (181, 97), (64, 65)])
def test_same_padding_is_tensorflows(size: tuple[int, int]) -> None:
    """TensorFlow: total = max((ceil(n / s) - 1) s + k - n, 0), the smaller half in front."""
    conv = torch.nn.Conv2d(2, 3, 3, 2)
    x = torch.randn(1, 2, *size)
    total = [max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in size]
    top, left = total[0] // 2, total[1] // 2
    expected = F.conv2d(F.pad(x, (left, total[1] - left, top, total[0] - top)), conv.weight, conv.bias, 2)
    with torch.no_grad():
        torch.testing.assert_close(mobilenet._same(x, conv), expected)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (97, 180), (320, 181)])
def test_pictures_of_any_size(height: int, width: int) -> None:
    torch.manual_seed(0)
    model = mobilenet.MobileNetV2Coral().eval()
    with torch.inference_mode():
        logits, embedding = model(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 1000) and embedding.shape == (2, 1280)


def test_mn04_has_about_a_million_parameters_and_takes_any_length() -> None:
    model = mn04.Mn04().eval()
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
    with torch.inference_mode():
        for frames in (41, 100, 201):
            logits, embedding = model(torch.zeros(1, 1, 128, frames))
            assert logits.shape == (1, 527) and embedding.shape == (1, 384)
