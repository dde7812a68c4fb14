"""Turns the timestamps of one stream into places on the presentation clock, and judges jumps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, lcm
from typing import Generic, NamedTuple, TypeVar

Frame = TypeVar("Frame")

STEP = 1  # seconds: a smaller step forward or back is not a jump
SLACK = 10  # seconds that a stream may run past its declared end before a jump there is disbelieved
UNDECLARED = 3600  # seconds that a jump may lead forward when the container declares no end
ABSURD = 10**9  # seconds: no timestamp


class Ticks:
    """Exact time as whole numbers, which are much faster than fractions.

    A tick divides both the unit of a stream's timestamps and the microsecond in which containers state their start.
    """

    def __init__(self, unit: Fraction, origin: Fraction) -> None:
        """
        Args:
            unit: seconds per unit of the timestamps.
            origin: raw seconds at which the presentation starts.
        """
        self.second = lcm(unit.denominator, origin.denominator, 1_000_000)  # ticks
        self._scale = unit.numerator * self.second // unit.denominator
        self._origin = int(origin * self.second)

    def place(self, pts: int) -> int:
        """Presentation time of a timestamp."""
        return pts * self._scale - self._origin

    def length(self, duration: int) -> int:
        """Ticks of a duration in units of the timestamps."""
        return duration * self._scale

    def of(self, seconds: Fraction | float) -> int:
        """The nearest tick."""
        return round(Fraction(seconds) * self.second)

    def seconds(self, ticks: int) -> Fraction:
        """Seconds of a time or length."""
        return Fraction(ticks, self.second)


class Timed(NamedTuple, Generic[Frame]):
    """A frame with the ticks it covers."""

    frame: Frame
    time: int
    length: int

    @property
    def end(self) -> int:
        return self.time + self.length


@dataclass(frozen=True)
class Jump:
    """Timestamps left the running clock at `at` for `to` (ticks); `believed` if the frames went along."""

    at: int
    to: int
    believed: bool


class Clock(Generic[Frame]):
    """Places the frames of one stream on the presentation clock. All times are ticks.

    A frame without a timestamp follows the one before. A timestamp that jumps is believed when the next frame confirms
    it and it lies within the declared duration: MPEG-TS recordings have real gaps and back-jumps, and the raw times are
    kept. Else the frame follows the one before, so that a flipped bit moves nothing.
    """

    def __init__(self, second: int, declared: int | None, trusts_forward: bool, usual: int, longest: int) -> None:
        """
        Args:
            second: ticks.
            declared: what the container claims to last, if it does.
            trusts_forward: whether a plausible jump forward needs no confirmation (long still pictures).
            usual: how long a frame lasts, where its own length cannot be meant.
            longest: a jump does not lead further.
        """
        self.jumps: list[Jump] = []
        self._step_limit, self._slack = STEP * second, SLACK * second
        self._undeclared, self._absurd = UNDECLARED * second, ABSURD * second
        self._declared = declared
        self._trusts_forward = trusts_forward
        self._usual = usual
        self._longest = longest
        self._before: Timed[Frame] | None = None  # the last frame that was placed
        self._step = 0  # between the last two: slow streams step far, again and again
        self._offset = 0  # from believed-wrong timestamps to the clock
        self._held: Timed[Frame] | None = None  # a frame after a jump, raw time, waiting for the next

    @property
    def last(self) -> int:
        """Where the last frame ended."""
        return 0 if self._before is None else self._before.end

    def plausible(self, time: int) -> bool:
        """Whether a jump to `time` can be meant."""
        if self._declared is None:
            latest = self.last + self._undeclared
        else:
            latest = max(self._declared, self.last) + self._slack
        return -self._slack <= time <= min(latest, max(self._longest, self.last + self._slack))

    def place(self, frame: Frame, time: int | None, length: int) -> list[Timed[Frame]]:
        """Frames whose place is certain now, in order; `time` is raw, None if the frame has no timestamp."""
        raw = None if time is None or abs(time) > self._absurd else time
        held, self._held = self._held, None
        if held is not None:
            return self._after_jump(held, Timed(frame, held.end if raw is None else raw, length))
        if raw is None:
            return [self.accept(frame, self.last, length)]
        return self._place(Timed(frame, raw, length))

    def flush(self) -> list[Timed[Frame]]:
        """The frame that was still waiting for a confirmation."""
        held, self._held = self._held, None
        return [] if held is None else [self.accept(held.frame, self.last, held.length)]

    def accept(self, frame: Frame, time: int, length: int) -> Timed[Frame]:
        """Places a frame without a question; a length that leads past the declared end is not meant."""
        latest = self._declared if self._declared is not None else time + self._slack
        if self._before is not None:
            self._step = max(0, time - self._before.time)
        self._before = Timed(frame, time, length if time + length <= latest else min(length, self._usual))
        return self._before

    def _place(self, raw: Timed[Frame]) -> list[Timed[Frame]]:
        if self._before is None:
            self._offset = 0 if self.plausible(raw.time) else -raw.time
            return [self.accept(raw.frame, raw.time + self._offset, raw.length)]
        # lengths follow the decoding order in some containers, so a frame may start well before the last one ends
        earliest = self._before.time - self._step_limit
        latest = max(self._before.end, self._before.time + self._step) + self._step_limit
        for offset in (0, self._offset):
            if earliest <= raw.time + offset <= latest:
                self._offset = offset
                return [self.accept(raw.frame, raw.time + offset, raw.length)]
        if self._trusts_forward and raw.time > self._before.end and self.plausible(raw.time):
            self._offset = 0
            return [self.accept(raw.frame, raw.time, raw.length)]
        self._held = raw._replace(length=min(raw.length, self._slack))
        return []

    def _after_jump(self, held: Timed[Frame], raw: Timed[Frame]) -> list[Timed[Frame]]:
        goes_on = held.time - self._step_limit <= raw.time <= held.end + self._step_limit
        climbs = self.last < held.time < raw.time and self.plausible(raw.time)
        if not goes_on and not climbs:
            return [self.accept(held.frame, self.last, held.length), *self._place(raw)]
        believed = self.plausible(held.time)
        self.jumps.append(Jump(self.last, held.time, believed))
        self._offset = 0 if believed else self.last - held.time
        first = self.accept(held.frame, held.time + self._offset, held.length)
        return [first, self.accept(raw.frame, raw.time + self._offset, raw.length)]


def first_tick(seconds: Fraction, second: int) -> int:
    """The first tick that is not before `seconds`."""
    return ceil(seconds * second)
