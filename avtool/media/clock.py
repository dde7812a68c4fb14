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

    def __init__(self, origin: Fraction, declared: Fraction | None, trusts_forward: bool, max_seconds: float) -> None:
        """
        Args:
            origin: raw seconds at which the presentation starts.
            declared: seconds that the container claims to last, if it does.
            trusts_forward: whether a plausible jump forward needs no confirmation (long still pictures).
            max_seconds: no file is longer.
        """
        self.jumps: list[Jump] = []
        self._origin = origin
        self._declared = declared
        self._trusts_forward = trusts_forward
        self._max = Fraction(max_seconds)
        self._expected: Fraction | None = None  # where the next frame should start
        self._offset = Fraction(0)  # from believed-wrong timestamps to the clock
        self._held: Timed[Frame] | None = None  # a frame after a jump, raw time, waiting for the next

    @property
    def last(self) -> Fraction:
        """Where the last frame ended, seconds."""
        return self._expected or Fraction(0)

    def place(self, frame: Frame, seconds: Fraction | None, length: Fraction) -> list[Timed[Frame]]:
        """Frames whose place is certain now, in order; `seconds` is raw, None if the frame has no timestamp."""
        raw = None if seconds is None or abs(seconds) > ABSURD else seconds - self._origin
        if self._held is not None:
            return self._after_jump(self._held, frame, raw, length)
        if raw is None:
            return [self._accept(frame, self._expected or Fraction(0), length)]
        if self._expected is None:
            return [self._accept(frame, raw if self.plausible(raw) else Fraction(0), length)]
        for offset in {Fraction(0), self._offset}:
            if abs(raw + offset - self._expected) <= STEP:
                self._offset = offset
                return [self._accept(frame, raw + offset, length)]
        if self._trusts_forward and raw > self._expected and self.plausible(raw):
            self._offset = Fraction(0)
            return [self._accept(frame, raw, length)]
        self._held = Timed(frame, raw, length)
        return []

    def flush(self) -> list[Timed[Frame]]:
        """The frame that was still waiting for a confirmation."""
        held, self._held = self._held, None
        if held is None:
            return []
        return [self._accept(held.frame, self._expected or Fraction(0), held.length)]

    def _after_jump(
        self, held: Timed[Frame], frame: Frame, raw: Fraction | None, length: Fraction
    ) -> list[Timed[Frame]]:
        self._held = None
        expected = self._expected or Fraction(0)
        confirmed = raw is None or abs(raw - held.end) <= STEP or (expected < held.time < raw and self.plausible(raw))
        if not confirmed:
            return [
                self._accept(held.frame, expected, held.length),
                *self.place(frame, raw + self._origin if raw is not None else None, length),
            ]
        believed = self.plausible(held.time)
        self.jumps.append(Jump(expected, held.time, believed))
        self._offset = Fraction(0) if believed else expected - held.time
        first = self._accept(held.frame, held.time + self._offset, held.length)
        return [first, self._accept(frame, first.end if raw is None else raw + self._offset, length)]

    def plausible(self, seconds: Fraction) -> bool:
        """Whether a jump to `seconds` can be meant."""
        if self._declared is not None:
            latest = max(self._declared, self._expected or Fraction(0)) + SLACK
        else:
            latest = (self._expected or Fraction(0)) + UNDECLARED
        return -SLACK <= seconds <= min(latest, self._max)

    def _accept(self, frame: Frame, time: Fraction, length: Fraction) -> Timed[Frame]:
        timed = Timed(frame, time, length)
        self._expected = timed.end
        return timed
