"""Which localizers there are, and that only what a description vouches for is loaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from avtool import weights
from avtool.calibration import Calibration
from avtool.errors import AvtoolError, UsageError, WeightsError
from avtool.models import zoo
from avtool.models.additive import EVIDENCE, Additive, AdditiveLocalizer, Judge, Side
from avtool.models.release import describe
from tests.features.samples import features

CPU = torch.device("cpu")
NAMES = ("cat", "dog bark", "violin")
SPEC = """format = "avtool localizer 1"
kind = "additive"
name = "mine"
sha256 = "{sha256}"
segment = "1/2"
stride = "1/2"
window = 20
hop = 10
visual = ["mini"]
audio = ["mini", "mn04"]
licence = "CC0"
commercial = "yes"
summary = "three events"
details = "made by hand"

[settings]
nms = "linear"
sigma = 0.3
"""


def network(classes: int = len(NAMES), seed: int = 0) -> Additive:
    rng = np.random.default_rng(seed)

    def side(size: int) -> Side:
        weight = rng.standard_normal((size, classes)).astype(np.float32)
        return Side(np.zeros(size, np.float32), np.ones(size, np.float32), weight, np.zeros(classes, np.float32), 2.0)

    judges = (
        Judge(rng.random((classes, EVIDENCE)).astype(np.float32), np.full(classes, -1, np.float32)) for _ in range(3)
    )
    return Additive(side(4), side(5), *judges)


def classes(names: tuple[str, ...] = NAMES) -> str:
    return "".join(f'\n[[classes]]\nname = "{n}"\ntier = "default"\nthreshold = 0.4\n' for n in names)


def model(folder: Path, name: str = "mine", data: bytes | None = None, text: str = SPEC + classes()) -> Path:
    """A model of the user's: NAME.safetensors beside NAME.toml."""
    data = save(network().tensors()) if data is None else data
    file = folder / f"{name}.safetensors"
    file.write_bytes(data)
    file.with_suffix(".toml").write_text(text.replace("{sha256}", hashlib.sha256(data).hexdigest()))
    return file


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that ships nothing but what a test puts there."""
    folder = tmp_path / "embedded"
    folder.mkdir()
    (folder / "manifest.toml").write_text("")
    monkeypatch.setattr(weights, "embedded_dir", lambda: folder)
    return folder


# ---------------------------------------------------------------- by name


def test_a_wrong_name_is_answered_with_the_nearest(alone: Path) -> None:
    model(alone, "mine")
    with pytest.raises(UsageError) as caught:
        zoo.load("tag", CPU)
    assert "'tag'" in caught.value.what and "tags" in caught.value.why and caught.value.hint == "did you mean 'tags'?"


@pytest.mark.parametrize("name", ["", "\n", "x" * 300, "mine\x1b[31m"])
def test_strange_names_are_printable_errors(alone: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        zoo.find(name)
    assert "\x1b" not in caught.value.what and "\n" not in caught.value.what


@pytest.mark.parametrize(
    "name", ["/", "./", "../..", "none/here", "none.safetensors", "./\0", "/dev/null", "./..safetensors"]
)
def test_strange_paths_are_errors(name: str) -> None:
    with pytest.raises(AvtoolError):
        zoo.load(name, CPU)


def test_tags_is_always_there(alone: Path) -> None:
    assert [info.name for info in zoo.available()] == ["tags"]
    assert zoo.load(None, CPU).info.name == "tags" == zoo.load("tags", CPU).info.name


def test_the_default_comes_first(alone: Path) -> None:
    model(alone, "a", text=SPEC.replace("mine", "a") + classes())
    model(alone, "z", text=SPEC.replace("mine", zoo.DEFAULT) + classes())
    assert [info.name for info in zoo.available()] == [zoo.DEFAULT, "a", "tags"]
    assert zoo.load(None, CPU).info.name == zoo.DEFAULT


def test_what_ships_can_be_run() -> None:
    for info in zoo.available():
        assert info.kind in zoo.KINDS and info.summary and info.licence and info.commercial in ("yes", "no", "ask")
        found, file = zoo.find(info.name)
        assert found == info and (file is None or file.name in info.weights)
        assert len(info.vocabulary) == len(info.vocabulary.thresholds) and 0 < info.hop <= info.window
        assert zoo.load(info.name, CPU).info == info


def test_the_list_needs_no_torch(repo: Path) -> None:
    code = "import sys; from avtool.models import zoo; zoo.available(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo)
    assert done.stdout.strip() == "False", done.stderr


# ---------------------------------------------------------------- by path


def test_a_model_of_the_users(tmp_path: Path) -> None:
    file = model(tmp_path, "v1.2 mine")
    localizer = zoo.load(str(file), CPU)
    info = localizer.info
    assert isinstance(localizer, AdditiveLocalizer)
    assert (info.name, info.kind, info.window, info.hop, info.licence) == ("mine", "additive", 20, 10, "CC0")
    assert info.vocabulary.names == NAMES and info.vocabulary.thresholds == (0.4,) * 3
    assert info.grid.segment == Fraction(1, 2) and info.audio == ("mini", "mn04")
    assert dict(info.settings) == {"nms": "linear", "sigma": 0.3}
    assert dict(info.weights) == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    rng = np.random.default_rng(0)
    visual, audio = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal((6, 5)).astype(np.float32)
    got = localizer.run(features(6, visual=visual, audio=audio), 0, 6)
    expected = network().scores(visual, audio, np.ones(6, bool), np.ones(6, bool))
    for curve, wanted in zip((got.curve, got.audio_curve, got.visual_curve), expected, strict=True):
        np.testing.assert_allclose(curve, wanted, atol=5e-3)  # the maps are kept in float16


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.safetensors", "./mine.safetensors"):
        assert zoo.load(name, CPU).info.name == "mine"


def edited(old: str, new: str) -> str:
    text = SPEC + classes()
    assert old in text
    return text.replace(old, new)


def mapped(version: int = 1, kind: str = "beta", numbers: str = "1.5, 0.5, -1.0", header: bool = True) -> str:
    """A description with a calibration."""
    head = f'\n[calibration]\nversion = {version}\nkind = "{kind}"\n' if header else ""
    return SPEC + head + classes().replace("threshold = 0.4\n", f"threshold = 0.4\ncalibration = [{numbers}]\n")


def test_a_calibrated_model(tmp_path: Path) -> None:
    info = zoo.load(str(model(tmp_path, text=mapped())), CPU).info
    assert info.vocabulary.calibration == Calibration(((1.5, 0.5, -1.0),) * 3)
    again = zoo.load(str(model(tmp_path, "again", text=describe(info))), CPU).info
    assert again.vocabulary == info.vocabulary
    assert "calibration" not in describe(zoo.load(str(model(tmp_path, "plain")), CPU).info)


BAD_SPECS = {
    "not TOML": "format = ",
    "empty": "",
    "not text": "\udcff",
    "another format": edited("avtool localizer 1", "avtool localizer 9"),
    "unknown kind": edited('"additive"', '"perceiver"'),
    "no hash": edited('sha256 = "{sha256}"\n', ""),
    "no classes": SPEC,
    "classes are text": SPEC.replace("[settings]", "classes = 'cat'\n[settings]"),
    "class without tier": SPEC + '\n[[classes]]\nname = "cat"\nthreshold = 0.1\n',
    "unknown tier": edited('tier = "default"', 'tier = "gold"'),
    "threshold above 1": edited("threshold = 0.4", "threshold = 1.4"),
    "threshold is text": edited("threshold = 0.4", 'threshold = "high"'),
    "class twice": SPEC + classes(("cat", "Cat")),
    "segment is no number": edited('segment = "1/2"', 'segment = "half"'),
    "segment divides by zero": edited('segment = "1/2"', 'segment = "1/0"'),
    "stride of nothing": edited('stride = "1/2"', 'stride = "0"'),
    "stride is endless": edited('stride = "1/2"', "stride = inf"),
    "windows that do not move": edited("hop = 10", "hop = 0"),
    "windows with holes": edited("hop = 10", "hop = 21"),
    "window is text": edited("window = 20", 'window = "20"'),
    "unknown field": edited('licence = "CC0"', 'license = "CC0"'),
    "encoders are a number": edited('visual = ["mini"]', "visual = 3"),
    "calibration of the future": mapped(version=2),
    "calibration of another kind": mapped(kind="isotonic"),
    "calibration that falls": mapped(numbers="-1.0, 1.0, 0.0"),
    "calibration without a number": mapped(numbers="1.0, nan, 0.0"),
    "calibration cut short": mapped(numbers="1.0, 1.0"),
    "calibration of text": mapped(numbers='"a", "b", "c"'),
    "calibration without its header": mapped(header=False),
    "calibration of one class alone": mapped().replace("calibration = [1.5, 0.5, -1.0]", "", 2),
    "calibration without maps": SPEC + '\n[calibration]\nversion = 1\nkind = "beta"\n' + classes(),
    "format is missing": edited('format = "avtool localizer 1"\n', ""),
}


@pytest.mark.parametrize("text", BAD_SPECS.values(), ids=BAD_SPECS)
def test_a_damaged_description(tmp_path: Path, text: str) -> None:
    file = model(tmp_path, text="")
    file.with_suffix(".toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError) as caught:
        zoo.load(str(file), CPU)
    assert "mine.toml" in caught.value.what and caught.value.why and "\n" not in caught.value.why


def without(name: str) -> bytes:
    return save({k: v for k, v in network().tensors().items() if k != name})


def changed(**tensors: torch.Tensor) -> bytes:
    return save(network().tensors() | {k.replace("__", "."): v for k, v in tensors.items()})


BAD_FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not tensors at all",
    "cut short": lambda: save(network().tensors())[:-7],
    "a web page": lambda: b"<!DOCTYPE html><html>404</html>",
    "a pointer": lambda: b"version https://git-lfs.github.com/spec/v1\n",
    "no tensors": lambda: save({}),
    "another network": lambda: save({"conv.weight": torch.zeros(3)}),
    "a part missing": lambda: without("ear.weight"),
    "no sizes": lambda: without("visual.mean"),
    "a tensor too many": lambda: changed(extra=torch.zeros(1)),
    "more classes": lambda: save(network(4).tensors()),
    "too little evidence": lambda: changed(both__weight=torch.zeros(3, EVIDENCE - 1)),
    "a bias that is a matrix": lambda: changed(visual__bias=torch.zeros(3, 1)),
    "sizes that differ": lambda: changed(audio__scale=torch.ones(6)),
    "NaN": lambda: changed(visual__bias=torch.full((3,), float("nan"))),
}


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES)
def test_damaged_and_foreign_weights(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """The description gives these bytes' own hash: it is the content that is refused."""
    with pytest.raises(WeightsError, match=r"mine\.safetensors"):
        zoo.load(str(model(tmp_path, data=make())), CPU)


