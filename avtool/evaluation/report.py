"""Reports of evaluations: figures for programs, tables for people, made of the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from avtool.errors import UsageError
from avtool.evaluation.avel import AvelScores, Reliability, avel_scores, calibration, reliability, spread
from avtool.evaluation.cml import CML, random_accuracy
from avtool.evaluation.map import Segments, mean_ap, recall_at

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a head; figures are already text."""

    title: str
    head: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """One evaluation.

    Attributes:
        title: of the page.
        data: everything, for JSON; NaN is None there.
        tables: for people.
        notes: sentences that a reader of the figures must know.
    """

    title: str
    data: dict[str, Any]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = field(default=())


def percent(value: float) -> str:
    """A share as percent, "-" where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def plain(value: Any) -> Any:
    """What JSON can say: NaN becomes None, arrays lists, dataclasses dictionaries."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, eq=False)
class SegmentRun:
    """What one run (one seed) says about the clips of a split.

    Attributes:
        name: of the run.
        labels: (V, T) predicted labels.
        confidence: (V, T) how sure it is of each label, in [0, 1], or None.
    """

    name: str
    labels: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64] | None = None


MEASURES: dict[str, Callable[[AvelScores], float]] = {
    "segment accuracy": lambda s: s.segments.accuracy,
    "clip accuracy": lambda s: s.clip_accuracy,
    "event segments right": lambda s: s.segments.event_accuracy,
    "background found": lambda s: s.segments.background_recall,
    "balanced accuracy": lambda s: s.segments.balanced,
    "event / background F1": lambda s: s.segments.event_f1,
    "event F1 at IoU 0.5": lambda s: s.events.f1,
    "accuracy, clips with background": lambda s: (
        float("nan") if s.with_background is None else s.with_background.accuracy
    ),
}


def segment_report(
    runs: Sequence[SegmentRun],
    truth: npt.ArrayLike,
    classes: Sequence[str],
    leaked: npt.ArrayLike | None = None,
    title: str = "segment labels",
) -> Report:
    """Accuracies of segment labels, beside the lines that need no network (avel.md 1.5).

    Args:
        runs: one for each seed.
        truth: (V, T) labels, background = number of classes.
        classes: names.
        leaked: (V,) clips whose id is also in the training split; None: unknown.
        title: of the report.

    Raises:
        UsageError: there is no run, or one has another shape.
    """
    right = np.asarray(truth, np.int64)
    background = len(classes)
    scores = [avel_scores(run.labels, right, background) for run in runs]
    spreads = {name: spread([read(s) for s in scores]) for name, read in MEASURES.items()}
    lines = calibration(right, background)
    notes = ["whoever knows a clip's class and nothing about time reaches the line 'oracle class'"]
    data: dict[str, Any] = {"clips": len(right), "segments": right.size, "measures": spreads, "calibration": lines}
    if leaked is not None and np.any(leaked):
        kept = ~np.asarray(leaked, bool)
        clean = [avel_scores(run.labels[kept], right[kept], background).segments.accuracy for run in runs]
        spreads["accuracy without leaked clips"] = data["without_leaked"] = spread(clean)
        data["leaked_clips"] = int((~kept).sum())
        notes.append(f"{(~kept).sum()} clips are also in the training split")
    rows = [(name, percent(s.mean), percent(s.std)) for name, s in spreads.items()]
    rows += [(f"line: {name.replace('_', ' ')}", percent(value), "") for name, value in lines.items()]
    tables = [Table(title, ("measure", "%", "± over runs"), tuple(rows)), _class_table(scores, classes)]
    data["runs"] = [{"name": run.name, "scores": s} for run, s in zip(runs, scores, strict=True)]
    if sure := reliability_of(runs, right):
        data["reliability"] = sure
        tables.append(_reliability_table(sure))
    return Report(title, plain(data), tuple(tables), tuple(notes))


