"""The decode loop: one open, one pass for sound and picture, packet by packet, so that damage costs what it hit."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from avtool.media.clock import STEP, Clock, Timed
from avtool.media.frames import Allocate, Converter, RowPicker, new_pixels
from avtool.media.probe import Media, nothing, open_media, prepare, reason, too_long, with_span
from avtool.media.request import DecodeReport, DecodeRequest, Item, Limits, Picture, Progress, Sound
from avtool.media.samples import Recorder, Tape
from avtool.media.skip import BY_PICTURE, CODECS, Drain, Feed, Planner, SkipFailed, Step, rows_between
from avtool.timeline import MediaInfo, Notice

logger = logging.getLogger("avtool")

REOPENED = 50  # times that reading goes on after an error of the container
HOPELESS = 2000  # packets in a row that fail before a stream is given up
EMPTY_PACKETS = 100_000  # a file gives at most this many packets more than it has bytes
PREROLL = Fraction(1)  # seconds of sound decoded before `start`, so that it is settled there
TOLERATED = Fraction(1, 10)  # seconds: a shorter hole is not a loss
TINY = Fraction(1, 100)  # seconds between two frames that are rounding
NEAR = Fraction(1, 2)  # seconds between a hole and the packet whose failure explains it
DISAGREEMENT = 0.02, 1.0  # share of the span, and seconds, by which a declared duration is wrong
PROGRESS_PACKETS = 64
UNEVEN_LENGTH, UNEVEN = Fraction(3, 10), Fraction(1, 50)  # a picture's length is off by more; in that share of them

Frame = VideoFrame | AudioFrame


def decode(
    path: str | os.PathLike[str],
    request: DecodeRequest,
    on_progress: Progress | None = None,
    *,
    skip: bool = True,
    allocate: Allocate = new_pixels,
) -> Iterator[Item]:
    """Pictures and sound of a file in bounded memory, and last a `DecodeReport`.

    Pictures come in order of rows and sound in order of samples, but how the two interleave depends on the file. A
    stream that is missing delivers nothing and a notice.

    Args:
        path: a regular file.
        request: what to deliver.
        on_progress: called with ("decode", seconds done, seconds in all).
        skip: leave out pictures that nobody asked for, where that is known to change nothing; False decodes them all.
        allocate: gives the memory that a picture is written into.

    Raises:
        InputError: the file cannot be read as media, nothing in it can be decoded, or it is over a limit.
        UsageError: there is no such audio track.
    """
    first, stop = rows_of(request)
    picker = RowPicker(request.grid, Converter(request.pictures, allocate), first, stop) if request.pictures else None
    tape = tape_of(request) if request.sample_rate else None
    if skip and picker is not None:
        try:
            yield from Attempt(path, request, on_progress, picker, tape, skip=True).items()
            return
        except SkipFailed as failed:  # decode in full from the start: what was delivered is right and is not repeated
            logger.debug("decoding every picture: %s", failed)
            picker = RowPicker(request.grid, picker.convert, picker.row, stop)
    yield from Attempt(path, request, on_progress, picker, tape, skip=False).items()


def rows_of(request: DecodeRequest) -> tuple[int, int | None]:
    """The rows [first, stop) whose centre lies in [start, end)."""
    centre, stride = request.grid.centre(0), request.grid.stride
    first = 0 if request.start is None else max(0, -((centre - request.start) // stride))
    return first, None if request.end is None else max(first, -((centre - request.end) // stride))


def tape_of(request: DecodeRequest) -> Tape:
    """An empty tape over the samples in [start, end)."""
    rate = request.sample_rate or 1
    first = max(0, round((request.start or Fraction(0)) * rate))
    return Tape(rate, first, None if request.end is None else max(first, round(request.end * rate)))


@dataclass
class Health:
    """What went wrong in one stream."""

    failed: int = 0  # packets that could not be decoded
    marked: int = 0  # packets that the container says are damaged; most of them decode
    in_a_row: int = 0
    concealed: int = 0  # pictures that the decoder patched up
    lost: Fraction = Fraction(0)  # seconds in holes that damage tore
    why: str = ""  # the last error
    damaged: bool = False  # something failed since the last frame
    hurt: deque[Fraction] = field(default_factory=lambda: deque(maxlen=HOPELESS))  # seconds at which packets failed
    broken: bool = False  # given up

    def tore(self, start: Fraction, stop: Fraction) -> bool:
        """Whether packets failed in a hole between two frames; holes are asked about in order."""
        while self.hurt and self.hurt[0] < start - NEAR:
            self.hurt.popleft()
        return stop - start > TINY and any(time < stop + NEAR for time in self.hurt)


class Decoder:
    """Packets to frames of one stream; errors are counted, never raised."""

    def __init__(self, stream: VideoStream | AudioStream, limits: Limits) -> None:
        prepare(stream, limits)
        self.stream: Any = stream
        self.health = Health()

    def decode(self, packet: Packet[Any] | None) -> list[Any]:
        """The frames that are ready; None takes out the last ones."""
        health = self.health
        if health.broken:
            return []
        try:
            frames = self.stream.decode(packet)
        except (av.error.FFmpegError, ValueError, MemoryError, OverflowError) as error:
            self._failed(error, packet)
            return []
        if frames:
            health.in_a_row = 0
        return list(frames)

    def _failed(self, error: Exception, packet: Packet[Any] | None) -> None:
        health = self.health
        health.why, health.damaged = f"{reason(error)} ({type(error).__name__})", True
        health.failed += packet is not None
        health.in_a_row += 1
        hopeless = isinstance(error, av.error.DecoderNotFoundError) or "avcodec_open2" in str(error)
        health.broken = hopeless or health.in_a_row >= HOPELESS


class Track:
    """What sound and picture have in common: a decoder, a clock, and the span that packets covered."""

    def __init__(
        self, media: Media, stream: VideoStream | AudioStream, request: DecodeRequest, forward: bool, usual: Fraction
    ) -> None:
        self.decoder = Decoder(stream, request.limits)
        self.health = self.decoder.health
        self.media = media
        self.unit: Fraction = stream.time_base or Fraction(1, 90_000)  # seconds per tick
        self.clock: Clock[Any] = Clock(media.origin, media.declared, forward, usual, request.limits.max_seconds)
        self.frames = 0
        self.packets_until = Fraction(0)  # end of the packets seen, seconds

    def decode(self, packet: Packet[Any]) -> list[Any]:
        """The frames that are ready; notes where packets fail, and the span that they cover."""
        before = self.health.failed
        frames = self.decoder.decode(packet)
        time = packet.pts if packet.pts is not None else packet.dts
        start = self.clock.last if time is None else time * self.unit - self.media.origin
        self.health.marked += packet.is_corrupt
        if self.health.failed > before:
            self.health.hurt.append(start)
        end = start + (packet.duration or 0) * self.unit
        if end > self.packets_until and self.clock.plausible(end):
            self.packets_until = end
        return frames

    def timed(self, frame: Any, length: Fraction) -> list[Timed[Any]]:
        """The frames whose place is certain after one more."""
        self.frames += 1
        return self.clock.place(frame, None if frame.pts is None else frame.pts * self.unit, length)

    def tail(self, end: Fraction, stream: VideoStream | AudioStream) -> Fraction:
        """Seconds after `end` that packets or the container's index still cover."""
        indexed = self.media.indexed_until(stream) or Fraction(0)
        indexed = indexed if self.clock.plausible(indexed) else Fraction(0)
        seen = self.packets_until if self.health.failed else Fraction(0)
        return max(Fraction(0), max(indexed, seen) - end)


