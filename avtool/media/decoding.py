"""The decode loop: one open, one pass for sound and picture, packet by packet, so that damage costs what it hit."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import av.error
from av.packet import Packet

from avtool.media.frames import Allocate, Converter, new_pixels
from avtool.media.probe import Media, nothing, open_media, reason, too_long
from avtool.media.request import DecodeReport, DecodeRequest, Item, Picture, Progress, Sound
from avtool.media.samples import Tape
from avtool.media.skip import SkipFailed
from avtool.media.tracks import PictureTrack, SoundTrack
from avtool.timeline import MediaInfo, Notice

logger = logging.getLogger("avtool")

REOPENED = 50  # times that reading goes on after an error of the container
EMPTY_PACKETS = 100_000  # a file gives at most this many packets more than it has bytes
TOLERATED = 0.1  # seconds: less is not worth a notice
DISAGREEMENT = 0.02, 1.0  # share of the span, and seconds, by which a declared duration is wrong
PROGRESS_PACKETS = 64


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
    state = State.of(request, allocate)
    if skip and state.convert is not None:
        try:
            yield from Attempt(path, request, on_progress, state, skip=True).items()
            return
        except SkipFailed as failed:  # decode in full from the start: what was delivered is right and is not repeated
            logger.debug("decoding every picture: %s", failed)
    yield from Attempt(path, request, on_progress, state, skip=False).items()


@dataclass
class State:
    """What a second pass over the file takes over from the first."""

    convert: Converter | None  # None: no pictures wanted
    tape: Tape | None  # None: no sound wanted
    row: int  # the next row to deliver
    told: Fraction = Fraction(0)  # seconds that were reported as done

    @classmethod
    def of(cls, request: DecodeRequest, allocate: Allocate) -> State:
        """Nothing delivered yet."""
        convert = None if request.pictures is None else Converter(request.pictures, allocate)
        tape = None if request.sample_rate is None else Tape(request.sample_rate, *request.samples)
        return cls(convert, tape, request.rows[0])


@dataclass
class Attempt:
    """One pass over the file."""

    path: str | os.PathLike[str]
    request: DecodeRequest
    on_progress: Progress | None
    state: State
    skip: bool
    _video: PictureTrack | None = None
    _audio: SoundTrack | None = None
    _packets: int = 0
    _notices: list[Notice] = field(default_factory=list)

    def items(self) -> Iterator[Item]:
        """Everything in order, the report last.

        Raises:
            SkipFailed: only if `skip`: decode in full instead.
        """
        request, state = self.request, self.state
        with open_media(self.path, request.limits, request.audio_track) as media:
            if media.video is not None and state.convert is not None:
                self._video = PictureTrack(media, media.video, request, state.convert, state.row, self.skip)
            if media.audio is not None and state.tape is not None:
                self._audio = SoundTrack(media, media.audio, request, state.tape)
            yield from self._stream(media)
            yield self._report(media)

    @property
    def _tracks(self) -> list[PictureTrack | SoundTrack]:
        return [track for track in (self._video, self._audio) if track is not None]

    @property
    def _until(self) -> Fraction:
        """End of the last picture or sound, seconds."""
        return max((track.until for track in self._tracks), default=Fraction(0))

    def _stream(self, media: Media) -> Iterator[Picture | Sound]:
        tracks = {track.stream.index: track for track in self._tracks}
        total = media.info().duration
        for packet in self._demux(media, [track.stream for track in self._tracks]):
            track = tracks[packet.stream_index]
            if not track.done:
                yield from self._noting(track.feed(packet))
            elif all(t.done for t in self._tracks):
                break
            if self._packets % PROGRESS_PACKETS == 0:
                self._progress(media, total)
        for track in self._tracks:
            yield from self._noting(track.finish())
        if self._video is not None:
            yield from self._noting(self._video.picker.finish(self.request.grid.count(self._until)))

    def _noting(self, items: Iterator[Any]) -> Iterator[Any]:
        """Passes items on and remembers how far the rows have come, before anybody can interrupt."""
        for item in items:
            if isinstance(item, Picture):
                self.state.row = item.row + 1
            yield item

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
                        self._note("damaged_container", "the file has more packets than bytes; the rest is not read")
                        return
                return
            except (av.error.EOFError, av.error.ExitError) as error:
                self._note("damaged_container", f"reading ended early: {reason(error)}")
                return
            except (av.error.FFmpegError, IndexError, ValueError, MemoryError) as error:
                self._note("damaged_container", f"reading went on after an error: {reason(error)}")

    def _note(self, code: str, message: str) -> None:
        notice = Notice(code, message)
        if notice not in self._notices:
            self._notices.append(notice)

    def _progress(self, media: Media, total: float) -> None:
        until = self._until
        if until > self.request.limits.max_seconds:
            raise too_long(media.path, self.request.limits)
        self.state.told = max(self.state.told, until)
        if self.on_progress is not None:
            self.on_progress("decode", float(self.state.told), max(total, float(self.state.told)))

    # ------------------------------------------------------------ report

    def _report(self, media: Media) -> DecodeReport:
        until = float(self._until)
        self._check_content(media, until)
        ended = self.request.end is not None and until >= self.request.end
        lost = float(max((track.lost(whole=not ended) for track in self._tracks), default=Fraction(0)))
        self._notices += self._missing(media)
        for track in self._tracks:
            self._notices += track.notices()
        if lost > TOLERATED:
            self._note("lost_span", f"{lost:.1f} s that the file holds could not be decoded")
        if not ended:
            self._compare(media, until, lost)
        failed = sum(track.health.failed for track in self._tracks)
        return DecodeReport(self._info(media, until, ended), tuple(self._notices), lost, failed, until)

    def _check_content(self, media: Media, until: float) -> None:
        """Refuses a file that gave nothing, unless nothing was asked of it."""
        if until > self.request.limits.max_seconds:
            raise too_long(media.path, self.request.limits)
        failed = [track.health.why for track in self._tracks if track.health.why]
        nothing_asked = self._packets and (self.request.start is not None or self.request.end is not None)
        if self._tracks and until == 0 and (failed or not nothing_asked):
            raise nothing(media.path, failed[0] if failed else "")

    def _missing(self, media: Media) -> Iterator[Notice]:
        if media.audio is None and self.state.tape is not None:
            there = bool(media.container.streams.audio)
            yield Notice("no_audio_stream", "the sound is in an unknown format" if there else "the file has no sound")
        if media.video is None and self.state.convert is not None:
            there = any(s.codec_context is None for s in media.container.streams.video)
            why = "the picture is in an unknown format" if there else "the file has no moving picture"
            yield Notice("no_video_stream", why)

    def _compare(self, media: Media, until: float, lost: float) -> None:
        """Notes a declared duration that the decoded span does not bear out; only whole files can tell."""
        declared = media.declared
        if declared is None or self.state.convert is None or self.state.tape is None:
            return
        share, seconds = DISAGREEMENT
        candidates = (float(declared), float(declared - media.origin), float(declared + media.origin))
        wrong = min(abs(d - span) for d in candidates for span in (until, until + lost))
        if wrong > max(seconds, share * until):
            text = f"the file claims {float(declared):.1f} s, but {until:.1f} s is all there is"
            self._note("declared_duration_wrong", text)

    def _info(self, media: Media, until: float, ended: bool) -> MediaInfo:
        info = media.info(None if self._video is None else self._video.first)
        if info.video is not None and self._video is not None:
            info = replace(info, video=replace(info.video, variable=self._video.evenness.variable))
        if ended and self.request.end is not None:
            return replace(info, duration=max(info.duration, until), analysed_until=float(self.request.end))
        return replace(info, duration=until, analysed_until=until)
