"""One stream each: packets in, pictures or sound out, with an account of what went wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from avtool.media.clock import STEP, Clock, Ticks, Timed
from avtool.media.frames import Converter, RowPicker
from avtool.media.probe import Media, prepare, reason
from avtool.media.request import DecodeRequest, Limits, Picture, Sound
from avtool.media.samples import Recorder, Tape
from avtool.media.skip import BY_PICTURE, CODECS, Feed, Planner, SkipFailed, Step, rows_between
from avtool.timeline import Notice

HOPELESS = 2000  # packets in a row that fail before a stream is given up
PREROLL = 1  # seconds of sound decoded before `start`, so that it is settled there
TINY = Fraction(1, 100)  # seconds between two frames that are rounding
NEAR = Fraction(1, 2)  # seconds between a hole and the packet whose failure explains it
SLOWEST = Fraction(10)  # seconds between pictures; a lower rate is damage
UNEVEN_LENGTH, UNEVEN = 0.3, 0.02  # a picture's length is off by more than this share; in more than that share of them


@dataclass
class Health:
    """What went wrong in one stream; times are ticks."""

    second: int
    failed: int = 0  # packets that could not be decoded
    marked: int = 0  # packets that the container says are damaged; most of them decode
    in_a_row: int = 0
    concealed: int = 0  # pictures that the decoder patched up
    lost: int = 0  # in holes that damage tore
    why: str = ""  # the last error
    damaged: bool = False  # something failed since the last frame
    hurt: deque[int] = field(default_factory=lambda: deque(maxlen=HOPELESS))  # where packets failed
    broken: bool = False  # given up

    def tore(self, start: int, stop: int) -> bool:
        """Whether packets failed in a hole between two frames; holes are asked about in order."""
        if not self.hurt:
            return False
        near = int(NEAR * self.second)
        while self.hurt and self.hurt[0] < start - near:
            self.hurt.popleft()
        return stop - start > TINY * self.second and any(time < stop + near for time in self.hurt)


class Decoder:
    """Packets to frames of one stream; errors are counted, never raised."""

    def __init__(self, stream: VideoStream | AudioStream, limits: Limits, second: int) -> None:
        prepare(stream, limits)
        self.stream: Any = stream
        self.health = Health(second)

    def decode(self, packet: Packet[Any] | None) -> list[Any]:
        """The frames that are ready; None takes out the last ones."""
        health = self.health
        if health.broken:
            return []
        try:
            frames: list[Any] = self.stream.decode(packet)
        except (av.error.FFmpegError, ValueError, MemoryError, OverflowError) as error:
            self._failed(error, packet)
            return []
        if frames:
            health.in_a_row = 0
        return frames

    def _failed(self, error: Exception, packet: Packet[Any] | None) -> None:
        health = self.health
        health.why, health.damaged = f"{reason(error)} ({type(error).__name__})", True
        health.failed += packet is not None
        health.in_a_row += 1
        hopeless = isinstance(error, av.error.DecoderNotFoundError) or "avcodec_open2" in str(error)
        health.broken = hopeless or health.in_a_row >= HOPELESS


class Track(ABC):
    """What sound and picture have in common: a decoder, a clock, and the span that packets covered."""

    kind = ""  # in words

    def __init__(
        self, media: Media, stream: VideoStream | AudioStream, request: DecodeRequest, forward: bool, usual: Fraction
    ) -> None:
        self.media = media
        self.stream: Any = stream
        self.ticks = Ticks(stream.time_base or Fraction(1, 90_000), media.origin)
        self.decoder = Decoder(stream, request.limits, self.ticks.second)
        self.health = self.decoder.health
        declared = None if media.declared is None else self.ticks.of(min(media.declared, media.believable))
        longest = self.ticks.of(min(Fraction(request.limits.max_seconds), media.believable))
        self.clock: Clock[Any] = Clock(self.ticks.second, declared, forward, self.ticks.of(usual), longest)
        self._packets_until = 0  # end of the packets seen

    @property
    def until(self) -> Fraction:
        """End of what came out, seconds."""
        return self.ticks.seconds(self._end())

    def lost(self, whole: bool) -> Fraction:
        """Seconds lost: in holes, and, if the file was read to its end, after the last frame."""
        return self.ticks.seconds(self.health.lost + (self._tail() if whole else 0))

    def notices(self) -> Iterator[Notice]:
        """What the reader of a result must know about this stream."""
        health, kind = self.health, self.kind
        if health.failed:
            yield Notice("damaged_packets", f"{health.failed} packets of the {kind} are damaged: {health.why}")
        elif health.marked:
            yield Notice("damaged_packets", f"{health.marked} packets of the {kind} are marked as damaged, but decode")
        if health.concealed:
            yield Notice("concealed_frames", f"{health.concealed} pictures are damaged and were patched up")
        if health.broken:
            at = float(self.ticks.seconds(self.clock.last))
            yield Notice("broken_stream", f"the {kind} was given up at {at:.1f} s: {health.why}")
        if self.clock.jumps:
            yield Notice("timestamps_jump", self._jumps())

    def _jumps(self) -> str:
        jump, count = self.clock.jumps[0], len(self.clock.jumps)
        at, to = (float(self.ticks.seconds(t)) for t in (jump.at, jump.to))
        handled = "the times are kept" if jump.believed else "the jump is ignored"
        more = f" ({count} jumps in all)" if count > 1 else ""
        return f"the times of the {self.kind} jump from {at:.1f} to {to:.1f} s; {handled}{more}"

    @abstractmethod
    def _end(self) -> int:
        """Tick where what came out ends."""

    def _tail(self) -> int:
        """Ticks after the end that packets or the container's index still cover."""
        indexed = self.media.indexed_until(self.stream)
        listed = 0 if indexed is None else self.ticks.of(indexed)
        listed = listed if self.clock.plausible(listed) else 0
        seen = self._packets_until if self.health.failed else 0
        tail = max(listed, seen) - self._end()
        return tail if tail > self.ticks.second // 10 else 0  # less is rounding

    def _decode(self, packet: Packet[Any]) -> list[Any]:
        """The frames that are ready; notes where packets fail, and the span that they cover."""
        failed = self.health.failed
        frames = self.decoder.decode(packet)
        start = self._time_of(packet)
        self.health.marked += packet.is_corrupt
        if self.health.failed > failed:
            self.health.hurt.append(start)
        end = start + self.ticks.length(packet.duration or 0)
        if end > self._packets_until and not packet.is_discard and self.clock.plausible(end):
            self._packets_until = end
        return frames

    def _time_of(self, packet: Packet[Any]) -> int:
        stamp = packet.pts if packet.pts is not None else packet.dts
        return self.clock.last if stamp is None else self.ticks.place(stamp)

    def _timed(self, frame: Any, length: int) -> list[Timed[Any]]:
        """The frames whose place is certain after one more."""
        return self.clock.place(frame, None if frame.pts is None else self.ticks.place(frame.pts), length)


