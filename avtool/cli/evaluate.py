"""avtool evaluate: how good models are on the field's data sets, with the lines that need no model beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avtool.cli import console, options
from avtool.errors import InputError, UsageError
from avtool.files import check_writable, printable, write_atomic

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from avtool.evaluation.map import Segments
    from avtool.evaluation.report import Report, SegmentRun
    from avtool.models.segment_localizer import SegmentLocalizer
    from avtool.training.datasets.ave import AVE
    from avtool.training.datasets.dense import Dense, Video

app = typer.Typer(help="Evaluate models and predictions on data sets.", no_args_is_help=True, rich_markup_mode=None)

BATCH = 32  # clips judged at once
Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of the AVE data set: Annotations.txt, splits, labels.")
]
Split = Annotated[str, typer.Option("--split", help="Split to evaluate: train, val or test.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Also write report.json and report.txt there.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Runs = Annotated[
    list[Path] | None,
    typer.Option("--predictions", metavar="FILE", help="What a run said; give one for each seed, for mean and spread."),
]
BASELINES = ("all-background", "oracle-class")


@app.command()
def ave(
    data: Data,
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", metavar="FILE", help="Model (.safetensors) to run on the features; one for each seed."),
    ] = None,
    predictions: Runs = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help=f"What needs no model: {' or '.join(BASELINES)}.")
    ] = None,
    split: Split = "test",
    visual: Annotated[
        str | None, typer.Option("--visual", metavar="FILE", help="Visual features in DATA, if of another name.")
    ] = None,
    audio: Annotated[
        str | None, typer.Option("--audio", metavar="FILE", help="Audio features in DATA, if of another name.")
    ] = None,
    device: options.Device = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Segment accuracy on AVE, from models with the data set's features, or from files of predicted labels.

    A file of predictions is .npy or .npz: labels (clips, 10) in the order of the split, 28 for background, and in .npz
    also 'confidence' of the same shape.
    """
    import numpy as np

    from avtool.evaluation.diagnostics import reliability_diagram
    from avtool.evaluation.report import reliability_of, segment_report
    from avtool.training.datasets.ave import read_ave

    known = read_ave(data)
    rows = known.split(split)
    runs = [_predictions(file, len(rows), known.background) for file in predictions or ()]
    runs += [_judged(file, known, rows, (visual, audio), device) for file in model or ()]
    runs += [_baseline(baseline, known, rows)] if baseline else []
    if not runs:
        raise UsageError("nothing to evaluate", hint="--model FILE, --predictions FILE or --baseline all-background")
    leaked = np.isin(rows, known.leaks().affected.get(split, ()))
    title = f"AVE, {split}: segment labels of {len(runs)} run{'s' * (len(runs) > 1)}"
    report = segment_report(runs, known.labels[rows], known.classes, leaked, title)
    sure = reliability_of(runs, known.labels[rows])
    drawings = {"reliability.png": reliability_diagram(sure)} if output is not None and sure is not None else {}
    _deliver(report, output, as_json, drawings)


def _predictions(file: Path, clips: int, background: int) -> SegmentRun:
    """Labels of one run from a file."""
    import numpy as np

    from avtool.evaluation.report import SegmentRun

    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"labels": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        labels = arrays["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{printable(file)} holds no predictions", f"{type(error).__name__}: {error}".splitlines()[0]
        ) from error
    if (
        labels.dtype.kind not in "iu"
        or labels.ndim != 2
        or len(labels) != clips
        or labels.min() < 0
        or labels.max() > background
    ):
        why = f"({clips}, 10) whole numbers from 0 to {background} are needed, not {labels.dtype} {labels.shape}"
        raise InputError(f"{printable(file)} holds no labels of this split", why)
    return SegmentRun(file.name, labels.astype(np.int64), arrays.get("confidence"))


