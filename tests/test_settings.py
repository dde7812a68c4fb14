"""Settings: precedence, conversion, and errors that say what was meant."""

from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from avtool.errors import UsageError
from avtool.settings import _CONVERTERS, OutputSettings, Settings, parse_time, resolve


def config(folder: Path, text: str) -> Path:
    path = folder / "avtool.toml"
    path.write_text(text)
    return path


def test_every_field_can_be_set_from_every_source() -> None:
    assert list(_CONVERTERS) == [f.name for f in (*fields(Settings), *fields(OutputSettings))]


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    path = config(tmp_path, 'min_score = 0.1\nsigma = 0.5\nmodel = "a"\nclasses = ["all"]\n')
    environ = {"AVTOOL_MIN_SCORE": "0.2", "AVTOOL_SIGMA": "0.6", "AVTOOL_DEVICE": ""}
    settings, _ = resolve({"min_score": 0.3, "sigma": None, "classes": []}, path, environ)
    assert (settings.min_score, settings.sigma, settings.model) == (0.3, 0.6, "a")
    assert settings.classes == ("all",)
    assert settings.device == "auto"  # an empty variable is not a value


def test_nothing_given_leaves_the_model_its_defaults() -> None:
    settings, output = resolve({}, None, {})
    assert settings == Settings()
    assert output == OutputSettings()
    assert (settings.min_score, settings.nms, settings.sigma) == (None, None, None)


def test_environment_names_the_configuration_file(tmp_path: Path) -> None:
    path = config(tmp_path, "max-events = 3")
    assert resolve({}, None, {"AVTOOL_CONFIG": str(path)})[0].max_events == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("min_scor = 0.1", ["min_scor", "did you mean 'min_score'"]),
        ("min_score = 'high'", ["min_score", "'high'", "not a number"]),
        ("min_score = 2", ["min_score", "from 0 to 1"]),
        ("min_score = nan", ["not a number"]),
        ("max_events = true", ["not a whole number"]),
        ("max_events = 0", ["above 0"]),
        ("classes = []", ["class names"]),
        ("nms = 'soft'", ["gaussian, linear, hard"]),
        ("sigma = 0", ["above 0"]),
        ("start = '1:2:3:4'", ["not a time"]),
        ("start = 5\nend = 5", ["after the start"]),
        ("formats = ['json', 'stl']", ["no format 'stl'", "did you mean 'srt'"]),
        ("quiet = 'maybe'", ["not true or false"]),
        ("progress = 'dots'", ["auto, plain, json, none"]),
        ("beside = true\noutput = 'x'", ["contradict"]),
        ("[section]\nx = 1", ["unknown setting 'section'"]),
        ("= 3", ["not a TOML file"]),
    ],
)
def test_a_wrong_file_is_a_usage_error_that_names_the_cause(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        resolve({}, config(tmp_path, text), {})
    said = f"{caught.value.what} {caught.value.why} {caught.value.hint}"
    assert all(part in said for part in parts), said


def test_a_missing_or_binary_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        resolve({}, tmp_path / "no.toml", {})
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a TOML"):
        resolve({}, tmp_path / "b.toml", {})


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(UsageError, match="AVTOOL_SIGMA"):
        resolve({}, None, {"AVTOOL_SIGMA": "wide"})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1:30", 90),
        ("0:01:30.25", Fraction(361, 4)),
        (0.5, Fraction(1, 2)),
        ("00:00:00.001", Fraction(1, 1000)),
    ],
)
def test_times(text: str | float, seconds: Fraction) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", ":", "1:", "1:-2", "1.5:00", "nan", "inf", "x", "1:2:3:4", True, "1/0"])
def test_no_times(text: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        parse_time(text)


@how(deadline=None)
@given(st.integers(0, 10**9))
def test_a_time_in_milliseconds_survives_its_clock_form(ms: int) -> None:
    text = f"{ms // 3_600_000}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}.{ms % 1000:03}"
    assert parse_time(text) == Fraction(ms, 1000)


def test_the_record_is_plain_json() -> None:
    settings = Settings(start=Fraction(1, 4), classes=("a", "b"), device="cuda")
    assert settings.record()["start"] == 0.25
    assert settings.record()["classes"] == ["a", "b"]
    assert len(settings.record()) == len(fields(Settings))
