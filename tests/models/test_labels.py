"""The localizer in label space: any encoders that speak AudioSet and ImageNet, one scale for the whole file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from avtool.errors import UsageError, WeightsError
from avtool.features.tags import LEVELS, SHARES, THINGS, WORDS, Scale, heard_words, seen_things, words
from avtool.models import zoo
from avtool.models.additive import EVIDENCE, Judge
from avtool.models.labels import LabelLocalizer, Labels, Voter
from avtool.models.release import write_model
from avtool.models.zoo import ModelInfo
from avtool.vocabulary import Vocabulary
from tests.features.samples import features

CPU = torch.device("cpu")
NAMES = ("cat", "dog bark", "violin")
ROWS = 30
RNG = np.random.default_rng(1)
INFO = ModelInfo("labels", "labels", Vocabulary(NAMES, ("default",) * 3, (0.5,) * 3), ("*",), ("*",))
SOUND = np.interp(RNG.random((ROWS, WORDS)), SHARES, LEVELS).astype(np.float32)
PICTURE = RNG.normal(0, 2, (ROWS, THINGS)).astype(np.float32)


def network(classes: int = len(NAMES)) -> Labels:
    rng = np.random.default_rng(0)

    def voter(size: int) -> Voter:
        weight = rng.standard_normal((size, classes)).astype(np.float16).astype(np.float32)
        return Voter(np.full(size, 0.1, np.float32), 0.5, weight, np.zeros(classes, np.float32))

    judges = (
        Judge(rng.random((classes, EVIDENCE)).astype(np.float32), np.full(classes, -1, np.float32)) for _ in range(3)
    )
    return Labels(voter(THINGS), voter(WORDS), *judges)


def given(**parts: Any) -> Any:
    return features(ROWS, **{"audio_tags": SOUND, "visual_tags": PICTURE, **parts})


def curves(found: zoo.WindowOutput) -> npt.NDArray[np.float32]:
    return np.stack([found.curve, found.audio_curve, found.visual_curve])


def test_it_is_the_network_on_the_common_scale() -> None:
    scale = Scale.of(SOUND)
    assert scale is not None
    expected = network().scores(
        seen_things(PICTURE[5:20]), heard_words(scale(SOUND))[5:20], np.ones(15, bool), np.ones(15, bool)
    )
    found = LabelLocalizer(INFO, network()).run(given(), 5, 20)
    assert (found.start, found.stop) == (5, 20)
    np.testing.assert_allclose(curves(found), np.stack(expected), atol=1e-6)


def test_the_scale_is_that_of_the_whole_file_and_of_no_other() -> None:
    localizer = LabelLocalizer(INFO, network())
    first = curves(localizer.run(given(), 0, 10))
    louder = SOUND.copy()
    louder[10:] += 3
    other = curves(localizer.run(given(audio_tags=louder), 0, 10))
    assert np.abs(first[1] - other[1]).max() > 1e-3
    np.testing.assert_array_equal(curves(localizer.run(given(), 0, 10)), first)


def test_another_tone_of_voice_changes_nothing() -> None:
    localizer = LabelLocalizer(INFO, network())
    first, same = (curves(localizer.run(given(audio_tags=z), 0, ROWS)) for z in (SOUND, SOUND - 2))
    plain = curves(localizer.run(given(audio_tags=SOUND - 2, audio_encoder="mn04"), 0, ROWS))
    assert np.abs(same - first).max() < 1e-4 and np.abs(plain - first).max() > 0.05


def test_silence_and_darkness_say_nothing() -> None:
    heard, seen = np.arange(ROWS) >= 4, np.arange(ROWS) < 25
    found = LabelLocalizer(INFO, network()).run(given(heard=heard, seen=seen), 0, ROWS)
    assert (found.curve[:4] == 0).all() and (found.curve[25:] == 0).all() and (found.audio_curve[:4] == 0).all()
    assert (found.visual_curve[25:] == 0).all() and (found.curve[4:25] > 0).all()
    silent = LabelLocalizer(INFO, network()).run(given(heard=np.zeros(ROWS, bool)), 0, ROWS)
    assert (silent.curve == 0).all() and np.isfinite(silent.visual_curve).all()


def test_a_word_that_a_tagger_lacks_speaks_for_nothing() -> None:
    z = SOUND.copy()
    z[:, 7] = np.nan
    found = LabelLocalizer(INFO, network()).run(given(audio_tags=z, audio_encoder="mn04"), 0, ROWS)
    x = heard_words(SOUND)
    x[:, 7] = 0.1  # the mean
    expected = network().scores(seen_things(PICTURE), x, np.ones(ROWS, bool), np.ones(ROWS, bool))
    np.testing.assert_allclose(curves(found), np.stack(expected), atol=1e-6)


def test_windows_below_a_second_lean_on_their_neighbours_across_the_cut() -> None:
    ones, scale = np.ones(10, bool), Scale.of(SOUND)
    found = LabelLocalizer(INFO, network()).run(given(sampling={"sound_window_seconds": 0.975}), 10, 20)
    x = words(SOUND, np.ones(ROWS, bool), scale, 0.975)[10:20]  # of the whole file
    expected = network().scores(seen_things(PICTURE[10:20]), x, ones, ones)
    np.testing.assert_allclose(curves(found), np.stack(expected), atol=1e-6)
    assert np.abs(found.audio_curve - LabelLocalizer(INFO, network()).run(given(), 10, 20).audio_curve).max() > 1e-3


@pytest.mark.parametrize(
    "parts", [{"audio_tags": None}, {"visual_tags": None}, {"audio_tags": SOUND[:, :521]}, {"visual_tags": SOUND}]
)
def test_other_class_scores_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="class scores"):
        LabelLocalizer(INFO, network()).run(given(**parts), 0, ROWS)


def test_it_goes_through_a_file(tmp_path: Path) -> None:
    file = write_model(INFO, network().tensors(), tmp_path)
    localizer = zoo.load(str(file), CPU)
    assert isinstance(localizer, LabelLocalizer) and localizer.info.reads_tags
    found = localizer.run(given(), 0, ROWS)
    np.testing.assert_allclose(curves(found), curves(LabelLocalizer(INFO, network()).run(given(), 0, ROWS)), atol=1e-6)


def test_a_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    file = write_model(INFO, network(2).tensors(), tmp_path)
    with pytest.raises(WeightsError):
        zoo.load(str(file), CPU)
