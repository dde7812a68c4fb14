"""Every construction of `tests.synth` gets the verdict it deserves, in this process and through the child."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from avtool.errors import InputError
from avtool.media.child import DecodeChild
from avtool.media.decoding import decode
from avtool.media.probe import probe
from avtool.media.request import DecodeReport, DecodeRequest, Item, Picture, PictureSpec, Sound
from tests.synth import CASES, CASES_BY_NAME, Case

RATE = 16_000
ROW = RATE // 2  # samples of one row
BRIGHT, LOUD = 150, 0.01  # mean grey level and power that only the flash and the tone reach


@pytest.fixture(scope="module")
def child() -> Iterator[DecodeChild]:
    with DecodeChild() as child:
        yield child


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a case -> its file, filled as the cases come up."""
    return {}


@dataclass(frozen=True)
class Outcome:
    """What came of one file."""

    report: DecodeReport | None  # None: refused
    error: str
    flash: int | None  # row of the brightest picture, if it is bright
    tone: int | None  # row of the loudest sound, if it is loud
    checksum: str

    @property
    def verdict(self) -> str:
        if self.report is None:
            return "error"
        lost, until = self.report.lost_seconds, self.report.decoded_until
        return "partial" if lost > 1 and lost > 0.02 * (until + lost) else "ok"

    @property
    def notices(self) -> set[str]:
        return {n.code for n in self.report.notices} if self.report else set()


def outcome(items: Iterable[Item]) -> Outcome:
    """Runs a decoder to its end; also checks the order of everything that comes out."""
    rows: list[tuple[int, float]] = []
    power: list[float] = []
    rest = np.zeros(0, np.float32)
    report, position = None, 0
    seen, heard = hashlib.sha256(), hashlib.sha256()  # how the two interleave may differ
    try:
        for item in items:
            assert report is None, "something came after the report"
            if isinstance(item, Picture):
                assert not rows or item.row > rows[-1][0]
                assert item.pixels.dtype == np.uint8 and not item.pixels.flags.writeable
                rows.append((item.row, float(item.pixels[item.pixels.shape[0] // 2 :].mean())))
                seen.update(f"{item.row} {item.time} {item.pixels.shape}".encode() + item.pixels.tobytes())
            elif isinstance(item, Sound):
                assert item.start == position and 0 < len(item.samples) <= RATE
                assert item.samples.dtype == np.float32 and np.isfinite(item.samples).all()
                position += len(item.samples)
                heard.update(item.samples.tobytes())
                rest = np.concatenate([rest, item.samples])
                while len(rest) >= ROW:
                    power.append(float((rest[:ROW] ** 2).mean()))
                    rest = rest[ROW:]
            else:
                report = item
    except InputError as error:
        assert error.what and error.why, "an error says what and why"
        return Outcome(None, f"{error.what} | {error.why}", None, None, seen.hexdigest() + heard.hexdigest())
    flash = max(rows, key=lambda r: r[1], default=(0, 0.0))
    loudest = int(np.argmax(power)) if power else 0
    checksum = seen.hexdigest() + heard.hexdigest()
    tone = loudest if power and power[loudest] > LOUD else None
    return Outcome(report, "", flash[0] if flash[1] > BRIGHT else None, tone, checksum)


def request(case: Case) -> DecodeRequest:
    return DecodeRequest(PictureSpec(), RATE, audio_track=case.audio_track)


def file(case: Case, made: dict[str, Path], factory: pytest.TempPathFactory) -> Path:
    if case.name not in made:
        made[case.name] = case.make(factory.mktemp("case"))
    return made[case.name]


@pytest.mark.parametrize("name", list(CASES_BY_NAME))
def test_verdict_notices_and_places(name: str, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    case = CASES_BY_NAME[name]
    path = file(case, made, tmp_path_factory)
    got = outcome(decode(path, request(case)))
    assert got.verdict == case.verdict, (got.error, got.report)
    assert case.notices <= got.notices <= case.notices | case.may
    if case.flash is not None:
        assert got.flash == int(2 * case.flash)
    if case.tone is not None:
        assert got.tone == int(2 * case.tone)
    if case.seconds is not None and got.report is not None:
        assert got.report.decoded_until == pytest.approx(case.seconds, abs=0.5)
    if got.report is not None:
        media = got.report.media
        assert media.duration == media.analysed_until == got.report.decoded_until
        assert media.has_video == ("no_video_stream" not in got.notices)
        assert media.has_audio == ("no_audio_stream" not in got.notices)
    whole = outcome(decode(path, request(case), skip=False))
    assert whole.checksum == got.checksum, "leaving pictures out changed something"
    assert whole.verdict == got.verdict


@pytest.mark.parametrize("name", list(CASES_BY_NAME))
def test_probe(name: str, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    case = CASES_BY_NAME[name]
    path = file(case, made, tmp_path_factory)
    if (case.probed or case.verdict) == "error":
        with pytest.raises(InputError) as refusal:
            probe(path, audio_track=case.audio_track)
        assert refusal.value.what and refusal.value.why
    else:
        info = probe(path, audio_track=case.audio_track)
        assert info.has_video == ("no_video_stream" not in case.notices)
        assert info.has_audio == ("no_audio_stream" not in case.notices)
        assert info.duration >= 0 and info.bytes == path.stat().st_size


@pytest.mark.parametrize("name", list(CASES_BY_NAME))
def test_the_child_says_the_same(
    name: str, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, child: DecodeChild
) -> None:
    case = CASES_BY_NAME[name]
    path = file(case, made, tmp_path_factory)
    here, there = outcome(decode(path, request(case))), outcome(child.decode(path, request(case)))
    assert there == here
    try:
        expected = probe(path, audio_track=case.audio_track)
    except InputError as error:
        with pytest.raises(InputError) as refusal:
            child.probe(path, audio_track=case.audio_track)
        assert (refusal.value.what, refusal.value.why) == (error.what, error.why)
    else:
        assert child.probe(path, audio_track=case.audio_track) == expected


def test_the_table_is_large_and_checks_places() -> None:
    assert len(CASES) >= 60
    assert sum(case.verdict == "error" for case in CASES) >= 40
    assert sum(case.flash is not None and case.tone is not None for case in CASES) >= 60
