"""Small networks on few clips: what a batch holds, what the closed form teaches, and that they learn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from avtool.models.segment_localizer import NETWORKS, interleaved
from avtool.models.segments import masked_mean
from avtool.training import few
from avtool.training.additive import Items
from avtool.training.few import SETTINGS, FewRecipe, class_logits, taught_loss, train_few
from avtool.training.loco import Standard

WIDTHS: dict[str, dict[str, Any]] = {
    "cace": {"visual_width": 32, "audio_width": 16, "width": 32},
    "ccln": {"visual_width": 32, "audio_width": 16, "width": 32, "heads": 2, "layers": 1},
    "loco-segments": {"width": 32, "heads": 2},
}
CLASSES, CLIPS, SCENES, ROWS = 3, 6, 36, 20
RECIPE = FewRecipe(steps=60, batch=16, rate=5e-3, noise=0.3, scenes=60)


def items(seed: int, size: int) -> Items:
    """Clips and scenes of the classes 0, 1, 2 in turn, in rows 4 to 15 of scenes; clips are filled."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((CLIPS + SCENES, ROWS, CLASSES), bool)
    for i in range(len(labels)):
        labels[i, slice(None) if i < CLIPS else slice(4, 16), i % CLASSES] = True
    prototypes = np.random.default_rng(size).standard_normal((CLASSES, size))
    x = 0.3 * rng.standard_normal((*labels.shape[:2], size)) + labels @ prototypes
    every = np.ones(labels.shape[:2], bool)
    return Items(x.astype(np.float32), every, labels, np.ones(len(x), np.float32), np.arange(len(x)))


@pytest.fixture(scope="module")
def sides() -> tuple[Items, Items]:
    return items(0, 12), items(1, 8)


def batches(sides: tuple[Items, Items], recipe: FewRecipe, silent: str | None = None) -> Any:
    return few._Batches(*sides, CLIPS, Standard(*sides), recipe, silent, np.random.default_rng(0))


def test_a_batch_of_clips_and_scenes(sides: tuple[Items, Items]) -> None:
    found = batches(sides, FewRecipe(batch=16, real=0.5, noise=0, mixed=0, scenes=40))
    batch, targets = found.draw()
    assert batch["visual"].shape == (16, 10, 12) and batch["audio"].shape == (16, 10, 8)
    assert batch["mask"].shape == targets.events.shape == (16, 10) and batch["mask"].all()
    assert (targets.events[:8] == 1).all()  # clips are filled by their event, whichever of the class sounds
    assert 0 < targets.events[8:].mean() < 1
    clips = Standard(*sides).visual[:CLIPS]
    for row, own in zip(batch["visual"][:8], targets.classes[:8].tolist(), strict=True):
        which = [i for i in range(CLIPS) for k in (0, 1) if torch.equal(clips[i, k::2], row)]
        assert which and which[0] % CLASSES == own


def test_sound_comes_from_any_clip_of_the_class(sides: tuple[Items, Items]) -> None:
    found = batches(sides, RECIPE)
    i, j, classes = found._clips(200)
    assert (i % CLASSES == classes).all() and (j % CLASSES == classes).all()
    assert (i != j).any() and (i == j).any()


def test_noise_and_mixing_spoil_features_alone(sides: tuple[Items, Items]) -> None:
    plain, spoilt = (batches(sides, FewRecipe(batch=8, noise=n, mixed=m, scenes=40)) for n, m in ((0, 0), (1, 0.5)))
    rows, index = slice(0, None, 2), np.arange(6)
    clean, dirty = (b._spoilt("visual", index, rows) for b in (plain, spoilt))
    torch.testing.assert_close(clean, Standard(*sides).visual[index, ::2])
    assert 0.8 < (dirty - clean).std() < 1.5


