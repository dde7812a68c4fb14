"""Views for distillation: crops inside their pictures, sounds of the right length, chunks that resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from avtool.features.logmel import MN04
from avtool.training import views
from avtool.training.views import (
    SHAPES,
    SQUARE,
    TALL,
    Shape,
    chunks,
    crop_box,
    cut,
    level,
    mix,
    picture_chunks,
    picture_view,
    resize,
    save_chunk,
    sound_chunks,
    sound_view,
    tilt,
)
from tests.training.small import tone

RATE = MN04.rate
TINY = Shape("tiny", (16, 12), (24, 18))


def decibels(wave: npt.NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(wave.astype(float) ** 2)))


# ---------------------------------------------------------------- pictures


@given(
    height=st.integers(4, 500),
    width=st.integers(4, 500),
    aspect=st.floats(0.3, 3.0),
    scale=st.floats(0.05, 1.0),
    seed=st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_boxes_lie_inside_the_picture(height: int, width: int, aspect: float, scale: float, seed: int) -> None:
    top, left, h, w = crop_box(height, width, aspect, scale, np.random.default_rng(seed))
    assert top >= 0 and left >= 0 and h >= 1 and w >= 1 and top + h <= height and left + w <= width
    if min(height, width) > 100 and h > 20 and 20 < w < width:
        assert w / h == pytest.approx(aspect, rel=0.1)


def test_the_largest_box_fills_one_side() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((100, 300), (300, 100), (200, 200)):
        _, _, h, w = crop_box(height, width, 1.0, 1.0, rng)
        assert h == w == min(height, width)


def test_boxes_reach_every_edge() -> None:
    boxes = [crop_box(40, 60, 1.0, 0.5, np.random.default_rng(seed)) for seed in range(400)]
    assert {0, 40 - boxes[0][2]} <= {b[0] for b in boxes} and {0, 60 - boxes[0][3]} <= {b[1] for b in boxes}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_student_and_teacher_see_the_same_crop(shape: Shape) -> None:
    gradient = np.add.outer(np.arange(300), 2 * np.arange(300)) % 256
    pixels = np.repeat(gradient[:, :, None], 3, 2).astype(np.uint8)
    smooth = np.array(np.broadcast_to((np.add.outer(np.arange(300), np.arange(300)) / 2.4)[:, :, None], (300, 300, 3)))
    for seed in range(6):
        student, teacher = picture_view(smooth.astype(np.uint8), shape, 0.3, np.random.default_rng(seed))
        assert student.shape == (3, *shape.student) and teacher.shape == (3, *shape.teacher)
        assert student.dtype == torch.uint8
        small = resize(teacher[None], shape.student)[0]
        assert (small.int() - student.int()).abs().max() <= 3
    again = [picture_view(pixels, shape, 0.3, np.random.default_rng(5))[0] for _ in range(2)]
    assert torch.equal(*again)


def test_half_of_the_views_are_mirrored() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :, 0] = np.arange(64) * 4  # brighter to the right
    views_ = [picture_view(pixels, SQUARE, 0.5, np.random.default_rng(seed))[0][0].float() for seed in range(60)]
    right = [bool(v[:, -20:].mean() > v[:, :20].mean()) for v in views_]
    assert 15 < sum(right) < 45


def test_shapes_keep_their_proportions() -> None:
    for shape in SHAPES.values():
        assert shape.student[0] / shape.student[1] == pytest.approx(shape.teacher[0] / shape.teacher[1], rel=0.02)
    assert min(TALL.student) == min(SQUARE.student) == 128


def test_mixing_is_a_weighted_mean() -> None:
    first, second = torch.full((3, 2, 2), 200, dtype=torch.uint8), torch.full((3, 2, 2), 100, dtype=torch.uint8)
    assert mix(first, second, 0.25).unique().tolist() == [125]


# ---------------------------------------------------------------- sounds


@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.99, 2.0, 2.5, 30.0])
def test_cuts_have_the_length_asked_for(seconds: float) -> None:
    wave = np.arange(1, round(seconds * RATE) + 1, dtype=np.float32)
    for seed in range(8):
        got = cut(wave, 2.0, np.random.default_rng(seed))
        assert got.shape == (2 * RATE,) and got.dtype == np.float32
        inside = got[got > 0]
        steps = np.diff(inside)
        assert ((steps == 1) | (steps == 1 - len(wave))).all()  # in order: once, or again from the start
        assert len(inside) in (2 * RATE, len(wave))


def test_cuts_are_copies() -> None:
    wave = np.ones(3 * RATE, np.float32)
    cut(wave, 2.0, np.random.default_rng(0))[:] = 0
    assert wave.all()


@pytest.mark.parametrize("target", [-60.0, -20.0, -3.0])
def test_levels(target: float) -> None:
    assert decibels(level(tone(440, 1.0), target)) == pytest.approx(target, abs=1e-3)
    silence = np.zeros(100, np.float32)
    assert not level(silence, target).any()


def test_a_tilt_changes_each_octave_by_at_most_9_decibels() -> None:
    wave = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    got = tilt(wave, np.random.default_rng(1))
    assert got.shape == wave.shape and got.dtype == np.float32
    gain = 20 * np.log10(np.abs(np.fft.rfft(got)[1:-1]) / np.abs(np.fft.rfft(wave)[1:-1]))
    assert np.percentile(abs(gain), 99.9) < 9.1 and abs(gain).max() > 1


def test_sound_views_are_two_seconds_within_full_scale() -> None:
    first, second = tone(440, 5.0), np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    for seed in range(12):
        got = sound_view(first, second if seed % 2 else None, np.random.default_rng(seed))
        assert got.shape == (2 * RATE,) and got.dtype == np.float32 and abs(got).max() <= 1
        assert -45 < decibels(got) < -5
        np.testing.assert_array_equal(got, sound_view(first, second if seed % 2 else None, np.random.default_rng(seed)))


def test_a_view_of_silence_is_faint_noise() -> None:
    got = sound_view(np.zeros(RATE, np.float32), None, np.random.default_rng(0))
    assert np.isfinite(got).all() and decibels(got) < -40


# ---------------------------------------------------------------- chunks


def teacher(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each input, so that answers can be checked against inputs."""
    flat = batch.float().flatten(1)
    return flat.mean(1, keepdim=True), torch.stack([flat.mean(1), flat.std(1)], 1)


