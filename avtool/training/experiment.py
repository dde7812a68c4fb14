"""From a configuration to a trained localizer: `avtool train`."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from avtool import __version__
from avtool.detect.proposals import from_curve
from avtool.detect.softnms import suppress
from avtool.errors import UsageError
from avtool.evaluation.diagnostics import training_curves
from avtool.evaluation.map import Segments, mean_ap
from avtool.evaluation.metrics import event_scores
from avtool.files import printable, remove, write_atomic
from avtool.models.additive import Additive
from avtool.models.pyramid import SIDES
from avtool.models.release import THRESHOLD, write_model
from avtool.models.zoo import ModelInfo
from avtool.settings import did_you_mean
from avtool.timegrid import Grid
from avtool.training import sources
from avtool.training.additive import FitConfig, fit
from avtool.training.datasets.dense import FEATURES
from avtool.training.dense import DenseData, DenseTask, gathered, plan, true_segments
from avtool.training.engine import Indices, Outcome, Record, Task, Trainer
from avtool.training.finetune import ContrastConfig, ContrastTask, TunedVideo, trainable, tuned_tensors
from avtool.training.localizer import save_arrays, teaching_pairs
from avtool.training.loco import runs
from avtool.training.optimisation import Recipe
from avtool.training.quadruples import encode
from avtool.training.recipe import ask_additive, choose_thresholds, rates, trials
from avtool.training.segments import SegmentData, SegmentTask
from avtool.training.sources import Bank, DataConfig, Footage, Hook, Source
from avtool.training.towers import TowerTask
from avtool.vocabulary import Vocabulary

CONFIGS = Path(__file__).parent / "configs"
SEGMENT_NETWORKS, DENSE_NETWORKS = ("cace", "ccln", "loco-segments"), ("loco", "unav")
NETWORKS = (*SEGMENT_NETWORKS, *DENSE_NETWORKS, "additive", "encoder", "towers")
TABLES = ("data", "settings", "training", "rows")
KEYS = ("name", "network", "about", "base", *TABLES)
QUADRUPLES = 8  # validation quadruples of a class, for the thresholds of the additive localizer
LEVELS = 40  # thresholds that are tried
LICENCE = "that of the material it was trained on"
Table = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a published table as changes of a configuration."""

    name: str
    paper: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A configuration, checked.

    Attributes:
        name: of the model that comes out.
        network: one of `NETWORKS`.
        data, settings, training: its tables; `settings` are those of the network.
        about: one line.
        rows: of published tables, by name.
        table: the configuration itself, for the record.
    """

    name: str
    network: str
    data: DataConfig
    settings: Mapping[str, Any]
    training: Recipe
    about: str
    rows: Mapping[str, Row]
    table: Table

    @property
    def weak(self) -> bool:
        """Whether labels of segments may not be seen."""
        return self.settings.get("supervision") == "weak"


# ---- configurations ----------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """Name -> file of the configurations that come with avtool."""
    return {file.stem: file for file in sorted(CONFIGS.glob("*.toml")) if not file.stem.startswith("distill-")}


def read_table(name: str | Path) -> Table:
    """A configuration, shipped or a file, with what it is based on merged in.

    Raises:
        UsageError: there is none of that name, it is not TOML, or has unknown keys.
    """
    path = Path(name)
    if not path.is_file():
        known = shipped()
        if str(name) not in known:
            what = f"no configuration '{printable(str(name))}'"
            raise UsageError(
                what, "neither a file nor one that comes with avtool", did_you_mean(str(name), list(known))
            )
        path = known[str(name)]
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{printable(path)} is not a TOML file", str(error)) from error
    for key in table:
        if key not in KEYS:
            raise UsageError(f"unknown key '{printable(key)}' in {printable(path)}", hint=did_you_mean(key, list(KEYS)))
    table.setdefault("name", path.stem)
    for key in ("path", "table", "categories"):
        if table.get("data", {}).get(key):
            table["data"][key] = str(path.parent / table["data"][key])
    if base := table.pop("base", None):
        under = read_table(base)
        if table.get("data", {}).get("kind", "") not in ("", under.get("data", {}).get("kind")):
            under.pop("rows", None)  # published for other data
        return merged(under, table)
    return table


def merged(base: Mapping[str, Any], table: Mapping[str, Any]) -> Table:
    """A table over another, table by table."""
    out = dict(copy.deepcopy(base))
    for key, value in table.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def changed(table: Mapping[str, Any], changes: Mapping[str, Any]) -> Table:
    """A table with values set by dotted keys such as "training.epochs".

    Raises:
        UsageError: a key leads nowhere.
    """
    out = copy.deepcopy(dict(table))
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = out
        for part in path:
            inner = inner.setdefault(part, {}) if part in TABLES or part in inner else {}
        if (not path and last not in ("name", "network")) or (path and path[0] not in TABLES):
            raise UsageError(f"there is no setting '{printable(key)}'", hint="data.X, settings.X, training.X or name")
        inner[last] = value
    return out


def parse_change(text: str) -> tuple[str, Any]:
    """`key=value` of a command line; the value as in TOML, else a text.

    Raises:
        UsageError: there is no "=".
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"'{printable(text)}' sets nothing", hint="--set training.epochs=20")
    try:
        return key.strip(), tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def rows_of(table: Mapping[str, Any]) -> dict[str, Row]:
    """The published rows of a configuration."""
    rows = table.get("rows", {})
    return {name: Row(name, str(row.get("paper", "")), row.get("set", {})) for name, row in rows.items()}


