"""avtool models, info and doctor: what can be run, what is in a file, and whether this machine is fit."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from avtool import __version__
from avtool.cli import console, inputs, options
from avtool.cli.console import clock
from avtool.cli.weights import commercial
from avtool.errors import AvtoolError, UsageError
from avtool.files import check_writable, printable
from avtool.settings import did_you_mean, resolve

if TYPE_CHECKING:
    from avtool.models.zoo import ModelInfo
    from avtool.timeline import MediaInfo

PACKAGES = ("torch", "torchvision", "torchaudio", "av", "numpy", "typer", "rich", "safetensors", "panns-inference")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this model with all its classes.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that can be run now, with their classes, tiers and licences."""
    from avtool.models import zoo

    known = {info.name: info for info in zoo.available()}
    if name is not None and name not in known:
        raise UsageError(f"no model '{printable(name)}'", hint=did_you_mean(name, list(known)))
    chosen = [known[name]] if name is not None else list(known.values())
    if as_json:
        console.print_result(json.dumps([_model_record(info) for info in chosen], indent=1) + "\n")
    elif name is not None:
        console.print_result(_model_page(chosen[0]))
    else:
        rows = [(i.name, _class_count(i), commercial(i.commercial), i.summary) for i in chosen]
        console.print_result(console.table(("model", "classes", "commercial use", "what it is"), rows))
        console.current().note("avtool models NAME lists the classes of one and its licence")


def _tiers(info: ModelInfo) -> tuple[str, ...]:
    return info.vocabulary.tiers or ("default",) * len(info.vocabulary)


def _class_count(info: ModelInfo) -> str:
    return f"{_tiers(info).count('default')} default, {len(info.vocabulary)} in all"


def _model_record(info: ModelInfo) -> dict[str, object]:
    vocabulary = info.vocabulary
    thresholds = vocabulary.thresholds or (None,) * len(vocabulary)
    classes = zip(vocabulary.names, _tiers(info), thresholds, strict=True)
    return {
        "name": info.name,
        "summary": info.summary,
        "licence": info.licence,
        "commercial": info.commercial,
        "visual": list(info.visual),
        "audio": list(info.audio),
        "weights": dict(info.weights),
        "settings": dict(info.settings),
        "segment_seconds": float(info.grid.stride),
        "calibrated": info.vocabulary.calibration is not None,
        "classes": [{"name": n, "tier": tier, "threshold": threshold} for n, tier, threshold in classes],
    }


def _model_page(info: ModelInfo) -> str:
    facts = [
        ("model", info.name),
        ("what it is", info.summary),
        ("licence", info.licence),
        ("commercial use", commercial(info.commercial)),
        ("encoders", f"visual: {', '.join(info.visual)}; audio: {', '.join(info.audio)}"),
        ("segment", f"{float(info.grid.stride):g} s"),
        ("scores", "as they are computed" if info.vocabulary.calibration is None else "probabilities of being right"),
        ("settings", ", ".join(f"{key} {value}" for key, value in info.settings.items())),
        *(("weights", f"{file} {sha}") for file, sha in info.weights.items()),
    ]
    thresholds = info.vocabulary.thresholds or (None,) * len(info.vocabulary)
    classes = zip(info.vocabulary.names, _tiers(info), thresholds, strict=True)
    rows = [(n, tier, "" if threshold is None else f"{threshold:.2f}") for n, tier, threshold in classes]
    page = "".join(f"  {name:<15} {printable(str(value))}\n" for name, value in facts)
    return page + "\n" + console.table(("class", "tier", "threshold"), rows, right=(2,))


def info(
    context: typer.Context,
    inputs_: options.Videos,
    as_json: AsJson = False,
    audio_track: options.AudioTrack = None,
    max_pixels: options.MaxPixels = None,
    max_seconds: options.MaxSeconds = None,
) -> int:
    """Show what is in videos, without analysing them."""
    from avtool.session import Session

    settings, _ = resolve(context.params)
    failures = inputs.Failures()
    with Session(settings) as session:
        for name in inputs_:
            with failures.caught():
                media = session.probe(inputs.to_path(name))
                console.print_result(json.dumps(asdict(media)) + "\n" if as_json else _media_page(media))
    return failures.exit_code


def _media_page(media: MediaInfo) -> str:
    declared = "nothing" if media.declared_duration is None else clock(media.declared_duration, 3)
    facts = [
        ("file", media.path),
        ("size", f"{media.bytes} bytes"),
        ("duration", f"{clock(media.duration, 3)}, declared {declared}"),
    ]
    if v := media.video:
        turned = f", turned by {v.rotation} degrees" if v.rotation else ""
        rate = f"{'variable, on average ' if v.variable else ''}{v.average_rate} pictures/s"
        facts.append(("video", f"{v.codec} {v.width}x{v.height}, {rate}{turned}"))
    if a := media.audio:
        facts.append(
            ("audio", f"{a.codec} {a.rate} Hz, {a.channels} channel{'s' * (a.channels != 1)}, track {a.track}")
        )
    missing = [name for name, has in (("video", media.has_video), ("audio", media.has_audio)) if not has]
    facts += [(name, "none") for name in missing]
    return "".join(f"  {name:<9} {printable(value)}\n" for name, value in facts)


def doctor() -> int:
    """Check this installation: versions, device, weights, folders. Exits with the code of what is broken."""
    from importlib import metadata

    checks: list[tuple[str, Callable[[], str]]] = [
        ("avtool", lambda: f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        *((name, lambda name=name: metadata.version(name)) for name in PACKAGES),
        ("processors", lambda: f"{_usable_cores()} usable of {os.cpu_count()}"),
        ("torch works", _torch_line),
        ("decoder", _decoder_line),
        ("cache", _cache_line),
        ("weights", _weights_line),
        ("models", _models_line),
        ("network", lambda: "used by 'avtool weights fetch' alone"),
    ]
    worst = 0
    for name, check in checks:
        try:
            text = check()
        except Exception as error:  # whatever is broken is what the user wants to know
            code = error.exit_code if isinstance(error, AvtoolError) else AvtoolError.exit_code
            worst = worst or code
            text = f"BROKEN: {type(error).__name__}: {error}".splitlines()[0]
        console.print_result(f"  {name:<15} {printable(text)}\n")
    return worst


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch_line() -> str:
    import torch

    from avtool.session import choose_device

    torch.ones(2).sum().item()
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    device = choose_device("auto")
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"device {device}{name}, {built}, {torch.get_num_threads()} threads"


def _decoder_line() -> str:
    import av

    versions = [f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat")]
    return f"FFmpeg inside PyAV: {', '.join(versions)}"


def _cache_line() -> str:
    from avtool import weights

    folder = weights.cache_dir()
    check_writable(folder)
    return f"{folder}{'' if folder.is_dir() else ' (not made yet)'}"


def _weights_line() -> str:
    from avtool import weights
    from avtool.errors import WeightsError

    checks = weights.verify()
    damaged = [check.name for check in checks if check.state == "damaged"]
    if damaged:
        raise WeightsError(f"damaged: {', '.join(damaged)}")
    return ", ".join(check.name for check in checks if check.state == "ok") or "none"


def _models_line() -> str:
    from avtool.models import zoo

    return ", ".join(info.name for info in zoo.available()) or "none can be run"