def _judged(
    file: Path, data: AVE, rows: npt.NDArray[np.int64], features: tuple[str | None, str | None], device: str | None
) -> SegmentRun:
    """What a model says about the clips of a split."""
    import numpy as np

    from avtool.evaluation.report import SegmentRun

    localizer = _segment_model(str(file), device)
    if localizer.info.vocabulary.names != data.classes:
        raise UsageError(f"{printable(file)} has other classes than the data set")
    labels, confidence = [], []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        judged = localizer.judge(data.visual(part, features[0]), data.audio(part, features[1]))
        labels.append(judged.labels)
        event = judged.scores.sum(2)  # classes exclude each other, so this is the probability of any event
        confidence.append(np.where(judged.labels == data.background, 1 - event, judged.scores.max(2)).clip(0, 1))
    return SegmentRun(file.name, np.concatenate(labels), np.concatenate(confidence))


def _segment_model(name: str, device: str | None) -> SegmentLocalizer:
    from avtool.models import zoo
    from avtool.models.segment_localizer import SegmentLocalizer
    from avtool.session import choose_device

    localizer = zoo.load(name, choose_device(device or "auto"))
    if not isinstance(localizer, SegmentLocalizer):
        raise UsageError(
            f"{printable(name)} does not label segments of ten-second clips", f"its kind is {localizer.info.kind}"
        )
    return localizer


def _baseline(name: str, data: AVE, rows: npt.NDArray[np.int64]) -> SegmentRun:
    import numpy as np

    from avtool.evaluation.report import SegmentRun

    if name not in BASELINES:
        raise UsageError(f"no baseline '{printable(name)}'", hint=" or ".join(BASELINES))
    classes = data.clip_classes[rows] if name == "oracle-class" else np.full(len(rows), data.background)
    return SegmentRun(name, np.repeat(classes[:, None], data.labels.shape[1], axis=1))


@app.command()
def cml(
    data: Data,
    predictions: Annotated[
        list[Path] | None,
        typer.Option("--embeddings", metavar="FILE", help="Embeddings of a run, .npz with 'visual' and 'audio'."),
    ] = None,
    matching: Annotated[
        Path | None, typer.Option("--matching", metavar="FILE", help="The published network cmm_model_weights.h5.")
    ] = None,
    random: Annotated[int, typer.Option("--random", metavar="N", help="N runs of random embeddings.")] = 0,
    distance: Annotated[str, typer.Option("--distance", help="euclidean or cosine.")] = "euclidean",
    split: Split = "test",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Cross-modality localization on AVE's match splits: exact starts in both directions, beside those of chance.

    Embeddings are (clips, 10, width) of every clip of the split, in its order, each segment embedded by itself.
    """
    import numpy as np

    from avtool.evaluation import cml as metric
    from avtool.evaluation.report import cml_report
    from avtool.training.datasets.ave import MATCH, read_ave

    known = read_ave(data)
    rows = known.split(split + MATCH)
    events = known.events[rows]
    pairs = {file.name: _embeddings(file) for file in predictions or ()}
    if matching is not None:
        pairs["cmm"] = _matched(matching, known, rows)
    for seed in range(random):
        rng = np.random.default_rng(seed)
        pairs[f"random {seed}"] = (rng.normal(size=(*events.shape, 64)), rng.normal(size=(*events.shape, 64)))
    if not pairs:
        raise UsageError("nothing to evaluate", hint="--embeddings FILE, --matching FILE or --random 10")
    runs = {name: metric.evaluate(v, a, events, distance) for name, (v, a) in pairs.items()}  # type: ignore[arg-type]
    _deliver(cml_report(runs, events, f"AVE, {split}: cross-modality localization"), output, as_json)


def _embeddings(file: Path) -> tuple[Any, Any]:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["visual"], arrays["audio"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{printable(file)} holds no embeddings", f"{type(error).__name__}: {error}".splitlines()[0]
        ) from error


def _matched(file: Path, data: AVE, rows: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Embeddings of the published matching network for the data set's features."""
    import numpy as np
    import torch

    from avtool.models.cmm import load_matching

    network, parts = load_matching(file), []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            parts.append(network(torch.from_numpy(data.visual(part)), torch.from_numpy(data.audio(part))))
    return tuple(np.concatenate([p[i].numpy() for p in parts]) for i in (0, 1))  # type: ignore[return-value]


@app.command()
def detections(
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="Annotations in ActivityNet's form (UnAV-100's JSON).")
    ],
    found: Annotated[
        list[Path],
        typer.Argument(
            metavar="DETECTIONS", help="ActivityNet results, or a folder of avtool's timelines; one for each seed."
        ),
    ],
    subset: Annotated[str | None, typer.Option("--subset", help="Videos of this subset alone, e.g. test.")] = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """ActivityNet mAP at tIoU 0.1 to 0.9, recall, and a table of classes, for detections in many videos."""
    from avtool.evaluation.report import detection_report
    from avtool.training.datasets.dense import read_unav

    data = read_unav(truth)
    videos = {v.name for v in (data.subset(subset) if subset else data.videos)}
    if not videos:
        raise UsageError(f"{printable(truth)} has no videos of the subset '{printable(str(subset))}'")
    runs = {str(path): _results(path, videos) for path in found}
    _deliver(detection_report(runs, _true_segments(data, videos)), output, as_json)


