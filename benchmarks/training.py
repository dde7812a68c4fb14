"""What training promises: learnability, resuming after kill -9, ablations, the AVE-PM table, and speed.

    python benchmarks/training.py learn [--seeds 3]          synthetic clips: both media, one alone, weak supervision
    python benchmarks/training.py kill [--times 5]           kill -9 at random moments, resumed: the same figures?
    python benchmarks/training.py ablation [--seeds 3]       CCLN's and LoCo's switches on composed scenes
    python benchmarks/training.py avepm [--seeds 3] [--pair mini|teachers] [--epochs 30]
    python benchmarks/training.py speed                      an epoch of AVE's shape, and the share of loading in it

`ablation` and `avepm` read ../shared, and features cached in --work (made there if need be). Timings mean something on
an idle machine alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avepm import SCENES, SHARED, encoder_pair, maps, ranks, segment_hits, top

from avtool.detect.proposals import Proposals, from_curve
from avtool.detect.softnms import suppress
from avtool.timegrid import Grid
from avtool.training.additive import Items
from avtool.training.corpus import Corpus, folds
from avtool.training.engine import Trainer
from avtool.training.localizer import bank_items, clip_items
from avtool.training.loco import scale_of
from avtool.training.optimisation import Recipe
from avtool.training.segments import SegmentData, SegmentTask, standardised
from avtool.training.sources import composed_pairs
from avtool.training.synthetic import SyntheticLaw, synthetic

SMALL: dict[str, dict[str, Any]] = {
    "cace": {"visual_width": 128, "audio_width": 64, "width": 128},
    "ccln": {"visual_width": 128, "audio_width": 64, "width": 128},
    "loco-segments": {"width": 64, "unimodal_blocks": 1, "mlp_ratio": 2, "layer_scale": 0.1, "max_length": 20},
}
RECIPE = Recipe(epochs=30, batch=64, optimiser="adamw", rate=1e-3, decay=0.05, schedule="cosine", warm_up=2, clip=1.0)
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "CCLN": ("ccln", {}),
    "CCLN, every gate open": ("ccln", {"sbi": "ungated"}),
    "CCLN, no interaction": ("ccln", {"sbi": "off"}),
    "CCLN, no fusion in the gate": ("ccln", {"sbi_fusion": False}),
    "CCLN, no FEE": ("ccln", {"fee": False}),
    "CCLN, no WCCL": ("ccln", {"wccl": False}),
    "CCLN, no branch": ("ccln", {"branch": False}),
} | {
    f"LoCo, {attention}, LCF {'on' if weight else 'off'}": (
        "loco-segments",
        {"attention": attention, "lcf_weight": weight},
    )
    for attention in ("none", "global", "fixed", "adaptive")
    for weight in (0.0, 0.1)
}


def said(name: str, values: Sequence[float]) -> None:
    """One row: mean and spread."""
    print(f"{name:36s} {100 * np.mean(values):5.1f} +- {100 * np.std(values):4.1f}  (n = {len(values)})", flush=True)


def fitted(
    kind: str, settings: Mapping[str, Any], data: SegmentData, recipe: Recipe, seed: int
) -> tuple[torch.nn.Module, float]:
    """A trained network and its accuracy on validation clips."""
    torch.manual_seed(seed)
    outcome = Trainer(SegmentTask(kind, settings, data), replace(recipe, seed=seed)).run()
    return outcome.network, outcome.value


def mute(data: SegmentData, side: str | None) -> SegmentData:
    """The data with one medium zero."""
    if side is None:
        return data
    rows = getattr(data, side)
    return replace(data, **{side: lambda index: np.zeros_like(rows(index))})


# ---- learnability ------------------------------------------------------------------------------------------


def learn(options: argparse.Namespace) -> None:
    """Synthetic clips (avel.md 10.4); the line is the right class in every segment."""
    widths: dict[str, dict[str, Any]] = {
        "cace": {"visual_width": 32, "audio_width": 16, "width": 32},
        "ccln": {"visual_width": 32, "audio_width": 16, "width": 32, "heads": 2, "layers": 1},
        "loco-segments": {"width": 32, "heads": 2, "unimodal_blocks": 1, "mlp_ratio": 2, "layer_scale": 0.1},
    }
    recipe = Recipe(epochs=20, batch=64, rate=3e-3, schedule="cosine", warm_up=1, clip=1.0)
    rows = [(k, s, False) for k in widths for s in (None, "visual", "audio")]
    for kind, silent, weak in [*rows, ("ccln", None, True), ("loco-segments", None, True)]:
        values, lines = [], []
        for seed in range(options.seeds):
            data = synthetic(SyntheticLaw(seed=seed, empty=100))
            settings = widths[kind] | ({"supervision": "weak"} if weak else {})
            values.append(fitted(kind, settings, mute(data, silent), recipe, seed)[1])
            lines.append(float((data.labels[data.split("val")] != data.background).mean()))
        what = "weak" if weak else {None: "both media", "visual": "sound alone", "audio": "pictures alone"}[silent]
        said(f"{kind}, {what} (line {100 * np.mean(lines):.1f})", values)


# ---- kill -9 -----------------------------------------------------------------------------------------------

EPOCHS = 12
COMMAND = [
    "train",
    "ccln-ave",
    "--set",
    "data.kind=synthetic",
    "--set",
    f"training.epochs={EPOCHS}",
    "--set",
    "settings.visual_width=32",
    "--set",
    "settings.audio_width=16",
    "--set",
    "settings.width=32",
    "--set",
    "settings.heads=2",
    "--set",
    "settings.layers=1",
]


def kill(options: argparse.Namespace) -> None:
    """`avtool train`, killed at random moments, against the same undisturbed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = _run(folder / "whole")
        metrics, draw = folder / "killed" / "ccln-ave.metrics.jsonl", random.Random(0)
        for number in range(options.times):
            child = subprocess.Popen(_train(folder / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while child.poll() is None and _lines(metrics) <= number * EPOCHS // (options.times + 1):
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.5))
            child.send_signal(signal.SIGKILL)
            child.wait()
            print(f"{'killed' if child.returncode < 0 else 'was over'} after {_lines(metrics)} epochs", flush=True)
        found = _run(folder / "killed")
        keys = [k for k in whole[-1] if k not in ("seconds", "loading")]
        worst = max(abs(a[k] - b[k]) for a, b in zip(whole, found, strict=True) for k in keys)
        print(f"{len(whole)} epochs, largest difference of any figure {worst:.1e}; promised 1e-6")


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def _train(folder: Path) -> list[str]:
    return [sys.executable, "-m", "avtool", *COMMAND, "-o", str(folder)]