def experiment(table: Table, row: str | None = None, changes: Mapping[str, Any] | None = None) -> Experiment:
    """A configuration with a published row and further changes.

    Raises:
        UsageError: the row, a key or a value is not known.
    """
    rows = rows_of(table)
    if row is not None:
        if row not in rows:
            raise UsageError(f"no row '{printable(row)}'", hint=did_you_mean(row, list(rows)))
        table = changed(table, rows[row].changes)
        table["name"] = f"{table['name']}-{row}"
    table = changed(table, changes or {})
    network = table.get("network", "")
    if network not in NETWORKS:
        raise UsageError(f"network = '{printable(str(network))}' is not known", hint=f"one of {', '.join(NETWORKS)}")
    data = DataConfig.from_settings(table.get("data", {}))
    training = Recipe.from_settings(table.get("training", {}))
    kept = {key: value for key, value in table.items() if key != "rows"}
    name = str(table["name"])
    if not name or any(sign in name for sign in "/\\\0") or name.startswith("."):
        raise UsageError(f"'{printable(name)}' is no name of a model")
    return Experiment(name, network, data, table.get("settings", {}), training, str(table.get("about", "")), rows, kept)


# ---- data and task -----------------------------------------------------------------------------------------


def open_source(work: Experiment, cache: Path, hook: Hook) -> Source | Footage | Bank:
    """The data in the form that the network needs; features are made where they are missing."""
    config, dense = work.data, work.network in DENSE_NETWORKS
    clips = (*SEGMENT_NETWORKS, "towers")
    if config.kind in ("ave", "vggsound", "synthetic") and work.network not in clips:
        hint = f"network = one of {', '.join(clips)}"
        raise UsageError(f"{work.network} does not read data of the kind '{config.kind}'", "", hint)
    if config.kind == "unav":
        if not dense:
            raise UsageError(f"{work.network} does not read data of the kind 'unav'", hint="network = loco or unav")
        return sources.unav_source(config)
    if config.kind == "ave":
        return sources.ave_source(config, work.weak)
    if config.kind == "vggsound":
        return sources.vggsound_source(config, cache)
    if config.kind == "synthetic":
        return sources.synthetic_source(config, work.weak)
    if config.kind == "composed":
        bank = sources.read_bank(config, cache, hook)
        if work.network == "additive":
            return bank
        return sources.composed_dense(bank, config) if dense else sources.composed_segments(bank, config, work.weak)
    footage = sources.read_footage(config, cache, hook)
    if work.network == "additive":
        return footage
    if dense:
        return sources.footage_dense(footage, config.standardise)
    return sources.footage_segments(footage, work.weak, config.standardise)


def make_task(work: Experiment, source: Source) -> SegmentTask | DenseTask:
    """The network with its loss on the data; sizes that the configuration leaves open follow from the data."""
    torch.manual_seed(work.training.seed)
    if source.segments is not None:
        settings = dict(work.settings)
        if work.network == "loco-segments" and source.window > 12:
            settings.setdefault("max_length", source.window)
        return SegmentTask(work.network, settings, source.segments)
    assert source.dense is not None
    settings = derived(source.dense) | dict(work.settings) if work.data.kind != "unav" else dict(work.settings)
    settings.setdefault("max_length", source.window or 256)
    return DenseTask(work.network, settings, source.dense, start=250.0 if work.data.kind == "unav" else 20.0)


