"""Parts of files: where they begin and end, what is in them, upright or turned as the source."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avtool.errors import InputError
from avtool.media.cut import cut, suffix
from avtool.media.probe import probe
from tests import synth


def part_of(source: Path, start: float, end: float, exact: bool) -> tuple[Path, float, float]:
    target = source.parent / f"part-{exact}{suffix(source, exact)}"
    with target.open("wb") as file:
        piece = cut(source, start, end, file, exact=exact)
    return target, piece.start, piece.end


def pictures(path: Path) -> list[tuple[Fraction, float]]:
    """Time and mean brightness of every picture."""
    with av.open(str(path)) as container:
        return [(f.pts * f.time_base, f.to_ndarray(format="gray").mean()) for f in container.decode(video=0)]


def loud(path: Path) -> tuple[float, float]:
    """Seconds from and to which the tone sounds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    rate = frames[0].sample_rate
    samples = np.concatenate([np.abs(f.to_ndarray()).max(0) for f in frames])
    found = np.flatnonzero(samples > 0.5 * samples.max())
    return float(found[0] / rate), float(found[-1] / rate)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Five seconds, 25 pictures a second; a flash from 2 s on, a tone from 3 to 3.5 s."""
    return synth.good(tmp_path / "good.mp4")


def test_an_exact_part_has_exactly_its_pictures_and_sound(good: Path) -> None:
    path, start, end = part_of(good, 1.9, 3.9, exact=True)
    assert (start, end) == pytest.approx((1.9, 3.9), abs=0.05)
    found = pictures(path)
    assert len(found) in (50, 51) and found[0][0] == 0
    whole = pictures(good)
    bright = next(time for time, mean in whole if mean > 128)
    flash = next(time for time, mean in found if mean > 128)
    assert float(flash) + 1.9 == pytest.approx(float(bright), abs=0.041)
    assert loud(path)[0] + 1.9 == pytest.approx(loud(good)[0], abs=0.03)


def test_a_copy_begins_at_a_key_frame_and_keeps_its_bytes(good: Path) -> None:
    path, start, end = part_of(good, 2.5, 3.9, exact=False)
    assert start <= 2.5 and 3.9 <= end <= 4.2
    found, whole = pictures(path), pictures(good)
    kept = [mean for time, mean in whole if float(time) >= start - 1e-6]
    assert [mean for _, mean in found] == kept[: len(found)]  # bit for bit the same pictures
    assert found[0][0] == 0 and float(found[-1][0]) + start >= 3.8
    assert loud(path)[0] + start == pytest.approx(loud(good)[0], abs=0.03)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("turn", [90, 180])
def test_a_turned_film_stays_upright(tmp_path: Path, turn: int, exact: bool) -> None:
    source = synth.CASES_BY_NAME[f"rotated_{turn}"].make(tmp_path)
    before = probe(source).video
    after = probe(part_of(source, 1.0, 2.0, exact)[0]).video
    assert before and after and (after.width, after.height) == (before.width, before.height)
    assert after.rotation == (0 if exact else before.rotation)


@pytest.mark.parametrize("case", ["picture_only", "sound_only_mp3"])
@pytest.mark.parametrize("exact", [False, True])
def test_one_stream_alone(tmp_path: Path, case: str, exact: bool) -> None:
    source = synth.CASES_BY_NAME[case].make(tmp_path)
    media = probe(part_of(source, 1.0, 2.0, exact)[0])
    assert (media.has_video, media.has_audio) == (case == "picture_only", case != "picture_only")
    assert media.duration == pytest.approx(1.0, abs=0.7)


@pytest.mark.parametrize("exact", [False, True])
def test_after_the_end_there_is_nothing(good: Path, exact: bool) -> None:
    with pytest.raises(InputError):
        cut(good, 50.0, 60.0, io.BytesIO(), exact=exact)


def test_what_is_no_media(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video at all, but some text that is long enough")
    with pytest.raises(InputError):
        cut(tmp_path / "x.mp4", 0.0, 1.0, io.BytesIO())


@pytest.mark.parametrize("name", [case.name for case in synth.CASES if case.verdict != "ok"])
def test_what_is_broken_or_hostile_gives_a_part_or_one_error(tmp_path: Path, name: str) -> None:
    """The same doors as for decoding: `probe.open_media` alone opens files."""
    source = synth.CASES_BY_NAME[name].make(tmp_path)
    for exact in (False, True):
        part = io.BytesIO()
        try:
            piece = cut(source, 1.0, 2.0, part, exact=exact)
        except InputError as error:
            assert "Traceback" not in str(error)
        else:
            assert piece.start < piece.end and part.getvalue()
        assert synth.CANARY not in part.getvalue()


def test_suffixes() -> None:
    assert [suffix(p, False) for p in ("a.MP4", "a.mov", "a.avi", "a", "a.b.mkv")] == [
        ".mp4", ".mov", ".mkv", ".mkv", ".mkv",
    ]  # fmt: skip
    assert suffix("a.webm", True) == ".mp4"