def _run(folder: Path) -> list[dict[str, float]]:
    if not (folder / "ccln-ave.toml").exists():
        subprocess.run(_train(folder), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = (folder / "ccln-ave.metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# ---- real features -----------------------------------------------------------------------------------------


def material(options: argparse.Namespace) -> tuple[Corpus, Items, Items, tuple[Items, Items]]:
    """Clips and composed scenes as features."""
    corpus, pair = Corpus(SHARED), encoder_pair(options.pair)
    visual, audio = clip_items(corpus, pair, options.work)
    return corpus, visual, audio, bank_items(corpus, pair, "train", SCENES, options.work, visual.x.shape[1])


def paired(
    visual: Items, audio: Items, pairs: np.ndarray, classes: np.ndarray, splits: Mapping[str, np.ndarray]
) -> SegmentData:
    """Pairs of items as clips with a label per segment, features standardised by those of training."""
    none = visual.labels.shape[2]
    both = visual.labels[pairs[:, 0]] & audio.labels[pairs[:, 1]]
    inside = both[np.arange(len(pairs)), :, classes]
    valid = visual.valid[pairs[:, 0]] | audio.valid[pairs[:, 1]]
    valid = np.maximum.accumulate(valid[:, ::-1], 1)[:, ::-1]
    data = SegmentData(
        tuple(f"class {k}" for k in range(none)), lambda i: visual.x[pairs[i, 0]], lambda i: audio.x[pairs[i, 1]],
        np.where(inside, classes[:, None], none), classes, valid, splits, (visual.x.shape[2], audio.x.shape[2]),
    )  # fmt: skip
    used = pairs[splits["train"]]
    sides = [scale_of(items.x[i][items.valid[i]]) for items, i in ((visual, used[:, 0]), (audio, used[:, 1]))]
    return standardised(data, (sides[0], sides[1]))


def ablation(options: argparse.Namespace) -> None:
    """Accuracy over the segments of composed clips that were not trained on."""
    _, _, _, (visual, audio) = material(options)
    rng = np.random.default_rng(0)
    cut = len(visual.x) * 3 // 4
    pairs, classes, splits, start = [], [], {}, 0
    for name, index, count in (("train", np.arange(cut), 2400), ("val", np.arange(cut, len(visual.x)), 600)):
        found, own = composed_pairs(visual.take(index), audio.take(index), count, rng)
        pairs.append(index[found])
        classes.append(own)
        splits[name] = np.arange(start, start + count)
        start += count
    data = paired(visual, audio, np.concatenate(pairs), np.concatenate(classes), splits)
    recipe = replace(RECIPE, epochs=options.epochs)
    for name, (kind, settings) in ABLATIONS.items():
        said(name, [fitted(kind, SMALL[kind] | settings, data, recipe, seed)[1] for seed in range(options.seeds)])


def avepm(options: argparse.Namespace) -> None:
    """Three folds of the real clips; each network trained on two of them and on composed scenes."""
    corpus, visual, audio, bank = material(options)
    clips, count = corpus.clips(), len(visual.x)
    own = np.array([c.label for c in clips], np.int64)
    joined = Items.join([visual, bank[0]]), Items.join([audio, bank[1]])
    rows = {
        "CACE-Net": ("cace", {}, None),
        "CCLN-style": ("ccln", {}, None),
        "LoCo": ("loco-segments", {}, None),
        "LoCo, global attention (UnAV-style)": ("loco-segments", {"attention": "global", "lcf_weight": 0.0}, None),
        "CCLN-style, sound alone": ("ccln", {}, "visual"),
        "CCLN-style, pictures alone": ("ccln", {}, "audio"),
    }
    print(f"{options.pair}: clip top-1, top-5, segment accuracy at 0.3, mAP at tIoU 0.3, 0.5, 0.7")
    for name, (kind, settings, silent) in rows.items():
        lines = []
        for seed in range(options.seeds):
            fold, found = np.array(folds(list(clips), seed)), list[Proposals | None]([None] * count)
            for number in range(3):
                train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
                composed, labels = composed_pairs(*bank, 1200, np.random.default_rng(seed))
                pairs = np.concatenate(
                    [np.stack([np.tile(train, 4)] * 2, 1), composed + count, np.stack([test] * 2, 1)]
                )
                classes = np.concatenate([np.tile(own[train], 4), labels, own[test]])
                known = len(pairs) - len(test)
                splits = {"train": np.arange(known), "val": np.arange(known, len(pairs))}
                data = mute(paired(*joined, pairs, classes, splits), silent)
                recipe = replace(RECIPE, epochs=options.epochs, select="last")  # nothing is chosen on the fold
                network, _ = fitted(kind, SMALL[kind] | settings, data, recipe, seed)
                _judge(network, data, splits["val"], test, found)
            rank = ranks(found, clips, visual.labels.shape[2])
            hits = float(np.nanmean(segment_hits(found, clips, 0.3)))
            lines.append([100 * top(rank, 1), 100 * top(rank, 5), 100 * hits, *maps(found, clips)])
        table = np.array(lines)
        print(
            f"{name:36s}", " ".join(f"{m:5.1f} +- {s:3.1f}" for m, s in zip(table.mean(0), table.std(0), strict=True))
        )


def _judge(
    network: torch.nn.Module, data: SegmentData, rows: np.ndarray, test: np.ndarray, found: list[Proposals | None]
) -> None:
    with torch.inference_mode():
        for row, clip in zip(rows.tolist(), test.tolist(), strict=True):
            index = np.array([row])
            inputs = (torch.from_numpy(x) for x in (data.visual(index), data.audio(index), data.valid[index]))
            curve = network(*inputs).curve()[0, : int(data.valid[row].sum())].numpy()
            found[clip] = suppress(from_curve(curve, Grid()))


# ---- speed -------------------------------------------------------------------------------------------------


def speed(options: argparse.Namespace) -> None:
    """Seconds of one epoch over 3,339 clips of 10 segments and 7 x 7 maps, from 5 steps of 64 clips; loading share."""
    data = synthetic(SyntheticLaw(28, (64 * 5, 8, 8), visual=512, audio=128, positions=49))
    recipe = Recipe(epochs=1, batch=64, select="last")
    for kind in ("cace", "ccln", "loco-segments"):
        record = Trainer(SegmentTask(kind, {}, data), recipe).run().history[0]
        seconds = record["seconds"] * 3339 / (64 * 5)
        threads = torch.get_num_threads()
        print(
            f"{kind:16s} {seconds:7.1f} s an epoch on {threads} threads, {100 * record['loading']:.1f} % of it loading"
        )


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("learn", "kill", "ablation", "avepm", "speed"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--pair", choices=("mini", "teachers"), default="mini")
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    if options.what in ("ablation", "avepm") and not SHARED.is_dir():
        print(f"skipped: the research corpus is not at {SHARED}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    {"learn": learn, "kill": kill, "ablation": ablation, "avepm": avepm, "speed": speed}[options.what](options)


if __name__ == "__main__":
    main()