def picture_of(index: int) -> npt.NDArray[np.uint8]:
    return np.full((40, 50, 3), 20 * index, np.uint8)


def make_pictures(folder: Path, mixed: float = 0.0, seed: int = 3, asked: list[int] | None = None) -> None:
    def load(index: int) -> npt.NDArray[np.uint8]:
        if asked is not None:
            asked.append(index)
        return picture_of(index)

    picture_chunks(
        folder,
        TINY,
        load,
        [k % 12 for k in range(25)],
        teacher,
        smallest=0.4,
        mixed=mixed,
        seed=seed,
        prefix="p",
        size=10,
    )


def make_sounds(folder: Path, mixed: float = 0.5, seed: int = 3, asked: list[int] | None = None) -> None:
    def load(index: int) -> npt.NDArray[np.float32]:
        if asked is not None:
            asked.append(index)
        return tone(200.0 * (index + 1), 1.0 + index)

    sound_chunks(folder, load, [0, 1, 2, 0, 1], teacher, mixed=mixed, seed=seed, prefix="s", size=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_picture_chunks_hold_views_with_their_answers(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    found = chunks(tmp_path, "p")
    assert [(c.name, len(c.logits)) for c in found] == [("p-000", 10), ("p-001", 10), ("p-002", 5)]
    for start, chunk in zip((0, 10, 20), found, strict=True):
        assert chunk.inputs.shape[1:] == (16, 12, 3) and chunk.inputs.dtype == np.uint8
        assert chunk.logits.dtype == chunk.embedding.dtype == np.float16 and chunk.embedding.shape[1] == 2
        expected = [20 * ((start + k) % 12) for k in range(len(chunk.logits))]
        assert chunk.inputs[:, 0, 0, 0].tolist() == expected
        np.testing.assert_allclose(chunk.logits[:, 0], expected, atol=0.2)


def test_mixed_pictures_have_mixed_answers(tmp_path: Path) -> None:
    make_pictures(tmp_path, mixed=1.0)
    for chunk in chunks(tmp_path, "p"):
        np.testing.assert_allclose(chunk.inputs[:, 0, 0, 0], chunk.logits[:, 0], atol=1)
    assert len({int(v) for c in chunks(tmp_path, "p") for v in c.inputs[:, 0, 0, 0]} - {20 * k for k in range(12)}) > 5


def test_sound_chunks_hold_log_mels(tmp_path: Path) -> None:
    make_sounds(tmp_path)
    found = chunks(tmp_path, "s")
    assert [len(c.logits) for c in found] == [2, 2, 1]
    for chunk in found:
        assert chunk.inputs.shape[1:] == (128, MN04.frames(2 * RATE)) and chunk.inputs.dtype == np.float16
        np.testing.assert_allclose(chunk.logits[:, 0], chunk.inputs.astype(np.float32).mean((1, 2)), atol=1e-2)


@pytest.mark.parametrize("make", [make_pictures, make_sounds])
def test_chunks_are_reproducible_and_seeds_matter(tmp_path: Path, make: Callable[..., None]) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make(tmp_path / name, mixed=0.5, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again and first.keys() == other.keys() and first != other


@pytest.mark.parametrize("make", [make_pictures, make_sounds])
def test_chunks_resume(tmp_path: Path, make: Callable[..., None]) -> None:
    """Whole chunks are kept; one without its last part is made again, exactly as before."""
    make(tmp_path, mixed=0.5)
    before = contents(tmp_path)
    whole = [c.name for c in chunks(tmp_path, "")]
    (tmp_path / f"{whole[1]}.logits.npy").unlink()
    assert [c.name for c in chunks(tmp_path, "")] == [whole[0], whole[2]]
    asked: list[int] = []
    make(tmp_path, mixed=0.5, asked=asked)
    assert contents(tmp_path) == before
    assert 0 < len(asked) <= 10
    asked.clear()
    make(tmp_path, mixed=0.5, asked=asked)
    assert asked == []


def test_every_chunk_draws_its_own_crops(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    options = {"smallest": 0.3, "mixed": 0.0, "seed": 1, "prefix": "p", "size": 4}
    picture_chunks(tmp_path, TINY, lambda _: pixels, [0] * 12, teacher, **options)  # type: ignore[arg-type]
    drawn = {row.tobytes() for c in chunks(tmp_path, "p") for row in np.asarray(c.inputs)}
    assert len(drawn) == 12


def test_the_mark_of_a_whole_chunk_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = views.atomic_stream

    def noting(path: Path) -> object:
        written.append(path.name)
        return original(path)

    monkeypatch.setattr(views, "atomic_stream", noting)
    save_chunk(tmp_path / "new", "x", np.zeros((2, 3)), np.zeros((2, 4)), np.zeros((2, 5)))
    assert written[-1] == "x.logits.npy" and len(written) == 3


def test_prefixes_choose_chunks(tmp_path: Path) -> None:
    for name in ("tall-a-000", "tall-b-000", "tall-b-001", "wide-a-000"):
        save_chunk(tmp_path, name, np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
    assert [c.name for c in chunks(tmp_path, "tall-b")] == ["tall-b-000", "tall-b-001"]
    assert len(chunks(tmp_path, "tall")) == 3 and chunks(tmp_path, "x") == []