class Evenness:
    """Whether pictures follow each other at a constant rate."""

    def __init__(self, usual: int) -> None:
        self._usual, self._allowed = usual, int(usual * UNEVEN_LENGTH)
        self._before: int | None = None
        self._uneven = self._compared = 0

    @property
    def variable(self) -> bool:
        return self._uneven > 2 + self._compared * UNEVEN

    def see(self, time: int) -> None:
        if self._before is not None:
            self._compared += 1
            self._uneven += abs(time - self._before - self._usual) > self._allowed
        self._before = time


class PictureTrack(Track):
    """Video packets to pictures."""

    kind = "picture"

    def __init__(
        self, media: Media, stream: VideoStream, request: DecodeRequest, convert: Converter, row: int, skip: bool
    ) -> None:
        """
        Args:
            media: the open file.
            stream: one of its streams.
            request: what to deliver.
            convert: makes pixels of frames.
            row: the first row to deliver.
            skip: leave out pictures that are not wanted.
        """
        usual = min(1 / Fraction(stream.average_rate or stream.guessed_rate or 25), SLOWEST)
        super().__init__(media, stream, request, forward=not media.jumps_expected, usual=usual)
        self.picker = RowPicker(request.grid, self.ticks.second, convert, row, request.rows[1])
        self.first: VideoFrame | None = None
        self.evenness = Evenness(self.ticks.of(usual))
        self._usual = self.ticks.of(usual)
        self._limits = request.limits
        self._mode = "DEFAULT"
        self._due: deque[int] = deque()  # pts that must come out, in order
        self._planner = self._plan(request) if skip and stream.codec_context.name in CODECS else None

    @property
    def done(self) -> bool:
        """Nothing more is wanted of this stream."""
        return self.picker.done

    def feed(self, packet: Packet[Any]) -> Iterator[Picture]:
        """Pictures that are ready after one more packet."""
        if self._planner is None:
            yield from self._frames(self._decode(packet))
        else:
            yield from self._walk(self._planner.push(packet))

    def finish(self) -> Iterator[Picture]:
        """Pictures that are ready at the end of the stream, but for the last one's."""
        if self._planner is not None:
            yield from self._walk(self._planner.finish())
        yield from self._frames(self.decoder.decode(None))
        self._check_due(None)
        for timed in self.clock.flush():
            yield from self._pick(timed)

    def _end(self) -> int:
        return self.picker.end

    def _frames(self, frames: list[VideoFrame]) -> Iterator[Picture]:
        for frame in frames:
            if self._planner is not None:
                if frame.pts is None or frame.is_corrupt:
                    raise SkipFailed(f"picture {frame.pts} is damaged or has no time")
                self._check_due(frame.pts)
            if frame.width * frame.height > self._limits.max_pixels:
                self.health.failed += 1
                self.health.why = f"a picture has {frame.width} x {frame.height} pixels"
                continue
            self.health.concealed += frame.is_corrupt
            self.first = self.first or frame
            length = self.ticks.length(frame.duration) if frame.duration else self._usual
            for timed in self._timed(frame, length):
                yield from self._pick(timed)

    def _pick(self, timed: Timed[VideoFrame]) -> Iterator[Picture]:
        if self._planner is None:
            self.evenness.see(timed.time)
        torn = self.health.tore(self.picker.end, timed.time)
        if torn:
            self.health.lost += timed.time - self.picker.end
        try:
            yield from self.picker.feed(timed, torn or self.media.jumps_expected)
        except (av.error.FFmpegError, ValueError, MemoryError) as error:  # the picture cannot be converted
            self.health.why = reason(error)
            self.health.failed += 1

    # ------------------------------------------------------------ leaving pictures out

    def _plan(self, request: DecodeRequest) -> Planner:
        stride, centre = request.grid.stride, request.grid.centre(0)
        unit = self.stream.time_base or Fraction(1, 90_000)
        wanted = rows_between(unit / stride, (self.media.origin + centre) / stride, *request.rows)
        return Planner(wanted, self._regular)

    def _walk(self, steps: Iterator[Step]) -> Iterator[Picture]:
        """Decodes by plan.

        Raises:
            SkipFailed: something did not go as planned.
        """
        for step in steps:
            if isinstance(step, Feed):
                self._set_mode("DEFAULT" if step.wanted else "NONREF")
                if step.wanted and step.packet.pts is not None and not step.packet.is_discard:
                    self._expect(step.packet.pts)
                yield from self._frames(self._decode(step.packet))
            else:
                yield from self._frames(self.decoder.decode(None))
                self._check_due(None)
                self.stream.codec_context.flush_buffers()
            if self.health.failed:
                raise SkipFailed(self.health.why)

    def _timed(self, frame: Any, length: int) -> list[Timed[Any]]:
        """While pictures are left out the times have been judged already, and what is left looks like jumps."""
        if self._planner is None:
            return super()._timed(frame, length)
        return [self.clock.accept(frame, self.ticks.place(frame.pts), length)]

    def _regular(self, before: int | None, pts: int) -> bool:
        """Whether the times of two pictures that follow each other leave no doubt."""
        time = self.ticks.place(pts)
        self.evenness.see(time)
        if before is not None and self.ticks.length(pts - before) <= STEP * self.ticks.second:
            return True
        return self.clock.plausible(time) and (before is None or not self.media.jumps_expected)

    def _set_mode(self, mode: Any) -> None:
        if mode != self._mode and self.stream.codec_context.name in BY_PICTURE:
            self.stream.codec_context.skip_frame = mode
            self._mode = mode

    def _expect(self, pts: int) -> None:
        """Packets come in decoding order, so a picture shown earlier may be announced later."""
        at = len(self._due)
        while at and self._due[at - 1] > pts:
            at -= 1
        self._due.insert(at, pts)

    def _check_due(self, pts: int | None) -> None:
        """Raises SkipFailed if a wanted picture before `pts` (None: any) did not come out."""
        if self._due and pts is not None and self._due[0] == pts:
            self._due.popleft()
        elif self._due and (pts is None or self._due[0] < pts):
            raise SkipFailed(f"picture {self._due[0]} did not come out before {pts}")


