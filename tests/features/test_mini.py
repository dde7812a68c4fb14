"""The embedded encoders' network: any size, folded norms, what ships gives what was trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from avtool import weights
from avtool.errors import WeightsError
from avtool.features.encoders import catalog, mini, packed
from avtool.features.encoders.mini import AUDIO, SHORT, VISUAL, Fused, Mini, MiniConfig, blank
from avtool.features.logmel import MN04
from avtool.training.distill import publish

CPU = torch.device("cpu")
TINY = MiniConfig(3, (4, 8, 8), (1, 2, 1), 6, 10, 7)


def lively(config: MiniConfig, seed: int = 0) -> Mini:
    """A network whose batch norms have seen something, so that folding them matters."""
    model = blank(config, seed).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, config.inputs, 64, 64) * 3 + 1)
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.5, 0.5)
    return model.eval()


def outputs(model: Mini, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode():
        return model(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (128, 128), (228, 128), (128, 201), (40, 256)])
def test_any_size_works(size: tuple[int, int]) -> None:
    logits, embedding, imitation = outputs(blank(TINY, 0).eval(), torch.randn(2, 3, *size))
    assert (logits.shape, embedding.shape, imitation.shape) == ((2, 7), (2, 6), (2, 10))


@pytest.mark.parametrize(("config", "shape"), [(VISUAL, (1, 3, 128, 228)), (AUDIO, (1, 1, 128, 200))])
def test_the_two_that_ship(config: MiniConfig, shape: tuple[int, ...]) -> None:
    model = blank(config, 0).eval()
    logits, embedding, _ = outputs(model, torch.zeros(shape))
    assert logits.shape == (1, config.classes) and embedding.shape == (1, config.embedding)


def test_both_take_at_most_16_megabytes() -> None:
    shipped = (p for c in (VISUAL, AUDIO) for n, p in Mini(c).named_parameters() if not n.startswith("imitate"))
    assert sum(p.numel() for p in shipped) * 2 < 16e6
    assert mini.parameters(Mini(TINY)) == sum(p.numel() for p in Mini(TINY).parameters())


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("config", [TINY, AUDIO])
@pytest.mark.parametrize("batch", [1, 3])
def test_folding_the_norms_changes_nothing(
    config: MiniConfig, packs: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packs:
        monkeypatch.setattr(packed, "operators_work", lambda: False)
    model = lively(config)
    x = torch.randn(batch, config.inputs, 64, 96)
    before = x.clone()
    with torch.inference_mode():
        for a, b in zip(outputs(model, x), Fused(model)(x), strict=False):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert torch.equal(x, before)  # the sums are taken in place, but never in the caller's


def test_what_was_seen_before_changes_nothing() -> None:
    model, x = lively(TINY), torch.randn(2, 3, 64, 96)
    fresh, used = Fused(model), Fused(model)
    with torch.inference_mode():
        used(torch.randn(5, 3, 40, 33))
        assert all(torch.equal(a, b) for a, b in zip(fresh(x), used(x), strict=True))


def test_blank_is_reproducible() -> None:
    first, again, other = (blank(TINY, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_pictures_are_centred() -> None:
    got = mini.prepare_pictures(torch.tensor([118, 182, 54], dtype=torch.uint8))
    assert got.tolist() == [0.0, 1.0, -1.0] and got.dtype == torch.float32


# ---------------------------------------------------------------- publishing


def with_record(file: Path, sha256: str) -> Path:
    file.with_suffix(".toml").write_text(f'sha256 = "{sha256}"\n')
    return file


def test_what_ships_gives_what_was_trained(tmp_path: Path) -> None:
    model, file = lively(TINY), tmp_path / "m.safetensors"
    sha = publish(model, file)
    assert sha == hashlib.sha256(file.read_bytes()).hexdigest()
    state = weights.load(with_record(file, sha))
    assert not [k for k in state if k.startswith("imitate") or "num_batches" in k]
    ready = catalog._ready(state, TINY, CPU)
    x = torch.randn(4, 3, 64, 64)
    for a, b in zip(outputs(model, x)[:2], ready(x), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)  # float16 convolutions


def test_a_changed_file_does_not_load(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    with_record(file, publish(lively(TINY), file))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="damaged"):
        weights.load(file)


def test_weights_of_another_network_do_not_load(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    state = weights.load(with_record(file, publish(lively(TINY), file)))
    with pytest.raises(WeightsError, match="network"):
        catalog._ready(state, MiniConfig(3, (4, 8, 8), (1, 1, 1), 6, 10, 7), CPU)
    del state["stem.0.weight"]
    with pytest.raises(WeightsError) as caught:
        catalog._ready(state, TINY, CPU)
    assert caught.value.why == "tensor stem.0.weight"


def test_checkpoints_of_a_folder_make_a_pair(tmp_path: Path) -> None:
    """benchmarks/avepm.py --held-out: full checkpoints of distil, which no manifest knows."""
    for config, name in ((VISUAL, "visual-held-out"), (AUDIO, "audio-held-out")):
        save_file(blank(config, 1).state_dict(), tmp_path / f"{name}.safetensors")
        save_file({"step": torch.tensor(1)}, tmp_path / f"{name}.state.safetensors")
    visual, audio = catalog.mini_pair(tmp_path, CPU)
    pictures = torch.randint(0, 255, (1, SHORT, SHORT, 3), dtype=torch.uint8)
    model = Mini(VISUAL).eval()
    model.load_state_dict(load_file(tmp_path / "visual-held-out.safetensors"))
    with torch.inference_mode():
        got = visual.run(pictures)[0]
        expected = model(mini.prepare_pictures(pictures.permute(0, 3, 1, 2)))[1]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert (audio.dim, audio.tags, audio.rate, audio.seconds) == (384, 527, MN04.rate, 2.0)


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="visual"):
        catalog.mini_pair(tmp_path, CPU)


def test_random_weights_still_tell_pictures_apart() -> None:
    model = catalog._ready(catalog.calibrated(TINY), TINY, CPU)
    embedding = outputs(model, torch.randn(4, 3, 64, 64))[1]
    assert embedding.isfinite().all() and embedding.std(0).max() > 0.01


@pytest.mark.parametrize("name", ["mini-visual", "mini-audio"])
def test_the_embedded_files_fit_the_networks(name: str) -> None:
    if name not in weights.manifest():
        pytest.skip(f"{name} is not in the manifest yet")
    encoder = {"mini-visual": catalog.VISUAL, "mini-audio": catalog.AUDIO}[name]["mini"](CPU)
    assert encoder.name == "mini" and len(encoder.sha256) == 64
