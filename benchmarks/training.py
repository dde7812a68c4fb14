"""What training promises: learnability, resuming after kill -9, ablations, the AVE-PM table, and speed.

    python benchmarks/training.py learn [--seeds 3]          synthetic clips: both media, one alone, weak supervision
    python benchmarks/training.py kill [--times 5]           kill -9 at random moments, resumed: the same figures?
    python benchmarks/training.py ablation [--seeds 3]       CCLN's and LoCo's switches on composed scenes
    python benchmarks/training.py avepm [--seeds 3] [--pair mini|teachers]
    python benchmarks/training.py speed                      an epoch of AVE's shape, and the share of loading in it

`ablation` and `avepm` read ../shared, and features cached in --work (made there if need be); they keep every finished
run there too and go on where they stopped (`--new N` stops after N new ones). Timings mean something on an idle
machine alone.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from avepm import SCENES, SHARED, crossed_segments, encoder_pair, maps, ranks, top

from avtool.files import write_atomic
from avtool.training.additive import FitConfig, Items
from avtool.training.corpus import Corpus
from avtool.training.engine import Trainer
from avtool.training.few import INTERLEAVE, SETTINGS, FewRecipe
from avtool.training.localizer import bank_items, clip_items
from avtool.training.loco import scale_of
from avtool.training.optimisation import Recipe
from avtool.training.recipe import Training, additive_training, out_of_fold_trained, segment_training
from avtool.training.segments import SegmentData, SegmentTask, standardised
from avtool.training.sources import composed_pairs
from avtool.training.synthetic import SyntheticLaw, synthetic

SMALL: dict[str, dict[str, Any]] = {
    "ccln": {"visual_width": 64, "audio_width": 32, "width": 64},
    "loco-segments": SETTINGS["loco-segments"] | {"width": 32},
}
RECIPE = Recipe(
    batch=32, optimiser="adamw", rate=2e-3, decay=0.05, schedule="cosine", warm_up=1, clip=1.0, select="last"
)
EPOCHS = {"ccln": 5, "loco-segments": 15}  # of ablation: LoCo's pyramid learns more slowly
UNMATCHED = 0.4  # share of the ablations' clips in which nothing is both heard and seen
FEW = FewRecipe()
ROWS: dict[str, tuple[Training, object]] = {  # how it is trained, and what the figures depend on
    "CACE-Net": (segment_training("cace", FEW), ("cace", FEW)),
    "CCLN-style": (segment_training("ccln", FEW), ("ccln", FEW)),
    "LoCo": (segment_training("loco-segments", FEW), ("loco-segments", FEW)),
    "LoCo, global attention (UnAV-style)": (
        segment_training("loco-segments", FEW, {"attention": "global", "lcf_weight": 0.0}),
        ("loco-segments", "global", FEW),
    ),
    "CACE-Net, sound alone": (segment_training("cace", FEW, silent="visual"), ("cace", FEW)),
    "CACE-Net, pictures alone": (segment_training("cace", FEW, silent="audio"), ("cace", FEW)),
    "closed form (additive-mini)": (additive_training(FitConfig()), FitConfig()),
}
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

KILLED_EPOCHS = 12
COMMAND = [
    "train",
    "ccln-ave",
    "--set",
    "data.kind=synthetic",
    "--set",
    f"training.epochs={KILLED_EPOCHS}",
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
            while child.poll() is None and _lines(metrics) <= number * KILLED_EPOCHS // (options.times + 1):
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


class Ledger:
    """Figures of finished runs, a line each in a file, so that a benchmark goes on where it stopped."""

    def __init__(self, file: Path, new: int) -> None:
        self.file, self.new = file, new
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.known = dict(map(json.loads, lines))

    def of(self, key: str, run: Callable[[], list[float]]) -> list[float] | None:
        """The figures of a run; None where it is one too many for this time."""
        if key not in self.known:
            if not self.new:
                return None
            self.new -= 1
            begin = time.process_time()
            self.known[key] = [*run(), time.process_time() - begin]
            write_atomic(self.file, "".join(f"{json.dumps([k, v])}\n" for k, v in self.known.items()))
        return self.known[key]


def tabulated(name: str, runs: Sequence[list[float] | None]) -> None:
    """One row: mean and spread of every figure over the runs."""
    table = np.array([run for run in runs if run is not None])
    if len(table):
        cells = [f"{m:5.1f} +- {s:4.1f}" for m, s in zip(table.mean(0)[:-1], table.std(0)[:-1], strict=True)]
        print(f"{name:36s}", "  ".join(cells), f"  n = {len(table)}, {table.max(0)[-1]:.0f} s a run", flush=True)


def material(options: argparse.Namespace) -> tuple[Corpus, Items, Items, tuple[Items, Items]]:
    """Clips and composed scenes as features."""
    corpus, pair = Corpus(SHARED), encoder_pair(options.pair)
    visual, audio = clip_items(corpus, pair, options.work)
    return corpus, visual, audio, bank_items(corpus, pair, "train", SCENES, options.work, visual.x.shape[1])


def composed(visual: Items, audio: Items, counts: Mapping[str, tuple[npt.NDArray[np.int64], int]]) -> SegmentData:
    """Composed clips of segments a second apart; pairs are drawn inside each split's own scenes."""
    rng, none = np.random.default_rng(0), visual.labels.shape[2]
    pairs, classes, splits, start = [], [], {}, 0
    for name, (index, count) in counts.items():
        found, own = composed_pairs(visual.take(index), audio.take(index), count, rng, UNMATCHED)
        pairs.append(index[found])
        classes.append(own)
        splits[name] = np.arange(start, start := start + count)
    chosen, labels = np.concatenate(pairs), np.concatenate(classes)
    both = visual.labels[chosen[:, 0]] & audio.labels[chosen[:, 1]]
    inside = both[np.arange(len(chosen)), ::INTERLEAVE, labels]
    data = SegmentData(
        tuple(f"class {k}" for k in range(none)),
        lambda i: visual.x[chosen[i, 0], ::INTERLEAVE],
        lambda i: audio.x[chosen[i, 1], ::INTERLEAVE],
        np.where(inside, labels[:, None], none), labels, np.ones(inside.shape, bool), splits,
        (visual.x.shape[2], audio.x.shape[2]),
    )  # fmt: skip
    used = chosen[splits["train"]]
    rows = (items.x[i].reshape(-1, items.x.shape[2]) for items, i in ((visual, used[:, 0]), (audio, used[:, 1])))
    return standardised(data, (scale_of(next(rows)), scale_of(next(rows))))


