"""Training a small LoCo: events on the grid, a schedule that ends at nothing, and a loss that falls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avtool.models.loco import LoCo, LoCoConfig
from avtool.training import loco as module
from avtool.training.additive import Items
from avtool.training.loco import LoCoRecipe, Standard, events_of, runs, train

CLASSES, ROWS, SIZE = 3, 16, 6
CONFIG = LoCoConfig.tiny(SIZE, SIZE, CLASSES, width=16, heads=2, levels=2)


def items(count: int, kind: int) -> Items:
    """One class per item, the same in both media, in a stretch that both media share."""
    rng, directions = np.random.default_rng(kind), np.random.default_rng(50 + kind).standard_normal((CLASSES, SIZE))
    stretches = np.random.default_rng(7)
    x, labels = 0.3 * rng.standard_normal((count, ROWS, SIZE)), np.zeros((count, ROWS, CLASSES), bool)
    for i in range(count):
        first = int(stretches.integers(0, ROWS - 5))
        last = first + int(stretches.integers(3, 6))
        labels[i, first:last, i % CLASSES] = True
        x[i, first:last] += 2 * directions[i % CLASSES]
    valid = np.ones((count, ROWS), bool)
    valid[::2, -2:] = False
    return Items(x.astype(np.float32), valid, labels & valid[:, :, None], np.ones(count, np.float32), np.arange(count))


VISUAL, AUDIO = items(24, 0), items(24, 1)
PAIRS = [(i, i) for i in range(24)] + [(i, (i + 1) % 24) for i in range(24)]


@given(st.lists(st.booleans(), max_size=12))
@settings(max_examples=60, deadline=None)
def test_runs_are_the_stretches_of_true(active: list[bool]) -> None:
    found = runs(np.array(active, bool))
    rebuilt = np.zeros(len(active), bool)
    for first, stop in found:
        assert first < stop and not rebuilt[first:stop].any()
        assert (first == 0 or not active[first - 1]) and (stop == len(active) or not active[stop])
        rebuilt[first:stop] = True
    assert rebuilt.tolist() == active


def test_events_reach_half_a_row_beyond_their_centres() -> None:
    labels = np.zeros((10, 4), bool)
    labels[2:5, 1] = labels[7:8, 1] = labels[0:10, 3] = True
    got = events_of(labels)
    assert got.segments.tolist() == [[1.5, 4.5], [6.5, 7.5], [-0.5, 9.5]] and got.labels.tolist() == [1, 1, 3]
    nothing = events_of(np.zeros((10, 4), bool))
    assert nothing.segments.shape == (0, 2) and nothing.labels.shape == (0,)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    shares = [module.warmed_cosine(step, 100) for step in range(100)]
    assert shares[:10] == sorted(shares[:10]) and max(shares) == shares[9] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True) and 0 <= shares[-1] < 1e-3
    assert [module.warmed_cosine(step, 1) for step in range(1)] == [1.0]


def test_standardised_features_are_about_1() -> None:
    data = Standard(VISUAL, AUDIO)
    for side, whole in ((0, VISUAL), (1, AUDIO)):
        got = data.apply(side, whole.x)
        assert got.shape == (24, ROWS, SIZE)
        torch.testing.assert_close(got.square().mean(2), torch.ones(24, ROWS), atol=1e-4, rtol=1e-4)
    assert torch.equal(data.visual, data.apply(0, VISUAL.x)) and not torch.equal(data.visual, data.audio)
    changed = VISUAL.x.copy()
    changed[~VISUAL.valid] = 1e6  # rows that do not exist
    other = Standard(Items(changed, VISUAL.valid, VISUAL.labels, VISUAL.weight, VISUAL.source), AUDIO)
    np.testing.assert_array_equal(other.sides[0][0], data.sides[0][0])


@pytest.fixture
def totals(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    original = module._step

    def noted(*arguments: object) -> object:
        losses = original(*arguments)  # type: ignore[arg-type]
        found.append(float(losses.total.detach()))
        return losses

    monkeypatch.setattr(module, "_step", noted)
    return found


def scores(network: LoCo, data: Standard, i: int, j: int) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        out = network(data.visual[i][None], data.audio[j][None], torch.ones(1, ROWS, dtype=torch.bool))
    return out.logits[0][0].sigmoid().numpy()


def test_a_short_training_lowers_the_loss_and_finds_the_events(totals: list[float]) -> None:
    network, data = train(VISUAL, AUDIO, PAIRS, CONFIG, LoCoRecipe(steps=150, batch=16, rate=5e-3, ema=0.9), 0)
    assert len(totals) == 150 and np.mean(totals[-10:]) < 0.6 * np.mean(totals[:10])
    assert isinstance(network, LoCo) and not network.training
    inside, outside = [], []
    for i in range(24):
        got, truth = scores(network, data, i, i), VISUAL.labels[i] & AUDIO.labels[i]
        inside += got[truth].tolist()
        outside += got[~truth].tolist()
    assert np.mean(inside) > 5 * np.mean(outside)


def test_training_is_reproducible() -> None:
    recipe = LoCoRecipe(steps=3, batch=4)
    first, again, other = (train(VISUAL, AUDIO, PAIRS, CONFIG, recipe, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_what_is_kept_is_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an average that never moves the first weights come back, whatever the training does."""
    made: list[dict[str, torch.Tensor]] = []

    class Noted(LoCo):
        def __init__(self, config: LoCoConfig) -> None:
            super().__init__(config)
            made.append({k: v.clone() for k, v in self.state_dict().items()})

    monkeypatch.setattr(module, "LoCo", Noted)
    network, _ = train(VISUAL, AUDIO, PAIRS, CONFIG, LoCoRecipe(steps=5, batch=4, ema=1.0), 0)
    # the average starts at the weights after the first step, which the warm-up keeps near the start
    names = [name for name, _ in network.named_parameters()]
    moved = max(float((network.state_dict()[n] - made[0][n]).abs().max()) for n in names)
    assert moved < 5e-3


def test_noise_and_pairs_are_those_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    original = module._step

    def noted(
        model: object,
        criterion: object,
        data: object,
        labels: npt.NDArray[np.bool_],
        index: object,
        mask: npt.NDArray[np.bool_],
        recipe: LoCoRecipe,
        rng: object,
    ) -> object:
        i, j = index  # type: ignore[misc]
        seen.extend(zip(i.tolist(), j.tolist(), strict=True))
        assert recipe.noise == 0.25
        np.testing.assert_array_equal(labels, VISUAL.labels[i] & AUDIO.labels[j])  # an event is in both media
        np.testing.assert_array_equal(mask, VISUAL.valid[i] | AUDIO.valid[j])
        return original(model, criterion, data, labels, index, mask, recipe, rng)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_step", noted)
    train(VISUAL, AUDIO, PAIRS, CONFIG, LoCoRecipe(steps=4, batch=8, noise=0.25), 0)
    assert len(seen) == 32 and set(seen) <= set(PAIRS)