class PictureTrack(Track):
    """Video packets to pictures."""

    def __init__(
        self, media: Media, stream: VideoStream, request: DecodeRequest, picker: RowPicker, skip: bool
    ) -> None:
        usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
        super().__init__(media, stream, request, forward=not media.jumps_expected, usual=usual)
        self.stream = stream
        self.picker = picker
        self.first: VideoFrame | None = None
        self._limits = request.limits
        self._usual = usual
        self._uneven = 0  # pictures that do not last as long as usual
        self._compared = 0
        self._shown_at: Fraction | None = None
        self._mode = "DEFAULT"
        self._due: deque[int] = deque()  # pts that must come out, in order
        self._planner = self._plan(request) if skip and stream.codec_context.name in CODECS else None

    @property
    def done(self) -> bool:
        return self.picker.done

    def feed(self, packet: Packet[Any]) -> Iterator[Picture]:
        """Pictures that are ready after one more packet."""
        if self._planner is None:
            yield from self._frames(self.decode(packet))
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

    @property
    def variable(self) -> bool:
        """Whether more than a few pictures last longer or shorter than usual."""
        return self._uneven > 2 + self._compared * UNEVEN

    def _compare(self, time: Fraction) -> None:
        if self._shown_at is not None:
            self._compared += 1
            self._uneven += abs(time - self._shown_at - self._usual) > self._usual * UNEVEN_LENGTH
        self._shown_at = time

    def _plan(self, request: DecodeRequest) -> Planner:
        stride, centre = request.grid.stride, request.grid.centre(0)
        first, stop = rows_of(request)
        shift = (self.media.origin + centre) / stride
        return Planner(rows_between(self.unit / stride, shift, first, stop), self._regular)

    def _walk(self, steps: Iterator[Step]) -> Iterator[Picture]:
        for step in steps:
            if isinstance(step, Feed):
                self._set_mode("DEFAULT" if step.wanted else "NONREF")
                if step.wanted and step.packet.pts is not None and not step.packet.is_discard:
                    self._expect(step.packet.pts)
                yield from self._frames(self.decode(step.packet))
            elif isinstance(step, Drain):
                yield from self._frames(self.decoder.decode(None))
                self._check_due(None)
                self.stream.codec_context.flush_buffers()
            if self.health.failed:
                raise SkipFailed(self.health.why)

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
            length = frame.duration * self.unit if frame.duration else self._usual
            for timed in self.timed(frame, length):
                if self._planner is None:
                    self._compare(timed.time)
                yield from self._pick(timed)

    def timed(self, frame: Any, length: Fraction) -> list[Timed[Any]]:
        """While pictures are left out the times have been judged already, and what is left looks like jumps."""
        if self._planner is None:
            return super().timed(frame, length)
        self.frames += 1
        return [self.clock.accept(frame, frame.pts * self.unit - self.media.origin, length)]

    def _regular(self, before: int | None, pts: int) -> bool:
        """Whether the times of two pictures that follow each other leave no doubt."""
        seconds = pts * self.unit - self.media.origin
        self._compare(seconds)
        if before is not None and (pts - before) * self.unit <= STEP:
            return True
        return self.clock.plausible(seconds) and (before is None or not self.media.jumps_expected)

    def _pick(self, timed: Timed[VideoFrame]) -> Iterator[Picture]:
        torn = self.health.tore(self.picker.end, timed.time)
        if torn:
            self.health.lost += timed.time - self.picker.end
        try:
            yield from self.picker.feed(timed, torn or self.media.jumps_expected)
        except (av.error.FFmpegError, ValueError, MemoryError) as error:  # the picture cannot be converted
            self.health.why = reason(error)
            self.health.failed += 1