def reliability_of(runs: Sequence[SegmentRun], truth: npt.ArrayLike) -> Reliability | None:
    """Reliability over all runs that say how sure they are."""
    sure = [run for run in runs if run.confidence is not None]
    if not sure:
        return None
    confidence = np.concatenate([np.ravel(run.confidence) for run in sure])  # type: ignore[arg-type]
    return reliability(confidence, np.concatenate([np.ravel(run.labels == np.asarray(truth)) for run in sure]))


def _class_table(scores: Sequence[AvelScores], classes: Sequence[str]) -> Table:
    found = sorted({c for s in scores for c in s.per_class})
    rows = [(classes[c], percent(float(np.mean([s.per_class[c] for s in scores])))) for c in found]
    return Table("segments right, by class of the clip", ("class", "%"), tuple(rows))


def _reliability_table(sure: Reliability) -> Table:
    bins = zip(sure.edges, sure.edges[1:], sure.confidence, sure.accuracy, sure.counts, strict=False)
    rows = [(f"{a:.1f} to {b:.1f}", percent(c), percent(r), str(n)) for a, b, c, r, n in bins]
    rows.append(("mean gap", percent(sure.error), "", str(sure.counts.sum())))
    return Table("reliability", ("confidence", "mean %", "right %", "segments"), tuple(rows))


def detection_report(runs: Mapping[str, Segments], truth: Segments, title: str = "detections") -> Report:
    """ActivityNet mAP at 0.1:0.1:0.9 and recall, mean and spread over runs.

    Args:
        runs: name of a run (a seed) -> its detections.
        truth: events, labelled as the detections are.
        title: of the report.

    Raises:
        UsageError: there is no run or no event.
    """
    if not runs:
        raise UsageError("there are no detections to evaluate")
    results = {name: mean_ap(truth, found) for name, found in runs.items()}
    first = next(iter(results.values()))
    by_tiou = {t: spread([float(r.by_tiou[i]) for r in results.values()]) for i, t in enumerate(first.tious)}
    average = spread([r.average for r in results.values()])
    recalls = {k: [recall_at(truth, found, (k,)) for found in runs.values()] for k in (1, 5)}
    recall = {
        k: [spread([float(r[0][i]) for r in each]) for i in range(len(first.tious))] for k, each in recalls.items()
    }
    rows = [
        (f"{t:.1f}", percent(s.mean), percent(s.std), percent(recall[1][i].mean), percent(recall[5][i].mean))
        for i, (t, s) in enumerate(by_tiou.items())
    ]
    rows.append(("mean", percent(average.mean), percent(average.std), "", ""))
    ap = {str(c): float(np.mean([r.ap[:, i].mean() for r in results.values()])) for i, c in enumerate(first.labels)}
    tables = (
        Table(title, ("tIoU", "mAP %", "± over runs", "recall@1x %", "recall@5x %"), tuple(rows)),
        Table("mean AP over tIoU, by class", ("class", "%"), tuple((c, percent(v)) for c, v in ap.items())),
    )
    data = {"events": len(truth), "average_mAP": average, "mAP": by_tiou, "recall": recall, "ap": ap}
    return Report(title, plain(data), tables)


def cml_report(runs: Mapping[str, CML], events: npt.ArrayLike, title: str = "cross-modality localization") -> Report:
    """Exact starts in both directions, beside what guessing gives (avel.md 8.2)."""
    both = {
        name: spread([getattr(run, key).accuracy for run in runs.values()])
        for name, key in (("sound asks picture (A2V)", "a2v"), ("picture asks sound (V2A)", "v2a"))
    }
    chance, skipped = random_accuracy(events), next(iter(runs.values())).a2v.skipped
    rows = [(name, percent(s.mean), percent(s.std)) for name, s in both.items()]
    rows.append(("line: a random start", percent(chance), ""))
    counted = len(next(iter(runs.values())).a2v.clips)
    data = {"clips": counted, "skipped": skipped, "measures": both, "random_start": chance}
    notes = (f"{skipped} clips without an event, or event throughout, are skipped",) if skipped else ()
    return Report(
        title, plain(data), (Table(title, ("direction", "exact starts %", "± over runs"), tuple(rows)),), notes
    )