def test_a_hash_that_does_not_match_is_refused(tmp_path: Path) -> None:
    file = model(tmp_path)
    file.write_bytes(save(network(seed=1).tensors()))
    with pytest.raises(WeightsError, match="damaged") as caught:
        zoo.load(str(file), CPU)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in caught.value.why


@pytest.mark.parametrize("missing", [".safetensors", ".toml"])
def test_half_a_model(tmp_path: Path, missing: str) -> None:
    file = model(tmp_path)
    file.with_suffix(missing).unlink()
    with pytest.raises(WeightsError):
        zoo.load(str(file), CPU)


@pytest.mark.parametrize(
    "parts",
    [
        {"visual": np.zeros((3, 4), np.float32)},
        {"audio": np.zeros((3, 5), np.float32)},
        {"visual": np.zeros((3, 5), np.float32), "audio": np.zeros((3, 5), np.float32)},
        {"visual": np.zeros((3, 4), np.float32), "audio": np.zeros((3, 4), np.float32)},
        {"visual": np.zeros((3, 2, 2, 4), np.float32), "audio": np.zeros((3, 5), np.float32)},
    ],
    ids=["no sound", "no picture", "other picture", "other sound", "maps"],
)
def test_features_of_other_encoders_are_refused(tmp_path: Path, parts: dict[str, Any]) -> None:
    localizer = zoo.load(str(model(tmp_path)), CPU)
    with pytest.raises(UsageError):
        localizer.run(features(3, **parts), 0, 3)