def derived(data: DenseData) -> dict[str, int]:
    """T_max and levels for the training clips."""
    train = [data.clips[i] for i in data.split("train").tolist()]
    sizes = plan([c.duration for c in train], [e.end - e.start for c in train for e in c.events], data.grid)
    return {"max_length": sizes.max_length, "levels": sizes.levels}


# ---- training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """Files of one training."""

    folder: Path
    name: str

    def __call__(self, ending: str) -> Path:
        """`NAME` with an ending."""
        return self.folder / f"{self.name}{ending}"

    @property
    def is_done(self) -> bool:
        """The model is there, and no state from which an unfinished training would go on."""
        unfinished = self(".checkpoint.safetensors").exists()
        return self(".toml").exists() or (self(".safetensors").exists() and not unfinished)

    @property
    def cache(self) -> Path:
        """Where features and scenes go."""
        return self.folder / "cache"


@dataclass(frozen=True)
class Result:
    """What a training made.

    Attributes:
        model: file that `localize --model` takes.
        figures: of the selected network on validation data.
        epochs: that were trained; 0 for a closed form.
        best: the selected one, from 1.
        notes: what the user should know.
    """

    model: Path
    figures: Mapping[str, float]
    epochs: int = 0
    best: int = 0
    notes: tuple[str, ...] = ()


@dataclass
class Hooks:
    """What is told while it runs."""

    progress: Hook = lambda *_: None
    epoch: Callable[[Record], None] = lambda _: None
    plot: bool = True
    listeners: Sequence[Callable[[Record], None]] = ()


def train(
    work: Experiment, folder: Path, device: torch.device, hooks: Hooks | None = None, overwrite: bool = False
) -> Result:
    """Trains, resumes, or says that it is done already.

    Raises:
        UsageError: the model exists, or an unfinished training of another configuration does.
        InputError: data cannot be read.
    """
    hooks, paths = hooks or Hooks(), Paths(folder, work.name)
    if overwrite:
        for ending in (".toml", ".safetensors", ".checkpoint.safetensors", ".checkpoint.best.safetensors"):
            remove(paths(ending))
    elif paths.is_done:
        what = f"{printable(paths('.safetensors'))} exists"
        raise UsageError(what, "this model is trained already", "--overwrite begins anew")
    if work.network == "encoder":
        return tune(work, paths, device, hooks)
    source = open_source(work, paths.cache, hooks.progress)
    if isinstance(source, Bank):
        return fit_bank(work, source, paths)
    if isinstance(source, Footage):
        return fit_footage(work, source, paths)
    if work.network == "towers":
        return _train_towers(work, source, paths, device, hooks)
    return _train_network(work, source, paths, device, hooks)


def _train_network(work: Experiment, source: Source, paths: Paths, device: torch.device, hooks: Hooks) -> Result:
    task = make_task(work, source)
    trainer = Trainer(
        task, work.training, paths(".checkpoint.safetensors"), fingerprint(work, source.identity, task.settings),
        device, lambda history: _report(history, paths, task.metric, hooks), hooks.progress,
    )  # fmt: skip
    outcome = trainer.run()
    info = describe(work, source, task, outcome.network)
    model = write_model(info, tensors_of(task, outcome, source), paths.folder)
    write_atomic(paths(".train.toml"), as_toml(work.table))
    trainer.forget()
    record = outcome.history[outcome.best]
    figures = {name: value for name, value in record.items() if name.startswith(("val/", "test/"))}
    return Result(model, figures, len(outcome.history), outcome.best + 1, source.notes)


def _train_towers(work: Experiment, source: Source, paths: Paths, device: torch.device, hooks: Hooks) -> Result:
    """Towers of cross-modality localization; embeddings of the test split lie beside them for `evaluate cml`."""
    if source.segments is None:
        raise UsageError("towers need clips with a label per segment")
    torch.manual_seed(work.training.seed)
    task = TowerTask(work.settings, source.segments)
    trainer = Trainer(
        task, work.training, paths(".checkpoint.safetensors"), fingerprint(work, source.identity, work.settings),
        device, lambda history: _report(history, paths, task.metric, hooks), hooks.progress,
    )  # fmt: skip
    outcome = trainer.run()
    clips = source.segments.split("test")
    visual, audio = task.embed(outcome.network, clips) if len(clips) else (np.empty(0), np.empty(0))
    save_arrays(paths(".test.npz"), {"visual": visual, "audio": audio})
    write_atomic(paths(".safetensors"), save(_contiguous(outcome.network.state_dict())))
    write_atomic(paths(".train.toml"), as_toml(work.table))
    trainer.forget()
    record = outcome.history[outcome.best]
    figures = {name: value for name, value in record.items() if name.startswith(("val/", "test/"))}
    return Result(paths(".safetensors"), figures, len(outcome.history), outcome.best + 1, source.notes)


