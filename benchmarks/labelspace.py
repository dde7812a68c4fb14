"""Does a localizer in label space work with encoders it never met? Cross-validation on the clips of ../shared.

    python benchmarks/labelspace.py [--work DIR] [--seeds 3]
    python benchmarks/labelspace.py --check-clips [--work DIR]      the 47 clips of corpus/clips with what ships
    python benchmarks/labelspace.py --held-out FOLDER [--work DIR]  against `mini` that never saw these clips

`labels` is trained on mn04 (windows of 2 s and of 1 s), MobileNetV2 and SqueezeNet. It is run on these, on `mini`, and
on YAMNet's logits (../shared/transfer) with ResNet-50 (../shared/weights), none of which took part in training. Beside
it: the same localizer trained on the very pair it is run on, on embeddings, and `tags`, which needs no training. Folds,
scores and intervals are those of benchmarks/avepm.py. AUC: the strongest class of a segment, event against background.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from avepm import SHARED, encoder_pair, paired_interval, ranks, report, segment_truth, top

from avtool.detect.proposals import Proposals
from avtool.features.encoders import catalog
from avtool.features.encoders.base import Encoder
from avtool.features.extract import extract
from avtool.features.store import Features, save_npz
from avtool.files import write_atomic
from avtool.media.decoding import decode
from avtool.media.request import DecodeRequest
from avtool.models.labels import WINDOW
from avtool.models.tags import TagsLocalizer, tags_info
from avtool.pipeline import localize
from avtool.session import Session
from avtool.settings import Settings
from avtool.timeline import MediaInfo
from avtool.training import tags
from avtool.training.corpus import Corpus, LabelledClip
from avtool.training.localizer import CPU, GRID, Pair, clip_items
from avtool.training.recipe import candidates
from avtool.training.tags import Folds, Inputs, LabelConfig, View
from avtool.training.views import read_rows

YAMNET_SECONDS = 0.975
BLIND, TAUGHT = "mini that never saw them", ", taught itself"
BINS = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0])
Floats = npt.NDArray[np.float32]
Runs = Sequence[Sequence[Proposals | None]]


def resnet50() -> Encoder:
    """The real, vector-quantised weights in torchvision's form, through our loader."""
    from tests.features.test_real_weights import expanded
    from tests.features.upstream import imported

    before = os.environ.get("AVTOOL_WEIGHTS")
    with tempfile.TemporaryDirectory() as name:
        os.environ["AVTOOL_WEIGHTS"] = name
        torch.save(expanded(SHARED / "weights" / "resnet50_pqf_codebook.pth"), Path(name) / "resnet50.pth")
        encoder = imported(Path(name) / "resnet50.pth", "resnet50-v1")
    os.environ.pop("AVTOOL_WEIGHTS")
    if before is not None:
        os.environ["AVTOOL_WEIGHTS"] = before
    return encoder


def yamnet(name: str) -> tuple[list[str], list[Floats]]:
    """File names, and logits (N, WORDS) of each, NaN where YAMNet lacks a word."""
    with np.load(SHARED / "transfer" / f"yamnet_{name}.npz") as archive:
        rows = zip(archive["logits"].astype(np.float32), archive["segments"].tolist(), strict=True)
        return [Path(str(n)).name for n in archive["clip"]], [z[:n] for z, n in rows]


def views(corpus: Corpus, work: Path) -> tuple[dict[str, View], dict[str, View]]:
    """Views that are trained on, and those that are only tested on."""
    trained = tags.training_views(SHARED, corpus, work)
    mini = Pair("scores-mini", catalog.VISUAL["mini"](CPU), catalog.AUDIO["mini"](CPU))
    seen, heard = tags.clip_scores(corpus, mini, work)
    cached = work / "scores-resnet50-mini-clips.npz"
    encoder = catalog.VISUAL["mini"](CPU) if cached.exists() else resnet50()
    pictures, _ = tags.clip_scores(corpus, Pair("scores-resnet50-mini", encoder, mini.audio), work)
    names, logits = yamnet("avepm")
    assert names == [clip.path.name for clip in corpus.clips()]
    rows = heard.x.shape[1]
    sound = np.stack([np.pad(z[:rows], ((0, max(0, rows - len(z))), (0, 0))) for z in logits])
    return trained, {
        "YAMNet + ResNet-50": View(
            tags.heard_inputs("yamnet", sound, heard.valid, YAMNET_SECONDS),
            tags.seen_inputs(pictures.x, pictures.valid),
        ),
        "mini + mini": View(tags.heard_inputs("mini", heard.x, heard.valid), tags.seen_inputs(seen.x, seen.valid)),
    }


