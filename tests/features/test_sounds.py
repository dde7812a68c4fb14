"""Cnn14 and VGGish give what their authors' code gives, from the published file and the waveform on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from avtool import weights
from avtool.errors import WeightsError
from avtool.features import logmel
from avtool.features.encoders import catalog, cnn14, vggish
from avtool.features.encoders.catalog import Options
from avtool.features.extract import extract
from avtool.media.request import DecodeReport, Sound
from avtool.timegrid import Grid
from avtool.timeline import MediaInfo
from tests.features.upstream import CPU, empty, far, hashless, imported, published, shake

CLOSE = 1e-4  # relative
SECONDS = Grid(Fraction(1), Fraction(1))


def sound(seconds: float, rate: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """A rising tone in noise that grows louder."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 150 * t) * t)
    return (0.3 * tone + 0.02 * (1 + t) * rng.standard_normal(len(t))).astype(np.float32)


def listened(encoder: Any, wave: npt.NDArray[np.float32], grid: Grid) -> Any:
    """Features of a file that holds only this sound."""
    seconds = len(wave) / encoder.rate
    media = MediaInfo("x.wav", 1, 0, True, False, seconds, None, None, None, seconds)
    chunks = [Sound(k, wave[k : k + encoder.rate]) for k in range(0, len(wave), encoder.rate)]
    return extract([*chunks, DecodeReport(media, (), 0.0, 0, seconds)], None, encoder, grid, CPU)


# ---------------------------------------------------------------- Cnn14


@pytest.fixture(scope="module")
def theirs() -> Any:
    """panns-inference's own network with torchlibrosa's own front end; the package's __init__ is left out."""
    for name in ("librosa", "torchlibrosa", "matplotlib"):
        pytest.importorskip(name)
    spec = find_spec("panns_inference")
    if spec is None:
        pytest.skip("panns-inference is not installed")
    package = ModuleType("panns_inference")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["panns_inference"] = package
    try:
        models = import_module("panns_inference.models")
        network = models.Cnn14(32_000, 1024, 320, 64, 50, 14_000, 527)
    finally:
        for name in [n for n in sys.modules if n.startswith("panns_inference")]:
            del sys.modules[name]
    fixed = {k: v.clone() for k, v in network.state_dict().items() if k.startswith(cnn14.FRONT_END)}
    shake(network)
    network.load_state_dict(fixed, strict=False)
    return network


@pytest.fixture(scope="module")
def imported_cnn14(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A weights folder with that network, imported from the file that its authors' code would write."""
    folder = tmp_path_factory.mktemp("cnn14")
    file = published(theirs, folder / "Cnn14_mAP=0.431.pth", "model")
    known = hashless()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "manifest", lambda: known)
        weights.import_weights(file, "cnn14", accept_unpinned=True, weights_dir=folder / "weights")
        file.unlink()
        yield folder / "weights"


def check_cnn14(got: Any, network: Any, pieces: Tensor) -> None:
    """Rows of features against the published code's outputs for the same pieces of sound."""
    with torch.inference_mode():
        expected = network(pieces)
        logits = network.fc_audioset(expected["embedding"])
    tags = torch.from_numpy(got.audio_tags)
    assert far(torch.from_numpy(got.audio), expected["embedding"]) < CLOSE
    assert far(tags, logits) < CLOSE and far(tags.sigmoid(), expected["clipwise_output"]) < CLOSE


def test_cnn14_is_the_published_network(theirs: Any, imported_cnn14: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVTOOL_WEIGHTS", str(imported_cnn14))
    encoder = catalog.AUDIO["cnn14"](CPU, Options(protocol="per-second"))
    assert (encoder.dim, encoder.tags, encoder.rate, encoder.seconds) == (2048, 527, 32_000, 1.0)
    wave = sound(3.7, 32_000)
    padded = np.concatenate([wave, np.zeros(4 * 32_000 - len(wave), np.float32)])
    got = listened(encoder, wave, SECONDS)
    assert got.rows == 4
    check_cnn14(got, theirs, torch.from_numpy(padded).reshape(4, 32_000))

    sliding = catalog.AUDIO["cnn14"](CPU)
    assert sliding.seconds == 2.0 and sliding.options.protocol == ""
    got = listened(sliding, wave, Grid())
    pieces = [max(0, min(round((k * 0.5 + 0.25 - 1) * 32_000), len(wave) - 64_000)) for k in range(got.rows)]
    check_cnn14(got, theirs, torch.from_numpy(np.stack([wave[p : p + 64_000] for p in pieces])))


def test_cnn14_of_another_front_end_is_refused(theirs: Any) -> None:
    state = dict(theirs.state_dict())
    cnn14.from_upstream({"model": state})
    other = {**state, cnn14.MEL: state[cnn14.MEL].roll(1, 0)}
    with pytest.raises(WeightsError) as caught:
        cnn14.from_upstream(other)
    assert "mel filters" in caught.value.why
    del state["fc1.weight"]
    with pytest.raises(WeightsError) as caught:
        cnn14.from_upstream(state)
    assert caught.value.why == "tensor fc1.weight is missing"


def test_cnn14s_log_mel_is_torchlibrosas(theirs: Any) -> None:
    wave = torch.from_numpy(sound(2.0, 32_000))[None]
    with torch.inference_mode():
        expected = theirs.logmel_extractor(theirs.spectrogram_extractor(wave))[:, 0].transpose(1, 2)
    torch.testing.assert_close(logmel.CNN14(wave), expected, rtol=0, atol=2e-3)  # decibels
    assert logmel.CNN14.frames(32_000) == 101 == logmel.CNN14(wave[:, :32_000]).shape[2]


# ---------------------------------------------------------------- VGGish


def formula(wave: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """16 kHz mono; 25 / 10 ms Hann frames, 64 mels of 125 to 7500 Hz, ln(x + 0.01): (frames, 64)."""
    wave = wave.astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([wave[k : k + 400] * hann for k in range(0, len(wave) - 399, 160)])
    magnitude = np.abs(np.fft.rfft(frames, 512))
    mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    edges = np.linspace(mel(125), mel(7500), 66)
    bins = mel(np.linspace(0, 8000, 257))
    weights_ = np.zeros((257, 64))
    for band in range(64):
        lower, centre, upper = edges[band : band + 3]
        weights_[:, band] = np.maximum(
            0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre))
        )
    weights_[0] = 0
    return np.log(magnitude @ weights_ + 0.01)


