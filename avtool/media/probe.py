"""Opens a media file safely and says what is in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from time import monotonic
from typing import Any

import av
import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from avtool.errors import AvtoolError, InputError, UsageError
from avtool.files import printable
from avtool.media.request import Limits
from avtool.timeline import AudioInfo, MediaInfo, VideoInfo

# Demuxers of media containers and of streams that stand alone. Left out on purpose: everything that opens other files
# or addresses (hls, dash, concat, imf, sdp, rtsp, image2, vobsub), devices, still pictures, text and raw data.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,m4v,avi,flv,live_flv,asf,ogg,wav,w64,mp3,aac,flac,aiff,"
    "caf,au,ac3,eac3,ac4,dts,dtshd,truehd,mlp,amr,amrnb,amrwb,wv,tta,ape,tak,mpc,mpc8,loas,voc,ivf,obu,av1,"
    "h261,h263,h264,hevc,vvc,vc1,vc1test,mjpeg,gif,apng,nut,nuv,mxf,gxf,dv,rm,yuv4mpegpipe,wtv,swf,dirac,"
    "cavsvideo,avs2,avs3,evc,mtv,roq,smk,bink,4xm,bethsoftvid,flic,film_cpk,ea,idcin,nsv,pva,ty,xmv,dxa,"
    "aa,aax,aptx,gsm,g722,sox,rso,dsf,iff,qcp,oma,xwma,kux,mlv,moflex,usm"
)
OPEN_SECONDS = 8.0  # longest that opening may wait for the disk
READ_SECONDS = 30.0  # longest that one packet may take to be read
LATE_PROBE = {"probesize": "67108864", "analyzeduration": "60000000"}  # 64 MiB, 60 s: for streams that begin late
NO_HEADER = {"mpegts", "mpeg", "flv", "live_flv"}  # containers in which a stream may appear anywhere
COUNTS_FROM_ZERO = {"matroska,webm"}  # the declared duration includes the start offset
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}  # the index lists packets, it is not an estimate
TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT
MINUTE, LEAST_BYTES = (
    Fraction(60),
    16,
)  # seconds that any file may last, and bytes a second that a longer one has at least
FIRST_FRAME_SECONDS = 1.0  # longest that `probe` looks for something to decode
RATES = range(1000, 1_000_001)  # Hz: sound at any other rate is damage

_MAGIC = (
    (b"#EXTM3U", "it is a playlist", "give the media file that the playlist names"),
    (b"ffconcat", "it is a list of files", "give the media files that the list names"),
    (b"PK\x03\x04", "it is a ZIP archive", "unpack it first"),
    (b"\x1f\x8b", "it is compressed with gzip", "unpack it first"),
    (b"<", "it is a web page or XML text", "download the media file itself"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file", "run: git lfs pull"),
    (b"\x89PNG", "it is a still picture", ""),
    (b"\xff\xd8\xff", "it is a still picture", ""),
    (b"%PDF", "it is a PDF document", ""),
)
_KINDS = (
    (stat.S_ISDIR, "it is a folder", "give a media file, or run: avtool batch FOLDER -o OUT"),
    (stat.S_ISFIFO, "it is a named pipe", "save the stream to a file first"),
    (stat.S_ISSOCK, "it is a socket", "save the stream to a file first"),
    (stat.S_ISCHR, "it is a device", "give a media file"),
    (stat.S_ISBLK, "it is a device", "give a media file"),
)
_REASONS = {
    errno.ENOENT: ("there is no such file", "check the name and the folder"),
    errno.EACCES: ("permission denied", "check the permissions of the file and its folder"),
    errno.ELOOP: ("its symbolic links go in a circle", "give the file itself"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    errno.ENAMETOOLONG: ("the name is too long", "check the name"),
}


@dataclass
class Media:
    """An open media file and the streams of it that are worth decoding."""

    path: str
    status: os.stat_result
    container: InputContainer
    video: VideoStream | None
    audio: AudioStream | None
    track: int  # number of `audio` among the audio tracks

    @property
    def format(self) -> str:
        return self.container.format.name

    @property
    def origin(self) -> Fraction:
        """Raw seconds at which the presentation starts."""
        return Fraction(self.container.start_time or 0, av.time_base)

    @property
    def declared(self) -> Fraction | None:
        """Seconds that the container claims to last, counted from `origin`."""
        duration = self.container.duration
        if duration is None or duration <= 0:
            return None
        seconds = Fraction(duration, av.time_base)
        return seconds - max(Fraction(0), self.origin) if self.format in COUNTS_FROM_ZERO else seconds

    @property
    def believable(self) -> Fraction:
        """Seconds past which a jump of the timestamps is not believed, whatever is declared: too few bytes for it."""
        return max(MINUTE, Fraction(self.status.st_size, LEAST_BYTES))

    @property
    def jumps_expected(self) -> bool:
        """Whether timestamps may jump in this container by design (MPEG-TS and -PS)."""
        return bool(self.container.format.flags & TS_DISCONT)

    def indexed_until(self, stream: Stream) -> Fraction | None:
        """Seconds up to which the container's own index lists packets of `stream`; None without an index of packets."""
        entries = stream.index_entries
        if self.format not in INDEXED or (self.format == "avi" and stream.type != "video"):
            return None
        last = len(entries) - 1
        while last >= 0 and entries[last].is_discard:  # an edit list cuts it off
            last -= 1
        if stream.time_base is None or last < 0:
            return None
        return entries[last].timestamp * stream.time_base - self.origin

    def info(self, picture: VideoFrame | None = None) -> MediaInfo:
        """What is known without decoding more than one `picture`."""
        declared = self.declared
        indexed = [self.indexed_until(s) or Fraction(0) for s in (self.video, self.audio) if s is not None]
        duration = float(declared if declared is not None else max(indexed, default=Fraction(0)))
        return MediaInfo(
            path=self.path,
            bytes=self.status.st_size,
            mtime_ns=self.status.st_mtime_ns,
            has_audio=self.audio is not None,
            has_video=self.video is not None,
            duration=max(0.0, duration),
            declared_duration=None if declared is None else float(declared),
            video=None if self.video is None else video_info(self.video, picture),
            audio=None if self.audio is None else audio_info(self.audio, self.track),
            analysed_until=0.0,
        )


