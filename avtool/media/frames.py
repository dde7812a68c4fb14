"""Chooses the picture on screen at the centre of each grid row and turns it into upright RGB pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from avtool.media.clock import Timed, first_tick
from avtool.media.probe import rotation
from avtool.media.request import Picture, PictureSpec
from avtool.timegrid import Grid

HOLD = 1  # seconds that a picture stays on screen after its end when nothing follows
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
HD_LINES = 720  # untagged material of this height is BT.709
THIN = 6  # beyond this aspect the picture is cut before it is scaled, so that a thin strip cannot grow huge

Pixels = npt.NDArray[np.uint8]
Allocate = Callable[[tuple[int, int, int]], Pixels]


def new_pixels(shape: tuple[int, int, int]) -> Pixels:
    """Memory for one picture."""
    return np.empty(shape, np.uint8)


class Converter:
    """Decoded frames to upright RGB pixels of the size that a `PictureSpec` asks for."""

    def __init__(self, spec: PictureSpec, allocate: Allocate = new_pixels) -> None:
        self._spec = spec
        self._allocate = allocate
        self._scalers: dict[tuple[str, int, int], VideoReformatter] = {}  # one per source format

    def __call__(self, frame: VideoFrame) -> Pixels:
        """(H, W, 3) uint8, read-only."""
        rgb = self._rgb(frame)
        turned = np.rot90(rgb, -rotation(frame) // 90)  # numpy turns anticlockwise
        view = self._cut(turned)
        pixels = self._allocate((view.shape[0], view.shape[1], 3))
        np.copyto(pixels, view)
        pixels.setflags(write=False)
        return pixels

    def _rgb(self, frame: VideoFrame) -> Pixels:
        """The whole picture, scaled, as a view of FFmpeg's memory."""
        width, height = frame.width, frame.height
        scaler = self._scaler(frame)
        # Untagged pictures would be read as BT.601 at any size.
        untagged = frame.colorspace == UNSPECIFIED and height >= HD_LINES and not frame.format.is_rgb
        matrix = Colorspace.ITU709 if untagged else None
        short = self._spec.short
        if short is None:
            return _plane(scaler.reformat(frame, width, height, "rgb24", src_colorspace=matrix, threads=1))
        if max(width, height) > THIN * min(width, height):
            full = _plane(scaler.reformat(frame, width, height, "rgb24", src_colorspace=matrix, threads=1))
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(_centre(full, THIN * min(width, height))), "rgb24")
            width, height, matrix = frame.width, frame.height, None
            scaler = self._scaler(frame)
        w, h = scaled(width, height, short)
        area = Interpolation.AREA
        return _plane(scaler.reformat(frame, w, h, "rgb24", src_colorspace=matrix, interpolation=area, threads=1))

    def _scaler(self, frame: VideoFrame) -> VideoReformatter:
        key = (frame.format.name, frame.width, frame.height)
        if key not in self._scalers:
            self._scalers.clear()  # sizes that come back are rarer than files that change size at every picture
            self._scalers[key] = VideoReformatter()
        return self._scalers[key]

    def _cut(self, pixels: Pixels) -> Pixels:
        spec = self._spec
        if spec.crop is not None:
            return _centre(pixels, spec.crop)
        if spec.short is not None:
            return _centre(pixels, max(spec.short, int(spec.short * spec.max_aspect)))
        return pixels


def scaled(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height with the short side at `short` pixels and the aspect kept."""
    if width <= height:
        return short, max(short, round(height * short / width))
    return max(short, round(width * short / height)), short


def _plane(frame: VideoFrame) -> Pixels:
    """The pixels of an rgb24 frame without a copy: (H, W, 3), rows padded."""
    plane = frame.planes[0]
    rows: Pixels = np.frombuffer(memoryview(plane), np.uint8)[: plane.line_size * frame.height].reshape(
        frame.height, -1
    )
    return rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)


def _centre(pixels: Pixels, limit: int) -> Pixels:
    """The middle of a picture, at most `limit` pixels in each direction."""
    top = max(0, (pixels.shape[0] - limit) // 2)
    left = max(0, (pixels.shape[1] - limit) // 2)
    return pixels[top : top + limit, left : left + limit]


class RowPicker:
    """Assigns to each row the frame on screen at its centre: the last one that appeared before or at it.

    A frame stays on screen until the next one; where the stream may have a hole (`gap` of `feed`) at most one second
    longer than its own length. Times are ticks.
    """

    def __init__(
        self, grid: Grid, second: int, convert: Callable[[VideoFrame], Pixels], row: int, stop: int | None
    ) -> None:
        """
        Args:
            grid: rows.
            second: ticks.
            convert: makes the pixels of a frame that is shown.
            row: the first row that is wanted.
            stop: rows from here on are not wanted; None: all are.
        """
        self.row = row  # the next row that is open
        self.end = 0  # of the last frame
        self._grid, self._second, self._convert, self._stop = grid, second, convert, stop
        self._centre = first_tick(grid.centre(row), second)  # of the open row
        self._hold = HOLD * second
        self._held: Timed[VideoFrame] | None = None
        self._pixels: Pixels | None = None  # of the held frame, once converted

    @property
    def done(self) -> bool:
        """No row is left that a later frame could be shown in."""
        return self._stop is not None and self.row >= self._stop

    def feed(self, timed: Timed[VideoFrame], gap: bool) -> Iterator[Picture]:
        """The rows that are certain once this frame is known; frames that run backwards are not shown."""
        held = self._held
        if held is not None and timed.time < held.time:
            return
        if held is not None and self._centre < timed.time:
            yield from self._show(held, min(timed.time, held.end + self._hold) if gap else timed.time)
        while self._centre < timed.time and not self.done:  # rows without a picture
            self._next_row()
        self._held, self._pixels = timed, None
        self.end = max(self.end, timed.end)

    def finish(self, rows: int) -> Iterator[Picture]:
        """The rows in which the last frame is still shown; the file has `rows` rows."""
        if self._held is not None:
            self._stop = rows if self._stop is None else min(rows, self._stop)
            yield from self._show(self._held, self._held.end + self._hold)
            self._held = self._pixels = None

    def _show(self, timed: Timed[VideoFrame], until: int) -> Iterator[Picture]:
        """The frame in every open row whose centre lies before `until`."""
        while not self.done and self._centre < until:
            if self._pixels is None:
                self._pixels = self._convert(timed.frame)
            yield Picture(self.row, timed.time / self._second, self._pixels)
            self._next_row()

    def _next_row(self) -> None:
        self.row += 1
        self._centre = first_tick(self._grid.centre(self.row), self._second)
