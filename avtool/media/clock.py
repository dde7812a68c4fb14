"""Turns the timestamps of one stream into seconds of the presentation, and judges jumps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

Frame = TypeVar("Frame")

STEP = Fraction(1)  # seconds: a smaller step forward or back is not a jump
SLACK = 10  # seconds that a stream may run past its declared end before a jump there is disbelieved
UNDECLARED = 3600  # seconds that a jump may lead forward when the container declares no end
ABSURD = 10**9  # seconds: no timestamp


@dataclass(frozen=True)
class Timed(Generic[Frame]):
    """A frame with the seconds it covers; `length` is 0 where nothing is known."""

    frame: Frame
    time: Fraction
    length: Fraction

    @property
    def end(self) -> Fraction:
        return self.time + self.length


@dataclass(frozen=True)
class Jump:
    """Timestamps left the running clock at `at` for `to` (seconds); `believed` if the frames went along."""

    at: Fraction
    to: Fraction
    believed: bool


class Clock(Generic[Frame]):
    """Places the frames of one stream on the presentation clock.

    A frame without a timestamp follows the one before. A timestamp that jumps is believed when the next frame confirms
    it and it lies within the declared duration: MPEG-TS recordings have real gaps and back-jumps, and the raw times are
    kept. Else the frame follows the one before, so that a flipped bit moves nothing.
    """

    def __init__(
        self, origin: Fraction, declared: Fraction | None, trusts_forward: bool, usual: Fraction, max_seconds: float
    ) -> None:
        """
        Args:
            origin: raw seconds at which the presentation starts.
            declared: seconds that the container claims to last, if it does.
            trusts_forward: whether a plausible jump forward needs no confirmation (long still pictures).
            usual: seconds that a frame lasts, where its own length cannot be meant.
            max_seconds: no file is longer.
        """
        self.jumps: list[Jump] = []
        self._origin = origin
        self._declared = declared
        self._trusts_forward = trusts_forward
        self._usual = usual
        self._max = Fraction(max_seconds)
        self._before: Timed[Frame] | None = None  # the last frame that was placed
        self._step = Fraction(0)  # seconds between the last two: slow streams step far, again and again
        self._offset = Fraction(0)  # from believed-wrong timestamps to the clock
        self._held: Timed[Frame] | None = None  # a frame after a jump, raw time, waiting for the next

    @property
    def last(self) -> Fraction:
        """Where the last frame ended, seconds."""
        return Fraction(0) if self._before is None else self._before.end

    def plausible(self, seconds: Fraction) -> bool:
        """Whether a jump to `seconds` can be meant."""
        latest = max(self._declared, self.last) + SLACK if self._declared is not None else self.last + UNDECLARED
        return -SLACK <= seconds <= min(latest, self._max)

    def place(self, frame: Frame, seconds: Fraction | None, length: Fraction) -> list[Timed[Frame]]:
        """Frames whose place is certain now, in order; `seconds` is raw, None if the frame has no timestamp."""
        raw = None if seconds is None or abs(seconds) > ABSURD else seconds - self._origin
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

    def accept(self, frame: Frame, time: Fraction, length: Fraction) -> Timed[Frame]:
        """Places a frame without a question; a length that leads past the declared end is not meant."""
        latest = self._declared if self._declared is not None else time + SLACK
        if self._before is not None:
            self._step = max(Fraction(0), time - self._before.time)
        self._before = Timed(frame, time, length if time + length <= latest else min(length, self._usual))
        return self._before

    def _place(self, raw: Timed[Frame]) -> list[Timed[Frame]]:
        if self._before is None:
            return [self.accept(raw.frame, raw.time if self.plausible(raw.time) else Fraction(0), raw.length)]
        # lengths follow the decoding order in some containers, so a frame may start well before the last one ends
        earliest, latest = self._before.time - STEP, max(self._before.end, self._before.time + self._step) + STEP
        for offset in (Fraction(0), self._offset):
            if earliest <= raw.time + offset <= latest:
                self._offset = offset
                return [self.accept(raw.frame, raw.time + offset, raw.length)]
        if self._trusts_forward and raw.time > self._before.end and self.plausible(raw.time):
            self._offset = Fraction(0)
            return [self.accept(raw.frame, raw.time, raw.length)]
        self._held = raw
        return []

    def _after_jump(self, held: Timed[Frame], raw: Timed[Frame]) -> list[Timed[Frame]]:
        goes_on = held.time - STEP <= raw.time <= held.end + STEP
        climbs = self.last < held.time < raw.time and self.plausible(raw.time)
        if not goes_on and not climbs:
            return [self.accept(held.frame, self.last, held.length), *self._place(raw)]
        believed = self.plausible(held.time)
        self.jumps.append(Jump(self.last, held.time, believed))
        self._offset = Fraction(0) if believed else self.last - held.time
        first = self.accept(held.frame, held.time + self._offset, held.length)
        return [first, self.accept(raw.frame, raw.time + self._offset, raw.length)]