# ---------------------------------------------------------------- what is taken where none is named


@pytest.fixture
def two(alone: Path) -> None:
    """The default, which reads mini, and the larger model, which reads all that has class scores."""
    spec = SPEC.replace("mine", zoo.DEFAULT).replace('["mini", "mn04"]', '["mini"]')
    model(alone, zoo.DEFAULT, text=spec + classes())
    wide = SPEC.replace("mine", zoo.LARGER).replace('visual = ["mini"]', 'visual = ["resnet50-v1", "mini", "*"]')
    model(alone, zoo.LARGER, text=wide.replace('audio = ["mini", "mn04"]', 'audio = ["mn04", "mini", "*"]') + classes())


@pytest.mark.parametrize("name", [None, zoo.AUTO])
def test_encoders_that_are_asked_for_decide(two: None, name: str | None) -> None:
    assert zoo.choose(name) == zoo.choose(name, "mini", "mini") == zoo.choose(name, "mini") == zoo.DEFAULT
    assert zoo.choose(name, "resnet50-v1") == zoo.choose(name, None, "cnn14") == zoo.LARGER
    assert zoo.choose(name, "mini", "cnn14") == zoo.LARGER


def test_a_name_is_a_name(two: None) -> None:
    assert zoo.choose("tags") == "tags" == zoo.choose("tags", "vgg19") and zoo.choose(zoo.DEFAULT) == zoo.DEFAULT


def test_without_the_larger_model_what_has_class_scores_goes_to_tags(alone: Path) -> None:
    spec = SPEC.replace("mine", zoo.DEFAULT).replace('["mini", "mn04"]', '["mini"]')
    model(alone, zoo.DEFAULT, text=spec + classes())
    assert zoo.choose(None) == zoo.DEFAULT and zoo.choose(None, "resnet50-v1") == "tags"