def probe(path: str | os.PathLike[str], limits: Limits | None = None, audio_track: int | None = None) -> MediaInfo:
    """Says what is in a media file, decoding at most one picture; never waits on anything but a regular file.

    `duration` is the best estimate before decoding: what the header claims, else where the index ends, else 0.

    Args:
        path: a regular file.
        limits: pictures larger than this, or files longer, are refused.
        audio_track: counts audio tracks from 0; None: the one marked as default.

    Raises:
        InputError: not a regular file, or not readable as media.
        UsageError: there is no such audio track.
    """
    limits = limits or Limits()
    with open_media(path, limits, audio_track) as media:
        return media.info(_first_picture(media, limits))


@contextmanager
def open_media(path: str | os.PathLike[str], limits: Limits, audio_track: int | None = None) -> Iterator[Media]:
    """The file opened so that it can neither hang, nor name another file, nor exceed `limits`; closed afterwards.

    Raises:
        InputError: not a regular file, not readable as media, or over a limit.
        UsageError: there is no such audio track.
    """
    name = os.path.abspath(os.fsdecode(path))
    status = _regular(name)
    container = _open(name, limits, {})
    try:
        media = _select(name, status, container, audio_track)
        if (media.video is None or media.audio is None) and media.format in NO_HEADER:
            container.close()
            container = _open(name, limits, LATE_PROBE)
            media = _select(name, status, container, audio_track)
        if media.video is None and media.audio is None:
            what = f"{printable(name)} has neither sound nor moving pictures"
            raise InputError(what, _no_streams(container), "is it whole?")
        _check_limits(media, limits)
        yield media
    finally:
        container.close()


