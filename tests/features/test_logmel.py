"""The log-mel front end against the arithmetic of its description, written again in NumPy and float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from avtool.features.logmel import BLOCK, MN04, LogMel, mel_filters

Wave = npt.NDArray[np.float64]


def mel(hertz: Wave) -> Wave:
    return 1127.0 * np.log(1.0 + hertz / 700.0)


def triangles() -> npt.NDArray[np.float64]:
    """(128, 513): filter i rises from left to left + d and falls to left + 2 d, in mel."""
    step = mel(np.array(15_000.0)) / 129
    at = mel(np.arange(512) * 31.25)
    out = np.zeros((128, 513))
    for i in range(128):
        left = i * step
        out[i, :512] = np.maximum(0, np.minimum((at - left) / step, (left + 2 * step - at) / step))
    return out


def by_hand(wave: Wave) -> npt.NDArray[np.float64]:
    """EfficientAT's log-mel of one waveform, one frame at a time: (128, T)."""
    emphasised = wave[1:] - 0.97 * wave[:-1]
    padded = np.concatenate([emphasised[512:0:-1], emphasised, emphasised[-2:-514:-1]])
    window = np.zeros(1024)
    window[112:912] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 799)
    filters, columns = triangles(), []
    for frame in range(1 + (len(wave) - 1) // 320):
        spectrum = np.fft.rfft(padded[frame * 320 : frame * 320 + 1024] * window)
        columns.append((np.log(filters @ np.abs(spectrum) ** 2 + 1e-5) + 4.5) / 5)
    return np.stack(columns, 1)


def noise(samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def ours(wave: npt.NDArray[np.float32], front: LogMel = MN04) -> npt.NDArray[np.float32]:
    return front(torch.from_numpy(wave)[None])[0].numpy()


def at_frames(frames: int, extra: int) -> int:
    """The number of samples of `frames` frames, and `extra` (0 to 319) more."""
    return 320 * (frames - 1) + 1 + extra


@pytest.mark.parametrize("frames", [3, 100, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1])
@pytest.mark.parametrize("extra", [0, 319])
def test_equals_the_description_at_every_length(frames: int, extra: int) -> None:
    wave = noise(at_frames(frames, extra))
    got = ours(wave)
    assert got.shape == (128, frames) == (128, MN04.frames(len(wave)))
    np.testing.assert_allclose(got, by_hand(wave.astype(np.float64)), atol=1e-4)


def test_a_pure_tone_lands_in_its_band() -> None:
    wave = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(32_000) / 32_000)).astype(np.float32)
    centres = mel(np.array(15_000.0)) / 129 * (np.arange(128) + 1)
    got = ours(wave)
    assert set(got.argmax(0)) == {int(np.argmin(abs(centres - mel(np.array(1000.0)))))}
    np.testing.assert_allclose(got, by_hand(wave.astype(np.float64)), atol=5e-3)  # empty bands: rounding of float32


def test_silence_is_the_floor() -> None:
    np.testing.assert_allclose(ours(np.zeros(32_000, np.float32)), (np.log(1e-5) + 4.5) / 5, rtol=1e-6)


def test_filters_are_those_described() -> None:
    got = mel_filters(MN04).numpy()
    np.testing.assert_allclose(got.T, triangles(), atol=1e-6)
    assert not got[512].any()


def test_waves_of_a_batch_do_not_touch() -> None:
    waves = np.stack([noise(20_000, seed) for seed in range(3)])
    together = MN04(torch.from_numpy(waves)).numpy()
    np.testing.assert_allclose(together, np.stack([ours(w) for w in waves]), atol=1e-6)


def test_without_pre_emphasis_every_sample_counts() -> None:
    plain = replace(MN04, pre_emphasis=0.0)
    wave = noise(3201)
    assert plain.frames(3201) == 11 == ours(wave, plain).shape[1]
    assert plain.frames(3200) == 11 and MN04.frames(3200) == 10


def test_golden(shared: object) -> None:
    golden = np.load(f"{shared}/corpus/teachers/teachers_golden.npz")
    wave = golden["wav0"].astype(np.float32) / 32768
    np.testing.assert_allclose(ours(wave), golden["mel0"], atol=1e-4)
    np.testing.assert_allclose(by_hand(wave.astype(np.float64)), golden["mel0"], atol=1e-4)
