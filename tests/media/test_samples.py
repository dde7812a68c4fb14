"""Laying sound on the clock: jitter, holes, overlaps, changes of format, and what a broken stream comes to."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
import pytest

from avtool.media.clock import Timed
from avtool.media.request import Limits
from avtool.media.samples import Recorder, Tape
from avtool.media.tracks import HOPELESS, Decoder, Health

SECOND = 1_000_000
RATE = 16_000
SIZE = 1600  # samples of a frame: a tenth of a second


def frame(value: float, size: int = SIZE, rate: int = RATE, layout: str = "mono") -> Any:
    channels = 1 if layout == "mono" else 2
    made = av.AudioFrame.from_ndarray(np.full((channels, size), value, np.float32), "fltp", layout)
    made.sample_rate = rate
    return made


def recorded(places: Iterable[float], damaged: frozenset[int] = frozenset()) -> tuple[npt.NDArray[Any], Recorder]:
    """Frames of a tenth of a second with the values 1, 2, 3 ... at the given seconds."""
    tape = Tape(RATE, 0, None)
    recorder, got = Recorder(tape, SECOND), []
    for number, place in enumerate(places):
        timed = Timed(frame(number + 1), round(place * SECOND), SECOND // 10)
        got += list(recorder.feed(timed, number in damaged))
    got += list(recorder.finish())
    position = 0
    for piece in got:
        assert piece.start == position and 0 < len(piece.samples) <= RATE
        position += len(piece.samples)
    return np.concatenate([piece.samples for piece in got]), recorder


def values(samples: npt.NDArray[Any]) -> list[int]:
    """The value in the middle of every tenth of a second."""
    return [round(float(v)) for v in samples[SIZE // 2 :: SIZE]]


def test_frames_in_order() -> None:
    samples, recorder = recorded([0.0, 0.1, 0.2, 0.3])
    assert values(samples) == [1, 2, 3, 4] and len(samples) == 4 * SIZE
    assert recorder.silenced == 0 and recorder.until == 0.4 * SECOND


def test_a_late_start_and_a_hole_are_silent() -> None:
    samples, recorder = recorded([0.3, 0.4, 0.8])
    assert values(samples) == [0, 0, 0, 1, 2, 0, 0, 0, 3]
    assert recorder.silenced == pytest.approx(0.6 * SECOND)


def test_overlaps_are_dropped() -> None:
    samples, recorder = recorded([0.0, 0.1, 0.2, 0.0, 0.1, 0.2, 0.3])
    assert values(samples) == [1, 2, 3, 7]
    assert recorder.until == 0.4 * SECOND


def test_sound_before_the_start_is_dropped() -> None:
    assert values(recorded([-0.2, -0.1, 0.0, 0.1])[0]) == [3, 4]


def test_jitter_cuts_nothing() -> None:
    jitter = np.random.default_rng(0).uniform(-0.03, 0.03, 50)
    places = [i / 10 + (float(j) if i % 2 else 0.0) for i, j in enumerate(jitter)]
    samples, recorder = recorded(places)
    assert len(samples) == 50 * SIZE and recorder.silenced == 0


def test_a_lasting_offset_is_followed() -> None:
    places = [i / 10 + (0.05 if i >= 10 else 0.0) for i in range(30)]
    samples, _ = recorded(places)
    assert len(samples) == pytest.approx(30 * SIZE + 0.05 * RATE, abs=2)


def test_a_large_offset_is_followed_at_once() -> None:
    samples, _ = recorded([0.0, 0.1, 0.35])
    assert len(samples) == round(0.45 * RATE)


def test_after_damage_a_small_offset_is_followed_at_once() -> None:
    assert len(recorded([0.0, 0.1, 0.23], frozenset({2}))[0]) == round(0.33 * RATE)
    assert len(recorded([0.0, 0.1, 0.23])[0]) == round(0.3 * RATE)


def test_hours_of_silence_come_in_seconds() -> None:
    tape = Tape(RATE, 0, None)
    count = 0
    for piece in tape.silence(7200 * RATE):
        assert len(piece.samples) == RATE and not piece.samples.any()
        count += 1
    assert count == 7200


def test_a_tape_delivers_only_its_range() -> None:
    tape = Tape(RATE, 100, 300)
    pieces = [*tape.put(0, np.ones(150, np.float32)), *tape.put(200, np.full(500, 2, np.float32))]
    got = np.concatenate([p.samples for p in pieces])
    assert pieces[0].start == 100 and tape.done
    assert got.tolist() == [1.0] * 50 + [0.0] * 50 + [2.0] * 100


def test_formats_may_change_at_any_frame() -> None:
    tape = Tape(RATE, 0, None)
    recorder, got, at = Recorder(tape, SECOND), [], 0
    for rate, layout in ((16_000, "mono"), (48_000, "stereo"), (44_100, "mono"), (8000, "stereo")):
        for _ in range(5):
            made = frame(0.5, rate // 10, rate, layout)
            got += list(recorder.feed(Timed(made, at, SECOND // 10), False))
            at += SECOND // 10
    got += list(recorder.finish())
    samples = np.concatenate([p.samples for p in got])
    assert len(samples) == pytest.approx(2 * RATE, abs=8)
    assert samples[SIZE // 2 :: SIZE] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("layout", ["5.1", "quad", "2.1", "6.1"])
def test_any_layout_becomes_a_mean(layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    made = av.AudioFrame.from_ndarray(np.full((channels, SIZE), 0.5, np.float32), "fltp", layout)
    made.sample_rate = RATE
    recorder = Recorder(Tape(RATE, 0, None), SECOND)
    pieces = [*recorder.feed(Timed(made, 0, SECOND // 10), False), *recorder.finish()]
    level = float(np.concatenate([p.samples for p in pieces])[SIZE // 2])
    assert 0.2 < level <= 0.5 + 1e-3


# ---------------------------------------------------------------- broken streams


class Broken:
    """A stream whose decoder fails with the given errors, for ever with the last."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.codec_context = SimpleNamespace()

    def decode(self, packet: Any) -> list[Any]:
        self.calls += 1
        raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]


