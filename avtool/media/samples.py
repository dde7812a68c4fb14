"""Turns the sound of one stream into mono float32 at one rate that never leaves the presentation clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av.error
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.filter import Graph
from av.filter.context import FilterContext

from avtool.media.clock import Timed
from avtool.media.request import Sound

# Long filter: aliases 45 dB lower than swresample's default just above the new band edge, at 1.5 times its cost.
# maxval=1: the mix to mono is a weighted mean, left and right half each; without it they would count 0.7 each.
RESAMPLE = "{rate}:ochl=mono:osf=flt:rematrix_maxval=1:filter_size=64:phase_shift=10:cutoff=0.97"
CHUNK = 16_384  # samples that leave the filter graph at once
TOLERANCE = Fraction(1, 50)  # seconds: timestamps this far from the running clock are jitter
PATIENCE = 3  # frames in a row beyond the tolerance before the clock follows them
SLIP = Fraction(1, 10)  # seconds: beyond this it follows at once
LOUDEST = 1e6  # samples beyond this are damage; full scale is 1
SLOWEST = 1000  # Hz: a lower rate is damage

Samples = npt.NDArray[np.float32]


class Resampler:
    """A filter graph for one source format: frames in, mono float32 of `rate` out."""

    def __init__(self, frame: AudioFrame, rate: int) -> None:
        self.format = source_format(frame)
        self._graph = Graph()
        self._graph.threads = 1
        self._source = self._graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name
        )
        self._sink: FilterContext = self._graph.add("abuffersink")
        size = min(CHUNK, rate)
        nodes = (
            self._source,
            *(self._graph.add("pan", text) for text in _mix(frame)),
            self._graph.add("aresample", RESAMPLE.format(rate=rate)),
            self._graph.add("asetnsamples", f"n={size}:p=0"),
            self._sink,
        )
        self._graph.link_nodes(*nodes)
        self._graph.configure()
        self._size, self._rates = size, (frame.sample_rate, rate)
        self._put = self._got = 0  # samples

    def feed(self, frame: AudioFrame | None) -> Iterator[Samples]:
        """What is ready after one more frame; None ends the sound."""
        if frame is not None:
            frame.pts = self._put  # time is kept outside
            self._put += frame.samples
        self._source.push(frame)
        source, target = self._rates
        if frame is not None and self._put * target < (self._got + self._size) * source:
            return  # asking costs more than resampling
        while True:
            try:
                samples = self._sink.pull().to_ndarray()[0]  # type: ignore[attr-defined]
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._got += len(samples)
            yield _clean(samples)


def _mix(frame: AudioFrame) -> list[str]:
    """For a layout that nobody knows, such as "20 channels", the mean of all channels; the others have a matrix."""
    if "channels" not in frame.layout.name:
        return []
    count = frame.layout.nb_channels
    return ["mono|c0=" + "+".join(f"{1 / count:.9f}*c{channel}" for channel in range(count))]


def source_format(frame: AudioFrame) -> tuple[int, str, str]:
    """What a resampler is built for; it changes in mid-stream in some files."""
    return frame.sample_rate, frame.format.name, frame.layout.name


def _clean(samples: Samples) -> Samples:
    """Samples that are no number, or absurdly loud, become silence."""
    if samples.size and not max(-float(samples.min()), float(samples.max())) <= LOUDEST:  # also true for NaN
        samples = np.where(np.abs(samples) <= LOUDEST, samples, np.float32(0))
    return samples


@dataclass
class Tape:
    """The contiguous output: takes pieces at any place, fills holes with silence and drops overlaps.

    `next` is the index of the next sample to deliver; samples outside [next, stop) are never delivered.
    """

    rate: int
    next: int
    stop: int | None

    @property
    def done(self) -> bool:
        return self.stop is not None and self.next >= self.stop

    def put(self, index: int, samples: Samples) -> Iterator[Sound]:
        """Delivers what is new of `samples`, whose first one belongs at `index`."""
        late = max(0, self.next - index)
        samples, index = samples[late:], index + late
        if not len(samples):
            return
        yield from self.silence(index)
        if self.stop is not None:
            samples = samples[: max(0, self.stop - index)]
        for start in range(0, len(samples), self.rate):
            piece = samples[start : start + self.rate]
            yield Sound(self.next, piece)
            self.next += len(piece)

    def silence(self, until: int) -> Iterator[Sound]:
        """Zeros up to index `until`, a second at a time."""
        until = until if self.stop is None else min(until, self.stop)
        while self.next < until:
            size = min(self.rate, until - self.next)
            yield Sound(self.next, np.zeros(size, np.float32))
            self.next += size


class Recorder:
    """Resamples timed frames and lays them on a `Tape`. Times are ticks.

    Frames that follow each other within the tolerance form a run with one resampler; a change of format, a gap or an
    overlap starts a new run at the frame's own time.
    """

    def __init__(self, tape: Tape, second: int) -> None:
        self.tape = tape
        self.end = 0  # of the last frame
        self.until = 0  # of the sound laid down
        self.silenced = 0  # put into holes
        self._second = second
        self._tolerance, self._slip = int(TOLERANCE * second), int(SLIP * second)
        self._resampler: Resampler | None = None
        self._index = 0  # where the resampler's next sample belongs
        self._off = 0  # frames in a row beyond the tolerance

    def feed(self, timed: Timed[AudioFrame], damaged: bool) -> Iterator[Sound]:
        """Sound that is ready after one more frame; after damage the frame's own time counts at once.

        Raises:
            av.error.FFmpegError, ValueError: the frame cannot be converted.
        """
        frame = timed.frame
        if frame.sample_rate < SLOWEST or not frame.samples:
            return
        late = timed.time - self.end
        self._off = self._off + 1 if abs(late) > self._tolerance else 0
        lost = self._resampler is None or abs(late) > self._slip or self._off > PATIENCE or (damaged and self._off > 0)
        if lost or (self._resampler is not None and self._resampler.format != source_format(frame)):
            yield from self.finish()
            self._resampler = Resampler(frame, self.tape.rate)
            if lost:
                self.silenced += max(0, late)
                self.end = timed.time
            self._index, self._off = round(Fraction(self.end * self.tape.rate, self._second)), 0
        self.end += frame.samples * self._second // frame.sample_rate
        self.until = max(self.until, self.end)
        yield from self._lay(frame)

    def passed(self, end: int) -> None:
        """Notes sound up to `end` that is not wanted."""
        self.end = self.until = max(self.until, end)

    def finish(self) -> Iterator[Sound]:
        """What the resampler still holds."""
        if self._resampler is not None:
            yield from self._lay(None)
            self._resampler = None

    def _lay(self, frame: AudioFrame | None) -> Iterator[Sound]:
        assert self._resampler is not None
        for samples in self._resampler.feed(frame):
            yield from self.tape.put(self._index, samples)
            self._index += len(samples)
