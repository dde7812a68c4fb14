"""Timestamps: what is believed, what is not, and where frames go."""

from __future__ import annotations

from fractions import Fraction

import pytest

from avtool.media.clock import Clock, Ticks, first_tick

SECOND = 1_000_000
TICK = SECOND // 25


def placed(
    times: list[float | None], declared: float | None = 100, forward: bool = False, origin: float = 0
) -> tuple[list[float], list[tuple[float, float, bool]]]:
    """Places in seconds, rounded, in the order of the frames; and the jumps."""
    second = SECOND
    clock: Clock[int] = Clock(
        second, None if declared is None else int(declared * second), forward, TICK, 48 * 3600 * second
    )
    ticks, out = Ticks(Fraction(1, 1000), Fraction(origin)), []
    for number, time in enumerate(times):
        out += clock.place(number, None if time is None else ticks.place(round(time * 1000)), TICK)
    out += clock.flush()
    assert [t.frame for t in out] == list(range(len(times))), "a frame was lost or out of order"
    jumps = [(round(j.at / second, 3), round(j.to / second, 3), j.believed) for j in clock.jumps]
    return [round(t.time / second, 3) for t in out], jumps


def test_regular_times_are_kept() -> None:
    times = [0.0, 0.04, 0.08, 0.12]
    assert placed(times) == (times, [])


def test_the_origin_is_subtracted() -> None:
    assert placed([3600.0, 3600.04], origin=3600)[0] == [0.0, 0.04]


def test_frames_without_times_follow_each_other() -> None:
    assert placed([None, None, None])[0] == [0.0, 0.04, 0.08]
    assert placed([1.0, None, 1.08])[0] == [1.0, 1.04, 1.08]


def test_a_confirmed_gap_is_kept() -> None:
    times = [0.0, 0.04, 30.0, 30.04, 30.08]
    assert placed(times) == (times, [(0.08, 30.0, True)])


def test_a_confirmed_back_jump_is_kept() -> None:
    times = [10.0, 10.04, 2.0, 2.04]
    assert placed(times) == (times, [(10.08, 2.0, True)])


def test_one_wild_time_moves_nothing() -> None:
    assert placed([0.0, 0.04, 77.0, 0.12, 0.16]) == ([0.0, 0.04, 0.08, 0.12, 0.16], [])
    assert placed([0.0, 0.04, -77.0, 0.12]) == ([0.0, 0.04, 0.08, 0.12], [])


def test_a_wild_time_at_the_end_moves_nothing() -> None:
    assert placed([0.0, 0.04, 77.0])[0] == [0.0, 0.04, 0.08]


def test_a_jump_past_the_declared_end_is_not_believed() -> None:
    places, jumps = placed([0.0, 0.04, 5000.0, 5000.04, 5000.08, 0.2, 0.24])
    assert places == [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24]
    assert jumps == [(0.08, 5000.0, False)]


def test_a_jump_before_the_start_is_not_believed() -> None:
    assert placed([0.0, 0.04, -500.0, -499.96])[0] == [0.0, 0.04, 0.08, 0.12]


def test_without_a_declared_end_an_hour_is_the_limit() -> None:
    assert placed([0.0, 0.04, 3000.0, 3000.04], declared=None)[0][-1] == 3000.04
    assert placed([0.0, 0.04, 9000.0, 9000.04], declared=None)[0][-1] == 0.12


def test_still_pictures_need_no_confirmation_where_times_are_trusted() -> None:
    times = [0.0, 20.0, 20.04, 90.0]
    assert placed(times, forward=True) == (times, [])


def test_a_slow_stream_is_not_taken_for_noise() -> None:
    assert placed([0.0, 10.0, 20.0, 30.0])[0] == [0.0, 10.0, 20.0, 30.0]


def test_absurd_times_count_as_none() -> None:
    assert placed([0.0, 0.04, 2.0**62, 0.12])[0] == [0.0, 0.04, 0.08, 0.12]
    assert placed([2.0**62, 0.04])[0] == [0.0, 0.04]


def test_small_steps_back_are_kept() -> None:
    assert placed([0.0, 0.5, 0.25, 0.75]) == ([0.0, 0.5, 0.25, 0.75], [])


@pytest.mark.parametrize("seconds", [36_000, 200])
def test_a_length_past_the_end_is_not_meant(seconds: int) -> None:
    clock: Clock[int] = Clock(SECOND, 100 * SECOND, True, TICK, 48 * 3600 * SECOND)
    (timed,) = clock.place(0, 0, seconds * SECOND)
    assert timed.length == TICK


@pytest.mark.parametrize("unit", [Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 44_100), Fraction(3)])
@pytest.mark.parametrize("origin", [Fraction(0), Fraction(-2_040_000, 10**6), Fraction(1_433_333, 10**6)])
def test_ticks_are_exact(unit: Fraction, origin: Fraction) -> None:
    ticks = Ticks(unit, origin)
    for pts in (-7, 0, 1, 12_345, 2**33):
        assert ticks.seconds(ticks.place(pts)) == pts * unit - origin
        assert ticks.seconds(ticks.length(pts)) == pts * unit


def test_the_first_tick_of_a_time() -> None:
    assert [first_tick(Fraction(n, 3), 10) for n in (0, 1, 2, 3)] == [0, 4, 7, 10]
