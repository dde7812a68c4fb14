"""Training in label space: what several encoders say of the same clips, and scores that mean something."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from avtool.detect.proposals import Proposals
from avtool.features.encoders.base import Encoder
from avtool.features.tags import THINGS, WORDS
from avtool.models import zoo
from avtool.models.labels import LabelLocalizer
from avtool.training import tags
from avtool.training.corpus import LabelledClip
from avtool.training.tags import Inputs, LabelConfig, View

Floats = npt.NDArray[np.float32]
CLASSES, EACH, ROWS, SIZE = 4, 6, 20, 16
CONFIG = LabelConfig()


def some_clips(classes: int = CLASSES, each: int = EACH) -> list[LabelledClip]:
    return [LabelledClip(Path(f"{i}.mp4"), i % classes, 2.0, 8.0, 10.0) for i in range(classes * each)]


def said(clips: list[LabelledClip], size: int, encoder: int, strength: float = 3.0) -> Inputs:
    """Each class has words of its own, which sound during the event; each encoder has its own tone and noise."""
    rng = np.random.default_rng(encoder)
    x = 0.3 * rng.standard_normal((len(clips), ROWS, size)) + 0.3 * rng.standard_normal(size)
    for i, clip in enumerate(clips):
        x[i, 4:16, clip.label :: size // 2] += strength
    return Inputs(x.astype(np.float32), np.ones((len(clips), ROWS), bool))


def view(clips: list[LabelledClip], encoder: int, sizes: tuple[int, int] = (SIZE, SIZE)) -> View:
    return View(said(clips, sizes[1], 2 * encoder), said(clips, sizes[0], 2 * encoder + 1))


def scores(network: Any, one: View, clip: int) -> Floats:
    every = np.ones(ROWS, bool)
    found: Floats = network.scores(one.visual.x[clip], one.audio.x[clip], every, every)[0]
    return found


def test_what_some_encoders_taught_holds_for_another() -> None:
    clips = some_clips()
    network = tags.fit_labels([view(clips, 0), view(clips, 1)], clips, CLASSES, CONFIG, 0)
    unseen = view(clips, 7)
    for i, clip in enumerate(clips):
        found = scores(network, unseen, i)
        assert found[6:14].mean(0).argmax() == clip.label
        assert found[6:14, clip.label].mean() > found[[0, 1, 18, 19], clip.label].mean()


def test_sound_of_another_class_lowers_the_score() -> None:
    clips = some_clips()
    network = tags.fit_labels([view(clips, 0)], clips, CLASSES, CONFIG, 0)
    one, other = view(clips, 5), view(clips, 5)
    other.audio.x[:] = np.roll(other.audio.x, 1, 0)  # the next clip's class
    agreed, crossed = (np.mean([scores(network, v, i)[6:14, i % CLASSES] for i in range(8)]) for v in (one, other))
    assert crossed < 0.6 * agreed


def test_the_mean_is_that_of_all_encoders_and_the_scale_one_number() -> None:
    clips = some_clips()
    first, second = view(clips, 0), view(clips, 1)
    second.audio.x[..., 3] = np.nan
    first.audio.valid[0, 5:] = False
    network = tags.fit_labels([first, second], clips, CLASSES, CONFIG, 0)
    flat = np.concatenate([v.audio.x[v.audio.valid] for v in (first, second)])
    mean = np.nanmean(flat, 0)
    np.testing.assert_allclose(network.audio.mean, mean, atol=1e-5)
    assert network.audio.scale == pytest.approx(np.sqrt(np.nanmean((flat - mean) ** 2)) * CONFIG.reach / 6, rel=1e-4)


def test_a_clip_as_another_encoder_sees_it_is_left_out_with_it() -> None:
    """Words by chance: whoever saw a clip through one encoder would know it again through the other."""
    clips, rng = some_clips(), np.random.default_rng(3)
    x = rng.standard_normal((len(clips), 1, SIZE)).repeat(ROWS, 1).astype(np.float32)
    inputs = Inputs(x, np.ones((len(clips), ROWS), bool))
    items = tags._joined([inputs, inputs], clips, CLASSES)
    voter, left_out = tags._voter(items, 2, 1.0, LabelConfig(ridge=0.01))
    labels = np.tile([clip.label for clip in clips], 2)
    assert (voter.votes(x).mean(1).argmax(1) == labels[: len(clips)]).mean() > 0.8
    assert (left_out.mean(1).argmax(1) == labels).mean() < 0.5


def test_the_networks_of_the_folds_never_saw_their_clips() -> None:
    clips = some_clips()
    one = view(clips, 0)
    dealt = tags.fit_folds([one], clips, CLASSES, CONFIG, 0)
    assert sorted(set(dealt.fold.tolist())) == [0, 1, 2]
    changed = View(Inputs(one.audio.x.copy(), one.audio.valid), Inputs(one.visual.x.copy(), one.visual.valid))
    own = np.flatnonzero(dealt.fold == 1)
    changed.audio.x[own] += 50
    again = tags.fit_folds([changed], clips, CLASSES, CONFIG, 0)
    np.testing.assert_array_equal(again.networks[1].audio.weight, dealt.networks[1].audio.weight)
    assert np.abs(again.networks[0].audio.weight - dealt.networks[0].audio.weight).max() > 1e-4
    assert len(dealt.candidates(one, clips)) == len(clips)


# ---------------------------------------------------------------- calibration


def test_calibration_finds_what_was_bent() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(-1, 2, 20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    bent = 1 / (1 + np.exp(-(odds - 1.0) / 0.5))  # odds = 0.5 * bent odds + 1
    slope, offset = tags.fit_calibration(bent.astype(np.float32), truth)
    assert slope == pytest.approx(0.5, abs=0.05) and offset == pytest.approx(1.0, abs=0.1)


def test_a_calibrated_network_gives_the_calibrated_scores_in_the_same_order() -> None:
    clips = some_clips()
    network = tags.fit_labels([view(clips, 0)], clips, CLASSES, CONFIG, 0)
    plain = scores(network, view(clips, 1), 0).astype(np.float64)
    got = scores(tags.calibrated(network, 0.7, -1.0), view(clips, 1), 0)
    plain = np.clip(plain, 1e-9, 1 - 1e-7)
    odds = 0.7 * np.log(plain / (1 - plain)) - 1.0
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-odds)), atol=1e-4)


def test_calibration_makes_scores_the_share_that_is_right() -> None:
    clips = some_clips()
    one = view(clips, 0, (SIZE, SIZE))
    dealt = tags.fit_folds([one], clips, CLASSES, CONFIG, 0)
    run = dealt.candidates(one, clips)
    after = dealt.calibrated(*tags.calibration_of([run], clips)).candidates(one, clips)

    def gap(found: list[Proposals]) -> float:
        score = np.concatenate([f.scores for f in found])
        truth = np.concatenate([tags.right(f, c) for f, c in zip(found, clips, strict=True)])
        return float(abs(score.mean() - truth.mean()))

    assert gap(after) < max(0.08, gap(run))


def test_right_is_the_class_at_about_the_time() -> None:
    clip = LabelledClip(Path("x"), 1, 2.0, 8.0, 10.0)
    found = Proposals(
        np.array([2.0, 2.0, 7.0, 0.0]), np.array([8.0, 8.0, 10.0, 10.0]), np.array([1, 0, 1, 1]), np.ones(4, np.float32)
    )
    assert tags.right(found, clip).tolist() == [True, False, False, True]


# ---------------------------------------------------------------- material


def test_scores_take_the_place_of_the_embedding() -> None:
    logits = torch.arange(6.0).reshape(2, 3)
    encoder = Encoder("x", "audio", 5, 3, lambda batch: (torch.zeros(2, 5), logits), "")
    given = tags.scored(encoder)
    assert (given.dim, given.tags) == (3, 0)
    out, none = given.run(torch.zeros(2, 9))
    assert none is None and torch.equal(out, logits)


def squeezed(folder: Path, names: list[str], seconds: int) -> None:
    logits = np.full((len(names), 4, THINGS), np.nan, np.float16)
    logits[:, :seconds] = np.arange(seconds)[None, :, None]
    (folder / "transfer").mkdir()
    np.savez(folder / "transfer" / "squeezenet_avepm_1s.npz", clip=np.array(names), logits=logits)


def test_a_second_of_squeezenet_is_two_segments(tmp_path: Path) -> None:
    clips = some_clips(2, 1)
    squeezed(tmp_path, ["0.mp4", "1.mp4"], 3)
    found = tags.read_squeezenet(tmp_path, clips, 8)
    assert found.shape == (2, 8, THINGS) and found[0, :, 0].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="other clips"):
        tags.read_squeezenet(tmp_path, clips[::-1], 8)


def test_the_recipe_never_reads_what_is_for_tests_only(repo: Path) -> None:
    """Logits of YAMNet and the vector-quantised ResNet-50 may be tested on, not trained on."""
    text = (repo / "avtool" / "training" / "tags.py").read_text(encoding="utf-8").lower()
    assert "squeezenet_avepm" in text and "yamnet" not in text and "pqf" not in text


def test_a_release_can_be_loaded_and_knows_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tags, "FOLD_SEEDS", (0,))
    clips = [LabelledClip(c.path, 2 * c.label + 1, c.onset, c.offset, c.duration) for c in some_clips(2)]
    corpus: Any = SimpleNamespace(names=("a", "bell", "c", "dog"), clips=lambda: clips)
    own = [LabelledClip(c.path, c.label // 2, c.onset, c.offset, c.duration) for c in clips]
    views = {name: view(own, k, (THINGS, WORDS)) for k, name in enumerate(("these", "those"))}
    localizer = zoo.load(str(tags.release(corpus, views, CONFIG, tmp_path)), torch.device("cpu"))
    assert isinstance(localizer, LabelLocalizer)
    info = localizer.info
    assert info.vocabulary.names == ("bell", "dog") and info.reads_tags and "these and those" in info.details
    assert info.vocabulary.tiers == ("default", "default") and all(0 < t < 1 for t in info.vocabulary.thresholds)
    assert info.vocabulary.calibration is not None
    found = scores(localizer.network, view(own, 9, (THINGS, WORDS)), 1)
    assert found[6:14].mean(0).argmax() == 1
