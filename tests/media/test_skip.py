"""Leaving pictures out changes nothing: on models of decoders, on synthetic files, and on real clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avtool.media.decoding as decoding
import avtool.media.tracks as tracks
from avtool.media.decoding import decode
from avtool.media.request import DecodeReport, DecodeRequest, Picture, PictureSpec
from avtool.media.skip import Drain, Feed, Planner, SkipFailed, Step, rows_between
from avtool.timegrid import Grid
from tests.synth import Audio, Video, write

GRIDS = [Grid(), Grid(Fraction(1), Fraction(1)), Grid(Fraction(1, 5), Fraction(1, 5)), Grid(Fraction(2), Fraction(2))]


# ---------------------------------------------------------------- a model of a decoder


@dataclass(frozen=True)
class Model:
    """A packet of a made-up codec: which pictures it refers to, and whether others refer to it."""

    pts: int
    refers: tuple[int, ...]
    is_keyframe: bool
    referred: bool
    size: int = 100
    is_discard: bool = False


@st.composite
def streams(draw: st.DrawFn) -> list[Model]:
    """Packets in decoding order: groups, closed or open, of pictures with up to two that refer both ways between."""
    packets: list[Model] = []
    shown, anchor = 0, None
    for _ in range(draw(st.integers(1, 6))):
        leading = draw(st.integers(0, 2)) if anchor is not None else 0
        key = shown + leading
        packets.append(Model(key, (), True, True))
        packets += [Model(shown + i, (anchor, key), False, False) for i in range(leading) if anchor is not None]
        shown, anchor = key + 1, key
        for _ in range(draw(st.integers(0, 4))):
            between = draw(st.integers(0, 2))
            last = shown + between
            packets.append(Model(last, (anchor,), False, True))
            packets += [Model(shown + i, (anchor, last), False, False) for i in range(between)]
            shown, anchor = last + 1, last
    return packets


def simulate(steps: Iterator[Step]) -> tuple[set[int], int]:
    """The wanted pictures that come out right, and how many packets were decoded."""
    there: set[int] = set()
    right, decoded = set(), 0
    for step in steps:
        if isinstance(step, Drain):
            there = set()
            continue
        packet: Any = step.packet
        if not step.wanted and not packet.referred:
            continue  # the NONREF rule
        decoded += 1
        if all(ref in there for ref in packet.refers):
            there.add(packet.pts)
            if step.wanted:
                right.add(packet.pts)
    return right, decoded


def plan(packets: list[Model], wanted: Any, regular: Any = lambda before, pts: True) -> Iterator[Step]:
    planner = Planner(wanted, regular)
    for packet in packets:
        yield from planner.push(packet)  # type: ignore[arg-type]
    yield from planner.finish()


@settings(max_examples=300, deadline=None)
@given(streams(), st.data())
def test_every_wanted_picture_comes_out_right(packets: list[Model], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from([p.pts for p in packets])))
    right, _ = simulate(plan(packets, lambda pts, _: pts in chosen))
    assert chosen <= right


@settings(max_examples=100, deadline=None)
@given(streams())
def test_nothing_is_decoded_for_nothing(packets: list[Model]) -> None:
    assert simulate(plan(packets, lambda pts, _: False)) == (set(), 0)


def group(key: int, size: int) -> list[Model]:
    return [Model(key, (), True, True), *(Model(key + i, (key + i - 1,), False, True) for i in range(1, size))]


def test_a_group_is_decoded_only_to_its_last_wanted_picture() -> None:
    packets = [p for key in range(0, 100, 10) for p in group(key, 10)]
    steps = list(plan(packets, lambda pts, _: pts in (33, 78)))
    fed = [s.packet.pts for s in steps if isinstance(s, Feed)]
    assert fed == [30, 31, 32, 33, 70, 71, 72, 73, 74, 75, 76, 77, 78]


def test_a_group_without_end_is_decoded_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avtool.media.skip.GROUP_PACKETS", 50)
    packets = [*group(0, 10), *group(10, 500)]
    planner, held = Planner(lambda pts, _: pts == 400, lambda before, pts: True), 0
    for number, packet in enumerate(packets):
        fed = [s for s in planner.push(packet) if isinstance(s, Feed)]  # type: ignore[arg-type]
        held += 1 - len(fed)
        assert held <= 62, number
    right, decoded = simulate(plan(packets, lambda pts, _: pts == 400))
    assert 400 in right and decoded >= 400


def test_packets_that_are_never_shown_are_not_counted_as_pictures() -> None:
    packets = [replace(p, is_discard=p.pts < 5) for p in group(0, 10)]
    right, _ = simulate(plan(packets, lambda pts, _: pts in (3, 7)))
    assert right == {7}


@pytest.mark.parametrize("times", [[0, 1, 1, 2], [0, 1, 2, None], [5, 6, 3, 4]])
def test_irregular_times_end_the_plan(times: list[int | None]) -> None:
    packets = [Model(t, (), True, True) for t in times]  # type: ignore[arg-type]
    with pytest.raises(SkipFailed):
        list(plan(packets, lambda pts, _: True))


def test_doubtful_times_end_the_plan() -> None:
    with pytest.raises(SkipFailed):
        list(plan(group(0, 20), lambda pts, _: True, lambda before, pts: pts < 10))


@given(
    st.fractions(Fraction(1, 1000), Fraction(1), max_denominator=90_000),
    st.fractions(Fraction(-4000), Fraction(4000), max_denominator=1000),
    st.sampled_from(GRIDS),
    st.integers(-10_000, 10_000),
    st.integers(1, 5000),
)
def test_the_wanted_pictures_are_those_on_screen_at_a_centre(
    unit: Fraction, origin: Fraction, grid: Grid, pts: int, length: int
) -> None:
    wanted = rows_between(unit / grid.stride, (origin + grid.centre(0)) / grid.stride, 0, 100)
    start, end = pts * unit - origin, (pts + length) * unit - origin
    assert wanted(pts, pts + length) == any(start <= grid.centre(row) < end for row in range(100))


# ---------------------------------------------------------------- real decoders


def result(path: Path, grid: Grid, skip: bool) -> tuple[str, int]:
    """Checksum over all pictures, rows and times, and the number of pictures."""
    checksum, count, last = hashlib.sha256(), 0, None
    for item in decode(path, DecodeRequest(PictureSpec(), None, grid), skip=skip):
        last = item
        if isinstance(item, Picture):
            checksum.update(f"{item.row} {item.time}".encode() + item.pixels.tobytes())
            count += 1
    assert isinstance(last, DecodeReport)
    return checksum.hexdigest(), count


X265 = {"x265-params": "log-level=none:keyint=12:min-keyint=4"}
SYNTHETIC = {
    "x264_open": ("a.mp4", Video(options={"x264-params": "open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"}, gop=13)),
    "x264_open_ts": ("a.ts", Video(options={"x264-params": "open-gop=1:bframes=4"}, gop=11)),
    "x264_open_mkv": ("a.mkv", Video(options={"x264-params": "open-gop=1:bframes=2"}, gop=17)),
    "x264_closed": ("a.mp4", Video(options={"x264-params": "open-gop=0:bframes=3"}, gop=25)),
    "x264_one_group": ("a.mp4", Video(gop=10_000)),
    "x264_refresh": ("a.ts", Video(options={"x264-params": "intra-refresh=1:bframes=2"}, gop=20)),
    "x264_refresh_mp4": ("a.mp4", Video(options={"x264-params": "intra-refresh=1:bframes=0"}, gop=20)),
    "x264_interlaced": ("a.mp4", Video(options={"x264-params": "interlaced=1:bframes=2"}, gop=12)),
    "x265_open": ("a.mp4", Video("libx265", {"x265-params": X265["x265-params"] + ":open-gop=1"})),
    "x265_closed": ("a.mkv", Video("libx265", {"x265-params": X265["x265-params"] + ":open-gop=0"})),
    "mpeg2": ("a.ts", Video("mpeg2video", {"bf": "2"}, gop=9)),
    "mpeg4": ("a.mp4", Video("mpeg4", {"bf": "2"}, gop=9)),
    "mpeg4_avi": ("a.avi", Video("mpeg4", {"bf": "2"}, gop=9)),
    "vp8": ("a.mkv", Video("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}, gop=20)),
    "vp9": ("a.mkv", Video("libvpx-vp9", {"lag-in-frames": "10"}, gop=20)),
    "av1": ("a.mp4", Video("libsvtav1", {"preset": "12"}, gop=20)),
    "mjpeg": ("a.avi", Video("mjpeg", pixel_format="yuvj420p")),
    "prores": ("a.mov", Video("prores_ks", pixel_format="yuv422p10le")),
    "ffv1": ("a.mkv", Video("ffv1", {"g": "10"})),
    "variable": ("a.mp4", Video(times=[i / 25 + (0.02 if i % 5 == 0 else 0) for i in range(120)], gop=10)),
}
MAY_FAIL = {"x264_refresh", "x264_refresh_mp4"}  # key frames that are none; this is noticed


@pytest.fixture(scope="module", params=list(SYNTHETIC))
def synthetic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    file, video = SYNTHETIC[request.param]
    return request.param, write(tmp_path_factory.mktemp("skip") / file, video, Audio())


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: str(g.stride))
def test_synthetic_files(synthetic: tuple[str, Path], grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    name, path = synthetic
    failures = []
    original = decoding.Attempt.items

    def watched(self: Any) -> Iterator[Any]:
        try:
            yield from original(self)
        except SkipFailed as failed:
            failures.append(f"{name}: {failed}")
            raise

    monkeypatch.setattr(decoding.Attempt, "items", watched)
    assert result(path, grid, skip=True) == result(path, grid, skip=False)
    assert not failures or name in MAY_FAIL, failures


def test_little_is_decoded_of_a_file_with_few_wanted_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", Video(seconds=20, gop=10), Audio(seconds=20))
    fed = []
    original = tracks.Decoder.decode
    monkeypatch.setattr(tracks.Decoder, "decode", lambda self, p: (fed.append(p), original(self, p))[1])
    _, count = result(path, Grid(Fraction(5), Fraction(5)), skip=True)
    assert count == 4 and len(fed) < 70  # of 500


@pytest.mark.parametrize("folder", ["corpus/clips", "clips/avepm"])
def test_real_clips(shared: Path, folder: str) -> None:
    """Bit-identical on the default grid; every tenth clip of the larger set."""
    files = sorted((shared / folder).glob("*.mp4"))
    assert files
    for path in files if len(files) < 100 else files[::10]:
        assert result(path, Grid(), skip=True) == result(path, Grid(), skip=False), path