def embeddings(corpus: Corpus, work: Path) -> View:
    """What mn04 and MobileNetV2 say to themselves; each dimension in its own deviations, as labels are not."""
    coral, mn04 = catalog.VISUAL["mobilenetv2-coral"](CPU), catalog.AUDIO["mn04"](CPU)
    parts = []
    for items in clip_items(corpus, Pair("teachers", coral, mn04), work):
        flat = items.x[items.valid]
        parts.append(Inputs(((items.x - flat.mean(0)) / (flat.std(0) + 0.1 * flat.std(0).mean())), items.valid))
    return View(parts[1], parts[0])


def curves(dealt: Folds, view: View, clips: Sequence[LabelledClip]) -> list[Floats]:
    """Scores (n, C) of every clip from the network that never saw it."""
    found = []
    for i in range(len(clips)):
        seen, heard = view.visual.valid[i], view.audio.valid[i]
        n = int((seen | heard).sum())
        network = dealt.networks[dealt.fold[i]]
        found.append(network.scores(view.visual.x[i, :n], view.audio.x[i, :n], seen[:n], heard[:n])[0])
    return found


def area(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve."""
    order = np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1.0
    hits, rest = int(truth.sum()), int((~truth).sum())
    return float((order[truth].sum() - hits * (hits + 1) / 2) / (hits * rest))


def event_area(found: Sequence[Floats], clips: Sequence[LabelledClip]) -> float:
    """Of the strongest class of each segment, event against background."""
    truth = [segment_truth(clip, len(curve)) >= 0 for curve, clip in zip(found, clips, strict=True)]
    return 100 * area(np.concatenate([curve.max(1) for curve in found]), np.concatenate(truth))


def row(
    name: str, found: Sequence[Sequence[Floats]], clips: Sequence[LabelledClip], classes: int
) -> tuple[Runs, dict[str, object]]:
    """One row of the table."""
    runs = [[candidates(c, clip.duration) for c, clip in zip(one, clips, strict=True)] for one in found]
    line = report(name, runs, clips, classes, range(len(runs)))
    areas = [event_area(one, clips) for one in found]
    print(f"{'':36s}event / background AUC {np.mean(areas):.1f}", flush=True)
    return runs, {**line, "auc": areas}


def training_free(view: View, scores: tuple[Floats, Floats], names: Sequence[str]) -> list[Floats]:
    """Curves of `tags` over the known classes; it says nothing of those that its table lacks."""
    localizer, out = TagsLocalizer(tags_info()), []
    table = list(localizer.info.vocabulary.names)
    for i in range(len(view.audio.x)):
        n = int((view.visual.valid[i] | view.audio.valid[i]).sum())
        found = localizer.run(
            made_up(n, scores[0][i, :n], scores[1][i, :n], view.visual.valid[i, :n], view.audio.valid[i, :n]), 0, n
        ).curve
        out.append(np.stack([found[:, table.index(k)] if k in table else np.zeros(n, np.float32) for k in names], 1))
    return out


def made_up(
    rows: int, visual: Floats, audio: Floats, seen: npt.NDArray[np.bool_], heard: npt.NDArray[np.bool_]
) -> Features:
    """Features with class scores alone."""
    starts = np.arange(rows) / 2
    media = MediaInfo("x", 1, 0, True, True, rows / 2, None, None, None, rows / 2)
    times = np.stack([starts, starts + 0.5], 1)
    return Features(None, None, visual, audio, seen, heard, times, "x", "x", {}, "", media)


def compare(title: str, first: Runs, second: Runs, clips: Sequence[LabelledClip], classes: int) -> None:
    """Paired difference of clip top-1 and top-5 with its interval."""
    for k in (1, 5):
        a, b = (np.mean([ranks(run, clips, classes) < k for run in runs], 0) for runs in (first, second))
        gain, low, high = paired_interval(a, b, np.random.default_rng(0))
        ratio = 100 * a.mean() / max(b.mean(), 1e-9)
        print(
            f"{title}: top-{k} {gain:+.1f} points, 95 % interval {low:+.1f} .. {high:+.1f} ({ratio:.0f} %)", flush=True
        )


def reliability(
    name: str, dealt: Sequence[Folds], taught: Sequence[View], view: View, clips: Sequence[LabelledClip]
) -> None:
    """How many candidates of each score are right, before and after calibration on the other folds' clips."""
    before, after, truth = [], [], []
    for one in dealt:
        runs = [one.candidates(v, clips) for v in taught]
        own = one.candidates(view, clips)
        for number in range(3):
            others = np.flatnonzero(one.fold != number)
            pairs = [[run[i] for i in others] for run in runs]
            slope, offset = tags.calibration_of(pairs, [clips[i] for i in others])
            judged = one.calibrated(slope, offset)
            for i in np.flatnonzero(one.fold == number).tolist():
                again = tags.ask(judged.networks[number], view, i, clips[i].duration)
                for scores, found in ((before, own[i]), (after, again)):
                    scores.append((found.scores, tags.right(found, clips[i])))
    truth = []
    for title, pairs_ in (("before", before), ("after", after)):
        score, right = (np.concatenate(column) for column in zip(*pairs_, strict=True))
        bins = np.clip(np.digitize(score, BINS) - 1, 0, len(BINS) - 2)
        cells = [(float(score[bins == k].mean()), float(right[bins == k].mean()), int((bins == k).sum()))
                 for k in range(len(BINS) - 1) if (bins == k).any()]  # fmt: skip
        error = sum(abs(s - r) * n for s, r, n in cells) / len(score)
        high = [c for c in cells if c[0] >= 0.3]
        error_high = sum(abs(s - r) * n for s, r, n in high) / max(1, sum(n for *_, n in high))
        text = "  ".join(f"{s:.2f}: {r:.2f} ({n})" for s, r, n in cells)
        print(f"{name}, {title}: mean score: share right (candidates) {text}")
        print(f"{'':8s}expected calibration error {error:.3f}, of candidates from 0.3 on {error_high:.3f}", flush=True)
        truth.append(error)


def cross_validate(work: Path, seeds: int, out: Path) -> None:
    """The table."""
    corpus = Corpus(SHARED)
    names, clips = tags.known_classes(corpus)
    config, count = LabelConfig(), len(names)
    print(f"{len(clips)} clips ({sum(not c.fills for c in clips)} short events), {count} classes, {seeds} seeds")
    print("columns: clip top-1, top-5, segment accuracy, mAP at tIoU 0.3, 0.5, 0.7")
    trained, foreign = views(corpus, work)
    taught = list(trained.values())

    def fitted(chosen: Sequence[View]) -> list[Folds]:
        return [tags.fit_folds(chosen, clips, count, config, seed) for seed in range(seeds)]

    runs: dict[str, Runs] = {}
    lines: list[dict[str, object]] = []

    def add(name: str, found: Sequence[Sequence[Floats]]) -> None:
        runs[name], line = row(name, found, clips, count)
        lines.append(line)

    shipped = fitted(taught)
    for name, view in {**trained, **foreign}.items():
        add(f"labels on {name}", [curves(one, view, clips) for one in shipped])
    for name, view in foreign.items():
        own = fitted([view])
        add(f"{name} taught itself", [curves(one, view, clips) for one in own])
    inner = embeddings(corpus, work)
    add("embeddings mn04 + MobileNetV2", [curves(one, inner, clips) for one in fitted([inner])])
    first = next(iter(trained.values()))
    coral, mn04 = catalog.VISUAL["mobilenetv2-coral"](CPU), catalog.AUDIO["mn04"](CPU)
    visual, audio = tags.clip_scores(corpus, Pair("scores-mobilenet-mn04", coral, mn04), work)
    add("tags on mn04 + MobileNetV2", [training_free(first, (visual.x, audio.x), names)] * seeds)
    unseen = runs["labels on YAMNet + ResNet-50"]
    compare("unseen pair - the same pair taught itself", unseen, runs["YAMNet + ResNet-50 taught itself"], clips, count)
    compare("unseen pair - mini", unseen, runs["labels on mini + mini"], clips, count)
    compare("unseen pair - mini taught itself", unseen, runs["mini + mini taught itself"], clips, count)
    compare("seen pair - tags", runs["labels on mn04 + MobileNetV2"], runs["tags on mn04 + MobileNetV2"], clips, count)
    for name in ("mn04 + MobileNetV2", "YAMNet + ResNet-50"):
        reliability(name, shipped, taught, {**trained, **foreign}[name], clips)
    write_atomic(out, json.dumps(lines, indent=1))


def held_out(work: Path, folder: Path) -> None:
    """The clips of fold 0 of seed 0: pairs that never saw them, `mini` that never did, and the shipped one that has."""
    corpus = Corpus(SHARED)
    names, clips = tags.known_classes(corpus)
    trained, foreign = views(corpus, work)
    blind = encoder_pair("held-out", folder)
    seen, heard = tags.clip_scores(corpus, Pair("scores-held-out-mini", blind.visual, blind.audio), work)
    foreign[BLIND] = View(tags.heard_inputs("mini", heard.x, heard.valid), tags.seen_inputs(seen.x, seen.valid))
    one = tags.fit_folds(list(trained.values()), clips, len(names), LabelConfig(), 0)
    third = np.flatnonzero(np.asarray(one.fold) == 0).tolist()
    part, runs = [clips[i] for i in third], dict[str, Runs]()
    for name, view in {**trained, **foreign}.items():
        for dealt, title in ((one, ""), (None, TAUGHT))[: 1 + (name in foreign)]:
            own = dealt or tags.fit_folds([view], clips, len(names), LabelConfig(), 0)
            found = curves(own, view, clips)
            runs[name + title] = [[candidates(found[i], clips[i].duration) for i in third]]
            rank = ranks(runs[name + title][0], part, len(names))
            print(
                f"{name + title:36s} top-1 {100 * top(rank, 1):.1f}, top-5 {100 * top(rank, 5):.1f}, {len(part)} clips"
            )
    for title in ("", TAUGHT):
        compare(f"unseen pair - {BLIND}{title}", runs["YAMNet + ResNet-50"], runs[BLIND + title], part, len(names))


def check_clips(work: Path) -> None:
    """The 47 clips of corpus/clips with the model that ships: found, missed, false alarms."""
    rows = list(read_rows(SHARED / "corpus" / "clips" / "clips.csv"))
    paths = [SHARED / "corpus" / "clips" / Path(r["file"]).name for r in rows]
    truth = [{label.replace("_", " ") for label in r["labels"].split(",") if label} for r in rows]
    names, logits = yamnet("corpus")
    heard = dict(zip(names, logits, strict=True))
    coral, mn04 = catalog.VISUAL["mobilenetv2-coral"](CPU), catalog.AUDIO["mn04"](CPU)
    mini = catalog.VISUAL["mini"](CPU), catalog.AUDIO["mini"](CPU)
    pairs = {"mn04 + MobileNetV2": (coral, mn04), "mini + mini": mini, "YAMNet + ResNet-50": (resnet50(), mn04)}
    for title, pair in pairs.items():
        counts = dict.fromkeys(("found", "missed", "false alarms", "not in the vocabulary or tier"), 0)
        print(f"\n{title}\n{'clip':30s} {'found':34s} {'missed':26s} false alarms")
        with Session(Settings(model="loco-tags")) as session:
            vocabulary = session.info.vocabulary
            shown = {vocabulary.names[i] for i in vocabulary.select("default")}
            for path, true in zip(paths, truth, strict=True):
                file = work / f"check-{title.replace(' ', '')}-{path.stem}.npz"
                if not file.exists():
                    features = encoded(path, *pair)
                    if title.startswith("YAMNet"):
                        features = as_yamnet(features, heard[path.name])
                    save_npz(features, file)
                events = localize(file, session=session).events
                best = {e.label: max(o.score for o in events if o.label == e.label) for e in events}
                groups = sorted(true & set(best)), sorted((true & shown) - set(best)), sorted(set(best) - true)
                for key, group in zip(counts, (*groups, true - shown), strict=True):
                    counts[key] += len(group)
                hits, alarms = (", ".join(f"{n} {best[n]:.2f}" for n in g) for g in (groups[0], groups[2]))
                print(f"{path.stem:30s} {hits:34s} {', '.join(groups[1]):26s} {alarms}")
        print(", ".join(f"{value} {key}" for key, value in counts.items()), flush=True)


def encoded(path: Path, visual: Encoder, audio: Encoder) -> Features:
    """Features with class scores, as `localize` makes them."""
    request = DecodeRequest(pictures=visual.pictures, sample_rate=audio.rate, grid=GRID)
    return extract(decode(path, request), visual, audio, GRID, CPU)


def as_yamnet(features: Features, logits: Floats) -> Features:
    """The same with YAMNet's words in place of mn04's."""
    rows = features.rows
    fitted = np.pad(logits[:rows], ((0, max(0, rows - len(logits))), (0, 0)), mode="edge")
    known = np.where(np.isfinite(fitted), fitted, np.nanmin(fitted))  # a feature file holds no holes
    return replace(features, audio_tags=known, audio_encoder="yamnet", sampling={WINDOW: YAMNET_SECONDS})


def main() -> None:
    """Print the table, or the check clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--check-clips", action="store_true")
    parser.add_argument("--held-out", type=Path, help="folder with encoders that never saw fold 0 of seed 0")
    options = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
    elif options.check_clips:
        check_clips(options.work)
    elif options.held_out:
        held_out(options.work, options.held_out)
    else:
        cross_validate(options.work, options.seeds, options.work / "labelspace.json")


if __name__ == "__main__":
    main()
