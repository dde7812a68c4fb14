"""Media in, features on one grid out: one decoding pass, small batches, flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avtool.errors import DeviceError
from avtool.features.encoders.catalog import Encoder
from avtool.features.store import Features
from avtool.media.request import DecodeReport, Picture, Sound
from avtool.timegrid import Grid

PICTURES_AT_ONCE = 8  # on a CPU; more costs memory and gains nothing
WINDOWS_AT_ONCE = 8
ON_A_GPU = 8  # times as many
SILENCE = 1e-4  # peak of a row below which nothing can be heard: -80 dB of full scale

Progress = Callable[[str, float, float], None]
Items = Iterable[Picture | Sound | DecodeReport]
Array = npt.NDArray[Any]


class _Rows:
    """Values collected by row number, in arrays that grow in place; rows that were never put are 0."""

    def __init__(self, columns: int) -> None:
        self._columns: list[Array | None] = [None] * columns
        self._known = np.zeros(64, bool)

    def put(self, rows: list[int], *values: Array | None) -> None:
        if max(rows) >= len(self._known):
            _resize(self._known, max(max(rows) + 1, len(self._known) * 9 // 8))
        self._known[rows] = True
        for index, value in enumerate(values):
            if value is not None:
                column = self._columns[index]
                if column is None:
                    column = self._columns[index] = np.zeros((len(self._known), *value.shape[1:]), value.dtype)
                elif len(column) < len(self._known):
                    _resize(column, len(self._known))
                column[rows] = value

    def get(self, count: int) -> tuple[Array, list[Array | None]]:
        """Which rows are known, and the columns, each cut or filled to `count` rows; no more rows can be put then."""
        for array in (self._known, *self._columns):
            if array is not None:
                _resize(array, count)
        return self._known, self._columns


def _resize(array: Array, count: int) -> None:
    """Cuts or fills an array to `count` rows. The pages of a large one are moved, not copied."""
    array.resize((count, *array.shape[1:]), refcheck=False)


def _fit(array: Array, count: int) -> Array:
    if len(array) >= count:
        return array[:count]
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])


class _Batch:
    """Gathers inputs of one shape and runs the encoder on them; halves its size when the device is out of memory.

    Rows that share their input, as those that show the same picture do, are computed once.
    """

    def __init__(self, encoder: Encoder, device: torch.device, size: int, tags: bool = True) -> None:
        self._encoder, self._device, self._size, self._tags = encoder, device, size, tags
        self._rows: list[list[int]] = []
        self._inputs: list[Array] = []
        self._latest: Array | None = None  # as it was given
        self._ready: Array = np.empty(0)  # the same prepared, in memory of its own
        self.out = _Rows(2)

    def add(self, row: int, value: Array) -> None:
        """Takes one input; it need not stay as it is, but while it does not change it is the same array."""
        if value is not self._latest:
            ready = value if self._encoder.prepare is None else self._encoder.prepare(value)
            self._latest, self._ready = value, ready.copy() if np.may_share_memory(ready, value) else ready
        elif self._inputs:
            self._rows[-1].append(row)
            return
        if self._inputs and (self._inputs[0].shape != self._ready.shape or len(self._inputs) >= self._size):
            self.flush()
        self._rows.append([row])
        self._inputs.append(self._ready)

    def flush(self) -> None:
        while self._inputs:
            try:
                self._run(self._inputs[: self._size], self._rows[: self._size])
            except torch.cuda.OutOfMemoryError as error:
                if self._size == 1:
                    raise DeviceError(
                        "out of memory on the GPU at a batch of one",
                        str(error).partition("\n")[0],
                        "--device cpu",
                    ) from None
                self._size //= 2
                continue
            del self._inputs[: self._size], self._rows[: self._size]

    def _run(self, inputs: list[Array], rows: list[list[int]]) -> None:
        batch = torch.from_numpy(np.stack(inputs))
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode():
            embedding, logits = self._encoder.run(batch.to(self._device, non_blocking=True))
            logits = logits if self._tags else None
        own = np.repeat(np.arange(len(rows)), [len(sharing) for sharing in rows])  # which input each row has
        values = [None if v is None else v.float().cpu().numpy()[own] for v in (embedding, logits)]
        self.out.put([row for sharing in rows for row in sharing], *values)


class _Listener:
    """Cuts the sound of a file into one window per row, centred on it; at the ends shifted inwards or filled up."""

    def __init__(self, batch: _Batch, encoder: Encoder, grid: Grid, first: int, stop: int | None) -> None:
        self._batch, self._grid, self._rate = batch, grid, encoder.rate
        self._length = round(encoder.seconds * encoder.rate)  # samples
        self._before = self._length // 2 if encoder.before is None else round(encoder.before * encoder.rate)
        self._alone = encoder.alone
        self._row, self._stop_row = first, stop
        self._buffer, self._offset = np.zeros(0, np.float32), 0  # samples, index of the first one
        self._begin: int | None = None
        self.end = 0
        self._single = False  # the file has one row, however short
        self.loud = _Rows(1)

    def add(self, sound: Sound) -> None:
        if self._begin is None:
            self._begin = self._offset = self.end = sound.start
        self._buffer = np.concatenate([self._buffer, sound.samples])
        self.end = sound.start + len(sound.samples)
        while self._wanted() and self._first() + self._length <= self.end and self._stop(self._row) <= self.end:
            self._emit(self._first())
        last = self.end - self._length  # where the window of the last rows begins if the sound ends here
        keep = max(0, min(self._first(), self._start(self._row), last) - self._offset)
        if keep > self._rate:  # drop in steps of a second, not at every chunk
            self._buffer, self._offset = self._buffer[keep:], self._offset + keep

    def finish(self, rows: int) -> None:
        """Rows whose window reaches over the end see the last full window; a shorter file is followed by silence."""
        if self._begin is None:
            return
        self._single = rows == 1
        while self._wanted() and self._row < rows and self._start(self._row) < self.end:
            first = self._first()
            self._emit(first if self._alone else max(self._begin, min(first, self.end - self._length)))

    def _wanted(self) -> bool:
        return self._stop_row is None or self._row < self._stop_row

    def _first(self) -> int:
        first = self._centre() - self._before
        return first if self._alone else max(self._begin or 0, first)

    def _centre(self) -> int:
        return round(self._grid.centre(self._row) * self._rate)

    def _start(self, row: int) -> int:
        return round(self._grid.start(row) * self._rate)

    def _stop(self, row: int) -> int:
        return round((self._grid.start(row) + self._grid.segment) * self._rate)

    def _emit(self, first: int) -> None:
        missing = max(0, self._offset - first)  # samples before the sound begins
        window = self._buffer[max(0, first - self._offset) : max(0, first - self._offset + self._length)]
        if missing:
            window = np.concatenate([np.zeros(missing, np.float32), window])
        own = self._buffer[max(0, self._start(self._row) - self._offset) : max(0, self._stop(self._row) - self._offset)]
        inside = self._single or (self._begin or 0) <= self._centre() < self.end  # its window may show what was before
        if inside and len(own) and float(np.abs(own).max()) > SILENCE:
            self.loud.put([self._row])
        self._batch.add(self._row, _fit(window, self._length))
        self._row += 1


def extract(
    items: Items,
    visual: Encoder | None,
    audio: Encoder | None,
    grid: Grid,
    device: torch.device,
    start: Fraction | None = None,
    end: Fraction | None = None,
    on_progress: Progress | None = None,
    duration: float = 0.0,
    tags: bool = True,
) -> Features:
    """Encode a decoded file.

    Args:
        items: what media.decode or a decode child gives: pictures and sound in presentation order, a report last;
            pixels may be lent until the next item.
        visual, audio: the encoders; None where a modality is not wanted.
        grid: rows; the items must have been decoded on the same grid.
        device: where the encoders live.
        start, end: seconds; rows outside are zero and neither seen nor heard.
        on_progress: called as ("features", seconds done, seconds in all).
        duration: seconds in all, for progress only.
        tags: keep class scores, where an encoder has them; three quarters of a row's bytes with the embedded encoders.

    Returns:
        Features with one row per segment from 0 to the end of what was decoded.

    Raises:
        InputError: the decoder gave up.
        DeviceError: out of memory at a batch of one.
    """
    seeing = _Batch(visual, device, _at_once(visual, device, PICTURES_AT_ONCE), tags) if visual else None
    hearing = _Batch(audio, device, _at_once(audio, device, WINDOWS_AT_ONCE), tags) if audio else None
    first, stop = 0 if start is None else _rows_before(grid, start), None if end is None else _rows_before(grid, end)
    listener = _Listener(hearing, audio, grid, first, stop) if audio and hearing else None
    report: DecodeReport | None = None
    for item in items:
        if isinstance(item, Picture):
            if seeing:
                seeing.add(item.row, item.pixels)
            if on_progress:
                on_progress("features", float(grid.start(item.row)), duration)
        elif isinstance(item, Sound):
            if listener:
                listener.add(item)
        else:
            report = item
    assert report is not None, "a decoder ends with its report"
    rows = grid.count(report.decoded_until)
    if listener:
        listener.finish(rows)
    for batch in (seeing, hearing):
        if batch:
            batch.flush()
    return _assemble(report, visual, audio, seeing, hearing, listener, rows, grid)


def _at_once(encoder: Encoder, device: torch.device, usual: int) -> int:
    return usual * ON_A_GPU if device.type != "cpu" else encoder.at_once or usual


def _rows_before(grid: Grid, seconds: Fraction) -> int:
    """Rows whose centre lies before `seconds`."""
    return max(0, -((grid.centre(0) - seconds) // grid.stride))


def _assemble(
    report: DecodeReport,
    visual: Encoder | None,
    audio: Encoder | None,
    seeing: _Batch | None,
    hearing: _Batch | None,
    listener: _Listener | None,
    rows: int,
    grid: Grid,
) -> Features:
    none = np.zeros(rows, bool)
    seen, (picture, picture_tags) = seeing.out.get(rows) if seeing else (none, [None, None])
    _, (sound, sound_tags) = hearing.out.get(rows) if hearing else (none, [None, None])
    heard = listener.loud.get(rows)[0] if listener else none
    starts = np.arange(rows) * float(grid.stride)
    encoders = [e for e in (visual, audio) if e]
    return Features(
        visual=picture,
        audio=sound,
        visual_tags=picture_tags,
        audio_tags=sound_tags,
        seen=seen,
        heard=heard,
        times=np.stack([starts, starts + float(grid.segment)], 1),
        visual_encoder=visual.name if visual else "",
        audio_encoder=audio.name if audio else "",
        weights={f"{e.name} ({e.modality})": e.sha256 for e in encoders},
        scaling=scaling(visual),
        media=report.media,
        notices=report.notices,
        lost_seconds=report.lost_seconds,
    )


def scaling(visual: Encoder | None) -> str:
    """How frames reach the visual encoder, for the record."""
    if visual is None or visual.pictures is None:
        return ""
    if visual.scaling:
        return visual.scaling
    spec = visual.pictures
    size = "source size" if spec.short is None else f"swscale area, short side {spec.short}"
    return f"{size}, centre crop {spec.crop}" if spec.crop else f"{size}, whole picture up to {spec.max_aspect:g}:1"