class SoundTrack(Track):
    """Audio packets to sound."""

    kind = "sound"

    def __init__(self, media: Media, stream: AudioStream, request: DecodeRequest, tape: Tape) -> None:
        super().__init__(media, stream, request, forward=False, usual=TINY)
        self.recorder = Recorder(tape, self.ticks.second)
        self._from = None if request.start is None else self.ticks.of(request.start - PREROLL)

    @property
    def done(self) -> bool:
        """Nothing more is wanted of this stream."""
        return self.recorder.tape.done

    def feed(self, packet: Packet[Any]) -> Iterator[Sound]:
        """Sound that is ready after one more packet."""
        if self._from is not None and packet.pts is not None and self.ticks.place(packet.pts) < self._from:
            for timed in self._timed(packet, self.ticks.length(packet.duration or 0)):
                yield from self._record(timed)
        else:
            yield from self._frames(self._decode(packet))

    def finish(self) -> Iterator[Sound]:
        """Sound that is ready at the end of the stream."""
        yield from self._frames(self.decoder.decode(None))
        for timed in self.clock.flush():
            yield from self._record(timed)
        try:
            yield from self.recorder.finish()
        except (av.error.FFmpegError, ValueError) as error:
            self.health.why = reason(error)

    def _end(self) -> int:
        return self.recorder.until

    def _frames(self, frames: list[AudioFrame]) -> Iterator[Sound]:
        for frame in frames:
            if frame.sample_rate > 0:
                for timed in self._timed(frame, frame.samples * self.ticks.second // frame.sample_rate):
                    yield from self._record(timed)

    def _record(self, timed: Timed[Any]) -> Iterator[Sound]:
        if not isinstance(timed.frame, AudioFrame):  # a packet before the range that is wanted
            self.recorder.passed(timed.end)
            return
        torn = self.health.tore(self.recorder.end, timed.time)
        before = self.recorder.silenced
        try:
            yield from self.recorder.feed(timed, self.health.damaged)
        except (av.error.FFmpegError, ValueError, MemoryError) as error:  # it cannot be converted
            self.health.why, self.health.damaged = reason(error), True
            self.health.failed += 1
            return
        if torn:
            self.health.lost += self.recorder.silenced - before
        self.health.damaged = False
