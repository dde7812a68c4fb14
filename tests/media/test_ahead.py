"""Decoding ahead gives what decoding gives, holds a bounded number of bytes, and ends when it is given up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avtool.errors import InputError
from avtool.media.ahead import Ahead
from avtool.media.child import DecodeChild
from avtool.media.decoding import decode
from avtool.media.request import DecodeReport, DecodeRequest, Limits, Picture, PictureSpec
from avtool.timegrid import Grid
from avtool.timeline import MediaInfo
from tests import synth

REQUEST = DecodeRequest(PictureSpec(short=32), 8000, Grid(Fraction(1, 2), Fraction(1, 2)))


@pytest.fixture(scope="module")
def child() -> Iterator[DecodeChild]:
    with DecodeChild() as one:
        yield one


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth.good(tmp_path_factory.mktemp("ahead") / "a.mp4")


def ahead(child: DecodeChild, path: Path, **options: int) -> Ahead:
    def request(media: MediaInfo) -> DecodeRequest:
        return REQUEST

    return Ahead(child, path, Limits(), None, request, **options)


@pytest.mark.parametrize("queue_bytes", [1, 1 << 20])
def test_the_same_items(child: DecodeChild, clip: Path, queue_bytes: int) -> None:
    one = ahead(child, clip, queue_bytes=queue_bytes)
    assert one.media().has_audio and one.media().has_video
    found, expected = list(one.items()), list(decode(clip, REQUEST))
    assert isinstance(found[-1], DecodeReport)
    pictures = [[i for i in items if isinstance(i, Picture)] for items in (found, expected)]
    assert [(p.row, p.time) for p in pictures[0]] == [(p.row, p.time) for p in pictures[1]]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(*pictures, strict=True))


def test_it_runs_ahead_so_far_and_no_further(child: DecodeChild, clip: Path) -> None:
    limit = 40_000
    one = ahead(child, clip, queue_bytes=limit)
    deadline = time.monotonic() + 60
    while not one._items:
        assert time.monotonic() < deadline
    time.sleep(0.2)
    assert 0 < one._bytes <= limit or len(one._items) == 1
    one.give_up()
    assert one._items == one._items.__class__() and not one._thread.is_alive()
    assert list(ahead(child, clip).items())  # the child serves the next file


def test_errors_come_out_where_they_are_asked_for(child: DecodeChild, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(os.urandom(5000))
    for ask in (Ahead.media, lambda one: list(one.items())):
        with pytest.raises(InputError):
            ask(ahead(child, tmp_path / "a.mp4"))


def test_leaving_early_gives_up(child: DecodeChild, clip: Path) -> None:
    one = ahead(child, clip, queue_bytes=1)
    next(items := one.items())
    items.close()  # type: ignore[attr-defined]
    assert not one._thread.is_alive()
    assert list(ahead(child, clip).items())
