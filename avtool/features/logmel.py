"""Log-mel front ends: waveform in, the exact picture of sound that a network was trained on out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

BLOCK = 256  # frames per FFT call: keeps memory flat and the working set in cache


@dataclass(frozen=True)
class LogMel:
    """One front end. Frequencies in Hz, `window` and `hop` in samples."""

    rate: int
    fft: int
    window: int
    hop: int
    bands: int
    low: float
    high: float
    pre_emphasis: float  # 0 = none
    periodic: bool  # Hann window; symmetric if False
    floor: float  # added to the mel power before the logarithm
    shift: float  # z = (ln(mel) + shift) * scale
    scale: float

    def frames(self, samples: int) -> int:
        """Frames of a centred transform of `samples` samples."""
        return 1 + (samples - (1 if self.pre_emphasis else 0)) // self.hop

    def __call__(self, wave: Tensor) -> Tensor:
        """Log-mel of waveforms in [-1, 1]: (B, samples) float32 at `rate` -> (B, bands, T)."""
        if self.pre_emphasis:
            wave = wave[:, 1:] - self.pre_emphasis * wave[:, :-1]
        half = self.fft // 2
        padded = torch.nn.functional.pad(wave[:, None], (half, half), mode="reflect")[:, 0]
        pieces = padded.unfold(1, self.fft, self.hop)  # (B, T, fft)
        window, filters = _window(self).to(wave.device), mel_filters(self).to(wave.device)
        mels = [self._power(block, window) @ filters for block in pieces.split(BLOCK, 1)]
        mel = torch.cat(mels, 1).transpose(1, 2)
        z: Tensor = (torch.log(mel + self.floor) + self.shift) * self.scale
        return z

    @staticmethod
    def _power(block: Tensor, window: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.rfft(block * window)
        return spectrum.real.square() + spectrum.imag.square()


@cache
def _window(spec: LogMel) -> Tensor:
    window = torch.zeros(spec.fft)
    left = (spec.fft - spec.window) // 2
    window[left : left + spec.window] = torch.hann_window(spec.window, periodic=spec.periodic)
    return window


@cache
def mel_filters(spec: LogMel) -> Tensor:
    """Triangles that are straight in mel, mel(f) = 1127 ln(1 + f / 700): (fft / 2 + 1, bands), Nyquist bin zero."""
    low, high = _mel(torch.tensor([spec.low, spec.high], dtype=torch.float64))
    step = (high - low) / (spec.bands + 1)
    left = low + step * torch.arange(spec.bands, dtype=torch.float64)
    bins = _mel(torch.arange(spec.fft // 2, dtype=torch.float64) * spec.rate / spec.fft)[:, None]
    rising, falling = (bins - left) / step, (left + 2 * step - bins) / step
    filters = torch.zeros(spec.fft // 2 + 1, spec.bands)
    filters[:-1] = torch.minimum(rising, falling).clamp(min=0).float()
    return filters


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


# EfficientAT's front end (Kaldi-style filters): 10 ms hop, 25 ms symmetric Hann at 32 kHz
MN04 = LogMel(32_000, 1024, 800, 320, 128, 0.0, 15_000.0, 0.97, False, 1e-5, 4.5, 0.2)
