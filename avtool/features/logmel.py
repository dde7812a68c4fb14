"""Log-mel front ends: waveform in, the exact picture of sound that a network was trained on out."""

from __future__ import annotations

import math
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
    pre_emphasis: float = 0.0  # 0 = none
    periodic: bool = True  # Hann window; symmetric if False
    centred: bool = True  # frame k is centred on sample k * hop, ends reflected; else it begins there
    magnitude: bool = False  # of the spectrum; else its power
    slaney: bool = False  # triangles straight in Hz, on Slaney's mel scale, of equal area; else straight in mel
    floor: float = 0.0  # added to the mel spectrum before the logarithm
    least: float = 0.0  # the mel spectrum is at least this before the logarithm
    shift: float = 0.0  # z = (ln(mel) + shift) * scale
    scale: float = 1.0

    def frames(self, samples: int) -> int:
        """Frames of the transform of `samples` samples."""
        if not self.centred:
            return 1 + (samples - self.window) // self.hop
        return 1 + (samples - (1 if self.pre_emphasis else 0)) // self.hop

    def __call__(self, wave: Tensor) -> Tensor:
        """Log-mel of waveforms in [-1, 1]: (B, samples) float32 at `rate` -> (B, bands, T)."""
        if self.pre_emphasis:
            wave = wave[:, 1:] - self.pre_emphasis * wave[:, :-1]
        if self.centred:
            half = self.fft // 2
            wave = torch.nn.functional.pad(wave[:, None], (half, half), mode="reflect")[:, 0]
        pieces = wave.unfold(1, self.fft if self.centred else self.window, self.hop)  # (B, T, window)
        window, filters = _window(self).to(wave.device), mel_filters(self).to(wave.device)
        mels = [self._spectrum(block, window) @ filters for block in pieces.split(BLOCK, 1)]
        mel = torch.cat(mels, 1).transpose(1, 2)
        z: Tensor = (torch.log((mel + self.floor).clamp(min=self.least)) + self.shift) * self.scale
        return z

    def _spectrum(self, block: Tensor, window: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.rfft(block * window, n=self.fft)
        power = spectrum.real.square() + spectrum.imag.square()
        return power.sqrt() if self.magnitude else power


@cache
def _window(spec: LogMel) -> Tensor:
    if not spec.centred:
        return torch.hann_window(spec.window, periodic=spec.periodic)
    window = torch.zeros(spec.fft)
    left = (spec.fft - spec.window) // 2
    window[left : left + spec.window] = torch.hann_window(spec.window, periodic=spec.periodic)
    return window


@cache
def mel_filters(spec: LogMel) -> Tensor:
    """Triangles (fft / 2 + 1, bands): straight in mel, mel(f) = 1127 ln(1 + f / 700), Nyquist bin zero; or Slaney's."""
    if spec.slaney:
        return _slaney_filters(spec)
    low, high = _mel(torch.tensor([spec.low, spec.high], dtype=torch.float64))
    step = (high - low) / (spec.bands + 1)
    left = low + step * torch.arange(spec.bands, dtype=torch.float64)
    bins = _mel(torch.arange(spec.fft // 2, dtype=torch.float64) * spec.rate / spec.fft)[:, None]
    rising, falling = (bins - left) / step, (left + 2 * step - bins) / step
    filters = torch.zeros(spec.fft // 2 + 1, spec.bands)
    filters[:-1] = torch.minimum(rising, falling).clamp(min=0).float()
    return filters


def _slaney_filters(spec: LogMel) -> Tensor:
    """Slaney's Auditory Toolbox: linear below 1 kHz, logarithmic above; triangles straight in Hz, of area 1."""
    low, high = _slaney_mel(spec.low), _slaney_mel(spec.high)
    edges = _slaney_hertz(torch.linspace(low, high, spec.bands + 2, dtype=torch.float64))
    left, top, right = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(spec.fft // 2 + 1, dtype=torch.float64)[:, None] * spec.rate / spec.fft
    triangles = torch.minimum((bins - left) / (top - left), (right - bins) / (right - top)).clamp(min=0)
    return (triangles * 2 / (right - left)).float()


_KNEE, _STEP = 1000.0, math.log(6.4) / 27  # Hz where the scale turns logarithmic, and ln(f) per mel above
_LINEAR = 200 / 3  # Hz per mel below


def _slaney_mel(hertz: float) -> float:
    knee = _KNEE / _LINEAR
    return hertz / _LINEAR if hertz < _KNEE else knee + math.log(hertz / _KNEE) / _STEP


def _slaney_hertz(mel: Tensor) -> Tensor:
    knee = _KNEE / _LINEAR
    return torch.where(mel < knee, mel * _LINEAR, _KNEE * torch.exp((mel - knee) * _STEP))


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


# EfficientAT's front end (Kaldi-style filters): 10 ms hop, 25 ms symmetric Hann at 32 kHz
MN04 = LogMel(
    32_000, 1024, 800, 320, 128, 0.0, 15_000.0, pre_emphasis=0.97, periodic=False, floor=1e-5, shift=4.5, scale=0.2
)
# PANNs' front end (librosa's filters): 10 ms hop, 32 ms Hann at 32 kHz, decibels down to -100
CNN14 = LogMel(32_000, 1024, 1024, 320, 64, 50.0, 14_000.0, slaney=True, least=1e-10, scale=10 / math.log(10))
# VGGish's front end: 10 ms hop, 25 ms Hann at 16 kHz, magnitudes
VGGISH = LogMel(16_000, 512, 400, 160, 64, 125.0, 7500.0, centred=False, magnitude=True, floor=0.01)