def fingerprint(work: Experiment, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Of everything that the curve depends on."""
    parts = {
        "version": __version__,
        "network": work.network,
        "settings": settings,
        "training": asdict(work.training),
        "data": {**asdict(work.data), "path": "", "table": "", "categories": ""},
        "identity": identity,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _report(history: Sequence[Record], paths: Paths, metric: str, hooks: Hooks) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in history)
    write_atomic(paths(".metrics.jsonl"), lines)
    if hooks.plot:
        write_atomic(paths(".png"), training_curves(history, metric))
    hooks.epoch(history[-1])
    for listener in hooks.listeners:
        listener(history[-1])


def tensors_of(task: Task, outcome: Outcome, source: Source) -> dict[str, Tensor]:
    """Parameters as float32, with the standardisation of the inputs."""
    state = outcome.network.state_dict()
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    for side, values in zip(SIDES, source.sides or (), strict=False):
        tensors |= {f"{side}.mean": torch.from_numpy(values[0]), f"{side}.scale": torch.from_numpy(values[1])}
    return tensors


def describe(work: Experiment, source: Source, task: SegmentTask | DenseTask, network: nn.Module) -> ModelInfo:
    """What the trained localizer is, with one threshold that suits the validation data best."""
    network.eval()
    window = source.window or getattr(task, "length", 0)
    with torch.inference_mode():
        threshold = best_threshold(
            *_found(task, network, "val" if work.training.select != "best-epoch-on-test" else "test")
        )
    return model_info(
        work, source.classes, (threshold,) * len(source.classes), source.visual, source.audio, source.grid, window,
        {**source.options, "config": json.dumps(task.settings)},
    )  # fmt: skip


def model_info(
    work: Experiment,
    classes: Sequence[str],
    thresholds: Sequence[float],
    visual: tuple[str, ...],
    audio: tuple[str, ...],
    grid: Grid,
    window: int,
    settings: Mapping[str, Any],
) -> ModelInfo:
    """The description of a model that was trained here."""
    return ModelInfo(
        name=work.name,
        kind=work.network,
        vocabulary=Vocabulary(tuple(classes), ("default",) * len(classes), tuple(round(t, 4) for t in thresholds)),
        visual=visual,
        audio=audio,
        grid=grid,
        window=window,
        hop=max(1, window // 2),
        settings={"nms": "gaussian", "sigma": 0.4, **settings},
        licence=LICENCE,
        commercial="ask",
        summary=f"{work.network}, {len(classes)} events; reads {visual[0]} and {audio[0]}",
        details=work.about or f"trained by avtool {__version__} on data of the kind '{work.data.kind}'",
    )


# ---- thresholds --------------------------------------------------------------------------------------------


def _found(task: SegmentTask | DenseTask, network: nn.Module, split: str) -> tuple[Segments, Segments]:
    """True and found events of a split."""
    clips = task.data.split(split)
    if isinstance(task, DenseTask):
        return true_segments(task.data, clips), task.detections(network, clips)
    data, parts = task.data, []
    seconds = Fraction(str(data.seconds))
    grid = Grid(seconds, seconds)
    for i in clips.tolist():
        inputs = task.inputs(np.array([i]))
        parameter = next(network.parameters())
        answer = network(
            inputs["visual"].to(parameter), inputs["audio"].to(parameter), inputs["mask"].to(parameter.device)
        )
        rows = int(data.valid[i].sum())
        parts.append((i, suppress(from_curve(answer.curve()[0, :rows].float().cpu().numpy(), grid))))
    return _truth(data, clips), gathered(parts)


def _truth(data: SegmentData, clips: Indices) -> Segments:
    rows = [
        (i, a * data.seconds, b * data.seconds, c)
        for i in clips.tolist()
        for c in np.unique(data.labels[i][data.valid[i]]).tolist()
        if c != data.background
        for a, b in runs((data.labels[i] == c) & data.valid[i])
    ]
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Segments(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3].astype(np.int64))


def best_threshold(truth: Segments, found: Segments) -> float:
    """The score with the best F1 of whole events at IoU 0.5; a middling one where there is nothing to choose on."""
    if not len(truth) or not len(found) or found.scores is None:
        return THRESHOLD
    levels = np.unique(np.quantile(found.scores, np.linspace(0, 1, LEVELS)))
    f1 = [event_scores(truth, found.take(found.scores >= level)).f1 for level in levels]
    return float(np.clip(levels[int(np.argmax(f1))], 0.02, 0.95))


# ---- the additive localizer, in closed form ----------------------------------------------------------------


def fit_bank(work: Experiment, bank: Bank, paths: Paths) -> Result:
    """Fits on composed scenes; thresholds from composed quadruples of files that it was not fitted on."""
    rng = np.random.default_rng(work.training.seed)
    network = fit(*bank.train, teaching_pairs(*bank.train, 0, rng), FitConfig(**work.settings)).network
    answers, count = (
        trials(ask_additive(network), len(bank.library.names), _validation(bank, work)),
        len(bank.library.names),
    )
    chosen = choose_thresholds(answers)
    thresholds = tuple(chosen.get(c, THRESHOLD) for c in range(count))
    notes = (f"without a partner, left out: {', '.join(bank.library.lonely)}",) if bank.library.lonely else ()
    figures = {f"val/{name}": value for name, value in rates(answers, chosen).items()}
    names = (bank.pair.visual.name,), (bank.pair.audio.name,)
    return _write_additive(work, network, bank.library.names, thresholds, names, Grid(), figures, notes, paths)


def _validation(bank: Bank, work: Experiment) -> Any:
    if len(bank.library.names) < 2:
        raise UsageError(
            "one class cannot be told from another", "two or more are needed", "add a folder of something else"
        )
    return list(encode(bank.library, bank.pair, "val", QUADRUPLES, work.training.seed))


def fit_footage(work: Experiment, footage: Footage, paths: Paths) -> Result:
    """Fits on labelled videos; one threshold from the validation videos."""
    rng = np.random.default_rng(work.training.seed)
    visual, audio, _ = sources.footage_items(footage, "train")
    if not len(visual.x):
        raise UsageError("there is nothing to train on", "the training split is empty")
    pairs = teaching_pairs(visual, audio, len(visual.x), rng)
    network = fit(visual, audio, pairs, FitConfig(**work.settings)).network
    parts, events = [], []
    for i, clip in enumerate(footage.clips):
        if clip.split == "val":
            found = footage.features[i]
            curve = network.scores(*footage.arrays(i), found.seen, found.heard)[0]
            parts.append((i, suppress(from_curve(curve, footage.grid))))
            events += [(i, e.start, e.end, e.label) for e in clip.events]
    table = np.array(events, np.float64).reshape(-1, 4)
    truth = Segments(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3].astype(np.int64))
    candidates = gathered(parts)
    threshold = best_threshold(truth, candidates)
    figures = {"val/mAP": mean_ap(truth, candidates).average} if len(truth) else {}
    names, thresholds = ((footage.visual,), (footage.audio,)), (threshold,) * len(footage.classes)
    return _write_additive(work, network, footage.classes, thresholds, names, footage.grid, figures, (), paths)


def _write_additive(
    work: Experiment,
    network: Additive,
    classes: Sequence[str],
    thresholds: Sequence[float],
    encoders: tuple[tuple[str, ...], tuple[str, ...]],
    grid: Grid,
    figures: Mapping[str, float],
    notes: tuple[str, ...],
    paths: Paths,
) -> Result:
    window = max(1, round(sources.CLIP_SECONDS / float(grid.stride)))
    info = model_info(work, classes, thresholds, *encoders, grid, window, {})
    model = write_model(info, network.tensors(), paths.folder)
    write_atomic(paths(".metrics.jsonl"), json.dumps(dict(figures)) + "\n")
    write_atomic(paths(".train.toml"), as_toml(work.table))
    return Result(model, figures, 0, 0, notes)


# ---- an encoder, tuned -------------------------------------------------------------------------------------


def tune(work: Experiment, paths: Paths, device: torch.device, hooks: Hooks) -> Result:
    """Tunes an encoder of pictures against one of sound on a folder of videos; their labels are not read."""
    if work.data.kind != "folder":
        raise UsageError("an encoder is tuned on videos", hint="data.kind = folder")
    config = ContrastConfig.from_settings(work.settings)
    footage = sources.read_footage(work.data, paths.cache, hooks.progress)
    base, folder, videos = footage.visual, Path(work.data.path), []
    for clip, found in zip(footage.clips, footage.features, strict=True):
        if found.audio is not None and found.visual is not None and found.heard.any():
            sound = found.audio[found.heard].mean(0)
            videos.append(TunedVideo(folder / clip.name, clip.duration, sound, clip.split))
    if not videos:
        raise UsageError("there is nothing to tune on", "no video has both pictures and sound")
    torch.manual_seed(work.training.seed)
    with sources.extractor(work.data) as tool:
        task = ContrastTask(trainable(base), tool.visual, videos, config)
    trainer = Trainer(
        task, work.training, paths(".checkpoint.safetensors"), fingerprint(work, footage.identity, work.settings),
        device, lambda history: _report(history, paths, task.metric, hooks), hooks.progress,
    )  # fmt: skip
    outcome = trainer.run()
    data = save(_contiguous(tuned_tensors(base, outcome.network)), {"encoder": base})
    write_atomic(paths(".safetensors"), data)
    about = {"encoder": base, "sha256": hashlib.sha256(data).hexdigest(), "licence": LICENCE}
    write_atomic(paths(".toml"), as_toml(about))
    write_atomic(paths(".train.toml"), as_toml(work.table))
    trainer.forget()
    record = outcome.history[outcome.best]
    figures = {name: value for name, value in record.items() if name.startswith(("val/", "test/"))}
    return Result(paths(".safetensors"), figures, len(outcome.history), outcome.best + 1)


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}


# ---- checking ----------------------------------------------------------------------------------------------


def check(work: Experiment) -> list[str]:
    """What would be trained, and what follows from the data's durations; lines for people."""
    lines = [f"{work.name}: {work.network} on data of the kind '{work.data.kind}'"]
    if work.data.kind in ("folder", "unav"):
        durations, lengths, classes = sources.durations_of(work.data)
        grid = FEATURES[work.data.features].grid if work.data.kind == "unav" else sources.extractor(work.data).grid
        lines += explain(durations, lengths, len(classes), grid, work.network in DENSE_NETWORKS)
    t = work.training
    if work.network != "additive":
        lines.append(
            f"{t.epochs} epochs in batches of {t.batch}, {t.optimiser} at {t.rate:g} ({t.schedule}); "
            f"the epoch that is kept: {t.select}"
        )
    return lines


def explain(durations: Sequence[float], lengths: Sequence[float], classes: int, grid: Grid, pyramid: bool) -> list[str]:
    """Grid, window, levels and ranges for clips and events of these seconds, each with its reason."""
    sizes, stride = plan(durations, lengths, grid), float(grid.stride)
    quarter, half, most = (float(q) for q in np.quantile(lengths or [0.0], (0.25, 0.5, 0.95)))
    lines = [
        f"{len(durations)} training clips of {min(durations):.1f} to {max(durations):.1f} s, {len(lengths)} events of "
        f"{classes} classes; a quarter is shorter than {quarter:.1f} s, half than {half:.1f} s, 95 % than {most:.1f} s",
        f"grid: a row of {float(grid.segment):g} s every {stride:g} s",
    ]
    if sizes.short > 0.05:
        lines.append(
            f"warning: {100 * sizes.short:.0f} % of the events are shorter than two rows: "
            f"--set data.stride={max(0.1, stride / 2):g} makes a finer grid"
        )
    if not pyramid:
        rows = round(sources.CLIP_SECONDS / stride)
        return [*lines, f"window: {rows} rows = {rows * stride:g} s; longer videos are seen in overlapping windows"]
    lines += [
        f"T_max: {sizes.max_length} rows = {sizes.max_length * stride:g} s, which holds {100 * sizes.covered:.0f} % of "
        f"the training clips, a multiple of 2^{sizes.levels - 1}; longer ones are cropped in training",
        f"levels: {sizes.levels}, so that the last one still has {sizes.max_length // 2 ** (sizes.levels - 1)} rows",
    ]
    for level, (low, high) in enumerate(sizes.ranges.tolist()):
        top = "any length" if level == sizes.levels - 1 else f"{high * stride:g} s"
        lines.append(f"level {level + 1}: every {2**level * stride:g} s, ends {low * stride:g} s to {top} away")
    return lines


def as_toml(table: Mapping[str, Any]) -> str:
    """A configuration as TOML."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{name} = {_value(inner)}" for name, inner in value.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
