"""Pictures that show what a network does: attention, similarity, learnt windows, lanes of events, reliability.

Every function returns a PNG file as bytes. Sources: dave.md 2.10, avel.md 4.2 and 5.7.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError
from avtool.evaluation.avel import Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.floating[Any]]
Spans = Sequence[tuple[float, float]]  # seconds [start, end)
HINT = "pip install 'avtool[plot]'"
DPI = 110
MATCH = 0.5  # IoU from which an event is found, and share of an event that a merged one covers
GOOD, BAD, MISSED, MERGED, TRUTH = "#2a7f3f", "#c0392b", "#f2f2f2", "#e08e1b", "#3b5b92"


def _figure(width: float, height: float) -> Figure:
    """An empty figure without any window system.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("pictures need matplotlib", "it is not installed", HINT) from error
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# ---- attention over frames ---------------------------------------------------------------------------------


def attention_overlay(frames: npt.NDArray[np.uint8], maps: Floats, columns: int = 5) -> bytes:
    """Where the sound looks: each segment's map, min-max normalised, as a heat map over its frame (avel.md 4.2).

    Args:
        frames: (T, H, W, 3) one picture per segment.
        maps: (T, N) weights of a square grid of N positions, or (T, h, w).
        columns: pictures per row.

    Raises:
        UsageError: shapes do not fit, or matplotlib is not installed.
    """
    weights = np.asarray(maps, np.float64)
    if weights.ndim == 2:
        side = int(weights.shape[1] ** 0.5 + 0.5)
        if side * side != weights.shape[1]:
            raise UsageError(f"{weights.shape[1]} positions are no square", hint="give maps as (T, h, w)")
        weights = weights.reshape(-1, side, side)
    if weights.ndim != 3 or frames.ndim != 4 or len(frames) != len(weights) or not len(frames):
        raise UsageError("one map for each frame is needed", f"shapes are {frames.shape} and {maps.shape}")
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    height, width = frames.shape[1:3]
    figure = _figure(2.2 * columns, 2.2 * columns * rows / columns * height / width + 0.3 * rows)
    for i, (frame, weight) in enumerate(zip(frames, weights, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        spread = np.ptp(weight)
        heat = (weight - weight.min()) / spread if spread > 0 else np.zeros_like(weight)
        axes.imshow(frame, extent=(0, width, height, 0))
        axes.imshow(
            heat, extent=(0, width, height, 0), cmap="jet", alpha=0.45, interpolation="bilinear", vmin=0, vmax=1
        )
        axes.set_title(f"{i}", fontsize=8)
        axes.axis("off")
    return _png(figure)


# ---- cross-modal similarity --------------------------------------------------------------------------------


def cross_similarity(visual: Floats, audio: Floats) -> npt.NDArray[np.float64]:
    """(T, D) and (T, D) encoded streams of one video -> (T, T) cosines, audio rows and visual columns.

    Raises:
        UsageError: the widths differ.
    """
    v, a = np.asarray(visual, np.float64), np.asarray(audio, np.float64)
    if v.ndim != 2 or a.ndim != 2 or v.shape[1] != a.shape[1]:
        raise UsageError("two streams of one width are needed", f"shapes are {v.shape} and {a.shape}")
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, v)]
    return np.asarray(unit[0] @ unit[1].T)


def mean_of_std(matrices: Iterable[Floats]) -> float:
    """Mean over videos of the standard deviation over all entries of a video's matrix (dave.md 2.10).

    Raises:
        UsageError: there is no matrix.
    """
    deviations = [float(np.std(m)) for m in matrices]
    if not deviations:
        raise UsageError("a mean of deviations needs at least one matrix")
    return float(np.mean(deviations))


def similarity_matrix(matrix: Floats, events: Spans = (), seconds: float = 1.0) -> bytes:
    """A video's similarity matrix as heat map, true events as squares on the diagonal.

    Args:
        matrix: (T, T) from `cross_similarity`.
        events: seconds.
        seconds: from one row to the next.
    """
    from matplotlib.patches import Rectangle

    figure = _figure(5.2, 4.4)
    axes = figure.add_subplot()
    end = len(matrix) * seconds
    image = axes.imshow(matrix, extent=(0, end, end, 0), cmap="viridis", interpolation="nearest")
    for start, stop in events:
        axes.add_patch(
            Rectangle((start, start), stop - start, stop - start, fill=False, edgecolor="white", linewidth=1.5)
        )
    axes.set(xlabel="picture, s", ylabel="sound, s", title=f"cosine similarity, std {np.std(matrix):.3f}")
    figure.colorbar(image)
    return _png(figure)


# ---- learnt windows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearntWindow:
    """One target window of LoCo in seconds of the clip: what one head samples for one base window at one level."""

    level: int
    stream: str
    head: int
    window: int
    start: float
    end: float