def _regular(name: str) -> os.stat_result:
    """Looks before opening: a named pipe or device would block for ever."""
    try:
        status = os.stat(name)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        why, hint = _REASONS.get(code or 0, (str(error.args[-1]) if error.args else "", "check the name"))
        raise InputError(f"cannot open {printable(name)}", why, hint) from None
    for test, why, hint in _KINDS:
        if test(status.st_mode):
            raise InputError(f"{printable(name)} is not a file", why, hint)
    if status.st_size == 0:
        raise InputError(f"{printable(name)} is empty", "it holds 0 bytes", "copy or download it again")
    return status


def _open(name: str, limits: Limits, extra: dict[str, str]) -> InputContainer:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_pixels": _decoder_limit(limits),  # guards probing; the decoder gets its own
        **extra,
    }
    try:
        return av.open(name, "r", options=options, metadata_errors="replace", timeout=(OPEN_SECONDS, READ_SECONDS))
    except (av.error.FFmpegError, OSError, ValueError, MemoryError, LookupError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: BaseException) -> AvtoolError:
    if isinstance(error, PermissionError):
        return InputError(f"cannot open {printable(name)}", *_REASONS[errno.EACCES])
    if isinstance(error, FileNotFoundError):
        return InputError(f"cannot open {printable(name)}", *_REASONS[errno.ENOENT])
    if isinstance(error, av.error.ExitError):
        why = f"reading its start took longer than {OPEN_SECONDS:.0f} s"
        return InputError(f"cannot open {printable(name)}", why, "check the disk, or copy the file to a local one")
    if isinstance(error, MemoryError):
        return InputError(f"cannot open {printable(name)}", "it asks for more memory than there is", "")
    why, hint = _sniff(name) or (
        f"it is damaged or in an unknown format ({reason(error)})",
        "play it to see if it is whole",
    )
    return InputError(f"{printable(name)} cannot be read as media", why, hint)


def reason(error: BaseException) -> str:
    """FFmpeg's words for an error, without the path."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).split("\n")[0][:200]


def _sniff(name: str) -> tuple[str, str] | None:
    try:
        with open(name, "rb") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return None
    return next(((why, hint) for magic, why, hint in _MAGIC if start.startswith(magic)), None)


def _select(name: str, status: os.stat_result, container: InputContainer, audio_track: int | None) -> Media:
    video = _choose_video(container)
    audio, track = _choose_audio(container, video, audio_track, name)
    return Media(name, status, container, video, audio, track)


def _choose_video(container: InputContainer) -> VideoStream | None:
    """The best stream of moving pictures: cover art and thumbnails are none."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    moving = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & still]
    best = container.streams.best("video")
    if best in moving:
        return best
    return max(moving, key=lambda s: (s.width or 0) * (s.height or 0), default=None)


def _choose_audio(
    container: InputContainer, video: VideoStream | None, track: int | None, name: str
) -> tuple[AudioStream | None, int]:
    tracks = container.streams.audio
    if track is not None:
        if not 0 <= track < len(tracks):
            there = f"it has {len(tracks)}, counted from 0" if tracks else "it has none"
            raise UsageError(f"{printable(name)} has no audio track {track}", there, "see: avtool info FILE")
        if tracks[track].codec_context is None:
            raise InputError(f"audio track {track} of {printable(name)} cannot be decoded", "no decoder for its format")
        return tracks[track], track
    best = container.streams.best("audio", related=video)
    playable = [s for s in tracks if s.codec_context is not None and (not s.rate or s.rate in RATES)]
    chosen = best if best in playable else next(iter(playable), None)
    return chosen, tracks.index(chosen) if chosen is not None else 0


def _no_streams(container: InputContainer) -> str:
    if any(s.codec_context is None for s in (*container.streams.video, *container.streams.audio)):
        return "there is no decoder for the format of its streams"
    if container.streams.audio:
        return "its sound claims an impossible rate"
    if container.streams.video:
        return "it holds only a still picture"
    if container.format.name.startswith("mov,"):
        return "its index is missing: it was cut short, or its recording never ended"
    return "it holds no stream of either kind"


