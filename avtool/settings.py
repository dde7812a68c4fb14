"""What the user can set, and where each value comes from: flag > environment > TOML file > the model's own default."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from avtool.errors import UsageError

NMS_METHODS = ("gaussian", "linear", "hard")
PROGRESS = ("auto", "plain", "json", "none")
FORMATS: Mapping[str, str] = {  # name -> extension of NAME.events.<extension>
    "json": "json",
    "srt": "srt",
    "vtt": "vtt",
    "csv": "csv",
    "tsv": "tsv",
    "audacity": "audacity.txt",
    "eaf": "eaf",
    "otio": "otio",
    "edl": "edl",
    "textgrid": "TextGrid",
    "chapters": "chapters.txt",
    "ffmetadata": "ffmetadata",
    "html": "html",
    "png": "png",
}
DEFAULT_FORMATS = ("json", "srt")
ENVIRONMENT_PREFIX = "AVTOOL_"
STDOUT = "-"


@dataclass(frozen=True)
class Settings:
    """What a timeline depends on. None means: the default stored with the model.

    Raises:
        UsageError: a value is outside its range.
    """

    model: str | None = None  # name or path of a localizer
    visual: str | None = None  # encoder names; None: the best installed pair the model can read
    audio: str | None = None
    classes: tuple[str, ...] = ("default",)  # ("default",), ("all",) or class names
    device: str = "auto"
    min_score: float | None = None  # [0, 1]; None: each class's own threshold
    nms: str | None = None  # one of NMS_METHODS
    sigma: float | None = None  # width of Gaussian Soft-NMS, > 0
    max_events: int | None = None  # None: no limit
    start: Fraction | None = None  # seconds
    end: Fraction | None = None
    audio_track: int | None = None  # counts audio tracks from 0; None: the default track
    allow_partial: bool = False
    explain: bool = False  # store what each medium says by itself
    max_pixels: int = 64_000_000  # a larger picture is refused
    max_seconds: float = 48 * 3600.0  # a longer file is refused

    def __post_init__(self) -> None:
        _require(self.min_score is None or 0 <= self.min_score <= 1, "min_score", "a number from 0 to 1")
        _require(self.sigma is None or (self.sigma > 0 and math.isfinite(self.sigma)), "sigma", "a number above 0")
        _require(self.nms is None or self.nms in NMS_METHODS, "nms", f"one of {', '.join(NMS_METHODS)}")
        _require(self.max_events is None or self.max_events > 0, "max_events", "a whole number above 0")
        _require(self.audio_track is None or self.audio_track >= 0, "audio_track", "a whole number from 0 on")
        _require(self.start is None or self.start >= 0, "start", "a time from 0 on")
        _require(self.end is None or self.end > (self.start or 0), "end", "a time after the start")
        _require(self.max_pixels > 0, "max_pixels", "a whole number above 0")
        _require(self.max_seconds > 0, "max_seconds", "a number above 0")
        _require(bool(self.classes), "classes", "'default', 'all' or class names")

    def record(self) -> dict[str, Any]:
        """All values as JSON knows them, in the order of the fields."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(value) for name, value in values.items()}


@dataclass(frozen=True)
class OutputSettings:
    """Where results go and what is said on the way; no result depends on it.

    Raises:
        UsageError: a value is outside its range, or two contradict each other.
    """

    output: str | None = None  # a folder, or "-" for standard output; None: the current folder
    beside: bool = False  # next to each input
    formats: tuple[str, ...] = ()  # (): the command's default
    overwrite: bool = False
    progress: str = "auto"
    quiet: bool = False

    def __post_init__(self) -> None:
        _require(self.progress in PROGRESS, "progress", f"one of {', '.join(PROGRESS)}")
        for name in self.formats:
            if name not in FORMATS:
                known = list(FORMATS)
                raise UsageError(f"no format '{name}'", f"formats: {', '.join(known)}", did_you_mean(name, known))
        if self.beside and self.output is not None:
            raise UsageError("--beside and --output contradict each other", hint="give only one of the two")


def resolve(
    flags: Mapping[str, Any], config: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Settings, OutputSettings]:
    """Merges the sources of settings, the strongest first.

    Args:
        flags: option name -> value; None, () and [] mean "not given".
        config: TOML file; None: the one AVTOOL_CONFIG names, if any.
        environ: None: the process environment.

    Raises:
        UsageError: an unknown key in the TOML file, or a value that is not of its option's kind.
    """
    environ = os.environ if environ is None else environ
    if config is None and environ.get("AVTOOL_CONFIG"):
        config = Path(environ["AVTOOL_CONFIG"])
    merged = _from_file(config) if config is not None else {}
    merged.update(_from_environment(environ))
    for name, value in flags.items():
        if name in _CONVERTERS and value is not None and value != () and value != []:
            merged[name] = _convert(name, value, f"--{name.replace('_', '-')}")
    return _build(Settings, merged), _build(OutputSettings, merged)