@app.command()
def dense(
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="Annotations in ActivityNet's form (UnAV-100's JSON).")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FEATURES", help="Folder of the videos' feature files (.npy).")],
    model: Annotated[
        list[Path], typer.Option("--model", metavar="FILE", help="LoCo or UnAV (.safetensors); one for each seed.")
    ],
    kind: Annotated[str, typer.Option("--features", help="Kind of features: i3d_vggish or onepeace.")] = "i3d_vggish",
    subset: Annotated[str, typer.Option("--subset", help="Videos of this subset.")] = "test",
    device: options.Device = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Run models on folders of published features (UnAV-100) and compare: ActivityNet mAP, recall, classes."""
    from avtool.evaluation.report import detection_report
    from avtool.training.datasets.dense import read_unav

    data = read_unav(truth)
    videos = data.subset(subset)
    if not videos:
        raise UsageError(f"{printable(truth)} has no videos of the subset '{printable(subset)}'")
    runs = {str(file): _segments(_detected(file, data, videos, folder, kind, device)) for file in model}
    _deliver(detection_report(runs, _true_segments(data, {v.name for v in videos})), output, as_json)


def _detected(
    file: Path, data: Dense, videos: Sequence[Video], folder: Path, kind: str, device: str | None
) -> Iterator[tuple[str, float, float, str, float]]:
    """Detections of one model in whole videos."""
    from avtool.detect.softnms import detect_on_grid
    from avtool.models import zoo
    from avtool.models.pyramid import PyramidLocalizer
    from avtool.session import choose_device
    from avtool.training.datasets.dense import FEATURES, read_features

    localizer = zoo.load(str(file), choose_device(device or "auto"))
    if not isinstance(localizer, PyramidLocalizer):
        raise UsageError(f"{printable(file)} finds no events in untrimmed videos", f"its kind is {localizer.info.kind}")
    names = localizer.info.vocabulary.names
    if names != data.classes:
        raise UsageError(f"{printable(file)} has other classes than the annotations")
    for video in videos:
        levels = localizer.judge(*read_features(folder, video.name, kind))
        found = detect_on_grid(levels, FEATURES[kind].grid, video.duration)
        for i in range(len(found)):
            score = float(found.scores[i])
            yield video.name, float(found.starts[i]), float(found.ends[i]), names[found.labels[i]], score


def _true_segments(data: Dense, videos: set[str]) -> Segments:
    import numpy as np

    from avtool.evaluation.map import Segments

    rows = [(v.name, e.start, e.end, data.classes[e.label]) for v in data.videos if v.name in videos for e in v.events]
    names, starts, ends, labels = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Segments(np.array(names, str), np.array(starts, float), np.array(ends, float), np.array(labels, str))


def _results(path: Path, videos: set[str]) -> Segments:
    """Detections of one run: a file of results, or all JSON files of a folder."""
    files = sorted(path.glob("**/*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{printable(path)} has no JSON files")
    return _segments(row for file in files for row in _result_rows(file) if row[0] in videos)


def _segments(rows: Iterator[tuple[str, float, float, str, float]]) -> Segments:
    import numpy as np

    from avtool.evaluation.map import Segments

    columns = list(zip(*rows, strict=True)) or [(), (), (), (), ()]
    types = (str, np.float64, np.float64, str, np.float64)
    return Segments(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def _result_rows(file: Path) -> Iterator[tuple[str, float, float, str, float]]:
    try:
        results: Mapping[str, Sequence[Mapping[str, Any]]] = json.loads(file.read_text(encoding="utf-8"))["results"]
        for video, notes in results.items():
            for note in notes:
                start, end = note["segment"]
                yield video, float(start), float(end), str(note["label"]), float(note["score"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{printable(file)} holds no results in ActivityNet's form", why) from error


@app.command()
def clips(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of videos.")],
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="CSV of their events: file,label,start,end (seconds).")
    ],
    model: options.Model = None,
    device: options.Device = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Localize every video of a table of events and compare: mAP, recall and classes, whatever the scores."""
    from avtool.evaluation.report import detection_report
    from avtool.pipeline import localize
    from avtool.session import Session
    from avtool.settings import Settings
    from avtool.training.datasets.dense import read_folder

    data = read_folder(folder, table)
    settings = Settings(model=model, classes=("all",), min_score=0.0)
    settings = settings if device is None else replace(settings, device=device)
    rows = []
    with Session(settings) as session:
        unknown = sorted(set(data.classes) - set(session.info.vocabulary.names))
        for video in data.videos:
            with console.current().progress(video.name) as progress:
                timeline = localize(folder / video.name, None, progress, session=session)
            rows += [(video.name, e.start, e.end, e.label, e.score) for e in timeline.events]
    if unknown:
        console.current().warn(f"the model does not know {', '.join(printable(n) for n in unknown)}: no chance there")
    names = {v.name for v in data.videos}
    report = detection_report({session.info.name: _segments(iter(rows))}, _true_segments(data, names))
    _deliver(report, output, as_json)