def test_vggishs_log_mel_is_the_formula() -> None:
    wave = sound(1.3, 16_000)
    got = logmel.VGGISH(torch.from_numpy(wave)[None])[0].T.numpy()
    expected = formula(wave)
    assert got.shape == expected.shape == (1 + (len(wave) - 400) // 160, 64) and logmel.VGGISH.frames(len(wave)) == len(
        got
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)


class TheirVggish(nn.Module):
    """The network as torchvggish lays it out."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M"):
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, 1, 96, 64)
        x = self.features(x)
        x = torch.transpose(torch.transpose(x, 1, 3), 1, 2).contiguous()
        return self.embeddings(x.view(x.size(0), -1))


@pytest.mark.slow
def test_vggish_is_the_published_network(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = shake(empty(TheirVggish))
    rate, rows = 16_000, 10
    wave = sound(10.0, rate)
    starts = [min(max(0, round((k + 0.5 - 0.48) * rate)), len(wave) - 15_600) for k in range(rows)]
    patches = np.stack([formula(wave[s : s + 15_600]) for s in starts]).astype(np.float32)
    assert patches.shape == (rows, 96, 64)
    with torch.inference_mode():
        expected = network(torch.from_numpy(patches)[:, None]).numpy()
    encoder = imported(published(network, tmp_path / "vggish.pth"), "vggish")
    assert (encoder.dim, encoder.tags, encoder.rate) == (128, 0, rate)
    got = listened(encoder, wave, SECONDS).audio
    assert far(torch.from_numpy(got), torch.from_numpy(expected)) < CLOSE

    h5py = pytest.importorskip("h5py")
    with h5py.File(shared / "ave" / "audio_feature_noisy.h5") as file:
        published_ = file["avadataset"][:]
    assert published_.shape[1:] == got.shape == (10, 128) and got.dtype == np.float32
    for values in (published_, got):  # after a ReLU: never negative, exact zeros, not quantised
        assert values.min() == 0 and 0.2 < (values == 0).mean() < 0.9 and (values % 1 != 0).any()

    pca = {
        "pca_eigen_vectors": np.eye(128, dtype=np.float32)[::-1].copy(),
        "pca_means": np.full((128, 1), 0.5, np.float32),
    }
    torch.save({k: torch.from_numpy(v) for k, v in pca.items()}, tmp_path / "pca.pth")
    known = weights.manifest()  # knows the beginning of the real file's hash, which ours cannot have
    monkeypatch.setattr(weights, "manifest", lambda: {k: v for k, v in known.items() if k != "vggish-pca"})
    weights.import_weights(tmp_path / "pca.pth", "vggish-pca", accept_unpinned=True)
    whitened = listened(catalog.AUDIO["vggish"](CPU, Options(protocol="pca")), wave, SECONDS).audio
    np.testing.assert_allclose(whitened, got[:, ::-1] - 0.5, atol=1e-4)
    small = listened(catalog.AUDIO["vggish"](CPU, Options(protocol="quantised")), wave, SECONDS).audio
    np.testing.assert_allclose(small, np.round((np.clip(whitened, -2, 2) + 2) * 255 / 4), atol=1)
    assert (small == np.round(small)).all() and small.min() >= 0 and small.max() <= 255


def test_vggishs_quantiser() -> None:
    values = torch.tensor([[-9.0, -2.0, 0.0, 1.0, 2.0, 9.0]])
    assert vggish.quantised(values).tolist() == [[0.0, 0.0, 128.0, 191.0, 255.0, 255.0]]


def test_a_patch_is_96_frames_about_its_rows_centre() -> None:
    assert vggish.SAMPLES == 15_600 and logmel.VGGISH.frames(vggish.SAMPLES) == 96 and vggish.BEFORE == 0.48


@pytest.mark.parametrize("given", [{}, {"pca_means": np.zeros((128, 1), np.float32)}, {"features.0.weight": 3}])
def test_other_tensors_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="vggish"):
        vggish.from_upstream(given)
    with pytest.raises(WeightsError, match="vggish-pca"):
        vggish.pca_from_upstream(given)