def ablation(options: argparse.Namespace) -> None:
    """Accuracy over the segments of composed clips from scenes that were not trained on."""
    _, _, _, (visual, audio) = material(options)
    cut = len(visual.x) * 3 // 4
    data = composed(visual, audio, {"train": (np.arange(cut), 2400), "val": (np.arange(cut, len(visual.x)), 800)})
    ledger = Ledger(options.work / "ablation.jsonl", options.new)
    print("segments right in all clips, in clips with an event, in clips without; the event segments' own")
    for name, (kind, settings) in ABLATIONS.items():
        chosen, recipe = SMALL[kind] | settings, replace(RECIPE, epochs=EPOCHS[kind])

        def run(
            seed: int, kind: str = kind, chosen: Mapping[str, Any] = chosen, recipe: Recipe = recipe
        ) -> list[float]:
            torch.manual_seed(seed)
            task = SegmentTask(kind, chosen, data)
            return parts(task, Trainer(task, replace(recipe, seed=seed)).run().network)

        keys = [f"{name} {seed} {chosen} {recipe}" for seed in range(options.seeds)]
        tabulated(name, [ledger.of(key, partial(run, seed)) for seed, key in enumerate(keys)])


def parts(task: SegmentTask, network: torch.nn.Module) -> list[float]:
    """Share of right segments, per cent: of all, of clips with an event, of clips without, of segments with one."""
    clips, data = task.data.split("val"), task.data
    with torch.inference_mode():
        found = np.concatenate([network(**task.inputs(part)).labels().numpy() for part in np.array_split(clips, 20)])
    right, event = found == data.labels[clips], data.labels[clips] != data.background
    some = event.any(1)
    return [100 * float(x.mean()) for x in (right, right[some], right[~some], right[event])]


def avepm(options: argparse.Namespace) -> None:
    """Three folds of the real clips; each network trained on two of them and on composed scenes."""
    corpus, visual, audio, bank = material(options)
    clips = corpus.clips()
    ledger = Ledger(options.work / f"training-avepm-{options.pair}.jsonl", options.new)
    print(f"{options.pair}: clip top-1, top-5, segments right, mAP at tIoU 0.3, 0.5, 0.7; seconds of processor time")
    for name, (training, about) in ROWS.items():

        def run(seed: int, training: Training = training) -> list[float]:
            found = out_of_fold_trained(visual, audio, bank, clips, training, seed)
            rank = ranks(found, clips, visual.labels.shape[2])
            hits = float(np.nanmean(crossed_segments(found, clips, seed)))
            return [100 * top(rank, 1), 100 * top(rank, 5), 100 * hits, *maps(found, clips)]

        keys = [f"{name} {seed} {about}" for seed in range(options.seeds)]
        tabulated(name, [ledger.of(key, partial(run, seed)) for seed, key in enumerate(keys)])


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
    parser.add_argument(
        "--new", type=int, default=-1, help="runs of ablation and avepm that are made this time; -1: all"
    )
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