def decoder(stream: Any) -> Decoder:
    return Decoder(stream, Limits(), SECOND)


def test_a_stream_that_stays_broken_is_given_up() -> None:
    stream = Broken(av.error.InvalidDataError(1, "no"))
    broken = decoder(stream)
    for _ in range(HOPELESS + 500):
        assert broken.decode(object()) == []  # type: ignore[arg-type]
    assert broken.health.broken and stream.calls == HOPELESS == broken.health.failed


@pytest.mark.parametrize(
    "error",
    [
        av.error.InvalidDataError(1, "no"),
        av.error.UndefinedError(-50_531_338, "odd"),
        av.error.ArgumentError(22, "no"),
        ValueError("Frame does not match"),
        MemoryError(),
        OverflowError("large"),
    ],
)
def test_every_kind_of_error_is_counted(error: Exception) -> None:
    broken = decoder(Broken(error))
    assert broken.decode(object()) == []  # type: ignore[arg-type]
    assert broken.health.failed == 1 and not broken.health.broken and broken.health.why


def test_without_a_decoder_nothing_is_tried_twice() -> None:
    stream = Broken(av.error.DecoderNotFoundError(1, "no decoder"))
    broken = decoder(stream)
    broken.decode(object())  # type: ignore[arg-type]
    broken.decode(object())  # type: ignore[arg-type]
    assert broken.health.broken and stream.calls == 1


def test_only_holes_near_a_failure_are_torn() -> None:
    health = Health(SECOND)
    health.hurt.extend([5 * SECOND])
    assert not health.tore(1 * SECOND, 2 * SECOND)
    assert not health.tore(5 * SECOND, 5 * SECOND)
    assert health.tore(5 * SECOND, 6 * SECOND)
    assert not health.tore(8 * SECOND, 9 * SECOND) and not health.hurt