@app.command()
def cost(
    timed: Annotated[bool, typer.Option("--time", help="Also run each network on one processor thread.")] = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Parameters and operations of every network in its published configurations, and what is counted."""
    from avtool.evaluation.report import Report, Table, plain
    from avtool.models.cost import COUNTED, cost_table

    costs = list(cost_table(timed))
    rows = [
        (c.name, f"{c.parameters / 1e6:.2f}", f"{c.flops / 1e9:.2f}", f"{c.seconds:.3f}" if timed else "-")
        for c in costs
    ]
    head = ("network", "parameters, M", "operations, G", "seconds")
    data = {"networks": plain(costs), "counted": COUNTED}
    _deliver(Report("cost", data, (Table("cost of one clip", head, tuple(rows)),), (COUNTED,)), output, as_json)


@app.command()
def pictures(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="The video to look at.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the pictures.")],
    model: options.Model = None,
    table: Annotated[
        Path | None,
        typer.Option("--truth", metavar="TABLE", help="CSV of true events: file,label,start,end (seconds)."),
    ] = None,
    device: options.Device = None,
) -> None:
    """Show what a model does with a video, as PNG: lanes of truth and events, and what its network can show.

    CACE-Net: where the sound looks in the first ten segments. LoCo and UnAV: the similarity of sound and picture over
    time; LoCo also the windows it has learnt, as a picture and as JSON.
    """
    from avtool.cli.pictures import draw

    check_writable(output)
    for name, data in draw(video, model, table, device):
        write_atomic(output / name, data)
        console.print_result(f"{output / name}\n")


def _deliver(report: Report, output: Path | None, as_json: bool, drawings: Mapping[str, bytes] | None = None) -> None:
    """Prints a report, and writes it if a folder is given."""
    machine = json.dumps({"title": report.title, **report.data, "notes": list(report.notes)}, indent=1) + "\n"
    human = "\n".join(
        f"{table.title}\n{console.table(table.head, table.rows, right=range(1, len(table.head)))}"
        for table in report.tables
    )
    human += "".join(f"\nnote: {note}\n" for note in report.notes)
    if output is not None:
        check_writable(output)
        write_atomic(output / "report.json", machine)
        write_atomic(output / "report.txt", human)
        for name, data in (drawings or {}).items():
            write_atomic(output / name, data)
    console.print_result(machine if as_json else human)
