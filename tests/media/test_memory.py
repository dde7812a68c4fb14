"""Memory does not grow with the length of a file, nor with the number of files."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.synth import long_film

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

DECODE = """
    import resource, sys
    from avtool.media.decoding import decode
    from avtool.media.request import DecodeRequest, PictureSpec
    for path in sys.argv[1:]:
        for item in decode(path, DecodeRequest(PictureSpec(), 32_000)):
            pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
GROWTH = 16 << 20  # bytes


def peaks(*paths: Path, repo: Path) -> list[int]:
    """Peak memory of a fresh process after each file, bytes."""
    env = {**os.environ, "PYTHONPATH": str(repo)}
    command = [sys.executable, "-c", textwrap.dedent(DECODE), *map(str, paths)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
def test_memory_is_flat_over_the_length(tmp_path: Path, repo: Path, extension: str) -> None:
    short = long_film(tmp_path / f"short.{extension}", 60, 96, 64)
    long = long_film(tmp_path / f"long.{extension}", 900, 96, 64)
    first, last = peaks(short, long, repo=repo)
    assert last - first < GROWTH


def test_memory_is_flat_over_many_files(tmp_path: Path, repo: Path) -> None:
    film = long_film(tmp_path / "a.mp4", 10, 96, 64)
    measured = peaks(*[film] * 40, repo=repo)
    assert measured[-1] - measured[10] < GROWTH
