"""What `avtool evaluate pictures` draws: the lanes of any model, and what its network can show of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avtool.cli import console
from avtool.evaluation import diagnostics
from avtool.evaluation.diagnostics import LaneEvent, LearntWindow
from avtool.session import Session
from avtool.settings import Settings
from avtool.timegrid import Grid

if TYPE_CHECKING:
    from avtool.features.store import Features
    from avtool.models.pyramid import PyramidLocalizer

PICTURE_SIDE = 180  # pixels, of the shorter side of a frame under a heat map


def draw(video: Path, model: str | None, table: Path | None, device: str | None) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files; see `evaluate.pictures`."""
    from avtool.pipeline import localize

    settings = Settings(model=model) if device is None else Settings(model=model, device=device)
    truth = _truth(video, table)
    spans = [(event.start, event.end) for event in truth]
    with Session(settings) as session:
        with console.current().progress(video.name) as progress:
            timeline = localize(video, None, progress, session=session)
        found = [LaneEvent(e.start, e.end, e.label) for e in timeline.events]
        yield "lanes.png", diagnostics.lanes(truth, {session.info.name: found}, timeline.media.duration)
        yield from _network(session, video, spans)


def _truth(video: Path, table: Path | None) -> list[LaneEvent]:
    """True events of one video from a table of many."""
    if table is None:
        return []
    from avtool.training.datasets.dense import read_folder

    data = read_folder(video.parent, table)
    own = [v for v in data.videos if (video.parent / v.name).resolve() == video.resolve()]
    return [LaneEvent(e.start, e.end, data.classes[e.label]) for v in own for e in v.events]


def _network(session: Session, video: Path, spans: list[tuple[float, float]]) -> Iterator[tuple[str, bytes]]:
    """What the kind of network allows."""
    from avtool.models.cacenet import CACENet
    from avtool.models.pyramid import PyramidLocalizer
    from avtool.models.segment_localizer import SegmentLocalizer

    localizer = session.localizer
    if isinstance(localizer, PyramidLocalizer):
        yield from _pyramid(localizer, session.features(video, _silent), spans)
    if isinstance(localizer, SegmentLocalizer) and isinstance(localizer.network, CACENet):
        part = session.features(video, _silent).part(0, session.info.window)
        if (maps := _attention(localizer.network, part)) is not None:
            yield "attention.png", diagnostics.attention_overlay(_frames(video, session.info.grid, part.rows), maps)


def _silent(stage: str, done: float, total: float) -> None:
    return None


def _pyramid(
    localizer: PyramidLocalizer, features: Features, spans: list[tuple[float, float]]
) -> Iterator[tuple[str, bytes]]:
    import torch

    from avtool.models.loco import LoCo

    inputs = localizer.inputs(features)
    with torch.inference_mode():
        output = localizer.network(*inputs)
    streams = (output.visual[0].cpu().numpy(), output.audio[0].cpu().numpy())
    stride = float(localizer.info.grid.stride)
    matrix = diagnostics.cross_similarity(*streams)
    yield "similarity.png", diagnostics.similarity_matrix(matrix, spans, stride)
    windows = (
        list(_windows(localizer.network, inputs, localizer.info.grid)) if isinstance(localizer.network, LoCo) else []
    )
    if windows:
        for stream in ("visual", "audio"):
            yield f"windows-{stream}.png", diagnostics.learnt_windows(windows, spans, stream)
        yield "windows.json", (json.dumps([asdict(w) for w in windows], indent=1) + "\n").encode()


def _windows(network: Any, inputs: Any, grid: Grid) -> Iterator[LearntWindow]:
    """Learnt windows of one clip in seconds."""
    origin, stride = float(grid.centre(0)), float(grid.stride)
    for target in network.target_windows(*inputs):
        starts, ends, mask = target.starts[0].tolist(), target.ends[0].tolist(), target.mask[0].tolist()
        for head, (low, high) in enumerate(zip(starts, ends, strict=True)):
            for window, (start, end, valid) in enumerate(zip(low, high, mask, strict=True)):
                if valid:
                    seconds = [round(origin + stride * row, 3) for row in (start, end)]
                    yield LearntWindow(target.level, target.stream, head, window, *seconds)


def _attention(network: Any, part: Features) -> npt.NDArray[np.float64] | None:
    """(T, N) where the sound looks; None if this guidance does not look or the features are no maps."""
    import torch

    if part.visual is None or part.audio is None or part.visual.ndim != 4:
        return None
    with torch.inference_mode():
        maps = network(torch.from_numpy(part.visual)[None], torch.from_numpy(part.audio)[None]).attention
    if maps is None:
        return None
    return np.asarray(maps[0].double().cpu().numpy().reshape(part.rows, *part.visual.shape[1:3]))


def _frames(video: Path, grid: Grid, rows: int) -> npt.NDArray[np.uint8]:
    """(rows, H, W, 3) the picture at the centre of each row; a missing one is black."""
    from avtool.media.decoding import decode
    from avtool.media.request import DecodeRequest, Picture, PictureSpec

    end = grid.start(rows - 1) + grid.segment
    request = DecodeRequest(pictures=PictureSpec(short=PICTURE_SIDE), sample_rate=None, grid=grid, end=end)
    found = {item.row: item.pixels for item in decode(video, request) if isinstance(item, Picture)}
    blank = np.zeros_like(next(iter(found.values())))
    return np.stack([found.get(row, blank) for row in range(rows)])
