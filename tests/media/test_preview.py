"""Thumbnails and waveform of files made for the test; JPEG read back with Pillow."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avtool.errors import InputError
from avtool.media.decoding import decode
from avtool.media.preview import HEIGHT, JPEG_BYTES, PEAKS, THUMBNAILS, jpeg, preview
from avtool.media.probe import probe
from tests import synth


def test_pictures_and_sound_of_a_clip(tmp_path: Path) -> None:
    """A flash at 2 s, a tone at 3 s, five seconds in all."""
    image = pytest.importorskip("PIL.Image")
    found = preview(probe(synth.good(tmp_path / "x.mp4")), decode)
    times = [time for time, _ in found.thumbnails]
    assert times == [0.25 + 0.5 * i for i in range(10)]
    pictures = [image.open(io.BytesIO(data)) for _, data in found.thumbnails]
    assert {p.format for p in pictures} == {"JPEG"} and {p.height for p in pictures} == {HEIGHT}
    brightness = [np.asarray(p.convert("L")).mean() for p in pictures]
    assert times[int(np.argmax(brightness))] == 2.25
    loud = np.flatnonzero(found.peaks > 0.5 * found.peaks.max()) * 5 / PEAKS
    assert loud.min() == pytest.approx(3.0, abs=0.1) and loud.max() == pytest.approx(3.5, abs=0.1)
    assert found.peaks.shape == (PEAKS,) and found.peaks.min() >= 0 and found.peaks.max() <= 1


@pytest.mark.parametrize(
    ("case", "pictures", "sound"), [("picture_only", True, False), ("sound_only_mp3", False, True)]
)
def test_a_missing_stream_leaves_its_part_empty(tmp_path: Path, case: str, pictures: bool, sound: bool) -> None:
    found = preview(probe(synth.CASES_BY_NAME[case].make(tmp_path)), decode)
    assert bool(found.thumbnails) == pictures and bool(len(found.peaks)) == sound


def test_a_long_file_has_no_more_pictures(tmp_path: Path) -> None:
    """As if the five seconds were two hours: rows are spread over the duration that is known."""
    media = replace(probe(synth.good(tmp_path / "x.mp4")), duration=7200.0)
    assert len(preview(media, decode).thumbnails) <= THUMBNAILS
    assert len(preview(replace(media, duration=0.0), decode).thumbnails) <= THUMBNAILS


def test_no_picture_is_large() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 170, 3), dtype=np.uint8)
    data = jpeg(noise)
    assert data[:2] in (b"\xff\xd8", b"") and len(data) <= JPEG_BYTES
    assert jpeg(noise, limit=100) == b""
    assert len(jpeg(np.zeros((96, 171, 3), np.uint8))) < 2000


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    media = probe(synth.good(tmp_path / "x.mp4"))
    (tmp_path / "x.mp4").unlink()
    with pytest.raises(InputError):
        preview(media, decode)
