"""Segment networks as tasks: they learn to localize, weakly too, and weak training never sees a segment label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from avtool.training.engine import Moment, Trainer
from avtool.training.optimisation import Recipe
from avtool.training.segment_losses import VideoMemory, wccl_loss
from avtool.training.segments import SegmentData, SegmentTask
from avtool.training.synthetic import SyntheticLaw, synthetic

SMALL: dict[str, dict[str, Any]] = {
    "cace": {"visual_width": 32, "audio_width": 16, "width": 32},
    "ccln": {"visual_width": 32, "audio_width": 16, "width": 32, "heads": 2, "layers": 1},
    "loco-segments": {"width": 32, "heads": 2, "unimodal_blocks": 1, "mlp_ratio": 2, "layer_scale": 0.1},
}
LAW = SyntheticLaw(classes=4, clips=(320, 120, 8), empty=60)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> SegmentData:
    return synthetic(LAW)


def line(data: SegmentData) -> float:
    """Accuracy of the right class in every segment: the best without localization (avel.md 1.5)."""
    return float((data.labels[data.split("val")] != data.background).mean())


def mute(data: SegmentData, side: str) -> SegmentData:
    rows = getattr(data, side)
    return replace(data, **{side: lambda index: np.zeros_like(rows(index))})


def accuracy(kind: str, data: SegmentData, epochs: int, **settings: Any) -> float:
    torch.manual_seed(0)
    task = SegmentTask(kind, SMALL[kind] | settings, data)
    return Trainer(task, Recipe(epochs=epochs, batch=64, rate=3e-3, schedule="cosine", warm_up=1, clip=1.0)).run().value


@pytest.mark.parametrize(
    ("kind", "epochs"), [("cace", 16), ("ccln", 10), pytest.param("loco-segments", 12, marks=pytest.mark.slow)]
)
def test_it_learns_to_localize(data: SegmentData, kind: str, epochs: int) -> None:
    """Above what the class of the clip alone can reach (avel.md 10.4)."""
    assert accuracy(kind, data, epochs) > line(data) + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("side", ["visual", "audio"])
@pytest.mark.parametrize(("kind", "epochs"), [("cace", 16), ("ccln", 10), ("loco-segments", 12)])
def test_one_medium_alone_does_not(data: SegmentData, kind: str, epochs: int, side: str) -> None:
    assert accuracy(kind, mute(data, side), epochs) < line(data)


def test_weak_ccln_learns_to_localize_from_clip_labels(data: SegmentData) -> None:
    """Segment labels of the training clips are gone; only validation reads those of its own clips."""
    blind = data.labels.copy()
    blind[data.split("train")] = -1
    blind[data.background_clips] = -1
    assert accuracy("ccln", replace(data, labels=blind), 14, supervision="weak") > line(data)


@pytest.mark.parametrize("kind", ["ccln", "loco-segments"])
def test_no_segment_label_reaches_the_weak_loss(data: SegmentData, kind: str) -> None:
    """Labels that cannot be read, permuted, or NaN: the loss is the same number."""

    class Sealed(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, _: Any) -> Any:
            raise AssertionError("a segment label was read")

    losses = []
    rng = np.random.default_rng(0)
    for labels in (data.labels, rng.permutation(data.labels.ravel()).reshape(data.labels.shape), None):
        own = data.labels.view(Sealed) if labels is None else labels
        torch.manual_seed(0)
        task = SegmentTask(kind, SMALL[kind] | {"supervision": "weak"}, replace(data, labels=own))
        assert task.samples == LAW.clips[0] + LAW.empty
        batch = task.load(np.arange(300, 340), rng)
        assert "events" not in batch
        torch.manual_seed(1)
        losses.append(task.losses(batch, Moment(9, 0, 10))["loss"])
    assert torch.isfinite(losses[0]) and losses[0] == losses[1] == losses[2]


def test_full_training_reads_them(data: SegmentData) -> None:
    """The test above can fail."""
    task = SegmentTask("ccln", SMALL["ccln"], data)
    batch = dict(task.load(np.arange(8), np.random.default_rng(0)))
    assert batch["events"].shape == (8, 10) and task.samples == LAW.clips[0]
    del batch["events"]
    assert torch.isnan(task.losses(batch, Moment(0, 0, 10))["loss"])


def test_contrast_begins_after_an_eighth(data: SegmentData) -> None:
    task = SegmentTask("cace", SMALL["cace"], data)
    batch = task.load(np.arange(8), np.random.default_rng(0))

    def total(epoch: int) -> float:
        torch.manual_seed(0)
        parts = task.losses(batch, Moment(epoch, 0, 200))
        return float((parts["loss"] - sum(parts[n] for n in ("event", "classification", "gate", "scores"))).detach())

    assert total(24) == pytest.approx(0, abs=1e-5) and total(25) > 0.1


def test_synthetic_clips_follow_their_law(data: SegmentData) -> None:
    assert data.labels.shape == (sum(LAW.clips) + LAW.empty, 10)
    events = data.labels != data.background
    assert not events[data.background_clips].any() and (data.clip_classes[data.background_clips] == 4).all()
    assert 0.78 < events[: sum(LAW.clips)].mean() < 0.88  # 83 % in AVE
    for clip in data.split("train")[:50]:
        inside = np.flatnonzero(events[clip])
        assert len(inside) == inside[-1] - inside[0] + 1 >= 2
        assert set(data.labels[clip][inside]) == {data.clip_classes[clip]}
    maps = synthetic(SyntheticLaw(classes=2, clips=(4, 2, 2), positions=9))
    assert maps.visual(np.arange(3)).shape == (3, 10, 9, 32)


def test_the_memory_of_wccl_holds_no_graph() -> None:
    """A second backward pass would fail."""
    memory, vectors = VideoMemory(4), torch.randn(3, 5, requires_grad=True)
    for _ in range(3):
        wccl_loss({"visual": vectors, "audio": 2 * vectors}, torch.tensor([0, 1, 0]), 0.1, memory).backward()
    assert len(memory.vectors["visual"]) == 4 and not memory.vectors["visual"].requires_grad
