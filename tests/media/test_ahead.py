"""Decoding ahead gives what decoding gives, holds a bounded number of bytes, and ends when it is given up."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avtool.errors import InputError
from avtool.media.ahead import Ahead, Decoders
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

    one = Ahead(path, Limits(), None, request, **options)
    one.start(child)
    return one


def is_alive(one: Ahead) -> bool:
    return one._thread is not None and one._thread.is_alive()


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
    assert one._items == one._items.__class__() and not is_alive(one)
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
    assert not is_alive(one)
    assert list(ahead(child, clip).items())


def test_one_decoder_does_one_file_after_another(clip: Path, tmp_path: Path) -> None:
    names = [tmp_path / f"{k}.mp4" for k in range(4)]
    for name in names:
        shutil.copy(clip, name)
    decoders = Decoders()
    decoders.prepare(processors=1)
    for name in names:
        decoders.begin(name, Limits(), None, lambda media: REQUEST)
    decoders.give_up(names[2])  # it has not begun
    while decoders._waiting:
        time.sleep(0.01)
    made = {name: decoders.take(name) for name in (names[3], names[1], names[0])}
    for name, one in made.items():
        assert one is not None and one.media().path == str(name)
        assert len(list(one.items())) > 1
        decoders.give_back(one)
    assert len(decoders._children) == 1
    decoders.close()


def test_a_file_that_is_given_up_lets_the_next_one_begin(clip: Path, tmp_path: Path) -> None:
    decoders = Decoders()
    decoders.prepare(processors=1)
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, tmp_path / name)
    process = decoders._children[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    for name in ("a.mp4", "b.mp4"):
        decoders.begin(tmp_path / name, Limits(), None, lambda media: REQUEST)
    time.sleep(0.2)
    first, second = (decoders._ahead[tmp_path / name] for name in ("a.mp4", "b.mp4"))
    assert is_alive(first) and not is_alive(second)
    decoders.give_up(tmp_path / "a.mp4")
    assert not is_alive(first) and is_alive(second)
    assert decoders.take(tmp_path / "b.mp4") is second and len(list(second.items())) > 1
    assert len(decoders._children) == 1
    decoders.close()


def test_who_is_asked_for_waits_for_no_other(clip: Path, tmp_path: Path) -> None:
    """A worker that takes files in another order than they were begun must not wait for ever."""
    decoders = Decoders()
    decoders.prepare(processors=1)
    process = decoders._children[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, tmp_path / name)
        decoders.begin(tmp_path / name, Limits(), None, lambda media: REQUEST)
    second = decoders.take(tmp_path / "b.mp4")
    assert second is not None and len(list(second.items())) > 1
    decoders.give_back(second)
    decoders.close()
