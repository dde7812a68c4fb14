"""Mutants of good files: whatever the bytes say, the outcome is items and a report, or one InputError.

AVTOOL_MUTANTS=2000 runs so many of them (default 300), AVTOOL_SEED another set.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from avtool.errors import InputError
from avtool.media.child import DecodeChild
from avtool.media.request import DecodeReport, DecodeRequest, Picture, PictureSpec, Sound
from tests.synth import Audio, Video, id3_cover, mutated, png, write

MUTANTS = int(os.environ.get("AVTOOL_MUTANTS", "300"))
SEED = int(os.environ.get("AVTOOL_SEED", "20261121"))
SECONDS = 30.0  # longest that one file may take
MEMORY = 1536 << 20  # bytes of address space beyond what the child starts with is far less
BLOCK = 100  # mutants of one test
SIGNS = ("crashed", "did nothing", "killed", "without an answer")  # words of a child that died
REQUEST = DecodeRequest(PictureSpec(short=48), 16_000)
SHORT = {"seconds": 1.5}


def seeds(folder: Path) -> Iterator[bytes]:
    """Small good files in the common containers and codecs."""
    video, audio = Video(**SHORT), Audio(**SHORT)  # type: ignore[arg-type]
    tracks = {
        "a.mp4": (video, audio),
        "b.mp4": (Video("libx265", {"x265-params": "log-level=none"}, **SHORT), audio),  # type: ignore[arg-type]
        "c.mp4": (Video("mpeg4", {"bf": "2"}, **SHORT), audio),  # type: ignore[arg-type]
        "a.mkv": (video, Audio("libopus", 48_000, **SHORT)),  # type: ignore[arg-type]
        "b.mkv": (Video("ffv1", **SHORT), Audio("flac", **SHORT)),  # type: ignore[arg-type]
        "a.webm": (Video("libvpx-vp9", **SHORT), Audio("libopus", 48_000, **SHORT)),  # type: ignore[arg-type]
        "b.webm": (Video("libvpx", **SHORT), Audio("libopus", 48_000, **SHORT)),  # type: ignore[arg-type]
        "a.avi": (Video("mpeg4", **SHORT), Audio("libmp3lame", **SHORT)),  # type: ignore[arg-type]
        "b.avi": (Video("mjpeg", pixel_format="yuvj420p", **SHORT), Audio("pcm_s16le", 8000, **SHORT)),  # type: ignore[arg-type]
        "a.ts": (video, audio),
        "a.mpg": (Video("mpeg2video", **SHORT), Audio("mp2", **SHORT)),  # type: ignore[arg-type]
        "a.flv": (video, audio),
        "a.wmv": (Video("wmv2", **SHORT), Audio("wmav2", channels=2, options={"b": "64k"}, **SHORT)),  # type: ignore[arg-type]
        "a.mov": (Video("prores_ks", pixel_format="yuv422p10le", **SHORT), Audio("pcm_s16le", 8000, **SHORT)),  # type: ignore[arg-type]
        "a.wav": (Audio("pcm_s16le", 8000, **SHORT),),  # type: ignore[arg-type]
        "a.flac": (Audio("flac", **SHORT),),  # type: ignore[arg-type]
        "a.mp3": (Audio("libmp3lame", **SHORT),),  # type: ignore[arg-type]
        "a.opus": (Audio("libopus", 48_000, **SHORT),),  # type: ignore[arg-type]
        "a.nut": (Video("mpeg4", **SHORT), Audio("pcm_s16le", 8000, **SHORT)),  # type: ignore[arg-type]
    }
    for name, parts in tracks.items():
        yield write(folder / name, *parts).read_bytes()
    fragmented = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    yield write(folder / "f.mp4", video, audio, options=fragmented).read_bytes()
    yield id3_cover(png(32, 32)) + (folder / "a.mp3").read_bytes()


def verdict(child: DecodeChild, path: Path) -> str:
    """ "ok", or why the file was refused; anything else that happens is an exception."""
    position, row, report = 0, -1, None
    try:
        info = child.probe(path)
        assert info.duration >= 0
        for item in child.decode(path, REQUEST):
            assert report is None
            if isinstance(item, Picture):
                assert item.row > row and item.pixels.shape[2] == 3
                row = item.row
            elif isinstance(item, Sound):
                assert item.start == position and np.isfinite(item.samples).all()
                position += len(item.samples)
            else:
                report = item
    except InputError as error:
        return error.why or error.what
    assert isinstance(report, DecodeReport)
    assert report.decoded_until >= 0 and report.lost_seconds >= 0
    return "ok"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return list(seeds(tmp_path_factory.mktemp("seeds")))


@pytest.mark.parametrize("block", range(-(-MUTANTS // BLOCK)))
def test_mutants(block: int, material: list[bytes], tmp_path: Path) -> None:
    generator = random.Random(f"{SEED}-{block}")
    crashes, slowest, refused = [], 0.0, 0
    with DecodeChild(stall_seconds=SECONDS, memory_bytes=MEMORY) as child:
        for number in range(BLOCK):
            path = tmp_path / f"mutant-{number}.mp4"
            path.write_bytes(mutated(generator.choice(material), generator))
            begin = time.monotonic()
            why = verdict(child, path)
            taken = time.monotonic() - begin
            slowest, refused = max(slowest, taken), refused + (why != "ok")
            if taken > SECONDS or any(sign in why for sign in SIGNS):
                crashes.append((number, why, taken))
            else:
                path.unlink()
    print(f"seed {SEED}-{block}: {BLOCK} mutants, {refused} refused, slowest {slowest:.2f} s")  # noqa: T201
    assert not crashes, f"kept in {tmp_path}: {crashes}"
    assert 0 < refused < BLOCK


@pytest.mark.parametrize("size", [0, 1, 2, 7, 16, 100, 1000])
def test_random_bytes(size: int, tmp_path: Path) -> None:
    with DecodeChild() as child:
        for seed in range(20):
            path = tmp_path / "a.mp4"
            path.write_bytes(random.Random(seed).randbytes(size))
            verdict(child, path)