class SoundTrack(Track):
    """Audio packets to sound."""

    def __init__(self, media: Media, stream: AudioStream, request: DecodeRequest, tape: Tape) -> None:
        super().__init__(media, stream, request, forward=False, usual=TINY)
        self.stream = stream
        self.recorder = Recorder(tape)
        self._from = None if request.start is None else request.start - PREROLL + media.origin

    @property
    def done(self) -> bool:
        return self.recorder.tape.done

    def feed(self, packet: Packet[Any]) -> Iterator[Sound]:
        """Sound that is ready after one more packet."""
        if self._from is not None and packet.pts is not None and packet.pts * self.unit < self._from:
            return
        yield from self._frames(self.decode(packet))

    def finish(self) -> Iterator[Sound]:
        """Sound that is ready at the end of the stream."""
        yield from self._frames(self.decoder.decode(None))
        for timed in self.clock.flush():
            yield from self._record(timed)
        try:
            yield from self.recorder.finish()
        except (av.error.FFmpegError, ValueError) as error:
            self.health.why = reason(error)

    def _frames(self, frames: list[AudioFrame]) -> Iterator[Sound]:
        for frame in frames:
            if frame.sample_rate > 0:
                for timed in self.timed(frame, Fraction(frame.samples, frame.sample_rate)):
                    yield from self._record(timed)

    def _record(self, timed: Timed[AudioFrame]) -> Iterator[Sound]:
        torn = self.health.tore(self.recorder.end, timed.time)
        before = self.recorder.silenced
        try:
            yield from self.recorder.feed(timed, self.health.damaged)
        except (av.error.FFmpegError, ValueError, MemoryError) as error:  # a format that cannot be converted
            self.health.why, self.health.damaged = reason(error), True
            self.health.failed += 1
            return
        if torn:
            self.health.lost += self.recorder.silenced - before
        self.health.damaged = False


