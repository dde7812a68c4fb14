"""From material to a model file: thresholds and tiers by hand, and the whole recipe on a corpus of a few files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avtool.detect.proposals import Proposals
from avtool.models import zoo
from avtool.models.loco import LoCoConfig
from avtool.training import quadruples, recipe
from avtool.training.additive import FitConfig, Items
from avtool.training.corpus import Corpus, LabelledClip
from avtool.training.few import FewRecipe
from avtool.training.loco import LoCoRecipe
from avtool.training.recipe import (
    Material,
    Release,
    Trained,
    Trial,
    additive_release,
    as_left_out,
    ask_votes,
    best_scores,
    candidates,
    choose_thresholds,
    classmates,
    clip_ap,
    clip_thresholds,
    cut_to,
    empty_peaks,
    fit_on,
    gather,
    loco_training,
    network_release,
    out_of_fold,
    out_of_fold_trained,
    rates,
    scene_ap,
    scene_peaks,
    segment_training,
    strange_thresholds,
    trials,
    write,
)
from benchmarks import avepm
from tests.features.samples import features
from tests.training import small

CPU = torch.device("cpu")
PAIR = small.encoders("mini")


def proposals(*rows: tuple[float, float, int, float]) -> Proposals:
    starts, ends, labels, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Proposals(
        np.array(starts, float), np.array(ends, float), np.array(labels, np.int64), np.array(scores, np.float32)
    )


def trial(label: int, kind: str, score: float) -> Trial:
    return Trial(label, kind, (score, score / 2, 1 - score))


# ---------------------------------------------------------------- figures


def test_best_scores() -> None:
    found = proposals((0, 2, 1, 0.5), (1, 4, 1, 0.75), (6, 8, 1, 0.9), (0, 9, 2, 0.25))
    assert best_scores(found, 4).tolist() == pytest.approx([0, 0.9, 0.25, 0])
    assert best_scores(found, 4, 3.0, 6.0).tolist() == [0, 0.75, 0.25, 0]
    assert best_scores(proposals(), 2).tolist() == [0, 0]


def test_candidates_are_cut_to_the_file() -> None:
    got = cut_to(proposals((-1, 3, 0, 0.5), (8, 12, 0, 0.5), (11, 12, 0, 0.5), (2, 3, 0, 0.001)), 10.0)
    assert list(zip(got.starts, got.ends, strict=True)) == [(0, 3), (8, 10)]


def test_candidates_of_a_curve() -> None:
    curve = np.zeros((20, 3), np.float32)
    curve[4:10, 1] = 0.8
    got = candidates(curve, 10.0)
    best = int(got.scores.argmax())
    assert got.labels[best] == 1 and set(got.labels.tolist()) == {1}
    assert got.starts[best] == pytest.approx(2.0, abs=0.5) and got.ends[best] == pytest.approx(5.0, abs=0.5)
    assert got.scores[best] == pytest.approx(0.8, abs=0.05)


def test_rates_are_means_over_classes() -> None:
    answers = [trial(0, "kept", s) for s in (0.9, 0.9, 0.9, 0.1)] + [trial(1, "kept", 0.1)]
    answers += [trial(0, "heard only", 0.2), trial(1, "heard only", 0.8), trial(1, "seen only", 0.3)]
    assert rates(answers, {0: 0.5, 1: 0.5}) == {"kept": 0.375, "heard only": 0.5, "seen only": 1.0}
    assert rates(answers, np.array([0.5, 0.05]))["kept"] == 0.875
    assert rates(answers, {0: 0.5, 1: 0.5}, 2)["heard only"] == 0.5  # the picture's own scores


def test_thresholds_separate_what_can_be_separated() -> None:
    rng = np.random.default_rng(0)
    answers = []
    for label, middle in ((0, 0.3), (1, 0.7)):
        answers += [trial(label, "kept", float(middle + rng.uniform(0.05, 0.2))) for _ in range(40)]
        for kind in ("heard only", "seen only"):
            answers += [trial(label, kind, float(middle - rng.uniform(0.05, 0.2))) for _ in range(40)]
    chosen = choose_thresholds(answers)
    assert chosen[0] == pytest.approx(0.3, abs=0.06) and chosen[1] == pytest.approx(0.7, abs=0.06)
    assert rates(answers, chosen) == {"kept": 1, "heard only": 1, "seen only": 1}


def test_few_scenes_lean_on_all_of_them() -> None:
    many = [trial(0, "kept", 0.8)] * 50 + [trial(0, k, 0.4) for k in ("heard only", "seen only")] * 50
    few = [trial(1, "kept", 0.1), trial(1, "heard only", 0.05), trial(1, "seen only", 0.05)]
    assert 0.4 < choose_thresholds(many + few)[1] <= 0.8


def test_thresholds_from_clips_bound_the_false_alarms() -> None:
    rng = np.random.default_rng(0)
    clips = [LabelledClip(Path("x"), i % 2, 0, 5, 5) for i in range(100)]
    rows = [proposals((0, 5, 0, float(0.9 * rng.random())), (0, 5, 1, 0.001)) for _ in clips]
    got = clip_thresholds([rows], clips, 2)
    foreign = [r.scores[0] for r, c in zip(rows, clips, strict=True) if c.label == 1]
    assert np.mean(np.array(foreign) > got[0]) <= recipe.FALSE_ALARMS + 0.02
    assert got[0] == pytest.approx(np.quantile(foreign, 1 - recipe.FALSE_ALARMS), abs=1e-6)
    assert got[1] == recipe.LOWEST


def test_thresholds_from_scenes_bound_the_false_alarms_of_clip_classes() -> None:
    rng = np.random.default_rng(0)
    labels, peaks = np.arange(400) % 4, rng.random((400, 6))
    peaks[labels == 2, 2] = 5.0  # its own scenes do not count against a class
    got = strange_thresholds(labels, peaks, [2, 5])
    assert set(got) == {2, 5} and max(got.values()) <= recipe.HIGHEST
    for label, threshold in got.items():
        others = peaks[labels != label, label]
        assert (
            np.mean(others > threshold) <= recipe.STRANGE + 0.05 and np.mean(others > threshold - 0.05) > recipe.STRANGE
        )


def test_average_precision_of_clips_and_scenes() -> None:
    clips = [LabelledClip(Path("x"), label, 0, 5, 10) for label in (0, 0, 1)]
    right = [proposals((0, 5, c.label, 0.9)) for c in clips]
    wrong = [proposals((6, 9, c.label, 0.9)) for c in clips]
    assert clip_ap([right], clips) == {0: 1.0, 1: 1.0} and clip_ap([wrong], clips) == {0: 0.0, 1: 0.0}
    assert clip_ap([right, wrong], clips) == {0: 0.5, 1: 0.5}
    answers = [trial(3, "kept", 0.9), trial(3, "heard only", 0.8), trial(3, "kept", 0.7), trial(3, "seen only", 0.1)]
    assert scene_ap(answers) == {3: pytest.approx((1 + 2 / 3) / 2)}


# ---------------------------------------------------------------- the whole recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small.corpus(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def material(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadruples, "SIZE", (48, 64))
        yield gather(corpus, PAIR, tmp_path_factory.mktemp("work"), 48, 3)


@pytest.fixture(scope="module")
def release(material: Material) -> Release:
    return additive_release("small", material, FitConfig())


def test_the_material(corpus: Corpus, material: Material) -> None:
    assert len(material.taught) == len(material.quadruples) == 6
    assert len(material.visual.x) == 6 and len(material.bank[0].x) == len(material.bank[1].x) == 48 + 2 * 6
    assert material.visual.x.shape[1] == material.bank[0].x.shape[1]


def test_quadruples_are_the_last_scenes_of_the_bank(material: Material) -> None:
    for side, medium in enumerate(("visual", "audio")):
        items = material.bank[side]
        for k, q in enumerate(material.taught):
            for i, label in enumerate((q.first, q.second)):
                at = 48 + 2 * k + i
                x = q.clips["ab"[i] * 2][medium]
                np.testing.assert_array_equal(items.x[at, : len(x)], x)
                assert items.labels[at].any(0).nonzero()[0].tolist() == [label]
        shared = {s for s in items.source[48:].tolist() if s in set(items.source[:48].tolist())}
        assert shared  # drawn from the same files, and known to be


def test_what_is_asked_about_a_taught_quadruple_was_learnt_without_its_files(material: Material) -> None:
    m = material
    left = fit_on(m.visual, m.audio, m.bank, FitConfig(), 0, len(m.taught))
    asked = list(as_left_out(left, m.taught))
    for k, (q, votes) in enumerate(zip(m.taught, asked, strict=True)):
        clip, start = votes.clips["ba"], len(left.visual) - 2 * len(m.taught) + 2 * k
        np.testing.assert_array_equal(clip["visual"], left.visual[start + 1, : len(clip["seen"])])
        np.testing.assert_array_equal(clip["audio"], left.audio[start, : len(clip["seen"])])
        own = left.network.visual.votes(q.clips["ba"]["visual"])
        assert not np.allclose(clip["visual"], own, atol=1e-3)
    got = trials(ask_votes(left.network), 3, asked)
    assert len(got) == 6 * len(m.taught)


def test_peaks_of_true_pairs(material: Material) -> None:
    """Only the clips in which the sound belongs to the picture, each with the class it shows."""
    asked: list[float] = []

    def ask(found: Mapping[str, Any]) -> list[Proposals]:
        asked.append(float(found["visual"].sum() + found["audio"].sum()))
        return [proposals((0, 10, 1, 0.25 * len(asked)))] * 3

    quads = material.quadruples[:2]
    labels, peaks = scene_peaks(ask, 3, quads)
    assert labels.tolist() == [label for q in quads for label in (q.first, q.second)]
    assert peaks.tolist() == [[0, 0.25 * k, 0] for k in range(1, 5)]
    assert asked == [float(q.clips[k]["visual"].sum() + q.clips[k]["audio"].sum()) for q in quads for k in ("aa", "bb")]


def test_peaks_of_scenes_of_nothing(material: Material) -> None:
    asked: list[tuple[bytes, bytes]] = []

    def ask(found: Mapping[str, Any]) -> list[Proposals]:
        asked.append((found["visual"].tobytes(), found["audio"].tobytes()))
        return [proposals((0, 10, len(asked) % 3, 0.5))] * 3

    visual, audio = (items.x for items in material.bank)
    peaks = empty_peaks(ask, 3, material.bank, visual, audio)
    empty = [[i for i in range(60) if not items.labels[i].any()] for items in material.bank]
    assert len(peaks) == len(asked) == len(empty[0]) == 4 and peaks.sum(0).tolist() == [0.5, 1.0, 0.5]
    assert [a for a, _ in asked] == [visual[i, : material.bank[0].valid[i].sum()].tobytes() for i in empty[0]]
    assert {b for _, b in asked} <= {audio[i, : material.bank[1].valid[i].sum()].tobytes() for i in empty[1]}


def test_questions_about_a_quadruple(material: Material) -> None:
    """Both classes, all four clips: each class has one true pair, one clip heard only and one seen only."""
    asked: list[int] = []

    def ask(found: object) -> list[Proposals]:
        asked.append(1)
        return [proposals((0, 10, 0, 0.9), (0, 10, 1, 0.3))] * 3

    got = trials(ask, 3, material.quadruples[:1])
    assert len(asked) == 4
    assert sorted((t.label, t.kind) for t in got) == [(c, k) for c in (0, 1) for k in sorted(recipe.KINDS)]
    assert {(t.label, round(t.scores[0], 3)) for t in got} == {(0, 0.9), (1, 0.3)}


def test_the_release_tells_true_pairs_from_false_ones(corpus: Corpus, release: Release, material: Material) -> None:
    assert len(release.thresholds) == len(release.tiers) == len(release.ap) == 3
    low, high = (release.calibration([bound] * 3, range(3)) for bound in (recipe.LOWEST, recipe.HIGHEST))
    assert (np.round(low, 4) <= release.thresholds).all() and (release.thresholds <= np.round(high, 4)).all()
    assert [t == "default" for t in release.tiers] == [ap >= recipe.TIER_AP for ap in release.ap]
    assert release.ap[0] > 0.6  # alpha against beta: colour and pitch say it all


def test_no_clip_is_scored_by_a_fit_that_saw_it(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[set[bytes]] = []
    original = fit_on

    def noted(visual: object, audio: object, *rest: object) -> object:
        fitted.append({row.tobytes() for row in visual.x})  # type: ignore[attr-defined]
        left = original(visual, audio, *rest)  # type: ignore[arg-type]
        network, scores = left.network, left.network.scores

        def checked(v: np.ndarray, *others: np.ndarray) -> object:
            clip = next(x for x in material.visual.x if (x[: len(v)] == v).all())
            assert clip.tobytes() not in fitted[-1]
            return scores(v, *others)

        object.__setattr__(network, "scores", checked)
        return left

    monkeypatch.setattr(recipe, "fit_on", noted)
    clips = material.corpus.clips()
    found = out_of_fold(material.visual, material.audio, material.bank, clips, FitConfig(), 1)
    assert len(found) == 6 and len(fitted) == 3 and all(len(seen) < 6 for seen in fitted)


def test_what_is_written_is_a_model(corpus: Corpus, release: Release, material: Material, tmp_path: Path) -> None:
    write(release, corpus, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.safetensors", "small.toml"]
    localizer = zoo.load(str(tmp_path / "small.safetensors"), CPU)
    info = localizer.info
    assert (info.name, info.kind, info.visual, info.audio) == ("small", "additive", ("mini",), ("mini",))
    assert info.vocabulary.names == corpus.names and info.vocabulary.tiers == release.tiers
    assert info.vocabulary.thresholds == release.thresholds and info.settings["nms"] == "gaussian"
    assert info.vocabulary.calibration == release.calibration
    clip = 2  # beta in the second half
    got = localizer.run(features(20, visual=material.visual.x[clip, :20], audio=material.audio.x[clip, :20]), 0, 20)
    assert got.curve.shape == (20, 3)
    assert got.curve[11:19, 1].min() > got.curve[:8, 1].max()
    assert (got.curve[11:19].argmax(1) == 1).all()


def test_a_loco_release_is_a_model_too(
    corpus: Corpus, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LoCoConfig.tiny
    monkeypatch.setattr(
        LoCoConfig, "tiny", classmethod(lambda cls, *sizes: original(*sizes, width=16, heads=2, levels=2))
    )
    release = network_release("small-loco", material, loco_training(LoCoRecipe(steps=5, batch=4)))
    write(release, corpus, tmp_path)
    localizer = zoo.load(str(tmp_path / "small-loco.safetensors"), CPU)
    assert localizer.info.kind == "loco" and localizer.info.vocabulary.names == corpus.names
    got = localizer.run(features(20, visual=material.visual.x[0, :20], audio=material.audio.x[0, :20]), 0, 20)
    assert got.curve.shape == (20, 3) and got.levels is not None and len(got.levels) == 2
    assert got.curve.min() >= 0 and got.curve.max() <= 1


@pytest.mark.parametrize("kind", ["cace", "ccln"])
def test_a_release_of_a_network_that_labels_segments(
    kind: str, corpus: Corpus, material: Material, tmp_path: Path
) -> None:
    short = FewRecipe(steps=4, batch=4, scenes=20)
    small = {"visual_width": 16, "audio_width": 8, "width": 16}
    release = network_release("small-net", material, segment_training(kind, short, small))
    write(release, corpus, tmp_path)
    localizer = zoo.load(str(tmp_path / "small-net.safetensors"), CPU)
    assert localizer.info.kind == kind and localizer.info.settings["interleave"] == 2
    visual, audio = material.visual.x[0, :20], material.audio.x[0, :20]
    got = localizer.run(features(20, visual=visual, audio=audio), 0, 20).curve
    trained = segment_training(kind, short, small)(material.visual, material.audio, material.bank, 0)
    found, again = trained.candidates(visual, audio, 10.0), candidates(got, 10.0)  # the file holds halves
    np.testing.assert_allclose(np.sort(found.scores), np.sort(again.scores), atol=2e-3)


def test_no_clip_is_scored_by_a_network_that_saw_it(material: Material) -> None:
    clips, seen = material.corpus.clips(), list[set[bytes]]()

    def training(visual: Items, audio: Items, bank: object, seed: int) -> Trained:
        seen.append({row.tobytes() for row in visual.x})

        def asked(v: np.ndarray, a: np.ndarray, seconds: float) -> Proposals:
            clip = next(x for x in material.visual.x if (x[: len(v)] == v).all())
            assert clip.tobytes() not in seen[-1]
            return proposals((0, seconds, 0, 0.5))

        return Trained("none", asked, {}, {})

    found = out_of_fold_trained(material.visual, material.audio, material.bank, clips, training, 1)
    assert len(found) == 6 and len(seen) == 3 and all(len(s) < 6 for s in seen)
    assert [float(f.ends[0]) for f in found] == [c.duration for c in clips]


def test_classmates() -> None:
    labels = np.array([0, 1, 0, 2, 0])
    pairs = classmates(labels, 2, np.random.default_rng(0))
    assert sorted(i for i, _ in pairs) == sorted([*range(5)] * 2)
    assert all(labels[i] == labels[j] for i, j in pairs) and any(i != j for i, j in pairs)


# ---------------------------------------------------------------- the benchmark's figures


def labelled(*labels: int) -> list[LabelledClip]:
    return [LabelledClip(Path("x"), label, 1.0, 3.0, 4.0) for label in labels]


def test_ranks_and_their_shares() -> None:
    clips = labelled(0, 1, 2, 0)
    rows = [
        proposals((0, 4, 0, 0.9), (0, 4, 1, 0.95)),  # second
        proposals((0, 4, 1, 0.5), (0, 4, 0, 0.25)),  # first
        proposals((0, 4, 1, 0.5)),  # not found
        None,  # not asked
    ]
    got = avepm.ranks(rows, clips, 9)
    assert got[:2].tolist() == [1, 0] and got[2] >= 9 and np.isnan(got[3])
    assert (avepm.top(got, 1), avepm.top(got, 2), avepm.top(got, 5)) == pytest.approx((1 / 3, 2 / 3, 2 / 3))


def test_segments_take_the_strongest_event() -> None:
    clip = labelled(1)[0]
    assert avepm.segment_truth(clip, 8).tolist() == [-1, -1, 1, 1, 1, 1, -1, -1]
    found = proposals((0.0, 2.0, 0, 0.5), (1.0, 3.0, 1, 0.8), (3.0, 4.0, 2, 0.1))
    assert avepm.segment_guess(found, 8, 0.3).tolist() == [0, 0, 1, 1, 1, 1, -1, -1]
    assert avepm.segment_hits([found, None], [clip, clip], 0.3)[0] == 0.75
    assert np.isnan(avepm.segment_hits([found, None], [clip, clip], 0.3)[1])


def test_floor_and_ceiling() -> None:
    clips = labelled(0, 1, 2, 0, 1, 2)
    right = avepm.constant(clips, lambda i: clips[i].label)
    nothing = avepm.constant(clips, lambda i: None)
    assert avepm.top(avepm.ranks(right, clips, 9), 1) == 1 and avepm.top(avepm.ranks(nothing, clips, 9), 5) == 0
    assert avepm.segment_hits(right, clips, 0.5).tolist() == [0.5] * 6  # the event fills half
    assert avepm.segment_hits(nothing, clips, 0.5).tolist() == [0.5] * 6  # and so does the rest
    assert avepm.maps(right, clips) == pytest.approx([100, 100, 0]) and avepm.maps(nothing, clips) == [0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_swapped_sound_is_of_another_class(seed: int) -> None:
    clips = labelled(*[0] * 5, *[1] * 4, *[2] * 6)
    order = avepm.derangement(clips, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(15))
    assert all(clips[i].label != clips[j].label for i, j in enumerate(order))


def test_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random(400) < 0.6).astype(float), (rng.random(400) < 0.4).astype(float)
    mean, low, high = avepm.paired_interval(first, second, rng)
    assert mean == pytest.approx(100 * (first - second).mean()) and low < mean < high and 8 < high - low < 20
    assert avepm.paired_interval(first, first, rng) == (0, 0, 0)