def _check_limits(media: Media, limits: Limits) -> None:
    if media.video is not None and (media.video.width or 0) * (media.video.height or 0) > limits.max_pixels:
        size = f"{media.video.width} x {media.video.height}"
        raise too_large(media.path, size, limits)
    declared = media.declared
    believable = declared is not None and media.status.st_size >= 500 * declared  # 500 B/s: less is a lying header
    if declared is not None and declared > limits.max_seconds and believable:
        raise too_long(media.path, limits)


def too_large(path: str, size: str, limits: Limits) -> InputError:
    """The refusal of a picture over the limit; `size` in words."""
    why = f"its picture has {size} pixels, the limit is {limits.max_pixels / 1e6:g} million"
    return InputError(f"{printable(path)} is refused", why, "scale it down first, or raise the limit")


def too_long(path: str, limits: Limits) -> InputError:
    """The refusal of a file over the limit of duration."""
    why = f"it is longer than the limit of {limits.max_seconds / 3600:g} hours"
    return InputError(f"{printable(path)} is refused", why, "cut it into parts, or give --end")


def nothing(path: str, why: str) -> InputError:
    """The refusal of a file of which not one frame can be decoded."""
    name = printable(path)
    return InputError(f"nothing in {name} can be decoded", why or "it holds no sound and no picture", "is it whole?")


def prepare(stream: VideoStream | AudioStream, limits: Limits) -> None:
    """Sets a stream's decoder to one thread and to the limit of pixels; before its first packet."""
    stream.codec_context.thread_count = 1
    if isinstance(stream, VideoStream):
        stream.codec_context.options = {"max_pixels": _decoder_limit(limits)}


def _decoder_limit(limits: Limits) -> str:
    """FFmpeg counts pixels with the width rounded up to 64; what comes out is compared with the limit itself."""
    return str(limits.max_pixels + 64 * 65_536)


def _first_picture(media: Media, limits: Limits) -> VideoFrame | None:
    """The first picture that decodes, for its rotation and true size.

    Raises:
        InputError: the file ends before a picture or sound could be decoded.
    """
    streams = [s for s in (media.video, media.audio) if s is not None]
    for stream in streams:
        prepare(stream, limits)
    patience, heard, why = monotonic() + FIRST_FRAME_SECONDS, False, ""
    with suppress(av.error.FFmpegError, IndexError):
        for packet in media.container.demux(streams):
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError, MemoryError, OverflowError) as error:
                frames, why = [], reason(error)
            for frame in frames:
                if isinstance(frame, VideoFrame):
                    return frame
                heard = True
            if (heard and media.video is None) or monotonic() > patience:
                return None
    if not heard:
        raise nothing(media.path, why)
    return None


def rotation(frame: VideoFrame | None) -> int:
    """Degrees clockwise to show a decoded picture upright; turns that are no multiple of 90 degrees count as none."""
    degrees = 0 if frame is None else frame.rotation
    return -degrees % 360 if degrees % 90 == 0 and abs(degrees) <= 360 else 0


def video_info(stream: VideoStream, picture: VideoFrame | None) -> VideoInfo:
    """Describes a stream of pictures; the size is that of `picture` where one is known, and as displayed."""
    turn = rotation(picture)
    source: Any = picture if picture is not None else stream
    width, height = int(source.width or 0), int(source.height or 0)
    if turn in (90, 270):
        width, height = height, width
    rate, guessed = stream.average_rate, stream.guessed_rate
    variable = bool(rate and guessed and abs(rate / guessed - 1) > Fraction(1, 100))
    return VideoInfo(stream.codec_context.name, width, height, str(rate or guessed or 0), variable, turn)


def audio_info(stream: AudioStream, track: int) -> AudioInfo:
    """Describes a sound track."""
    return AudioInfo(stream.codec_context.name, int(stream.rate or 0), int(stream.channels or 0), track)