def test_a_silent_medium_is_zero(sides: tuple[Items, Items]) -> None:
    batch, _ = batches(sides, RECIPE, "audio").draw()
    assert not batch["audio"].any() and batch["visual"].any()
    trained = train_few("cace", *sides, CLIPS, FewRecipe(steps=2, batch=4, scenes=20), 0, WIDTHS["cace"], "audio")
    x, y = sides[0].x[0], sides[1].x
    np.testing.assert_array_equal(trained.curve(x, y[0]), trained.curve(x, y[1]))
    assert not np.allclose(trained.curve(sides[0].x[1], y[0]), trained.curve(x, y[0]))


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_learns_and_comes_back_from_its_file(kind: str, sides: tuple[Items, Items]) -> None:
    trained = train_few(kind, *sides, CLIPS, RECIPE, 0, WIDTHS[kind])
    fresh = items(7, 12), items(8, 8)
    right = []
    for i in range(CLIPS, CLIPS + 12):
        curve = trained.curve(fresh[0].x[i], fresh[1].x[i])
        assert curve.shape == (ROWS, CLASSES) and curve.min() >= 0 and curve.max() <= 1
        right.append(curve[5:15].mean(0).argmax() == i % CLASSES and curve[5:15].max(1).min() > curve[:3].max())
    assert np.mean(right) > 0.7
    tensors = {k: v.float() for k, v in trained.tensors().items() if k.split(".", 1)[0] not in ("visual", "audio")}
    again = NETWORKS[kind](json.loads(trained.describe()))
    again.load_state_dict(tensors)


def test_the_same_seed_gives_the_same_network(sides: tuple[Items, Items]) -> None:
    short = FewRecipe(steps=3, batch=4, scenes=20)
    first, second, other = (train_few("ccln", *sides, CLIPS, short, s, WIDTHS["ccln"]).tensors() for s in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_what_the_closed_form_answers(sides: tuple[Items, Items]) -> None:
    data = Standard(*sides)
    teacher = few._Teacher(*sides, CLIPS, data)
    batch = {"visual": data.visual[:CLIPS], "audio": data.audio[:CLIPS], "mask": torch.ones(CLIPS, ROWS, dtype=bool)}
    shares = teacher.answer(batch, None)
    torch.testing.assert_close(shares.sum(1), torch.ones(CLIPS))
    assert shares.argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    swapped = batch | {"audio": batch["audio"].roll(1, 0)}
    assert not torch.allclose(teacher.answer(swapped, None), shares)
    torch.testing.assert_close(teacher.answer(swapped, "audio"), teacher.answer(batch, "audio"))


def test_teaching_reads_event_segments_of_a_network_that_labels_segments() -> None:
    torch.manual_seed(0)
    shares, logits = torch.rand(2, 3).softmax(1), torch.randn(2, 4, 4)
    events = torch.tensor([[0.0, 1, 1, 0], [0, 0, 0, 1]])
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    first, second = (-(shares[b] * logits[b, t, :3].log_softmax(0)).sum() for b, t in ((0, 1), (1, 3)))
    torch.testing.assert_close(taught_loss(logits, shares, events, mask), (first + second) / 2)
    torch.testing.assert_close(
        taught_loss(logits[:, 0, :3], shares, events, mask),
        -(shares * logits[:, 0, :3].log_softmax(1)).sum(1).mean(),
    )
    assert taught_loss(logits, shares, events * 0, mask) == 0


@pytest.mark.parametrize("kind", SETTINGS)
def test_class_logits(kind: str) -> None:
    settings = {"visual_dim": 12, "audio_dim": 8, "classes": 3, **SETTINGS[kind], **WIDTHS[kind]}
    logits = class_logits(NETWORKS[kind](settings).eval()(torch.rand(2, 10, 12), torch.rand(2, 10, 8)))
    assert logits.shape == ((2, 10, 4) if kind == "loco-segments" else (2, 3))


def test_rows_are_judged_as_interleaved_clips() -> None:
    seen: list[list[float]] = []

    def judge(visual: Any, audio: Any) -> Any:
        seen.append(visual[:, 0].tolist())
        return visual + audio

    x = np.arange(7, dtype=np.float32)[:, None]
    got = interleaved(judge, x, 10 * x, 2)
    assert seen == [[0, 2, 4, 6], [1, 3, 5]]
    np.testing.assert_allclose(got[1:-1], 11 * x[1:-1])  # a straight line is its own mean
    assert (got[0], got[-1]) == (11 / 4, 66 - 11 / 4)
    np.testing.assert_array_equal(interleaved(judge, x[:1], x[:1], 2), 2 * x[:1])
    np.testing.assert_array_equal(interleaved(judge, x, x, 1), 2 * x)


def test_mean_over_valid_rows() -> None:
    x, mask = torch.tensor([[[1.0], [3.0], [torch.nan]]]), torch.tensor([[True, True, False]])
    assert masked_mean(x, mask).tolist() == [[2.0]]