def learnt_windows(windows: Sequence[LearntWindow], events: Spans = (), stream: str = "visual") -> bytes:
    """Learnt windows of one stream as bars over time, one band per level and head; true events are shaded.

    Raises:
        UsageError: there are none.
    """
    own = [w for w in windows if w.stream == stream]
    if not own:
        raise UsageError(f"the network has no learnt windows of the stream '{stream}'", hint="attention = adaptive has")
    bands = {band: i for i, band in enumerate(sorted({(w.level, w.head) for w in own}))}
    figure = _figure(8, 1.2 + 0.22 * len(bands))
    axes = figure.add_subplot()
    for start, stop in events:
        axes.axvspan(start, stop, color=TRUTH, alpha=0.15, linewidth=0)
    for w in own:
        y = bands[w.level, w.head] + (0.2 if w.window % 2 else -0.2)  # neighbours may overlap
        axes.plot([w.start, w.end], [y, y], color=f"C{w.level}", linewidth=2.5, solid_capstyle="butt")
    axes.set_yticks(list(bands.values()), [f"level {level} head {head}" for level, head in bands], fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", title=f"windows learnt on the {stream} stream")
    return _png(figure)


# ---- lanes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LaneEvent:
    """Seconds [start, end) of a class."""

    start: float
    end: float
    label: str


def judge_lane(truth: Sequence[LaneEvent], found: Sequence[LaneEvent]) -> tuple[list[str], list[bool]]:
    """What became of the events of one lane.

    Returns:
        For each found event "right" (IoU of at least 0.5 with a true one of its class), "merged" (it covers at least
        half of two or more) or "wrong"; and for each true event whether some found event of its class is right there.
    """
    verdicts = []
    hit = [False] * len(truth)
    for event in found:
        own = [i for i, t in enumerate(truth) if t.label == event.label]
        right = [i for i in own if _iou(event, truth[i]) >= MATCH]
        covered = [i for i in own if _overlap(event, truth[i]) >= MATCH * (truth[i].end - truth[i].start)]
        for i in right:
            hit[i] = True
        verdicts.append("right" if right else "merged" if len(covered) > 1 else "wrong")
    return verdicts, hit


def _overlap(a: LaneEvent, b: LaneEvent) -> float:
    return max(0.0, min(a.end, b.end) - max(a.start, b.start))


def _iou(a: LaneEvent, b: LaneEvent) -> float:
    shared = _overlap(a, b)
    union = (a.end - a.start) + (b.end - b.start) - shared
    return shared / union if union > 0 else 0.0


def lanes(truth: Sequence[LaneEvent], models: Mapping[str, Sequence[LaneEvent]], duration: float) -> bytes:
    """Truth and the events of models over one time axis, a group per class; missed, wrong and merged events marked.

    Args:
        truth: events, possibly none.
        models: name -> events.
        duration: seconds.
    """
    from matplotlib.patches import Patch

    labels = list(dict.fromkeys(e.label for events in (truth, *models.values()) for e in events)) or [""]
    names = ["truth", *models]
    judged = {name: judge_lane(truth, events) for name, events in models.items()}
    figure = _figure(9, 1.3 + 0.3 * len(labels) * len(names))
    axes = figure.add_subplot()
    colours = {"right": GOOD, "wrong": BAD, "merged": MERGED}
    for row, (label, name) in enumerate((label, name) for label in labels for name in names):
        for i, event in enumerate(truth if name == "truth" else models[name]):
            if event.label == label:
                colour = TRUTH if name == "truth" else colours[judged[name][0][i]]
                axes.barh(row, event.end - event.start, left=event.start, color=colour, height=0.7)
        for i, event in enumerate(truth if name != "truth" else ()):
            if event.label == label and not judged[name][1][i]:
                width = event.end - event.start
                axes.barh(row, width, left=event.start, color="none", edgecolor="#555555", hatch="///", height=0.7)
    rows = [f"{label}  {name}" for label in labels for name in names]
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set(xlim=(0, duration), ylim=(len(rows) - 0.5, -0.5), xlabel="seconds")
    marks = [Patch(color=c, label=n) for n, c in (("truth", TRUTH), *colours.items())]
    marks.append(Patch(facecolor="none", edgecolor="#555555", hatch="///", label="missed"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=7, frameon=False)
    return _png(figure)


# ---- reliability -------------------------------------------------------------------------------------------


def reliability_diagram(sure: Reliability) -> bytes:
    """How often a model is right where it is so sure, with the number of predictions in each bin."""
    figure = _figure(4.4, 4.6)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle, width = (sure.edges[:-1] + sure.edges[1:]) / 2, np.diff(sure.edges) * 0.92
    top.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    top.bar(middle, np.nan_to_num(sure.accuracy), width, color=TRUTH)
    top.plot(sure.confidence, sure.accuracy, "o", color=BAD, markersize=3)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="right", title=f"reliability, mean gap {100 * sure.error:.1f} points")
    below.bar(middle, sure.counts, width, color="#888888")
    below.set(xlabel="confidence", ylabel="count")
    return _png(figure)


# ---- training ----------------------------------------------------------------------------------------------


def training_curves(history: Sequence[Mapping[str, float]], metric: str) -> bytes:
    """The parts of the loss, and the figures on held-out data, over the epochs of a training.

    Args:
        history: a record for each epoch: "epoch", "train/NAME" and "SPLIT/NAME".
        metric: NAME of the figure by which an epoch is chosen.
    """
    figure = _figure(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    for name in (n for n in history[0] if n.startswith("train/")):
        strong = name == "train/loss"
        line = {"color": "#222222", "linewidth": 2} if strong else {"linewidth": 1}
        left.plot(epochs, [record[name] for record in history], label=name.removeprefix("train/"), **line)
    for name in (n for n in history[0] if "/" in n and not n.startswith("train/")):
        right.plot(epochs, [record[name] for record in history], label=name, marker=".", markersize=3)
        if name.partition("/")[2] == metric:
            best = max(history, key=lambda record: record[name])
            right.plot(best["epoch"], best[name], "o", color=BAD)
    left.set(xlabel="epoch", title="loss")
    right.set(xlabel="epoch", title=metric)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    return _png(figure)