def extensions(formats: Iterable[str]) -> dict[str, str]:
    """Format name -> extension, for `files.output_names`."""
    return {name: FORMATS[name] for name in formats}


def parse_time(text: str | int | float | Fraction) -> Fraction:
    """Seconds from `90`, `1:30`, `0:01:30.250`; exact.

    Raises:
        ValueError: not a time.
    """
    if isinstance(text, bool):
        raise ValueError("a truth value is not a time")
    parts = str(text).strip().split(":")
    if len(parts) > 3 or any(not p or (p[0] in "+-" and i > 0) for i, p in enumerate(parts)):
        raise ValueError(f"'{text}' is not a time")
    *upper, seconds = (Fraction(p) for p in parts)
    if any(u.denominator != 1 or u < 0 for u in upper):
        raise ValueError(f"'{text}' is not a time")
    return seconds + sum((u * 60**i for i, u in enumerate(reversed(upper), 1)), Fraction(0))


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A hint that names the nearest known word, or lists the words when they are few."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if len(known) <= 20 else ""


def _require(fine: bool, name: str, wanted: str) -> None:
    if not fine:
        raise UsageError(f"{name} is out of range", f"it must be {wanted}", "see the help: avtool localize --help")


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of AVTOOL_<OPTION>; an empty variable counts as not set, other AVTOOL_ names belong to other parts."""
    names = {name: ENVIRONMENT_PREFIX + name.upper() for name in _CONVERTERS}
    return {n: _convert(n, environ[variable], variable) for n, variable in names.items() if environ.get(variable)}


def _from_file(path: Path) -> dict[str, Any]:
    values = {}
    for key, value in _read_toml(path).items():
        name = key.replace("-", "_")
        if name not in _CONVERTERS:
            raise UsageError(f"unknown setting '{key}' in {path}", hint=did_you_mean(name, list(_CONVERTERS)))
        values[name] = _convert(name, value, f"{key} in {path}")
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read the configuration file {path}", error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file", str(error), "write lines such as: min_score = 0.4") from error


def _convert(name: str, value: Any, source: str) -> Any:
    wanted, convert = _CONVERTERS[name]
    try:
        return convert(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise UsageError(f"{source}: {value!r} is not {wanted}") from error


def _words(value: Any) -> tuple[str, ...]:
    """A list from TOML or a repeated flag. One text is kept whole: class names may hold commas."""
    items = [value] if isinstance(value, str) else list(value)
    if not all(isinstance(item, str) and item.strip() for item in items) or not items:
        raise ValueError(value)
    return tuple(item.strip() for item in items)


def _names(value: Any) -> tuple[str, ...]:
    """As _words, split at commas; repeated names count once."""
    parts = [part.strip().lower() for item in _words(value) for part in item.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(value)
    return number


def _whole(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise ValueError(value)
    return int(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError(value)
    return words[value.lower()]


_CONVERTERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("a name or path", _text),
    "visual": ("a name", _text),
    "audio": ("a name", _text),
    "classes": ("'default', 'all' or class names", _words),
    "device": ("a device", _text),
    "min_score": ("a number", _number),
    "nms": ("a method", _text),
    "sigma": ("a number", _number),
    "max_events": ("a whole number", _whole),
    "start": ("a time such as 90 or 1:30.5", parse_time),
    "end": ("a time such as 90 or 1:30.5", parse_time),
    "audio_track": ("a whole number", _whole),
    "allow_partial": ("true or false", _truth),
    "explain": ("true or false", _truth),
    "max_pixels": ("a whole number", _whole),
    "max_seconds": ("a number", _number),
    "output": ("a folder or -", _text),
    "beside": ("true or false", _truth),
    "formats": ("a list of formats", _names),
    "overwrite": ("true or false", _truth),
    "progress": ("a kind of progress", _text),
    "quiet": ("true or false", _truth),
}

_Group = TypeVar("_Group", Settings, OutputSettings)


def _build(group: type[_Group], values: Mapping[str, Any]) -> _Group:
    names = {f.name for f in fields(group)}
    return group(**{name: value for name, value in values.items() if name in names})
