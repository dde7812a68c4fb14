"""A timeline as a still picture for papers and slides; needs matplotlib."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np

from avtool.errors import UsageError
from avtool.formats.labels import classes, plain, stem
from avtool.formats.strips import class_order, clock, colour, shorten
from avtool.timeline import Curves, Preview, Timeline

WIDTH = 10.0  # inches
DPI = 150
LANE, HEAD, FOOT, STRIP, WAVE = 0.32, 0.36, 0.3, 0.55, 0.4  # inches
MOST_CLASSES = 40
NAME = 1.75  # inches for the names of the classes
POINTS = 600  # of a score curve: the highest score in each, where there are more rows
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)  # seconds between ticks


class _Row(NamedTuple):
    label: str
    spans: list[tuple[float, float, float]]  # start and length in seconds, score


def png(timeline: Timeline, preview: Preview | None = None) -> bytes:
    """A figure: pictures, waveform, and a lane per class with its score curve and its events.

    Args:
        timeline: what to show; of more than MOST_CLASSES classes the first are drawn, which the title says.
        preview: pictures and waveform; None: without them.

    Returns:
        A PNG file, the same bytes for the same timeline and the same matplotlib.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("png needs matplotlib", str(error), "pip install 'avtool[plot]'") from error
    thumbnails = preview.thumbnails if preview is not None else ()
    has_wave = preview is not None and len(preview.peaks) > 0
    rows = _rows(timeline)
    heights = [STRIP] * bool(thumbnails) + [WAVE] * has_wave + [LANE * max(1, len(rows))]
    figure = Figure(figsize=(WIDTH, sum(heights) + HEAD + FOOT), dpi=DPI)
    FigureCanvasAgg(figure)
    tall = sum(heights) + HEAD + FOOT
    box = {"left": NAME / WIDTH, "right": 0.985, "bottom": FOOT / tall, "top": 1 - HEAD / tall, "hspace": 0.08}
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights, **box)
    axes = [figure.add_subplot(grid[i]) for i in range(len(heights))]
    _title(figure, timeline, len(rows), tall)
    below = iter(axes)
    if thumbnails and preview is not None:
        _pictures(next(below), preview, timeline.media.duration)
    if has_wave and preview is not None:
        _wave(next(below), preview, timeline.media.duration)
    _lanes(next(below), timeline, rows)
    _clock_axis(axes, timeline.media.duration)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": timeline.run.tool})
    return file.getvalue()


def _rows(timeline: Timeline) -> list[_Row]:
    found = list(classes(timeline.events).items())[:MOST_CLASSES]
    return [_Row(label, [(a / 1000, (b - a) / 1000, event.score) for a, b, event in spans]) for label, spans in found]


def _title(figure: Any, timeline: Timeline, shown: int, tall: float) -> None:
    count, more = len(timeline.events), len(classes(timeline.events)) - shown
    text = f"{stem(timeline.media.path)}: {count} event{'s' * (count != 1)}, {timeline.run.model}"
    text += f", {more} more classes not shown" if more > 0 else ""
    figure.text(0.012, 1 - 0.12 / tall, _literal(text), fontsize=10, fontweight="bold", va="top")


def _pictures(axis: Any, preview: Preview, duration: float) -> None:
    """As many thumbnails as fit side by side, each at its time."""
    from matplotlib.image import imread

    bounds = axis.get_position()
    figure = axis.figure
    wide, high = bounds.width * figure.get_figwidth(), bounds.height * figure.get_figheight()  # inches
    reached = float("-inf")
    for time, data in preview.thumbnails:
        picture = imread(io.BytesIO(data), format="jpeg")
        half = 0.5 * high * picture.shape[1] / picture.shape[0] / wide * duration  # seconds
        if time - half >= reached:
            axis.imshow(picture, extent=(time - half, time + half, 0, 1), aspect="auto", interpolation="bilinear")
            reached = time + half * 1.04
    axis.set_ylim(0, 1)
    axis.set_yticks([])


def _wave(axis: Any, preview: Preview, duration: float) -> None:
    times = (np.arange(len(preview.peaks)) + 0.5) / len(preview.peaks) * duration
    axis.fill_between(times, -preview.peaks, preview.peaks, color="0.55", linewidth=0)
    top = max(0.05, float(preview.peaks.max()))
    axis.set_ylim(-top, top)
    axis.set_yticks([])


def _lanes(axis: Any, timeline: Timeline, rows: list[_Row]) -> None:
    """Lanes from top to bottom, each one unit high; the score of an event is the line across its box."""
    order = class_order(timeline.events)
    for number, (label, spans) in enumerate(rows):
        base, paint = len(rows) - 1 - number, colour(order.index(label))
        axis.broken_barh([span[:2] for span in spans], (base, 0.94), facecolor=paint, alpha=0.35, linewidth=0)
        heights = [base + 0.94 * score for *_, score in spans]
        axis.hlines(heights, [a for a, *_ in spans], [a + n for a, n, _ in spans], paint, lw=1.6)
        _curve(axis, timeline.curves, label, base)
        axis.axhline(base, color="0.8", linewidth=0.6)
    axis.set_yticks(np.arange(len(rows))[::-1] + 0.47, labels=[_literal(shorten(r.label)) for r in rows], fontsize=9)
    axis.set_ylim(0, max(1, len(rows)))
    if not rows:
        axis.text(0.5, 0.5, "no events", ha="center", va="center", color="0.4", transform=axis.transAxes)


def _curve(axis: Any, curves: Curves | None, label: str, base: int) -> None:
    """The score over time as a thin line of steps."""
    if curves is None or label not in curves.labels or not len(curves.values):
        return
    values = curves.values[:, curves.labels.index(label)] / 255
    fold = -(-len(values) // POINTS)
    highest = np.maximum.reduceat(values, np.arange(0, len(values), fold))
    times = np.arange(len(highest) + 1) * fold * curves.step
    axis.plot(times, base + 0.94 * np.append(highest, highest[-1]), drawstyle="steps-post", color="0.25", lw=0.7)


def _clock_axis(axes: list[Any], duration: float) -> None:
    """One time axis for all, below the last."""
    span = max(duration, 1e-3)
    step = next((s for s in STEPS if span / s <= 10), STEPS[-1])
    ticks = np.arange(0, span + 1e-9, step)
    for axis in axes:
        axis.set_xlim(0, span)
        axis.set_xticks(ticks, labels=[])
        axis.tick_params(length=0)
        axis.spines[:].set_color("0.8")
    axes[-1].set_xticks(ticks, labels=[clock(tick) for tick in ticks], fontsize=9)
    axes[-1].tick_params(axis="x", length=3)


def _literal(text: str) -> str:
    """A label in which no dollar sign begins mathematics; a question mark stands for a sign that the font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    kept = "".join(sign if font.get_char_index(ord(sign)) else "?" for sign in plain(text))
    return kept.replace("$", r"\$")