@dataclass
class Attempt:
    """One pass over the file."""

    path: str | os.PathLike[str]
    request: DecodeRequest
    on_progress: Progress | None
    picker: RowPicker | None
    tape: Tape | None
    skip: bool
    _packets: int = 0
    _total: float = 0.0
    _notices: list[Notice] = field(default_factory=list)

    def items(self) -> Iterator[Item]:
        """Everything in order, the report last.

        Raises:
            SkipFailed: only if `skip`: decode in full instead.
        """
        request = self.request
        with open_media(self.path, request.limits, request.audio_track) as media:
            video = audio = None
            if media.video is not None and self.picker is not None:
                video = PictureTrack(media, media.video, request, self.picker, self.skip)
            if media.audio is not None and self.tape is not None:
                audio = SoundTrack(media, media.audio, request, self.tape)
            self._total = media.info().duration
            yield from self._stream(media, video, audio)
            yield self._report(media, video, audio)

    def _stream(self, media: Media, video: PictureTrack | None, audio: SoundTrack | None) -> Iterator[Picture | Sound]:
        tracks: dict[int, PictureTrack | SoundTrack] = {t.stream.index: t for t in (video, audio) if t is not None}
        for packet in self._demux(media, [t.stream for t in tracks.values()]):
            track = tracks[packet.stream_index]
            if not track.done:
                yield from track.feed(packet)
            elif all(t.done for t in tracks.values()):
                break
            self._progress(media, video, audio)
        for track in tracks.values():
            yield from track.finish()
        if video is not None:
            yield from video.picker.finish(self.request.grid.count(self._until(video, audio)))

    def _demux(self, media: Media, streams: list[Any]) -> Iterator[Packet[Any]]:
        """All packets with content; reading goes on after an error of the container."""
        budget = EMPTY_PACKETS + media.status.st_size
        for _ in range(REOPENED if streams else 0):
            try:
                for packet in media.container.demux(streams):
                    if packet.size:
                        self._packets += 1
                        yield packet
                    if self._packets > budget:
                        return self._note(
                            "damaged_packets", "the file has more packets than bytes; the rest is not read"
                        )
                return None
            except (av.error.EOFError, av.error.ExitError) as error:
                return self._note("damaged_container", f"reading ended early: {reason(error)}")
            except (av.error.FFmpegError, IndexError, ValueError, MemoryError) as error:
                self._note("damaged_container", f"reading went on after an error: {reason(error)}")
        return None

    def _note(self, code: str, message: str) -> None:
        notice = Notice(code, message)
        if notice not in self._notices:
            self._notices.append(notice)

    def _progress(self, media: Media, video: PictureTrack | None, audio: SoundTrack | None) -> None:
        if self._packets % PROGRESS_PACKETS:
            return
        until = self._until(video, audio)
        if until > self.request.limits.max_seconds:
            raise too_long(media.path, self.request.limits)
        if self.on_progress is not None:
            self.on_progress("decode", float(until), max(self._total, float(until)))

    def _until(self, video: PictureTrack | None, audio: SoundTrack | None) -> Fraction:
        seen = max(video.picker.end if video else Fraction(0), audio.recorder.end if audio else Fraction(0))
        return seen

    # ------------------------------------------------------------ report

    def _report(self, media: Media, video: PictureTrack | None, audio: SoundTrack | None) -> DecodeReport:
        tracks = [t for t in (video, audio) if t is not None]
        if tracks and not any(t.frames for t in tracks):
            raise nothing(media.path, next((t.health.why for t in tracks if t.health.why), ""))
        until = float(self._until(video, audio))
        ended = self.request.end is not None and until >= self.request.end
        lost = 0.0 if ended else float(max((self._lost(t) for t in tracks), default=Fraction(0)))
        self._notices += self._missing(media)
        for track, kind in ((video, "picture"), (audio, "sound")):
            if track is not None:
                self._notices += _health_notices(track, kind)
        if lost > TOLERATED:
            self._note("lost_span", f"{lost:.1f} s that the file holds could not be decoded")
        if not ended and tracks:
            self._compare(media, until, lost)
        info = self._info(media, video, audio, until, ended)
        return DecodeReport(info, tuple(self._notices), lost, sum(t.health.failed for t in tracks), until)

    def _lost(self, track: PictureTrack | SoundTrack) -> Fraction:
        end = track.picker.end if isinstance(track, PictureTrack) else track.recorder.end
        tail = track.tail(end, track.stream)
        return track.health.lost + (tail if tail > TOLERATED else 0)

    def _missing(self, media: Media) -> Iterator[Notice]:
        if media.audio is None and self.tape is not None:
            there = bool(media.container.streams.audio)
            yield Notice("no_audio_stream", "the sound is in an unknown format" if there else "the file has no sound")
        if media.video is None and self.picker is not None:
            there = any(s.codec_context is None for s in media.container.streams.video)
            why = "the picture is in an unknown format" if there else "the file has no moving picture"
            yield Notice("no_video_stream", why)

    def _compare(self, media: Media, until: float, lost: float) -> None:
        """Notes a declared duration that the decoded span does not bear out."""
        declared = media.declared
        if declared is None or self.picker is None or self.tape is None:
            return
        share, seconds = DISAGREEMENT
        candidates = (float(declared), float(declared - media.origin), float(declared + media.origin))
        wrong = min(abs(d - span) for d in candidates for span in (until, until + lost))
        if wrong > max(seconds, share * until):
            text = f"the file claims {float(declared):.1f} s, but {until:.1f} s is all there is"
            self._note("declared_duration_wrong", text)

    def _info(
        self, media: Media, video: PictureTrack | None, audio: SoundTrack | None, until: float, ended: bool
    ) -> MediaInfo:
        info = with_span(media.info(video.first if video else None), until, until)
        if info.video is not None and video is not None:
            info = replace(info, video=replace(info.video, variable=video.variable))
        if ended and self.request.end is not None:
            whole = max(self._total, until)
            info = with_span(info, whole, float(self.request.end))
        return info


def _health_notices(track: PictureTrack | SoundTrack, kind: str) -> Iterator[Notice]:
    health = track.health
    if health.failed:
        yield Notice("damaged_packets", f"{health.failed} packets of the {kind} are damaged: {health.why}")
    elif health.marked:
        yield Notice("damaged_packets", f"{health.marked} packets of the {kind} are marked as damaged, but decode")
    if health.concealed:
        yield Notice("concealed_frames", f"{health.concealed} pictures are damaged and were patched up")
    if health.broken:
        yield Notice("broken_stream", f"the {kind} was given up at {float(track.clock.last):.1f} s: {health.why}")
    if track.clock.jumps:
        jump = track.clock.jumps[0]
        more = f" ({len(track.clock.jumps)} jumps in all)" if len(track.clock.jumps) > 1 else ""
        handled = "the times are kept" if jump.believed else "the jump is ignored"
        text = f"the times of the {kind} jump from {float(jump.at):.1f} to {float(jump.to):.1f} s; {handled}{more}"
        yield Notice("timestamps_jump", text)
