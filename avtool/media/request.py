"""What can be asked of a decoder, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

from avtool.timegrid import Grid
from avtool.timeline import MediaInfo, Notice

Progress = Callable[[str, float, float], None]  # (stage, seconds done, seconds in all or 0 if unknown)


@dataclass(frozen=True)
class Limits:
    """What a file may ask of the machine before it is refused."""

    max_pixels: int = 64_000_000  # width x height of one picture
    max_seconds: float = 48 * 3600


@dataclass(frozen=True)
class PictureSpec:
    """How a picture leaves the decoder: always upright RGB uint8 (H, W, 3).

    Without `short` the picture keeps its size. With it, swscale scales the whole picture (AREA) so that the short side
    has `short` pixels; then `crop` cuts a centred square, or, without `crop`, the long side is cut (centred) to at
    most `short * max_aspect`.
    """

    short: int | None = None
    crop: int | None = None
    max_aspect: float = 2.0


@dataclass(frozen=True)
class DecodeRequest:
    """What to deliver of a file: a picture for each row of `grid` that lies in [start, end), and the sound there.

    A row's picture is the one on screen at the row's centre. Rows and samples are numbered from the start of the
    presentation, whatever `start` is.
    """

    pictures: PictureSpec | None = None  # None: no pictures wanted
    sample_rate: int | None = None  # Hz; None: no sound wanted
    grid: Grid = field(default_factory=Grid)
    audio_track: int | None = None  # counts audio tracks from 0; None: the one marked as default
    start: Fraction | None = None  # seconds
    end: Fraction | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def rows(self) -> tuple[int, int | None]:
        """The rows [first, stop) whose centre lies in [start, end); stop None: to the end of the file."""
        centre, stride = self.grid.centre(0), self.grid.stride
        first = 0 if self.start is None else max(0, ceil((self.start - centre) / stride))
        return first, None if self.end is None else max(first, ceil((self.end - centre) / stride))

    @property
    def samples(self) -> tuple[int, int | None]:
        """The samples [first, stop) that lie in [start, end)."""
        rate = self.sample_rate or 0
        first = 0 if self.start is None else max(0, round(self.start * rate))
        return first, None if self.end is None else max(first, round(self.end * rate))


@dataclass(frozen=True, eq=False)
class Picture:
    """The picture on screen at the centre of grid row `row`; rows that show the same picture share its pixels."""

    row: int
    time: float  # seconds: when the picture appeared on screen
    pixels: npt.NDArray[np.uint8]  # (H, W, 3) RGB, upright, read-only


@dataclass(frozen=True, eq=False)
class Sound:
    """At most one second of mono sound; chunks follow each other without a gap."""

    start: int  # index of the first sample, 0 = start of the presentation
    samples: npt.NDArray[np.float32]  # (n,)


@dataclass(frozen=True)
class DecodeReport:
    """How the decoding of one file went; always the last item.

    `decoded_until` is the end (seconds) of the last picture or sound that came out. `lost_seconds` is what the
    container holds but could not be decoded: for each stream the gaps that damage tore and the span after its last
    good frame that its packets or the container's own index still cover; the larger of sound and picture.
    """

    media: MediaInfo
    notices: tuple[Notice, ...]
    lost_seconds: float
    corrupt_packets: int
    decoded_until: float


Item = Picture | Sound | DecodeReport
