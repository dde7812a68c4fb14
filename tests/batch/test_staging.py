"""Files behind addresses: copied, limited, named, fingerprinted, and never given to FFmpeg as an address."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec", reason="addresses are an extra: pip install 'avtool[remote]'")

from avtool.batch import jobs, night  # noqa: E402
from avtool.batch.jobs import Job  # noqa: E402
from avtool.batch.staging import Staging, Unreachable, _changed, is_url, list_urls, look_up, url_name  # noqa: E402
from avtool.errors import InputError  # noqa: E402
from avtool.settings import Settings  # noqa: E402
from avtool.timeline import from_json  # noqa: E402
from tests.batch.conftest import results  # noqa: E402
from tests.batch.test_engines import Ears  # noqa: E402


@pytest.fixture
def bucket(small_clip: bytes) -> Any:
    """A store in memory with two files."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for name in ("/bucket/a.mp4", "/bucket/deep/b.mp4"):
        system.pipe(name, small_clip)
    yield system
    system.store.clear()


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))


def job(url: str, size: int = 0) -> Job:
    return Job(Path(url_name(url)), url_name(url), 0.0, "f", {}, url, size, 10**18)


def test_names_of_addresses() -> None:
    assert url_name("s3://bucket/a/b c.mp4") == "bucket/a/b c.mp4"
    assert url_name("https://host.example/a.mp4?sig=1/2#t") == "host.example/a.mp4"
    assert url_name("s3://bucket/../../etc/a.mp4") == "bucket/etc/a.mp4"
    assert is_url("s3://b/a.mp4") and not is_url("a.mp4") and not is_url("C:/a.mp4")


def test_times_of_stores() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    assert _changed({"LastModified": when}) == int(when.timestamp()) * 10**9
    assert _changed({"mtime": 12.5}) == 12 * 10**9
    one, two = _changed({"ETag": "abc"}), _changed({"ETag": "abd"})
    assert one != two and one == _changed({"ETag": "abc"}) and one % 10**9 == 0


def test_a_copy_lives_as_long_as_its_job(bucket: Any, small_clip: bytes, tmp_path: Path) -> None:
    staging, one = Staging(10**9), job("memory://bucket/a.mp4")
    staging.begin(one)
    with staging.file_of(one) as path:
        assert path.read_bytes() == small_clip and path.suffix == ".mp4"
        assert path.stat().st_mtime_ns == 10**18
    assert not list((tmp_path / "scratch").rglob("*.mp4"))
    staging.begin(one)
    staging.drop(one)
    assert not list((tmp_path / "scratch").rglob("*.mp4"))


def test_what_is_too_large_or_not_there(bucket: Any, tmp_path: Path) -> None:
    staging = Staging(1000)
    for size in (2000, 0):  # the second says nothing about its size beforehand
        with (
            pytest.raises(InputError, match="too large") as caught,
            staging.file_of(job("memory://bucket/a.mp4", size)),
        ):
            pass
        assert not isinstance(caught.value, Unreachable)
    with pytest.raises(Unreachable), staging.file_of(job("memory://bucket/none.mp4")):
        pass
    with pytest.raises(Unreachable):
        look_up("memory://bucket/none.mp4")
    assert not list((tmp_path / "scratch").rglob("*.mp4"))


def test_folders_of_a_store(bucket: Any) -> None:
    assert list_urls("memory://bucket") == ["memory:///bucket/a.mp4", "memory:///bucket/deep/b.mp4"]
    assert list_urls("memory://bucket/a.mp4") == ["memory://bucket/a.mp4"]


def test_a_run_over_addresses(small_clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are processes, so the store is one that they can reach too."""
    monkeypatch.setattr(jobs, "WORKER", "tests.batch.workers:Fake")
    monkeypatch.setattr("avtool.batch.plan.DecodeChild.probe", lambda *a, **k: pytest.fail("probed in the plan"))
    store = tmp_path / "store"
    (store / "deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.mp4"):
        (store / name).write_bytes(small_clip)
    names, out = [f"local://{store}", f"local://{store}/none.mp4"], tmp_path / "out"

    def go() -> night.Closed:
        return night.run(night.Night(names, out, ("srt",), workers=1, threads=1), Settings(), Ears())

    closed = go()
    assert dict(closed.tally.states) == {"done": 2, "failed": 1}
    assert dict(closed.tally.kinds) == {"unreachable": 1}
    (found,) = [data for name, data in results(out).items() if name.endswith("b.events.json")]
    path = from_json(found).media.path
    assert path.endswith("/store/deep/b.mp4") and "://" in path
    again = go()
    assert dict(again.tally.states) == {"skipped": 2, "failed": 1}
    assert not [p for p in (tmp_path / "scratch").rglob("*") if p.is_file()]
