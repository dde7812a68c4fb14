"""Synthesises the demo's sounds: sums of sines, filtered noise, and the echo of a room.

A sound is mono float64 (samples,) at RATE; levels are root mean squares in dB of full scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.float64]
RATE = 32_000  # Hz
ROOM_TONE = -56.0  # dB: what a quiet room sounds like


def clock_of(seconds: float) -> Wave:
    """Time of every sample, in seconds."""
    return np.arange(round(seconds * RATE)) / RATE


def band(wave: Wave, low: float, high: float, softness: float = 0.3) -> Wave:
    """Keep what lies between two frequencies (Hz); the smaller `softness`, the steeper the edges."""
    frequency = np.fft.rfftfreq(len(wave), 1 / RATE) + 1e-3
    gain = 1 / (1 + (low / frequency) ** (2 / softness)) / (1 + (frequency / high) ** (2 / softness))
    return np.asarray(np.fft.irfft(np.fft.rfft(wave) * gain, len(wave)))


def level(wave: Wave, decibels: float) -> Wave:
    """Bring a sound to a level."""
    return np.asarray(wave * (10 ** (decibels / 20) / (np.sqrt(np.mean(wave**2)) + 1e-9)))


def faded(wave: Wave, begin: float = 0.02, end: float = 0.12) -> Wave:
    """Fade in and out over so many seconds."""
    time = clock_of(len(wave) / RATE)
    return np.asarray(wave * np.clip(time / begin, 0, 1) * np.clip((time[-1] - time) / end, 0, 1))


def room(rng: np.random.Generator, wave: Wave, seconds: float, wet: float, bright: float = 5000) -> Wave:
    """Add the echo of a room: noise that decays by 60 dB in `seconds`, nothing above `bright` (Hz)."""
    count = round(seconds * RATE)
    echo = rng.normal(size=count) * np.exp(-6.9 * np.arange(count) / count)
    echo[: round(0.004 * RATE)] = 0
    echo = band(echo, 150, bright)
    size = 1 << (len(wave) + count).bit_length()
    late = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo / np.sqrt(np.sum(echo**2)), size), size)
    return np.asarray(wave + wet * late[: len(wave)])


def _add(total: Wave, wave: Wave, at: float) -> None:
    first = round(at * RATE)
    wave = wave[: max(0, len(total) - first)]
    total[first : first + len(wave)] += wave


def _glide(frequency: Wave) -> Wave:
    """Phase (radians) of a tone whose frequency (Hz) changes."""
    return np.asarray(2 * np.pi * np.cumsum(frequency) / RATE)


def quiet(rng: np.random.Generator, seconds: float) -> Wave:
    """A room in which nothing happens."""
    return level(band(rng.normal(size=round(seconds * RATE)), 50, 900, 0.9), ROOM_TONE)


def siren(rng: np.random.Generator, seconds: float, kind: int) -> Wave:
    """An emergency siren in a street. `kind`: 0 wails, 1 yelps, 2 has two tones."""
    time = clock_of(seconds)
    if kind < 2:
        period = rng.uniform(3.2, 4.5) if kind == 0 else rng.uniform(0.48, 0.64)  # seconds
        sweep = 0.5 - 0.5 * np.cos(2 * np.pi * time / period)
        frequency = rng.uniform(550, 680) * rng.uniform(2.0, 2.3) ** sweep
    else:
        low = rng.uniform(430, 470)
        frequency = low * (4 / 3) ** (0.5 + 0.5 * np.tanh(18 * np.sin(2 * np.pi * time / rng.uniform(1.0, 1.4))))
    phase = _glide(frequency)
    horn = sum(a * np.sin(k * phase) for k, a in enumerate((1, 0.45, 0.5, 0.2, 0.25, 0.1, 0.12), 1))
    horn = np.tanh(1.3 * np.asarray(horn)) * (1 + 0.05 * np.sin(2 * np.pi * 5.3 * time))
    engine = level(band(rng.normal(size=len(time)), 40, 200), -26)
    street = level(room(rng, band(horn, 350, 4500), 1.2, 0.45, 3500), -18)
    return faded(street + engine, 0.1, 0.15)


def birds(rng: np.random.Generator, seconds: float) -> Wave:
    """Three birds, one near and two farther away, each with a song of its own."""
    total = np.zeros(round(seconds * RATE))
    for loud in (1.0, 0.5, 0.3):
        kind, pitch, at = int(rng.integers(3)), rng.uniform(2600, 5200), rng.uniform(0.0, 0.4)
        while at < seconds - 0.3:
            for _ in range(int(rng.integers(8, 16) if kind == 2 else rng.integers(3, 8))):
                note = _chirp(rng, kind, pitch)
                _add(total, loud * rng.uniform(0.7, 1) * note, at)
                at += len(note) / RATE + (0.015 if kind == 2 else rng.uniform(0.03, 0.09))
            at += rng.uniform(0.15, 0.5)
    return faded(level(room(rng, total, 0.9, 0.25, 8000), -24))


def _chirp(rng: np.random.Generator, kind: int, pitch: float) -> Wave:
    """One note: 0 falls or rises, 1 warbles, 2 belongs to a trill."""
    seconds = 0.035 if kind == 2 else rng.uniform(0.05, 0.14)
    share = clock_of(seconds) / seconds
    bend = (
        0.35 * (1 - share) * rng.choice([1, 1, -0.6]),
        0.18 * np.sin(2 * np.pi * share * rng.uniform(0.5, 2)),
        0.25 - 0.3 * share,
    )[kind]
    phase = _glide(pitch * (1 + bend))
    return np.asarray((np.sin(phase) + 0.12 * np.sin(2 * phase)) * np.sin(np.pi * share) ** 0.7)


def ticking(rng: np.random.Generator, seconds: float, beats: float) -> Wave:
    """A clock that ticks and tocks `beats` times a second, close to the ear."""
    total = np.zeros(round(seconds * RATE))
    pitch, tock, gap = rng.uniform(1500, 3400), rng.uniform(0.68, 0.85), rng.uniform(0.012, 0.03)  # Hz, ratio, seconds
    decay, hiss = rng.uniform(0.003, 0.006), rng.uniform(0.002, 0.0035)  # seconds
    for beat in range(int((seconds - 0.15) * beats) + 1):
        tone, at = pitch * (tock if beat % 2 else 1), 0.05 + beat / beats
        for ratio, loud, late in ((1.0, 0.4, 0.0), (1.1, 1.0, gap), (0.9, 0.45, 2.1 * gap)):  # pallet, wheel, rebound
            _add(total, loud * _click(rng, tone * ratio, decay, hiss), at + late)
    return faded(level(room(rng, total, 0.15, 0.2), -34))


def _click(rng: np.random.Generator, pitch: float, decay: float, hiss: float) -> Wave:
    """Brass that is struck: a few modes, and noise; `decay` and `hiss` are their time constants."""
    time = clock_of(0.15)
    modes: Sequence[tuple[float, float, float]] = (
        (0.42, 1.6, 0.4), (1, 1, 0.6), (1.63, 0.8, 1), (2.41, 0.6, 0.8), (3.3, 0.5, 0.6), (4.7, 0.4, 0.5),
    )  # fmt: skip
    # ratio to the pitch, to the decay, amplitude
    metal: Any = sum(
        a * np.exp(-time / (decay * d)) * np.sin(2 * np.pi * pitch * r * time + rng.uniform(0, 2 * np.pi))
        for r, d, a in modes
        if pitch * r < 0.45 * RATE
    )
    return np.asarray(metal + band(rng.normal(size=len(time)) * np.exp(-time / hiss), 600, 10_000))
